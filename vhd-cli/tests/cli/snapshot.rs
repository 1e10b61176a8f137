//! `vhd snapshot` and DISK@NAME.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde_json::Value;
use vhd_core::snapshot::{SnapshotTree, Work};

use crate::kill::killed;
use crate::kills::kill_rounds;
use crate::support::{Lab, MIB, stderr, stdout};

/// A disk with a snapshot "one" and one "two", and something written after each.
fn disk() -> Lab {
    let lab = Lab::new();
    lab.dynamic("vm.vhd", 8 * MIB);
    lab.write("vm.vhd", 0, &[1; 512]);
    for (name, byte) in [("one", 2), ("two", 3)] {
        let report = lab.json_of(&["snapshot", "create", "vm.vhd", "--name", name]);
        lab.write(report["active"].as_str().unwrap(), 0, &[byte; 512]);
    }
    lab
}

trait Snapshots {
    fn json_of(&self, args: &[&str]) -> Value;
    fn hash(&self, image: &str) -> String;
    fn reads(&self, image: &str, byte: u8);
}

impl Snapshots for Lab {
    fn json_of(&self, args: &[&str]) -> Value {
        let mut args = args.to_vec();
        args.push("--json");
        let value: Value = serde_json::from_slice(&self.run(&args, 0).get_output().stdout).unwrap();
        assert_eq!(value["command"], format!("{} {}", args[0], args[1]));
        value
    }

    fn hash(&self, image: &str) -> String {
        self.json(&["hash", image], 0)["sha256"].as_str().unwrap().to_owned()
    }

    /// The first sector of the disk is full of `byte`.
    fn reads(&self, image: &str, byte: u8) {
        self.run(&["convert", image, "out.raw", "--to", "raw", "--force"], 0);
        assert_eq!(std::fs::read(self.path("out.raw")).unwrap()[0], byte, "{image}");
    }
}

#[test]
fn names_stand_for_snapshots_wherever_an_image_is_read() {
    let lab = disk();
    lab.reads("vm.vhd@one", 1);
    lab.reads("vm.vhd@two", 2);
    lab.reads("vm.vhd@now", 3);
    for command in ["info", "map", "check", "hash", "measure"] {
        lab.run(&[command, "vm.vhd@two"], 0);
    }
    lab.run(&["compare", "vm.vhd@one", "vm.vhd@two"], 5);
    lab.run(&["diff", "vm.vhd@two", "vm.vhd@two"], 0);
    lab.run(&["export-delta", "vm.vhd@now", "--since", "vm.vhd@one", "d.vhd"], 0);
    lab.run(&["import-delta", "d.vhd", "--onto", "vm.vhd@one", "back.vhd"], 0);
    assert_eq!(lab.hash("back.vhd"), lab.hash("vm.vhd@now"));
    lab.run(&["create", "clone.vhd", "--parent", "vm.vhd@two"], 0);
    lab.reads("clone.vhd", 2);

    lab.run(&["hash", "vm.vhd@three"], 8);
    lab.run(&["hash", "vm.vhd@"], 8);
    lab.run(&["hash", "no.vhd@one"], 1);
    lab.run(&["compact", "vm.vhd@one"], 2);
    // What is frozen is not served for writing.
    for image in ["vm.vhd@one", "vm.vhd"] {
        lab.run(&["nbd", image, "--unix", "socket"], 8);
    }
    // What is frozen is not replaced.
    lab.run(&["convert", "vm.vhd@now", "vm.vhd", "--to", "dynamic", "--force"], 8);
    // A file that is really called so.
    std::fs::copy(lab.path("vm.vhd"), lab.path("vm.vhd@two")).unwrap();
    lab.reads("vm.vhd@two", 1);
    // The base is a snapshot, which is said.
    let told = stderr(&lab.run(&["hash", "vm.vhd"], 0));
    assert!(
        told.contains("snapshot \"one\"") && told.contains("vm.vhd@now"),
        "{told}"
    );
}

#[test]
fn a_tree_that_another_command_works_on_is_in_use() {
    let lab = disk();
    let cancel = AtomicBool::new(false);
    let work = Work {
        steps: &(),
        progress: &(),
        cancel: &cancel,
    };
    let before = lab.names();
    let tree = SnapshotTree::open(&lab.path("vm.vhd"), work).unwrap();
    let jobs: [&[&str]; 6] = [
        &["create", "vm.vhd", "--name", "three"],
        &["apply", "vm.vhd", "one", "--discard-current"],
        &["revert", "vm.vhd"],
        &["rename", "vm.vhd", "one", "first"],
        &["delete", "vm.vhd", "one"],
        &["rescan", "vm.vhd"],
    ];
    for job in jobs {
        let args = [&["snapshot"], job].concat();
        let refused = stderr(&lab.run(&args, 7));
        assert!(refused.starts_with("vhd: error[VHD-E0304]"), "{job:?}: {refused}");
        let holder = std::process::id().to_string();
        assert!(
            refused.contains("vm.vhd") && refused.contains(&holder),
            "{job:?}: {refused}"
        );
        assert_eq!(lab.names(), before, "{job:?}");
    }
    // Who reads the snapshots needs no turn.
    lab.reads("vm.vhd@one", 1);
    drop(tree);
    lab.json_of(&["snapshot", "create", "vm.vhd", "--name", "three"]);
}

#[test]
fn a_tree_is_listed_and_drawn() {
    let lab = disk();
    lab.run(&["snapshot", "apply", "vm.vhd", "one"], 8);
    let applied = lab.json_of(&[
        "snapshot",
        "apply",
        "vm.vhd",
        "one",
        "--snapshot-first",
        "--name",
        "kept",
    ]);
    assert_eq!(applied["taken"], "kept");
    let shown = lab.json_of(&["snapshot", "tree", "vm.vhd"]);
    let names: Vec<&str> = shown["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["one", "two", "kept"]);
    assert_eq!(shown["snapshots"][2]["stored_bytes"], 512);
    assert_eq!(shown["snapshots"][0]["freed_by_delete"], 0);
    assert!(shown["snapshots"][2]["freed_by_delete"].as_u64().unwrap() > 0);
    assert_eq!(shown["now"]["parent"], shown["snapshots"][0]["id"]);
    let drawn = stdout(&lab.run(&["snapshot", "tree", "vm.vhd"], 0));
    let starts: Vec<&str> = drawn
        .lines()
        .map(|line| line.split("  holds").next().unwrap())
        .map(|line| line.split("  20").next().unwrap())
        .collect();
    assert_eq!(
        starts,
        ["vm.vhd", "`-- one", "    |-- two", "    |   `-- kept", "    `-- Now"]
    );
    let listed = stdout(&lab.run(&["snapshot", "list", "vm.vhd"], 0));
    assert_eq!(listed.lines().count(), 4);
    assert!(listed.lines().last().unwrap().starts_with("Now"), "{listed}");
    // A plain disk has none.
    lab.dynamic("plain.vhd", MIB);
    assert_eq!(
        lab.json_of(&["snapshot", "list", "plain.vhd"])["snapshots"],
        Value::Array(Vec::new())
    );
    lab.run(&["snapshot", "revert", "plain.vhd"], 8);
}

#[test]
fn revert_says_what_is_lost() {
    let lab = disk();
    let report = lab.json_of(&["snapshot", "revert", "vm.vhd"]);
    assert_eq!(report["discarded_bytes"], 512);
    assert_eq!(report["name"], "two");
    lab.reads("vm.vhd@now", 2);
    lab.run(&["snapshot", "rename", "vm.vhd", "two", "2"], 0);
    lab.reads("vm.vhd@2", 2);
    lab.run(&["snapshot", "rename", "vm.vhd", "2", "one"], 8);
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "a/b"], 8);
}

#[test]
fn a_rescan_needs_the_images_alone() {
    let lab = disk();
    let expected: Vec<String> = ["one", "two", "now"]
        .map(|name| lab.hash(&format!("vm.vhd@{name}")))
        .into();
    std::fs::remove_file(lab.path("vm.vhd.snapshots")).unwrap();
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "x"], 8);
    let report = lab.json_of(&["snapshot", "rescan", "vm.vhd"]);
    assert_eq!(report["snapshots"], 2);
    let names: Vec<&str> = report["named_by_file"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(names[0], "vm");
    let found = [
        format!("vm.vhd@{}", names[0]),
        format!("vm.vhd@{}", names[1]),
        "vm.vhd@now".to_owned(),
    ];
    assert_eq!(found.map(|image| lab.hash(&image)).to_vec(), expected);
}

#[test]
fn digests_notice_a_frozen_file_that_is_changed() {
    let lab = disk();
    let report = lab.json_of(&["snapshot", "create", "vm.vhd", "--name", "three", "--digest"]);
    assert!(report["digest_bytes"].as_u64().unwrap() > 0);
    let frozen = report["frozen"].as_str().unwrap().to_owned();
    let verify = ["verify", "vm.vhd@now", "--allow-missing"];
    lab.run(&verify, 0);
    lab.write(&frozen, 4096, b"changed");
    lab.run(&verify, 5);
    // What a deletion changes is no alarm, and no record is left over.
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "four", "--digest"], 0);
    lab.run(&["snapshot", "delete", "vm.vhd", "three"], 0);
    let records = lab.names().into_iter().filter(|name| name.ends_with(".digest")).count();
    assert_eq!(records, 0);
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "five", "--digest"], 0);
    lab.run(&verify, 0);
}

#[test]
fn trees_go_out_and_in() {
    let lab = disk();
    let exported = lab.json_of(&["snapshot", "export", "vm.vhd", "two", "out"]);
    assert_eq!(exported["snapshots"], 2);
    lab.reads("out/vm.vhd@now", 2);
    lab.reads("out/vm.vhd@one", 1);
    lab.run(&["snapshot", "export", "vm.vhd", "one", "out"], 8);
    lab.run(&["snapshot", "import", "out", "in"], 0);
    assert_eq!(lab.hash("in/vm.vhd@two"), lab.hash("vm.vhd@two"));
    lab.run(&["compare", "out/vm.vhd@now", "in/vm.vhd@now"], 0);
}

/// The files of the disk in one directory become those of another, with their times.
fn copy(from: &Lab, to: &Lab) {
    for name in to.names().iter().filter(|name| name.starts_with("vm")) {
        std::fs::remove_file(to.path(name)).unwrap();
    }
    for name in from.names().iter().filter(|name| name.starts_with("vm")) {
        let (from, to) = (from.path(name), to.path(name));
        std::fs::copy(&from, &to).unwrap();
        let modified = from.metadata().unwrap().modified().unwrap();
        let file = std::fs::File::options().write(true).open(&to).unwrap();
        file.set_modified(modified).unwrap();
    }
}

/// The contents of all snapshots and of the present state, by name.
fn contents(lab: &Lab) -> BTreeMap<String, String> {
    let shown = lab.json_of(&["snapshot", "list", "vm.vhd"]);
    let snapshots = shown["snapshots"].as_array().unwrap().iter();
    let listed = snapshots.filter(|one| one["deleted"] == false);
    let names = listed.map(|one| one["name"].as_str().unwrap().to_owned());
    names
        .chain(["now".to_owned()])
        .map(|name| (name.clone(), lab.hash(&format!("vm.vhd@{name}"))))
        .collect()
}

/// Kills a command at times spread over its run. What can be read right after is as before or as after, and so is
/// everything when the next command has brought it to its end.
fn kill_often(lab: &Lab, args: &[&str]) {
    let work = Lab::new();
    copy(lab, &work);
    let before = contents(&work);
    let started = Instant::now();
    work.run(args, 0);
    let whole = started.elapsed();
    let after = contents(&work);
    let kills = kill_rounds();
    let mut unfinished = 0;
    for number in 0..kills {
        copy(lab, &work);
        if !killed(&work, args, whole * number / kills) {
            unfinished += 1;
        }
        let is_either = |found: &BTreeMap<String, String>| found == &before || found == &after;
        let found = contents(&work);
        assert!(is_either(&found), "{args:?} {number}: {found:?}");
        work.run(&["snapshot", "rescan", "vm.vhd"], 0);
        let found = contents(&work);
        assert!(is_either(&found), "{args:?} {number}, recovered: {found:?}");
        let shown = work.json_of(&["snapshot", "list", "vm.vhd"]);
        let images = shown["snapshots"].as_array().unwrap().len() + 1;
        let visible = work
            .names()
            .into_iter()
            .filter(|name| name.starts_with("vm") && name.ends_with("vhd"));
        assert_eq!(visible.count(), images, "{args:?} {number}");
        // A file that was growing when its writer was killed has leaked space, and nothing worse.
        let verdict = work.vhd(&["check", "vm.vhd@now", "--json"]).output().unwrap();
        let verdict: Value = serde_json::from_slice(&verdict.stdout).unwrap();
        assert!(
            verdict["verdict"] == "clean" || verdict["verdict"] == "leaks",
            "{verdict}"
        );
    }
    assert!(unfinished > 0, "{args:?} was never killed: the test tested nothing");
    crate::announce(&format!("{args:?}: killed {unfinished} times of {kills}"));
}

#[test]
fn killed_creations_and_applications_lose_nothing() {
    let lab = disk();
    kill_often(&lab, &["snapshot", "create", "vm.vhd", "--name", "three"]);
    kill_often(&lab, &["snapshot", "apply", "vm.vhd", "one", "--discard-current"]);
    kill_often(
        &lab,
        &[
            "snapshot",
            "apply",
            "vm.vhd",
            "one",
            "--snapshot-first",
            "--name",
            "kept",
        ],
    );
}

#[test]
fn killed_deletions_lose_nothing() {
    let lab = Lab::new();
    lab.dynamic("vm.vhd", 64 * MIB);
    // Something to merge: the kills are to hit the copying too.
    let piece = vec![0x5A; 1 << 20];
    let mut active = "vm.vhd".to_owned();
    for (number, name) in (0_u64..).zip(["one", "two", "three", "now"]) {
        for at in 0..8 {
            lab.write(&active, (at * 4 + number) * MIB, &piece);
        }
        if name != "now" {
            let report = lab.json_of(&["snapshot", "create", "vm.vhd", "--name", name]);
            active = report["active"].as_str().unwrap().to_owned();
        }
    }
    kill_often(&lab, &["snapshot", "delete", "vm.vhd", "two"]);
    kill_often(&lab, &["snapshot", "delete", "vm.vhd", "three"]);
    kill_often(&lab, &["snapshot", "delete", "vm.vhd", "one", "--subtree"]);
}

/// A file system without room for what is to be done: nothing is lost, and it is done when there is room.
#[test]
fn a_full_file_system_loses_nothing() {
    let Some(lab) = Lab::on_a_small_disk(12 * MIB) else {
        return;
    };
    lab.dynamic("vm.vhd", 16 * MIB);
    lab.write("vm.vhd", 0, &vec![1; 3 << 20]);
    let before = lab.hash("vm.vhd@now");
    let create = ["snapshot", "create", "vm.vhd", "--name", "one", "--json"];
    let mut failures = 0;
    let created: Value = loop {
        // A little more room each time: it runs out at each of the steps.
        lab.fill_but("ballast", failures * 4096);
        let output = lab.vhd(&create).output().unwrap();
        assert_eq!(lab.hash("vm.vhd@now"), before);
        if output.status.success() {
            break serde_json::from_slice(&output.stdout).unwrap();
        }
        let failed = String::from_utf8(output.stderr).unwrap();
        assert!(failed.contains("VHD-E0303"), "{failed}");
        failures += 1;
    };
    assert!(failures > 1, "there was room from the start: the test tested nothing");
    assert_eq!(lab.hash("vm.vhd@one"), before);
    std::fs::remove_file(lab.path("ballast")).unwrap();
    let active = created["active"].as_str().unwrap().to_owned();
    lab.write(&active, 8 * MIB, &vec![2; 3 << 20]);
    let now = lab.hash("vm.vhd@now");

    // The merge needs room for blocks that the base has not.
    lab.fill_but("ballast", 64 << 10);
    let failed = stderr(&lab.run(&["snapshot", "delete", "vm.vhd", "one"], 1));
    assert!(failed.contains("VHD-E0303"), "{failed}");
    assert_eq!(lab.hash("vm.vhd@now"), now);
    std::fs::remove_file(lab.path("ballast")).unwrap();
    lab.run(&["snapshot", "rescan", "vm.vhd"], 0);
    assert_eq!(lab.hash("vm.vhd"), now);
    assert_eq!(lab.names(), ["other.raw", "vm.vhd"]);
}
