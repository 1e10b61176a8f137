//! Another parent, another identity, as scripts see them: reports, refusals, sudden death, no space.
//!
//! VHD_KILL_ROUNDS says how often each command is killed (default 12); 200 and more is the long run:
//! `VHD_KILL_ROUNDS=200 cargo test --release -p vhd-cli --test cli reparent -- --nocapture`

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::kill::{interrupt, killed};
use crate::kills::kill_rounds;
use crate::support::{Lab, MIB, stderr, stdout};

/// Every block of both bases is written, each with other bytes; the child has some of its own.
fn family(lab: &Lab, blocks: u64) {
    for (name, base) in [("base.vhd", 1), ("other.vhd", 101)] {
        lab.dynamic(name, blocks * 2 * MIB);
        fill(lab, name, blocks, base);
    }
    lab.run(&["create", "child.avhd", "--parent", "base.vhd"], 0);
    lab.write("child.avhd", MIB, &[0; 65536]);
    lab.write("child.avhd", MIB / 2, &[9; 65536]);
}

fn fill(lab: &Lab, name: &str, blocks: u64, base: u64) {
    let opened = vhd_core::chain::OpenOptions::new()
        .write(true)
        .open(&lab.path(name))
        .unwrap();
    for block in 0..blocks {
        let byte = u8::try_from(base + block % 100).unwrap();
        opened.disk().write_at(&vec![byte; 2 << 20], block * 2 * MIB).unwrap();
    }
    opened.close().unwrap();
}

fn sha256(lab: &Lab, name: &str) -> String {
    lab.json(&["hash", name], 0)["sha256"].as_str().unwrap().to_owned()
}

/// What `info` says of the leaf.
fn leaf(lab: &Lab, name: &str, field: &str) -> String {
    let info: Value = serde_json::from_slice(&lab.vhd(&["info", name, "--json"]).output().unwrap().stdout).unwrap();
    info["layers"][0]
        .pointer(field)
        .and_then(Value::as_str)
        .expect("the leaf has that field")
        .to_owned()
}

fn code(lab: &Lab, args: &[&str], exit: i32) -> String {
    lab.json(args, exit)["error"]["code"].as_str().unwrap().to_owned()
}

#[test]
fn an_orphan_is_relinked_and_told_what_disagrees() {
    let lab = Lab::new();
    family(&lab, 4);
    let content = sha256(&lab, "child.avhd");
    std::fs::create_dir(lab.path("moved")).unwrap();
    std::fs::rename(lab.path("base.vhd"), lab.path("moved/b.vhd")).unwrap();
    lab.run(&["hash", "child.avhd"], 6);
    let before = std::fs::read(lab.path("child.avhd")).unwrap();
    let planned = lab.json(&["reparent", "child.avhd", "--parent", "moved/b.vhd", "--dry-run"], 0);
    assert_eq!(std::fs::read(lab.path("child.avhd")).unwrap(), before);
    for (fact, agrees) in [("path", false), ("id", true), ("modified", true), ("size", true)] {
        assert_eq!(planned["agreement"][fact]["agrees"], agrees, "{fact}");
    }
    assert_eq!(planned["agreement"]["content"]["reason"], "no digest recorded");
    lab.run(&["verify", "moved/b.vhd", "--record", "--include-image"], 0);
    let agreement = |agrees: bool| {
        let told = lab.json(&["reparent", "child.avhd", "--parent", "moved/b.vhd", "--dry-run"], 0);
        assert_eq!(told["agreement"]["content"]["agrees"], agrees);
    };
    agreement(true);
    lab.write("moved/b.vhd", 7 * MIB, &[55; 512]);
    agreement(false);
    lab.write("moved/b.vhd", 7 * MIB, &[4; 512]);
    agreement(true);
    let text = stdout(&lab.run(&["reparent", "child.avhd", "--parent", "moved/b.vhd"], 0));
    assert!(
        text.contains("path       DISAGREES") && text.contains("names moved/b.vhd"),
        "{text}"
    );
    assert_eq!(sha256(&lab, "child.avhd"), content);
    lab.run(&["check", "child.avhd"], 0);
    let again = lab.json(&["reparent", "child.avhd", "--parent", "moved/b.vhd"], 0);
    assert_eq!(again["agreement"]["path"]["agrees"], true);
    assert_eq!(again["agreement"]["path"]["recorded"][0]["path"], ".\\moved\\b.vhd");
}

#[test]
fn another_disk_is_refused_and_shown_and_forced() {
    let lab = Lab::new();
    family(&lab, 4);
    let before = std::fs::read(lab.path("child.avhd")).unwrap();
    let refused = lab.json(&["reparent", "child.avhd", "--parent", "other.vhd"], 6);
    assert_eq!(refused["error"]["code"], "VHD-E0202");
    assert_eq!(refused["agreement"]["id"]["agrees"], false);
    assert_eq!(refused["agreement"]["size"]["agrees"], true);
    lab.dynamic("small.vhd", 2 * MIB);
    assert_eq!(
        code(
            &lab,
            &["reparent", "child.avhd", "--parent", "small.vhd", "--rebase"],
            8
        ),
        "VHD-E0205"
    );
    assert_eq!(
        code(&lab, &["reparent", "base.vhd", "--parent", "child.avhd"], 6),
        "VHD-E0203"
    );
    assert_eq!(
        code(&lab, &["reparent", "base.vhd", "--parent", "other.vhd"], 8),
        "VHD-E0409"
    );
    assert_eq!(
        code(&lab, &["reparent", "child.avhd", "--parent", "none.vhd"], 1),
        "VHD-E0302"
    );
    lab.run(&["reparent", "child.avhd"], 2);
    lab.run(
        &["reparent", "child.avhd", "--parent", "other.vhd", "--rebase", "--force"],
        2,
    );
    lab.run(&["reparent", "child.avhd", "--parent", "other.vhd", "--force-share"], 2);
    let held = vhd_core::chain::OpenOptions::new()
        .open(&lab.path("child.avhd"))
        .unwrap();
    assert_eq!(
        code(&lab, &["reparent", "child.avhd", "--parent", "base.vhd"], 7),
        "VHD-E0304"
    );
    drop(held);
    assert_eq!(std::fs::read(lab.path("child.avhd")).unwrap(), before);
    let forced = lab.run(&["reparent", "child.avhd", "--parent", "other.vhd", "--force"], 0);
    assert!(stderr(&forced).contains("you state that"), "{}", stderr(&forced));
    assert_eq!(leaf(&lab, "child.avhd", "/parent/id"), leaf(&lab, "other.vhd", "/id"));
}

#[test]
fn a_rebased_child_reads_the_same_and_so_do_its_children() {
    let lab = Lab::new();
    family(&lab, 4);
    lab.run(&["create", "grandchild.avhd", "--parent", "child.avhd"], 0);
    let (content, before) = (
        sha256(&lab, "child.avhd"),
        std::fs::read(lab.path("child.avhd")).unwrap(),
    );
    let args = ["reparent", "child.avhd", "--parent", "other.vhd", "--rebase"];
    let planned = lab.json(&[&args[..], &["--dry-run"]].concat(), 0);
    assert_eq!(std::fs::read(lab.path("child.avhd")).unwrap(), before);
    assert_eq!(planned["rebase"]["taken_bytes"], 8 * MIB - 2 * 65536);
    let done = lab.json(&args, 0);
    assert_eq!(planned["rebase"], done["rebase"]);
    assert_eq!(sha256(&lab, "child.avhd"), content);
    assert_eq!(leaf(&lab, "child.avhd", "/parent/id"), leaf(&lab, "other.vhd", "/id"));
    lab.run(&["check", "child.avhd"], 0);
    // The child's child does not even notice: no warning about another time stamp.
    let run = lab.run(&["hash", "grandchild.avhd"], 0);
    assert_eq!(stderr(&run), "");
    // To the grandparent: what was between is taken over.
    let content = sha256(&lab, "grandchild.avhd");
    lab.run(&["reparent", "grandchild.avhd", "--parent", "other.vhd", "--rebase"], 0);
    std::fs::remove_file(lab.path("child.avhd")).unwrap();
    assert_eq!(sha256(&lab, "grandchild.avhd"), content);
}

#[test]
fn a_raw_parent_is_left_by_naming_it() {
    let lab = Lab::new();
    std::fs::write(lab.path("old.raw"), vec![7; 4 << 20]).unwrap();
    lab.dynamic("new.vhd", 4 * MIB);
    lab.run(&["create", "child.avhd", "--parent", "old.raw"], 0);
    let args = ["reparent", "child.avhd", "--parent", "new.vhd", "--rebase"];
    assert_eq!(code(&lab, &args, 6), "VHD-E0201");
    lab.run(&[&args[..], &["--old-parent", "old.raw"]].concat(), 0);
    lab.run(&["compare", "child.avhd", "old.raw"], 0);
}

#[test]
fn a_copy_becomes_a_disk_of_its_own() {
    let lab = Lab::new();
    family(&lab, 2);
    for (from, to) in [("base.vhd", "copy.vhd"), ("child.avhd", "second.avhd")] {
        std::fs::copy(lab.path(from), lab.path(to)).unwrap();
    }
    let content = sha256(&lab, "second.avhd");
    assert_eq!(code(&lab, &["new-id", "copy.vhd"], 8), "VHD-E0207");
    assert_eq!(
        code(&lab, &["new-id", "copy.vhd", "--child", "other.vhd", "--force"], 6),
        "VHD-E0202"
    );
    let planned = lab.json(
        &["new-id", "copy.vhd", "--child", "second.avhd", "--force", "--dry-run"],
        0,
    );
    assert_eq!(
        (planned["new_id"].clone(), planned["children"][0].clone()),
        (Value::Null, "second.avhd".into())
    );
    let done = lab.json(&["new-id", "copy.vhd", "--child", "second.avhd", "--force"], 0);
    assert_eq!(done["old_id"], leaf(&lab, "base.vhd", "/id"));
    assert_eq!(done["new_id"], leaf(&lab, "copy.vhd", "/id"));
    assert_eq!(done["new_id"], leaf(&lab, "second.avhd", "/parent/id"));
    assert_eq!(done["old_id"], leaf(&lab, "child.avhd", "/parent/id"));
    let run = lab.run(&["hash", "second.avhd"], 0);
    assert_eq!(stderr(&run), "");
    assert_eq!(sha256(&lab, "second.avhd"), content);
    // The original can go: the copy and its child do not need it.
    std::fs::remove_file(lab.path("base.vhd")).unwrap();
    assert_eq!(sha256(&lab, "second.avhd"), content);
    lab.run(&["check", "second.avhd"], 0);
    lab.fixed("fixed.vhd", MIB);
    let before = leaf(&lab, "fixed.vhd", "/id");
    let text = stdout(&lab.run(&["new-id", "fixed.vhd"], 0));
    assert!(text.contains(&before), "{text}");
    assert_ne!(leaf(&lab, "fixed.vhd", "/id"), before);
    lab.run(&["check", "fixed.vhd"], 0);
    lab.run(&["new-id", "fixed.vhd", "--force", "--all-children"], 2);
}

/// Kills the command again and again, at any time between its start and its usual end. `verify` looks at what is
/// there after each kill; whether it is done already is for it to say.
fn kill_again_and_again(lab: &Lab, args: &[&str], restore: &dyn Fn(), verify: &dyn Fn()) {
    restore();
    let started = Instant::now();
    lab.run(args, 0);
    let whole = started.elapsed();
    let (mut alive, mut rounds) = (0, 0);
    while rounds < kill_rounds() {
        restore();
        // The files stay as they were at the kill, and it is killed again, until it is done.
        for _ in 0..3 {
            rounds += 1;
            let ended = killed(lab, args, whole * (rounds * 37 % 100) / 90);
            alive += u32::from(!ended);
            verify();
            if ended {
                break;
            }
        }
        lab.run(args, 0);
        verify();
    }
    crate::announce(&format!(
        "{} killed {alive} times in {rounds} rounds",
        args[..2].join(" ")
    ));
    assert!(alive > 0, "nothing was killed: the test tested nothing");
}

/// Keeps a copy of the file that [`restore`] puts into its place. As it is, it would be one more child.
fn save(lab: &Lab, name: &str) {
    let content = std::fs::read(lab.path(name)).unwrap();
    std::fs::write(lab.path(&format!("{name}.saved")), [b"(", &content[..], b")"].concat()).unwrap();
}

fn restore(lab: &Lab, name: &str) {
    let saved = std::fs::read(lab.path(&format!("{name}.saved"))).unwrap();
    std::fs::write(lab.path(name), &saved[1..saved.len() - 1]).unwrap();
}

fn no_worse_than_leaks(lab: &Lab, name: &str) {
    let check = lab.vhd(&["check", name]).output().unwrap();
    assert!(
        matches!(check.status.code(), Some(0 | 4)),
        "{}",
        String::from_utf8_lossy(&check.stdout)
    );
}

#[test]
fn killed_rebases_lose_nothing_and_go_on() {
    let lab = Lab::new();
    family(&lab, 24);
    let content = sha256(&lab, "child.avhd");
    save(&lab, "child.avhd");
    let args = ["reparent", "child.avhd", "--parent", "other.vhd", "--rebase"];
    let restore = || restore(&lab, "child.avhd");
    kill_again_and_again(&lab, &args, &restore, &|| {
        no_worse_than_leaks(&lab, "child.avhd");
        assert_eq!(sha256(&lab, "child.avhd"), content);
    });
    assert_eq!(leaf(&lab, "child.avhd", "/parent/id"), leaf(&lab, "other.vhd", "/id"));
}

#[test]
fn killed_relinks_are_done_or_not() {
    let lab = Lab::new();
    family(&lab, 2);
    let content = sha256(&lab, "child.avhd");
    save(&lab, "child.avhd");
    std::fs::create_dir(lab.path("moved")).unwrap();
    std::fs::copy(lab.path("base.vhd"), lab.path("moved/b.vhd")).unwrap();
    let args = ["reparent", "child.avhd", "--parent", "moved/b.vhd"];
    let restore = || restore(&lab, "child.avhd");
    kill_again_and_again(&lab, &args, &restore, &|| {
        no_worse_than_leaks(&lab, "child.avhd");
        assert_eq!(sha256(&lab, "child.avhd"), content);
    });
}

#[test]
fn killed_changes_of_identity_are_finished_with_the_same_one() {
    let lab = Lab::new();
    family(&lab, 1);
    let content = sha256(&lab, "child.avhd");
    let files = ["base.vhd", "child.avhd"];
    files.iter().for_each(|name| save(&lab, name));
    let restore = || {
        files.iter().for_each(|name| restore(&lab, name));
        let _ = std::fs::remove_file(lab.path("base.vhd.new-id"));
    };
    kill_again_and_again(
        &lab,
        &["new-id", "base.vhd", "--child", "child.avhd"],
        &restore,
        &|| {
            files.iter().for_each(|name| {
                let alone = lab.vhd(&["info", name, "--json"]).output().unwrap();
                assert!(matches!(alone.status.code(), Some(0 | 6)), "{alone:?}");
            });
            let Ok(record) = std::fs::read_to_string(lab.path("base.vhd.new-id")) else {
                assert_eq!(sha256(&lab, "child.avhd"), content);
                return;
            };
            let settled = lab.json(&["new-id", "base.vhd", "--dry-run"], 0);
            assert_eq!(settled["resumed"], true);
            assert!(record.contains(settled["new_id"].as_str().unwrap()), "{record}");
            let read = lab.vhd(&["hash", "child.avhd"]).output().unwrap();
            assert!(matches!(read.status.code(), Some(0 | 6)), "{read:?}");
            let done = lab.json(&["new-id", "base.vhd"], 0);
            assert_eq!(done["new_id"], settled["new_id"]);
            assert_eq!(sha256(&lab, "child.avhd"), content);
            assert_eq!(done["new_id"], leaf(&lab, "child.avhd", "/parent/id"));
        },
    );
}

#[test]
fn an_interrupted_rebase_ends_in_order() {
    let lab = Lab::new();
    family(&lab, 24);
    let content = sha256(&lab, "child.avhd");
    let mut interrupted = 0;
    for part in 1..10 {
        let status = interrupt(
            &lab,
            &["reparent", "child.avhd", "--parent", "other.vhd", "--rebase"],
            Duration::from_millis(part * 5),
        )
        .status;
        interrupted += u32::from(status.code() == Some(1));
        no_worse_than_leaks(&lab, "child.avhd");
        assert_eq!(sha256(&lab, "child.avhd"), content);
    }
    lab.run(&["reparent", "child.avhd", "--parent", "other.vhd", "--rebase"], 0);
    assert_eq!(sha256(&lab, "child.avhd"), content);
    crate::announce(&format!("rebase interrupted in order {interrupted} times of 9"));
}

/// Runs the command with little space left, and with enough after that. How often the space was short.
fn run_out_of_space(lab: &Lab, args: &[&str], free: u64) -> u32 {
    lab.fill_but("ballast", free);
    let run = lab.vhd(args).output().unwrap();
    std::fs::remove_file(lab.path("ballast")).unwrap();
    if run.status.success() {
        return 0;
    }
    let message = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(1), "{message}");
    assert!(message.contains("VHD-E0303"), "{message}");
    1
}

#[test]
fn a_full_file_system_stops_a_rebase_and_loses_nothing() {
    let Some(lab) = Lab::on_a_small_disk(40 * MIB) else {
        return;
    };
    family(&lab, 4);
    save(&lab, "child.avhd");
    let (content, mut stopped) = (sha256(&lab, "child.avhd"), 0);
    let args = ["reparent", "child.avhd", "--parent", "other.vhd", "--rebase"];
    for free in 0..11 {
        restore(&lab, "child.avhd");
        stopped += run_out_of_space(&lab, &args, free * 900_000);
        no_worse_than_leaks(&lab, "child.avhd");
        assert_eq!(sha256(&lab, "child.avhd"), content, "{free}");
        lab.run(&args, 0);
        no_worse_than_leaks(&lab, "child.avhd");
        assert_eq!(sha256(&lab, "child.avhd"), content, "{free}");
    }
    crate::announce(&format!("rebase stopped for lack of space {stopped} times of 11"));
    assert!(stopped > 0, "the space was never short: the test tested nothing");
}

#[test]
fn a_full_file_system_stops_a_change_of_identity() {
    let Some(lab) = Lab::on_a_small_disk(8 * MIB) else {
        return;
    };
    family(&lab, 1);
    let content = sha256(&lab, "child.avhd");
    let mut stopped = 0;
    for free in 0..8 {
        stopped += run_out_of_space(&lab, &["new-id", "base.vhd", "--child", "child.avhd"], free * 4096);
        let recorded = lab.exists("base.vhd.new-id");
        let done = lab.json(&["new-id", "base.vhd", "--all-children"], 0);
        assert_eq!(done["resumed"], recorded);
        assert_eq!(sha256(&lab, "child.avhd"), content, "{free}");
        assert_eq!(done["new_id"], leaf(&lab, "child.avhd", "/parent/id"));
        no_worse_than_leaks(&lab, "child.avhd");
    }
    crate::announce(&format!("new-id stopped for lack of space {stopped} times of 8"));
    assert!(stopped > 0, "the space was never short: the test tested nothing");
}
