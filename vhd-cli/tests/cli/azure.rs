//! `vhd azure`: reports, exit codes, refusals, sudden death.

use std::fs;
use std::time::Duration;

use crate::kill::killed;
use crate::support::{Lab, MIB, stderr, stdout};

#[test]
fn prepared_images_pass_the_check() {
    let lab = Lab::new();
    lab.dynamic("a.vhd", 21 * MIB + 512);
    lab.write("a.vhd", 20 * MIB, &[7; 4096]);
    lab.run(&["azure", "check", "a.vhd"], 3);
    let text = stdout(&lab.run(&["azure", "prepare", "a.vhd", "up.vhd"], 0));
    assert!(text.starts_with("Prepared up.vhd: fixed, 23068672 bytes"), "{text}");
    lab.run(&["compare", "a.vhd", "up.vhd"], 0);
    lab.run(&["check", "up.vhd"], 0);
    let text = stdout(&lab.run(&["azure", "check", "up.vhd"], 0));
    assert!(text.ends_with("up.vhd: ready for Azure\n"), "{text}");
    let taken = stderr(&lab.run(&["azure", "prepare", "a.vhd", "up.vhd"], 8));
    assert!(taken.starts_with("vhd: error[VHD-E0305]: "), "{taken}");
    let again = lab.run(&["azure", "prepare", "a.vhd", "up.vhd", "--force", "--json"], 0);
    let report: serde_json::Value = serde_json::from_slice(&again.get_output().stdout).unwrap();
    assert_eq!(report["command"], "azure prepare");
    assert_eq!(report["added_bytes"], MIB - 512);
    let same = stderr(&lab.run(&["azure", "prepare", "up.vhd", "up.vhd", "--force"], 8));
    assert!(same.starts_with("vhd: error[VHD-E0501]: "), "{same}");
}

#[test]
fn broken_rules_have_codes() {
    let lab = Lab::new();
    lab.fixed("small.vhd", 3 * MIB + 512);
    let ran = lab.run(&["azure", "check", "small.vhd", "--json"], 3);
    let report: serde_json::Value = serde_json::from_slice(&ran.get_output().stdout).unwrap();
    let rules = report["rules"].as_array().unwrap();
    let failed = rules.iter().filter(|rule| rule["verdict"] == "fail");
    let failed: Vec<&str> = failed.map(|rule| rule["code"].as_str().unwrap()).collect();
    assert_eq!(failed, ["size-mib", "size-minimum"]);
    assert_eq!(report["ready"], false);
    lab.run(&["azure", "check", "none.vhd"], 1);
    lab.run(&["azure", "check", "other.raw"], 3);
    assert!(stdout(&lab.run(&["azure", "--help"], 0)).contains("prepare"));
}

#[test]
fn missing_parents_are_refused() {
    let lab = Lab::new();
    lab.chain();
    lab.run(&["azure", "check", "leaf.avhd"], 3);
    lab.run(&["azure", "prepare", "leaf.avhd", "up.vhd"], 0);
    fs::remove_file(lab.path("up.vhd")).unwrap();
    fs::remove_file(lab.path("parent.vhd")).unwrap();
    lab.run(&["azure", "check", "leaf.avhd"], 6);
    lab.run(&["azure", "prepare", "leaf.avhd", "up.vhd"], 6);
    assert!(!lab.exists("up.vhd"));
}

#[test]
fn killed_preparations_leave_all_or_nothing() {
    let lab = Lab::new();
    fs::write(lab.path("a.raw"), vec![0x5A; 32 << 20]).unwrap();
    let mut before_the_end = 0;
    for part in 0..10 {
        let args = ["azure", "prepare", "a.raw", "up.vhd"];
        if !killed(&lab, &args, Duration::from_millis(part * 6)) {
            before_the_end += 1;
        }
        if lab.exists("up.vhd") {
            lab.run(&["azure", "check", "up.vhd"], 0);
            lab.run(&["compare", "a.raw", "up.vhd"], 0);
            fs::remove_file(lab.path("up.vhd")).unwrap();
        }
    }
    assert!(before_the_end > 0, "no preparation was killed: the test tested nothing");
}
