//! Parents that are missing, wrong, elsewhere, or their own ancestors: no command may take that lightly.

use std::fs;
use std::time::{Duration, SystemTime};

use vhd_core::format::{FOOTER_SIZE, Footer, Timestamp, UniqueId};
use vhd_core::image::{ParentLink, create_differencing};
use vhd_core::storage::MemoryFile;

use crate::support::{Lab, MIB, reading_commands, stderr, stdout};

fn refused_by_all(lab: &Lab, image: &str, code: &str, exit: i32, finding: &str) {
    for command in reading_commands(image) {
        let args: Vec<&str> = command.iter().map(String::as_str).collect();
        let ran = lab.run(&args, exit);
        if args[0] == "check" {
            assert!(stdout(&ran).contains(finding), "{args:?}: {}", stdout(&ran));
        } else {
            assert!(stderr(&ran).starts_with(&format!("vhd: error[{code}]: ")), "{args:?}");
        }
        if args.get(2) == Some(&"-") {
            assert!(stdout(&ran).is_empty());
        }
    }
    assert!(!lab.exists("out.img") && !lab.exists("child.avhd"));
}

#[test]
fn a_missing_parent_is_refused_by_every_command() {
    let lab = Lab::new();
    lab.chain();
    fs::remove_file(lab.path("parent.vhd")).unwrap();
    refused_by_all(&lab, "leaf.avhd", "VHD-E0201", 6, "parent-missing");
    let info = lab.run(&["info", "leaf.avhd"], 6);
    assert!(stdout(&info).contains("differencing") && stderr(&info).contains("parent.vhd"));
    let json = lab.json(&["info", "leaf.avhd"], 6);
    assert_eq!(json["layers"][0]["type"], "differencing");
    assert_eq!(json["error"]["code"], "VHD-E0201");
    let json = lab.json(&["check", "leaf.avhd"], 6);
    assert_eq!(json["verdict"], "parent");
    let text = stdout(&lab.run(&["check", "leaf.avhd"], 6));
    assert!(text.contains("BROKEN CHAIN") && !text.contains("CORRUPT"), "{text}");
    // What is corrupt as well is the worse finding.
    lab.damage("leaf.avhd", 512 + 36, &[1]);
    assert_eq!(lab.json(&["check", "leaf.avhd"], 3)["verdict"], "corrupt");
}

#[test]
fn a_missing_grandparent_is_refused_by_every_command() {
    let lab = Lab::new();
    lab.chain();
    lab.run(&["create", "top.avhd", "--parent", "leaf.avhd"], 0);
    fs::remove_file(lab.path("parent.vhd")).unwrap();
    refused_by_all(&lab, "top.avhd", "VHD-E0201", 6, "parent-missing");
}

#[test]
fn another_disk_in_the_parents_place_is_refused_by_every_command() {
    let lab = Lab::new();
    lab.chain();
    fs::remove_file(lab.path("parent.vhd")).unwrap();
    lab.dynamic("parent.vhd", 8 * MIB);
    refused_by_all(&lab, "leaf.avhd", "VHD-E0202", 6, "parent-mismatch");
    lab.run(&["hash", "leaf.avhd", "--parent", "other.raw"], 6);
}

#[test]
fn a_damaged_parent_is_refused_by_every_command() {
    let lab = Lab::new();
    lab.chain();
    lab.damage("parent.vhd", 512, b"nonsense");
    refused_by_all(&lab, "leaf.avhd", "VHD-E0107", 3, "header-missing");
}

#[test]
fn the_layers_above_a_break_are_shown() {
    let lab = Lab::new();
    lab.chain();
    lab.run(&["create", "middle.avhd", "--parent", "leaf.avhd"], 0);
    lab.run(&["create", "top.avhd", "--parent", "middle.avhd"], 0);
    let layers = |wanted: &[&str], exit: i32| {
        let info = lab.json(&["info", "top.avhd"], exit);
        let paths = info["layers"].as_array().unwrap().iter();
        let paths: Vec<&str> = paths.map(|layer| layer["path"].as_str().unwrap()).collect();
        assert_eq!(paths, wanted);
        assert!(info["error"]["code"].is_string(), "{info}");
        let check = lab.json(&["check", "top.avhd"], exit);
        let files = check["files"].as_array().unwrap().iter();
        let files: Vec<&str> = files.map(|file| file["path"].as_str().unwrap()).collect();
        assert_eq!(files[..wanted.len()], *wanted);
        let broken = &check["findings"]
            .as_array()
            .unwrap()
            .iter()
            .find(|finding| finding["severity"] == "corrupt");
        broken.unwrap()["path"].as_str().unwrap().to_owned()
    };
    fs::rename(lab.path("parent.vhd"), lab.path("gone")).unwrap();
    assert_eq!(layers(&["top.avhd", "middle.avhd", "leaf.avhd"], 6), "leaf.avhd");
    let text = stdout(&lab.run(&["info", "top.avhd"], 6));
    assert!(text.contains("3 layers of a broken chain"), "{text}");
    lab.damage("leaf.avhd", 512, b"nonsense");
    assert_eq!(layers(&["top.avhd", "middle.avhd"], 3), "leaf.avhd");
}

#[test]
fn parents_elsewhere_are_found_where_they_are_named() {
    let lab = Lab::new();
    lab.chain();
    let before = stdout(&lab.run(&["hash", "leaf.avhd"], 0));
    fs::create_dir(lab.path("archive")).unwrap();
    fs::rename(lab.path("parent.vhd"), lab.path("archive/renamed.vhd")).unwrap();
    lab.run(&["hash", "leaf.avhd"], 6);
    for place in [["--parent", "archive/renamed.vhd"], ["--parent-dir", "archive"]] {
        let found = lab.run(&["hash", "leaf.avhd", place[0], place[1]], 0);
        assert_eq!(stdout(&found), before);
        lab.run(&["check", "leaf.avhd", place[0], place[1]], 0);
        lab.run(&["info", "leaf.avhd", place[0], place[1]], 0);
        lab.run(&["compare", "leaf.avhd", "leaf.avhd", place[0], place[1]], 0);
    }
}

#[test]
fn explicit_parents_are_the_only_ones_where_that_is_asked_for() {
    let lab = Lab::new();
    lab.chain();
    let refused = stderr(&lab.run(&["hash", "leaf.avhd", "--explicit-parents"], 6));
    assert!(refused.contains("not looked at"), "{refused}");
    lab.run(
        &["hash", "leaf.avhd", "--explicit-parents", "--parent", "parent.vhd"],
        0,
    );
}

pub(crate) fn with_id(lab: &Lab, name: &str, id: UniqueId) {
    let mut bytes = fs::read(lab.path(name)).unwrap();
    let end = bytes.len() - FOOTER_SIZE;
    let mut footer = Footer::decode(&bytes[end..]).unwrap();
    footer.unique_id = id;
    for at in [0, end] {
        bytes[at..at + FOOTER_SIZE].copy_from_slice(&footer.encode());
    }
    fs::write(lab.path(name), bytes).unwrap();
}

/// A child that names any file as its parent.
pub(crate) fn child_of(lab: &Lab, name: &str, parent: &str, id: UniqueId) -> UniqueId {
    let link = ParentLink {
        id,
        modified: Timestamp::UNSET,
        name: parent.to_owned(),
        relative_path: format!(".\\{parent}"),
        absolute_path: format!("\\nowhere\\{parent}"),
    };
    let file = MemoryFile::new();
    let id = create_differencing(&file, 4 * MIB, 2 * MIB, &link).unwrap();
    fs::write(lab.path(name), file.to_vec()).unwrap();
    id
}

#[test]
fn a_circle_is_refused_by_every_command() {
    let lab = Lab::new();
    let first = UniqueId([7; 16]);
    let second = child_of(&lab, "b.avhd", "a.avhd", first);
    child_of(&lab, "a.avhd", "b.avhd", second);
    with_id(&lab, "a.avhd", first);
    refused_by_all(&lab, "a.avhd", "VHD-E0203", 6, "chain-cycle");
}

/// More layers than the usual limit of open files.
#[test]
fn chains_may_be_deeper_than_the_soft_limit_of_open_files() {
    const DEPTH: usize = 300;
    let lab = Lab::new();
    lab.dynamic("0.avhd", 4 * MIB);
    lab.write("0.avhd", MIB, &[3; 512]);
    let info = lab.json(&["info", "0.avhd"], 0);
    let mut id: UniqueId = info["layers"][0]["id"].as_str().unwrap().parse().unwrap();
    for level in 1..=DEPTH {
        id = child_of(&lab, &format!("{level}.avhd"), &format!("{}.avhd", level - 1), id);
    }
    let script = format!(
        "ulimit -Sn 64; exec '{}' info --json {DEPTH}.avhd",
        env!("CARGO_BIN_EXE_vhd")
    );
    let ran = assert_cmd::Command::new("sh")
        .args(["-c", &script])
        .current_dir(lab.path(""))
        .assert()
        .code(0);
    let info: serde_json::Value = serde_json::from_slice(&ran.get_output().stdout).unwrap();
    assert_eq!(info["layers"].as_array().unwrap().len(), DEPTH + 1);
}

#[test]
fn a_changed_parent_is_a_warning_in_text_and_json() {
    let lab = Lab::new();
    lab.dynamic("parent.vhd", 8 * MIB);
    let parent = fs::File::options().write(true).open(lab.path("parent.vhd")).unwrap();
    // Not the time in the parent's footer, which is taken for its modification time too.
    let hours_ago = |count: u64| SystemTime::now() - Duration::from_secs(count * 3600);
    parent.set_modified(hours_ago(2)).unwrap();
    lab.run(&["create", "leaf.avhd", "--parent", "parent.vhd"], 0);
    assert_eq!(stderr(&lab.run(&["hash", "leaf.avhd"], 0)), "");
    parent.set_modified(hours_ago(1)).unwrap();
    let ran = lab.run(&["hash", "leaf.avhd"], 0);
    assert!(stderr(&ran).starts_with("vhd: warning: "), "{}", stderr(&ran));
    for command in ["info", "map", "check", "hash"] {
        let report = lab.json(&[command, "leaf.avhd"], 0);
        assert_eq!(report["warnings"].as_array().unwrap().len(), 1, "{command}");
    }
}
