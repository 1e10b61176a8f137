//! `vhd check`: verdicts and exit codes.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Lab, MIB, stderr, stdout};

fn codes(report: &Value) -> Vec<&str> {
    let findings = report["findings"].as_array().unwrap();
    findings
        .iter()
        .map(|finding| finding["code"].as_str().unwrap())
        .collect()
}

#[test]
fn notes_alone_are_clean() {
    let lab = Lab::new();
    lab.dynamic("a.vhd", 64 * MIB);
    let report = lab.json(&["check", "a.vhd"], 0);
    assert_eq!(report["verdict"], "clean");
    assert_eq!(codes(&report), ["geometry-size"]);
    assert_eq!(report["findings"][0]["severity"], "note");
    assert!(stdout(&lab.run(&["check", "a.vhd"], 0)).ends_with("a.vhd: clean\n"));
}

#[test]
fn a_damaged_footer_is_repairable() {
    let lab = Lab::new();
    lab.dynamic("a.vhd", MIB);
    lab.damage("a.vhd", -512, &[0; 512]);
    let report = lab.json(&["check", "a.vhd"], 4);
    assert_eq!(report["verdict"], "repairable");
    assert!(codes(&report).contains(&"footer-damaged"));
    lab.dynamic("b.vhd", MIB);
    lab.damage("b.vhd", 0, b"nonsense");
    assert!(codes(&lab.json(&["check", "b.vhd"], 4)).contains(&"footer-copy-damaged"));
}

#[test]
fn corruption_is_told_with_its_place() {
    let lab = Lab::new();
    lab.dynamic("a.vhd", MIB);
    lab.damage("a.vhd", 1536, &[0, 0, 0, 1]);
    let report = lab.json(&["check", "a.vhd"], 3);
    assert_eq!(report["verdict"], "corrupt");
    assert!(codes(&report).contains(&"block-in-metadata"));
    lab.run(&["hash", "a.vhd"], 3);
}

#[test]
fn a_file_that_is_no_vhd_is_not_called_corrupt() {
    let lab = Lab::new();
    std::fs::write(lab.path("text.vhd"), b"some words\n".repeat(100)).unwrap();
    std::fs::write(lab.path("empty.vhd"), b"").unwrap();
    std::fs::write(lab.path("cut.vhd"), vec![7; 8192]).unwrap();
    for (image, code) in [
        ("other.raw", "VHD-E0134"),
        ("text.vhd", "VHD-E0130"),
        ("empty.vhd", "VHD-E0132"),
    ] {
        assert_eq!(lab.json(&["check", image], 8)["error"]["code"], code, "{image}");
    }
    // What is named like a VHD and could be one that lost its end is.
    assert_eq!(codes(&lab.json(&["check", "cut.vhd"], 3)), ["footer-missing"]);
}

#[test]
fn a_check_that_can_not_run_is_no_verdict() {
    let lab = Lab::new();
    let report = lab.json(&["check", "none.vhd"], 1);
    assert_eq!(report["error"]["kind"], "not-found");
    assert!(stderr(&lab.run(&["check", "none.vhd"], 1)).contains("none.vhd does not exist"));
}

#[test]
fn ancestors_are_checked_too() {
    let lab = Lab::new();
    lab.chain();
    let report = lab.json(&["check", "leaf.avhd"], 0);
    let files = report["files"].as_array().unwrap();
    assert_eq!((files.len(), &files[1]["path"]), (2, &json!("parent.vhd")));
    lab.damage("parent.vhd", -512, &[0; 512]);
    let report = lab.json(&["check", "leaf.avhd"], 4);
    let found = report["findings"].as_array().unwrap().iter();
    assert!(
        found
            .into_iter()
            .any(|f| f["path"] == "parent.vhd" && f["code"] == "footer-damaged")
    );
}

#[test]
fn nothing_is_changed() {
    let lab = Lab::new();
    lab.dynamic("a.vhd", MIB);
    lab.damage("a.vhd", -512, &[0; 512]);
    let before = fs::read(lab.path("a.vhd")).unwrap();
    lab.run(&["check", "a.vhd"], 4);
    lab.run(&["hash", "a.vhd"], 0);
    assert_eq!(fs::read(lab.path("a.vhd")).unwrap(), before);
}
