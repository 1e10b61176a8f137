//! Merging as scripts see it: reports, refusals, sudden death, full file systems.
//!
//! VHD_KILL_ROUNDS says how often the command is killed (default 12); 200 and more is the long run:
//! `VHD_KILL_ROUNDS=200 cargo test --release -p vhd-cli --test cli killed_merges -- --nocapture`

use std::time::{Duration, Instant};

use crate::kill::{interrupt, killed};
use crate::kills::kill_rounds;
use crate::support::{Lab, MIB, stderr, stdout};

const SIZE: u64 = 48 * MIB;

/// A base, a middle, a leaf, and a child of the leaf, each with bytes scattered over the disk.
pub(crate) fn chain(lab: &Lab) {
    lab.dynamic("base.vhd", SIZE);
    scatter(lab, "base.vhd", 1);
    above_the_base(lab);
}

fn above_the_base(lab: &Lab) {
    lab.run(&["create", "middle.avhd", "--parent", "base.vhd"], 0);
    lab.run(&["create", "leaf.avhd", "--parent", "middle.avhd"], 0);
    lab.run(&["create", "child.avhd", "--parent", "leaf.avhd"], 0);
    for (seed, name) in (2..).zip(["middle.avhd", "leaf.avhd", "child.avhd"]) {
        scatter(lab, name, seed);
    }
}

/// Writes pieces of several sizes, some of them zero.
pub(crate) fn scatter(lab: &Lab, name: &str, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let opened = vhd_core::chain::OpenOptions::new()
        .write(true)
        .ignore_children(true)
        .open(&lab.path(name))
        .unwrap();
    let disk = opened.disk();
    for _ in 0..150 {
        let len = 512 * rng.u64(1..400);
        let start = 512 * rng.u64(..(SIZE - len) / 512);
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        if rng.u8(..5) > 0 {
            rng.fill(&mut bytes);
        }
        disk.write_at(&bytes, start).unwrap();
    }
    drop(disk);
    opened.close().unwrap();
}

pub(crate) fn sha256(lab: &Lab, name: &str) -> String {
    lab.json(&["hash", name], 0)["sha256"].as_str().unwrap().to_owned()
}

pub(crate) fn images(lab: &Lab) -> Vec<String> {
    lab.names().into_iter().filter(|name| name != "other.raw").collect()
}

#[test]
fn the_plan_says_what_is_done_then() {
    let lab = Lab::new();
    chain(&lab);
    let [leaf, child] = ["leaf.avhd", "child.avhd"].map(|name| sha256(&lab, name));
    let args = ["merge", "leaf.avhd", "--into", "base.vhd"];
    let before = lab.names();
    let text = stdout(&lab.run(&[&args[..], &["--dry-run"]].concat(), 0));
    for part in ["to copy:", "new space:", "takes about:", "child.avhd ->", "middle.avhd"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let planned = lab.json(&[&args[..], &["--dry-run"]].concat(), 0);
    assert_eq!(lab.names(), before);
    assert_eq!(planned["removed"].as_array().unwrap().len(), 2);
    let done = lab.json(&args, 0);
    for field in ["children", "removed", "layers", "held_bytes", "new_bytes", "target"] {
        assert_eq!(planned[field], done[field], "{field}");
    }
    let moved = done["copied_bytes"].as_u64().unwrap() + done["zeroed_bytes"].as_u64().unwrap();
    assert_eq!(moved, done["held_bytes"]);
    assert_eq!(images(&lab), ["base.vhd", "child.avhd"]);
    assert_eq!([sha256(&lab, "base.vhd"), sha256(&lab, "child.avhd")], [leaf, child]);
    for name in images(&lab) {
        lab.run(&["check", &name], 0);
        let info = lab.run(&["info", &name], 0);
        assert_eq!(stderr(&info), "", "{name}");
    }
}

#[test]
fn a_new_image_is_written_and_nothing_else_changes() {
    let lab = Lab::new();
    chain(&lab);
    let leaf = sha256(&lab, "leaf.avhd");
    let before: Vec<_> = images(&lab)
        .iter()
        .map(|name| std::fs::read(lab.path(name)).unwrap())
        .collect();
    let planned = lab.json(&["merge", "leaf.avhd", "--output", "new.avhd", "--dry-run"], 0);
    assert_eq!(
        (planned["new_image"].clone(), planned["dry_run"].clone()),
        (true.into(), true.into())
    );
    assert!(!lab.exists("new.avhd"));
    lab.run(&["merge", "leaf.avhd", "--output", "new.avhd"], 0);
    lab.run(&["merge", "leaf.avhd", "--into", "base.vhd", "--output", "one.vhd"], 0);
    for (name, kind) in [("new.avhd", "differencing"), ("one.vhd", "dynamic")] {
        assert_eq!(sha256(&lab, name), leaf);
        assert_eq!(lab.json(&["info", name], 0)["layers"][0]["type"], kind, "{name}");
        lab.run(&["check", name], 0);
    }
    lab.json(&["merge", "leaf.avhd", "--output", "new.avhd"], 8);
    lab.json(&["merge", "leaf.avhd", "--output", "base.vhd", "--force"], 8);
    lab.run(&["merge", "leaf.avhd", "--output", "new.avhd", "--force"], 0);
    let names = ["base.vhd", "child.avhd", "leaf.avhd", "middle.avhd"];
    let after: Vec<_> = names
        .iter()
        .map(|name| std::fs::read(lab.path(name)).unwrap())
        .collect();
    assert!(before == after);
}

#[test]
fn what_is_not_merged_is_told_why() {
    let lab = Lab::new();
    chain(&lab);
    let error = |args: &[&str], exit: i32| lab.json(args, exit)["error"]["code"].as_str().unwrap().to_owned();
    assert_eq!(error(&["merge", "base.vhd"], 8), "VHD-E0415");
    assert_eq!(error(&["merge", "leaf.avhd", "--into", "child.avhd"], 8), "VHD-E0415");
    assert_eq!(error(&["merge", "leaf.avhd", "--child", "base.vhd"], 8), "VHD-E0415");
    assert_eq!(error(&["merge", "none.vhd"], 1), "VHD-E0302");
    lab.run(&["merge", "-"], 2);
    lab.run(&["merge", "leaf.avhd", "--force-share"], 2);
    lab.run(&["merge", "leaf.avhd", "--force"], 2);
    lab.run(&["create", "second.avhd", "--parent", "middle.avhd"], 0);
    let refused = lab.json(&["merge", "leaf.avhd"], 8);
    assert_eq!(refused["error"]["code"], "VHD-E0207");
    assert!(refused["error"]["message"].as_str().unwrap().contains("second.avhd"));
    std::fs::remove_file(lab.path("second.avhd")).unwrap();
    let used = vhd_core::chain::OpenOptions::new()
        .open(&lab.path("child.avhd"))
        .unwrap();
    assert_eq!(error(&["merge", "leaf.avhd"], 7), "VHD-E0304");
    drop(used);
    assert_eq!(images(&lab).len(), 4);
    // The same command after a merge that was complete, but was killed before it could say so.
    lab.run(&["merge", "leaf.avhd"], 0);
    assert!(stderr(&lab.run(&["merge", "leaf.avhd"], 1)).contains("is complete"));
}

/// What each name is known to hold.
struct Known {
    leaf: String,
    child: String,
}

/// The leaf and its child read the same, and what is there is sound.
fn check_all(lab: &Lab, known: &Known, what: &str) {
    assert_eq!(sha256(lab, "child.avhd"), known.child, "{what}");
    if lab.exists("leaf.avhd") {
        assert_eq!(sha256(lab, "leaf.avhd"), known.leaf, "{what}");
    }
    for name in ["base.vhd", "child.avhd"] {
        let check = lab.vhd(&["check", name]).output().unwrap();
        assert!(matches!(check.status.code(), Some(0 | 4)), "{what}: {check:?}");
    }
}

/// A second directory with the images, from which they are put back.
pub(crate) fn restore(from: &Lab, to: &Lab) {
    for name in images(to) {
        std::fs::remove_file(to.path(&name)).unwrap();
    }
    for name in images(from) {
        std::fs::copy(from.path(&name), to.path(&name)).unwrap();
        // Old enough for the merge to trust what it remembers of the files.
        let file = std::fs::File::options().write(true).open(to.path(&name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(60))
            .unwrap();
    }
}

#[test]
fn killed_merges_lose_nothing_and_go_on() {
    let (original, lab) = (Lab::new(), Lab::new());
    chain(&original);
    let known = Known {
        leaf: sha256(&original, "leaf.avhd"),
        child: sha256(&original, "child.avhd"),
    };
    let args = ["merge", "leaf.avhd", "--into", "base.vhd", "--batch", "1M"];
    restore(&original, &lab);
    let started = Instant::now();
    lab.run(&args, 0);
    let whole = started.elapsed();
    let (mut alive, mut rounds, mut middle) = (0, 0, 0);
    while alive < kill_rounds() {
        restore(&original, &lab);
        // What was killed goes on, and is killed again, until it is done.
        for _ in 0..4 {
            rounds += 1;
            let delay = whole * (rounds * 37 % 100) / 95;
            let ended = killed(&lab, &args, delay);
            let done = !lab.exists("leaf.avhd") && !lab.exists("leaf.avhd.merge");
            alive += u32::from(!ended);
            check_all(&lab, &known, &format!("killed after {delay:?}"));
            if done {
                break;
            }
            let plan = lab.json(&["merge", "leaf.avhd", "--into", "base.vhd", "--dry-run"], 0);
            middle += u32::from(plan["resumed_at"].as_u64().is_some_and(|at| at > 0));
        }
        // The same command takes away what is left of a record, too.
        if ["leaf.avhd", "leaf.avhd.merge", "leaf.avhd.merge.done"]
            .iter()
            .any(|name| lab.exists(name))
        {
            lab.run(&args, 0);
        }
        check_all(&lab, &known, "done");
        assert_eq!(images(&lab), ["base.vhd", "child.avhd"]);
        assert_eq!(sha256(&lab, "base.vhd"), known.leaf);
        lab.run(&["check", "base.vhd"], 0);
    }
    crate::announce(&format!(
        "merges killed {alive} times in {rounds} rounds, {middle} times in the middle of the copying or later"
    ));
}

#[test]
fn an_interrupted_merge_ends_in_order_and_goes_on() {
    let (original, lab) = (Lab::new(), Lab::new());
    chain(&original);
    let known = Known {
        leaf: sha256(&original, "leaf.avhd"),
        child: sha256(&original, "child.avhd"),
    };
    let mut interrupted = 0;
    for part in 1..10 {
        restore(&original, &lab);
        let status = interrupt(
            &lab,
            &["merge", "leaf.avhd", "--batch", "512K"],
            Duration::from_millis(part * 4),
        )
        .status;
        interrupted += u32::from(status.code() == Some(1));
        check_all(&lab, &known, "interrupted");
        if lab.exists("leaf.avhd") {
            let done = lab.json(&["merge", "leaf.avhd"], 0);
            assert!(status.code() != Some(1) || done["resumed_at"].is_u64());
        }
        assert_eq!(sha256(&lab, "middle.avhd"), known.leaf);
        check_all(&lab, &known, "done");
    }
    crate::announce(&format!("merges interrupted in order {interrupted} times of 9"));
}

#[test]
fn a_full_file_system_stops_a_merge_and_loses_nothing() {
    let original = Lab::new();
    // A base without blocks: all of them are new.
    original.dynamic("base.vhd", SIZE);
    above_the_base(&original);
    let known = Known {
        leaf: sha256(&original, "leaf.avhd"),
        child: sha256(&original, "child.avhd"),
    };
    let Some(lab) = Lab::on_a_small_disk(256 * MIB) else {
        return;
    };
    let args = ["merge", "leaf.avhd", "--into", "base.vhd", "--batch", "1M"];
    let mut stopped = 0;
    for free in 0..8 {
        restore(&original, &lab);
        lab.fill_but("ballast", free * 7_000_000);
        let run = lab.vhd(&args).output().unwrap();
        if !run.status.success() {
            stopped += 1;
            let message = String::from_utf8_lossy(&run.stderr).into_owned();
            assert_eq!(run.status.code(), Some(1), "{message}");
            assert!(message.contains("VHD-E0303"), "{message}");
            let begun = lab.exists("leaf.avhd.merge");
            assert_eq!(
                message.contains("the merge has begun; run it again"),
                begun,
                "{message}"
            );
        }
        check_all(&lab, &known, "without space");
        std::fs::remove_file(lab.path("ballast")).unwrap();
        if lab.exists("leaf.avhd") || lab.exists("leaf.avhd.merge") {
            lab.run(&args, 0);
        }
        check_all(&lab, &known, "done");
        assert_eq!(sha256(&lab, "base.vhd"), known.leaf);
    }
    assert!(stopped > 0, "the space was never short: the test tested nothing");
}
