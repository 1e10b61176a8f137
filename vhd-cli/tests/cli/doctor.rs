//! `vhd doctor`: what it finds, and that its commands, pasted into a shell, put it right.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use vhd_core::chain::OpenOptions;
use vhd_core::format::UniqueId;
use vhd_core::job::RepairJob;
use vhd_core::ops::repair::{Facts, RepairPlan, UndoFile};
use vhd_core::storage::{Access, HostFile, Sharing};

use crate::chains::{child_of, with_id};
use crate::compact::sha256;
use crate::support::{Lab, MIB, stdout};
use crate::tools::have;

/// A value of each of the objects in a list.
fn values<'a>(report: &'a Value, list: &str, field: &str) -> Vec<&'a str> {
    let list = report[list].as_array().unwrap_or_else(|| panic!("{list} in {report}"));
    list.iter().map(|item| item[field].as_str().unwrap()).collect()
}

/// The codes of all findings but notes.
fn codes(report: &Value) -> Vec<&str> {
    let findings = report["findings"].as_array().unwrap().iter();
    let real = findings.filter(|finding| finding["severity"] != "note");
    real.map(|finding| finding["code"].as_str().unwrap()).collect()
}

/// Runs a line as a person would who pastes it.
fn paste(lab: &Lab, line: &str) {
    let program = Path::new(env!("CARGO_BIN_EXE_vhd"));
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", program.parent().unwrap().display());
    let output = Command::new("bash")
        .args(["-c", line])
        .current_dir(lab.path(""))
        .env("PATH", path)
        .output();
    let output = output.unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {error}");
}

/// Pastes every command that the doctor gives, in its order, and expects that nothing is left then.
fn follow(lab: &Lab, exit: i32) -> Value {
    let report = lab.json(&["doctor"], exit);
    for command in values(&report, "remedies", "command") {
        paste(lab, command);
    }
    let after = lab.json(&["doctor"], 0);
    assert_eq!(values(&after, "remedies", "command"), [""; 0], "{after}");
    report
}

#[test]
fn a_sound_forest_has_nothing_to_do() {
    let lab = Lab::new();
    lab.chain();
    let text = stdout(&lab.run(&["doctor", "."], 0));
    assert!(text.ends_with("2 images in 1 tree\n\nAll images are sound\n"), "{text}");
    let notes = stdout(&lab.run(&["doctor", "--notes"], 0));
    assert!(notes.contains("note       parent.vhd: geometry-size"), "{notes}");
    let report = lab.json(&["doctor"], 0);
    assert_eq!(codes(&report), [""; 0]);
    assert_eq!(report["tree"]["summary"]["trees"], 1);
    fs::create_dir(lab.path("empty")).unwrap();
    assert!(stdout(&lab.run(&["doctor", "empty"], 0)).ends_with("There are no images\n"));
    lab.run(&["doctor", "missing"], 1);
    // As `vhd tree`, which looks at names, it never changes a file.
    assert_eq!(lab.names(), ["empty", "leaf.avhd", "other.raw", "parent.vhd"]);
}

#[test]
fn a_lost_parent_of_any_name_is_found_and_what_is_damaged_repaired_first() {
    let lab = Lab::new();
    lab.chain();
    lab.run(&["create", "deep.avhd", "--parent", "leaf.avhd"], 0);
    let content = sha256(&lab, "deep.avhd");
    let hostile = "-rf $(touch gone) 'x' \u{202e}\n";
    fs::create_dir(lab.path(hostile)).unwrap();
    fs::rename(lab.path("parent.vhd"), lab.path(hostile).join("no name.bin")).unwrap();
    fs::rename(lab.path("leaf.avhd"), lab.path("a;b.data")).unwrap();
    lab.damage("a;b.data", -512, &[0; 512]);
    let report = follow(&lab, 6);
    assert_eq!(
        values(&report, "remedies", "safety"),
        ["undoable", "records", "records"]
    );
    assert!(!lab.exists("gone"));
    assert_eq!(sha256(&lab, "deep.avhd"), content);
}

#[test]
fn a_parent_whose_name_no_image_can_record_is_to_be_renamed() {
    let lab = Lab::new();
    lab.chain();
    fs::rename(
        lab.path("parent.vhd"),
        lab.path("").join(OsStr::from_bytes(b"no\xffname.vhd")),
    )
    .unwrap();
    let report = lab.json(&["doctor"], 6);
    assert_eq!(values(&report, "remedies", "command"), [""; 0]);
    let advice = values(&report, "advice", "message");
    assert!(
        advice[0].starts_with("the name $'./no\\377name.vhd' is not Unicode"),
        "{advice:?}"
    );
}

#[test]
fn a_parent_that_loses_data_by_its_repair_is_linked_to_after_that() {
    let lab = Lab::new();
    lab.chain();
    fs::create_dir(lab.path("old")).unwrap();
    fs::rename(lab.path("parent.vhd"), lab.path("old/moved.vhd")).unwrap();
    // The footer at the end, and the last two sectors of the block before it.
    let len = lab.len("old/moved.vhd");
    File::options()
        .write(true)
        .open(lab.path("old/moved.vhd"))
        .unwrap()
        .set_len(len - 512 - 1024)
        .unwrap();
    let report = lab.json(&["doctor"], 3);
    assert_eq!(
        values(&report, "remedies", "safety"),
        ["assumes", "assumes"],
        "{report}"
    );
    assert!(values(&report, "remedies", "command")[1].starts_with("vhd reparent ./leaf.avhd"));
    follow(&lab, 3);
}

#[test]
fn a_repair_of_a_repaired_image_keeps_the_first_undo_file() {
    let lab = Lab::new();
    lab.chain();
    for _ in 0..2 {
        lab.damage("leaf.avhd", -512, &[0; 512]);
        follow(&lab, 4);
    }
    assert!(lab.exists("leaf.avhd.undo") && lab.exists("leaf.avhd.undo.1"));
}

#[test]
fn the_repair_of_a_parent_leaves_its_children_in_peace() {
    let lab = Lab::new();
    lab.chain();
    set_time(&lab, "parent.vhd", SystemTime::now() - Duration::from_secs(9999));
    paste(&lab, "vhd reparent leaf.avhd parent.vhd");
    let modified = lab.path("parent.vhd").metadata().unwrap().modified().unwrap();
    lab.damage("parent.vhd", -512, &[0; 512]);
    set_time(&lab, "parent.vhd", modified);
    let report = follow(&lab, 4);
    assert_eq!(codes(&report), ["footer-damaged"]);
}

fn set_time(lab: &Lab, name: &str, time: SystemTime) {
    File::options()
        .write(true)
        .open(lab.path(name))
        .unwrap()
        .set_modified(time)
        .unwrap();
}

#[test]
fn a_parent_with_another_time_is_for_a_person_to_judge_unless_digests_do() {
    let lab = Lab::new();
    let past = SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000);
    lab.dynamic("parent.vhd", 8 * MIB);
    lab.write("parent.vhd", MIB, &[1; 4096]);
    set_time(&lab, "parent.vhd", past);
    lab.run(&["create", "leaf.avhd", "--parent", "parent.vhd"], 0);
    lab.json(&["doctor"], 0);
    set_time(&lab, "parent.vhd", past - Duration::from_secs(60));
    let report = lab.json(&["doctor"], 4);
    assert_eq!(
        (codes(&report), values(&report, "remedies", "safety")),
        (vec!["parent-time"], vec!["accepts"])
    );
    lab.run(&["verify", "leaf.avhd", "--record"], 0);
    set_time(&lab, "parent.vhd", past + Duration::from_secs(60));
    let report = follow(&lab, 4);
    assert_eq!(values(&report, "remedies", "safety"), ["records"]);
    // What the child relies on was written to: no command brings that back, nor accepts it.
    lab.write("parent.vhd", MIB, &[9; 512]);
    let report = lab.json(&["doctor"], 5);
    assert_eq!(
        (codes(&report), values(&report, "remedies", "safety")),
        (vec!["content-changed"], vec![]),
        "{report}"
    );
    assert!(report["advice"][0]["message"].as_str().unwrap().contains("backup"));
}

#[test]
fn interrupted_merges_are_finished() {
    for into in [false, true] {
        let lab = Lab::new();
        lab.chain();
        lab.run(&["create", "top.avhd", "--parent", "leaf.avhd"], 0);
        lab.write("top.avhd", 0, &vec![7; 4 << 20]);
        let content = sha256(&lab, "top.avhd");
        let mut args = vec!["merge", "top.avhd", "--rate", "1M", "--batch", "64K"];
        args.extend(into.then_some(["--into", "parent.vhd"]).iter().flatten());
        kill_when(&lab, &args, "top.avhd.merge");
        let report = lab.json(&["doctor"], 4);
        assert_eq!(values(&report, "remedies", "safety"), ["finishes"]);
        paste(&lab, values(&report, "remedies", "command")[0]);
        // A writer that is killed leaves slack, in which something may look like a block.
        let after: Value = serde_json::from_slice(&lab.vhd(&["doctor", "--json"]).output().unwrap().stdout).unwrap();
        let is_slack = |code: &&str| ["leaked-space", "orphan-blocks"].contains(code);
        assert!(codes(&after).iter().all(is_slack), "{after}");
        assert!(!lab.exists("top.avhd"));
        assert_eq!(sha256(&lab, if into { "parent.vhd" } else { "leaf.avhd" }), content);
    }
}

/// Kills the command when a file is there.
fn kill_when(lab: &Lab, args: &[&str], file: &str) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vhd"))
        .args(args)
        .current_dir(lab.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !lab.exists(file) {
        assert!(started.elapsed() < Duration::from_secs(60), "{args:?} makes no {file}");
        assert!(child.try_wait().unwrap().is_none(), "{args:?} ended first");
        sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(lab.exists(file), "it was killed too late");
}

#[test]
fn an_interrupted_repair_is_finished() {
    let lab = Lab::new();
    lab.chain();
    lab.damage("leaf.avhd", -512, &[0; 512]);
    let image = lab.path("leaf.avhd");
    let file = Arc::new(HostFile::open(&image, Access::ReadOnly, Sharing::Unlocked).unwrap());
    let plan = RepairPlan::new(file, &Facts::default()).unwrap();
    // All that a repair does before it changes the image.
    UndoFile::create(&image, plan.journal()).unwrap();
    RepairJob::of(&image).begin().unwrap();
    let report = follow(&lab, 4);
    assert_eq!(
        values(&report, "remedies", "command"),
        [
            "vhd repair ./leaf.avhd --yes"
                .replace("./", &format!("{}/", lab.path("").canonicalize().unwrap().display()))
        ]
    );
}

/// Runs the command in one directory after the other, killed at its first, second, ... sync, until it leaves `file`.
fn kill_until(prepare: &dyn Fn() -> Lab, args: &[&str], file: &str) -> Lab {
    for sync in 1..100 {
        let lab = prepare();
        let inject = format!("inject=fsync,fdatasync:signal=SIGKILL:when={sync}");
        let status = Command::new("strace")
            .args([
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                "trace=fsync,fdatasync",
                "-e",
                &inject,
            ])
            .arg(env!("CARGO_BIN_EXE_vhd"))
            .args(args)
            .current_dir(lab.path(""))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(
            !status.unwrap().success(),
            "{args:?} ended at sync {sync} and never left {file}"
        );
        if lab.exists(file) {
            return lab;
        }
    }
    panic!("{args:?} never left {file}");
}

#[test]
fn interrupted_changes_of_identity_and_sizes_are_finished() {
    if !have(&["strace"], "what the doctor says of jobs that were killed") {
        return;
    }
    let prepare = || {
        let lab = Lab::new();
        lab.chain();
        for child in ["b.avhd", "c.avhd", "d.avhd", "e.avhd"] {
            lab.run(&["create", child, "--parent", "parent.vhd"], 0);
        }
        lab
    };
    let lab = kill_until(
        &prepare,
        &["new-id", "parent.vhd", "--all-children"],
        "parent.vhd.new-id",
    );
    assert_eq!(values(&follow(&lab, 4), "remedies", "safety"), ["finishes"]);
    let lab = kill_until(
        &prepare,
        &["resize", "parent.vhd", "16M", "--tree"],
        "parent.vhd.resize",
    );
    // Some have their new size already, which is another finding.
    let text = lab.vhd(&["doctor", "--json"]).output().unwrap().stdout;
    let report: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(values(&report, "remedies", "safety")[0], "finishes", "{report}");
    paste(&lab, values(&report, "remedies", "command")[0]);
    lab.json(&["doctor"], 0);
    assert_eq!(lab.json(&["info", "d.avhd"], 0)["virtual_size"], 16 * MIB);
}

#[test]
fn leaked_space_is_given_back_unless_it_looks_like_a_block() {
    let lab = Lab::new();
    lab.dynamic("a.vhd", 8 * MIB);
    lab.write("a.vhd", 0, &[1; 4096]);
    lab.write("a.vhd", 2 * MIB, &[2; 4096]);
    let content = fs::read(lab.path("a.vhd")).unwrap();
    let table = u64::from_be_bytes(content[512 + 16..][..8].try_into().unwrap());
    let entry = usize::try_from(table).unwrap();
    let sector = u32::from_be_bytes(content[entry..][..4].try_into().unwrap());
    lab.damage("a.vhd", i64::try_from(table).unwrap(), &[0xFF; 4]);
    let report = lab.json(&["doctor"], 4);
    assert!(codes(&report).contains(&"orphan-blocks"));
    assert_eq!(values(&report, "remedies", "command"), ["vhd repair ./a.vhd"]);
    lab.damage("a.vhd", i64::from(sector) * 512, &vec![0; (2 << 20) + 512]);
    assert_eq!(values(&follow(&lab, 4), "remedies", "safety"), ["shrinks"]);
}

#[test]
fn a_damaged_list_of_snapshots_is_made_anew() {
    let lab = Lab::new();
    lab.dynamic("vm.vhd", 8 * MIB);
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "monday"], 0);
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "tuesday"], 0);
    lab.damage("vm.vhd.snapshots", -3, b"???");
    let report = follow(&lab, 3);
    assert_eq!(codes(&report), ["record-damaged"]);
    lab.run(&["snapshot", "list", "vm.vhd"], 0);
}

#[test]
fn what_no_command_puts_right_is_said() {
    let lab = Lab::new();
    lab.chain();
    fs::remove_file(lab.path("parent.vhd")).unwrap();
    let report = lab.json(&["doctor"], 6);
    assert_eq!(
        (codes(&report), values(&report, "advice", "path")),
        (vec!["parent-missing"], vec!["leaf.avhd"])
    );
    // Another disk in its place.
    lab.dynamic("parent.vhd", 8 * MIB);
    assert_eq!(codes(&lab.json(&["doctor"], 6)), ["parent-mismatch"]);
    fs::remove_file(lab.path("leaf.avhd")).unwrap();
    // Somebody writes to it.
    let opened = OpenOptions::new().write(true).open(&lab.path("parent.vhd")).unwrap();
    assert_eq!(codes(&lab.json(&["doctor"], 7)), ["locked"]);
    opened.close().unwrap();
    // A circle.
    let first = UniqueId([7; 16]);
    let second = child_of(&lab, "b.avhd", "a.avhd", first);
    child_of(&lab, "a.avhd", "b.avhd", second);
    with_id(&lab, "a.avhd", first);
    let report = lab.json(&["doctor"], 6);
    assert!(codes(&report).contains(&"chain-cycle"), "{report}");
    assert_eq!(values(&report, "remedies", "command"), [""; 0]);
    // Not what the name says.
    fs::remove_file(lab.path("a.avhd")).unwrap();
    fs::remove_file(lab.path("parent.vhd")).unwrap();
    fs::write(lab.path("b.avhd"), "not an image\n").unwrap();
    assert_eq!(codes(&lab.json(&["doctor"], 8)), ["foreign-format"]);
    fs::write(lab.path("b.avhd"), vec![0; 1 << 20]).unwrap();
    let report = lab.json(&["doctor"], 3);
    assert_eq!(
        (codes(&report), values(&report, "remedies", "safety")),
        (vec!["footer-missing"], vec!["reads"])
    );
}

#[test]
fn of_several_files_that_are_the_parent_the_fitting_one_is_taken() {
    let lab = Lab::new();
    lab.chain();
    let modified = lab.path("parent.vhd").metadata().unwrap().modified().unwrap();
    for dir in ["a", "b"] {
        fs::create_dir(lab.path(dir)).unwrap();
        fs::copy(lab.path("parent.vhd"), lab.path(dir).join("copy.vhd")).unwrap();
    }
    fs::remove_file(lab.path("parent.vhd")).unwrap();
    set_time(&lab, "a/copy.vhd", modified - Duration::from_secs(3600));
    set_time(&lab, "b/copy.vhd", modified);
    let report = follow(&lab, 6);
    assert_eq!(
        values(&report, "remedies", "command"),
        ["vhd reparent ./leaf.avhd ./b/copy.vhd"]
    );
    assert!(values(&report, "remedies", "purpose")[0].contains("a/copy.vhd"));
}
