//! `vhd export-delta` and `vhd import-delta`: files, streams, refusals, sudden death.

use std::fs;
use std::time::Duration;

use crate::kill::killed;
use crate::support::{Lab, MIB, stderr, stdout};

#[test]
fn a_delta_goes_there_and_back() {
    let lab = Lab::new();
    lab.chain();
    let hash = stdout(&lab.run(&["hash", "leaf.avhd"], 0));
    let report = lab.json(&["export-delta", "leaf.avhd", "--since", "parent.vhd", "d.avhd"], 0);
    assert_eq!(report["different_bytes"], 512);
    assert_eq!(report["image_sha256"], hash[..64]);
    assert_eq!(report["file_size"], lab.len("d.avhd"));
    lab.run(&["compare", "leaf.avhd", "d.avhd"], 0);
    lab.run(&["check", "d.avhd"], 0);
    for to in ["dynamic", "fixed", "raw"] {
        let args = [
            "import-delta",
            "d.avhd",
            "--onto",
            "parent.vhd",
            "out",
            "--to",
            to,
            "--force",
        ];
        let report = lab.json(&args, 0);
        assert_eq!(report["sha256"], hash[..64]);
        lab.run(&["compare", "leaf.avhd", "out"], 0);
    }
    let taken = stderr(&lab.run(&["import-delta", "d.avhd", "--onto", "parent.vhd", "out"], 8));
    assert!(taken.starts_with("vhd: error[VHD-E0305]: "), "{taken}");
    let same = stderr(&lab.run(
        &[
            "export-delta",
            "leaf.avhd",
            "--since",
            "parent.vhd",
            "parent.vhd",
            "--force",
        ],
        8,
    ));
    assert!(same.starts_with("vhd: error[VHD-E0501]: "), "{same}");
}

#[test]
fn a_stream_is_the_same_delta() {
    let lab = Lab::new();
    lab.chain();
    let ran = lab.run(
        &["export-delta", "leaf.avhd", "--since", "parent.vhd", "-", "--json"],
        0,
    );
    let report: serde_json::Value = serde_json::from_str(&stderr(&ran)).unwrap();
    assert_eq!(report["command"], "export-delta");
    fs::write(lab.path("d.avhd"), &ran.get_output().stdout).unwrap();
    lab.run(&["check", "d.avhd"], 0);
    lab.run(&["compare", "leaf.avhd", "d.avhd"], 0);
    lab.run(&["import-delta", "d.avhd", "--onto", "parent.vhd", "out.vhd"], 0);
    lab.run(
        &["export-delta", "leaf.avhd", "--since", "parent.vhd", "-", "--force"],
        2,
    );
    lab.run(&["export-delta", "leaf.avhd", "--since", "-", "d2.avhd"], 2);
}

#[test]
fn what_does_not_fit_is_refused() {
    let lab = Lab::new();
    lab.chain();
    lab.run(&["export-delta", "leaf.avhd", "--since", "parent.vhd", "d.avhd"], 0);
    let missing = stderr(&lab.run(&["import-delta", "leaf.avhd", "--onto", "parent.vhd", "out"], 8));
    assert!(missing.starts_with("vhd: error[VHD-E0120]: "), "{missing}");
    let size = stderr(&lab.run(&["export-delta", "leaf.avhd", "--since", "other.raw", "e.avhd"], 8));
    assert!(size.starts_with("vhd: error[VHD-E0205]: "), "{size}");
    lab.write("parent.vhd", 0, &[7; 512]);
    let changed = lab.json(&["import-delta", "d.avhd", "--onto", "parent.vhd", "out"], 8);
    assert_eq!(changed["error"]["kind"], "digest-mismatch");
    fs::remove_file(lab.path("parent.vhd")).unwrap();
    lab.run(&["export-delta", "leaf.avhd", "--since", "other.raw", "e.avhd"], 6);
    lab.run(&["export-delta", "other.raw", "--since", "leaf.avhd", "e.avhd"], 6);
    lab.run(&["import-delta", "d.avhd", "--onto", "leaf.avhd", "out"], 6);
    lab.run(&["import-delta", "d.avhd", "--onto", "other.raw", "out"], 6);
    assert!(!lab.exists("out") && !lab.exists("e.avhd"));
}

#[test]
fn killed_exports_and_imports_leave_all_or_nothing() {
    let lab = Lab::new();
    lab.dynamic("parent.vhd", 32 * MIB);
    lab.run(&["create", "leaf.avhd", "--parent", "parent.vhd"], 0);
    lab.write("leaf.avhd", 0, &vec![5; 24 << 20]);
    lab.run(&["export-delta", "leaf.avhd", "--since", "parent.vhd", "d.avhd"], 0);
    let jobs = [
        ["export-delta", "leaf.avhd", "--since", "parent.vhd", "out"],
        ["import-delta", "d.avhd", "--onto", "parent.vhd", "out"],
    ];
    let mut before_the_end = 0;
    for args in jobs {
        for part in 0..10 {
            if !killed(&lab, &args, Duration::from_millis(part * 25)) {
                before_the_end += 1;
            }
            if lab.exists("out") {
                lab.run(&["compare", "leaf.avhd", "out"], 0);
                fs::remove_file(lab.path("out")).unwrap();
            }
        }
    }
    assert!(before_the_end > 0, "nothing was killed: the test tested nothing");
}
