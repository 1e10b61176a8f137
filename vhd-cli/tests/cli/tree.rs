//! `vhd tree`: the drawing, the object, the exit codes.

use std::fs;

use crate::support::{Lab, MIB, stderr, stdout};

#[test]
fn a_sound_forest() {
    let lab = Lab::new();
    lab.chain();
    lab.run(&["create", "other.avhd", "--parent", "parent.vhd"], 0);
    lab.run(&["create", "deep.avhd", "--parent", "leaf.avhd"], 0);
    let drawing = stdout(&lab.run(&["tree", "."], 0));
    let starts: Vec<&str> = drawing.lines().map(|line| line.split("  ").next().unwrap()).collect();
    assert_eq!(starts[0], "parent.vhd");
    assert!(drawing.contains("\n|-- leaf.avhd  "), "{drawing}");
    assert!(drawing.contains("\n|   `-- deep.avhd  "), "{drawing}");
    assert!(drawing.contains("\n`-- other.avhd  "), "{drawing}");
    assert!(drawing.ends_with("\n4 images in 1 tree\n"), "{drawing}");
    let report = lab.json(&["tree", "."], 0);
    assert_eq!(report["summary"]["trees"], 1);
    let leaf = file(&report, "leaf.avhd");
    assert_eq!(leaf["parent"]["path"], "parent.vhd");
    assert_eq!(leaf["parent"]["state"], "found");
    assert_eq!(leaf["children"][0], "deep.avhd");
    assert_eq!(leaf["allocated_bytes"], 2 * MIB);
}

fn file<'a>(report: &'a serde_json::Value, path: &str) -> &'a serde_json::Value {
    let files = report["files"].as_array().unwrap();
    let found = files.iter().find(|file| file["path"] == path);
    found.unwrap_or_else(|| panic!("{path} in {report}"))
}

#[test]
fn orphans_broken_links_and_copies() {
    let lab = Lab::new();
    lab.chain();
    fs::create_dir(lab.path("away")).unwrap();
    fs::rename(lab.path("parent.vhd"), lab.path("away/parent.vhd")).unwrap();
    let drawing = stdout(&lab.run(&["tree", "."], 6));
    assert!(
        drawing.contains("the paths stored here do not lead there") && drawing.contains("away/parent.vhd"),
        "{drawing}"
    );
    let report = lab.json(&["tree", "."], 6);
    assert_eq!(file(&report, "leaf.avhd")["parent"]["state"], "broken-link");

    fs::copy(lab.path("away/parent.vhd"), lab.path("parent.vhd")).unwrap();
    let report = lab.json(&["tree", "."], 0);
    assert_eq!(file(&report, "leaf.avhd")["parent"]["path"], "parent.vhd");
    assert_eq!(file(&report, "parent.vhd")["copies"][0], "away/parent.vhd");
    assert_eq!(report["summary"]["copies"], 2);

    fs::remove_dir_all(lab.path("away")).unwrap();
    fs::remove_file(lab.path("parent.vhd")).unwrap();
    let report = lab.json(&["tree", "."], 6);
    assert_eq!(file(&report, "leaf.avhd")["parent"]["state"], "orphan");
    assert!(stdout(&lab.run(&["tree", "."], 6)).contains("is missing; tried:"));
}

#[test]
fn damaged_files_and_directories_that_are_none() {
    let lab = Lab::new();
    lab.chain();
    lab.damage("parent.vhd", 512, b"nonsense");
    let drawing = stdout(&lab.run(&["tree", "."], 3));
    assert!(drawing.contains("! VHD-E0107: "), "{drawing}");
    let report = lab.json(&["tree", "."], 3);
    assert_eq!(file(&report, "parent.vhd")["damage"]["kind"], "header-missing");
    assert_eq!(file(&report, "leaf.avhd")["parent"]["path"], "parent.vhd");
    assert!(stderr(&lab.run(&["tree", "none"], 1)).contains("cannot read none"));
    fs::create_dir(lab.path("empty")).unwrap();
    assert_eq!(stdout(&lab.run(&["tree", "empty"], 0)), "0 images in 0 trees\n");
}

#[test]
fn images_may_not_draw_on_the_terminal() {
    let lab = Lab::new();
    lab.dynamic("a\u{1b}[2J.vhd", 4 * MIB);
    assert!(!stdout(&lab.run(&["tree", "."], 0)).contains('\u{1b}'));
}
