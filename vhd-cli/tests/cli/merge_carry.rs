//! Merges that carry other children along, as scripts see them: reports, sudden death, full file systems.
//!
//! VHD_KILL_ROUNDS says how often the command is killed (default 12); the long run:
//! `VHD_KILL_ROUNDS=200 cargo test --release -p vhd-cli --test cli killed_merges_that_carry -- --nocapture`

use std::time::Instant;

use crate::kill::killed;
use crate::kills::kill_rounds;
use crate::merge::{chain, images, restore, scatter, sha256};
use crate::support::{Lab, MIB, stdout};

const ARGS: [&str; 7] = ["merge", "leaf.avhd", "--into", "base.vhd", "--carry", "--batch", "1M"];

/// Children of each layer besides the next one; `grandchild.avhd` is based on one of them.
const OTHERS: [(&str, &str); 4] = [
    ("of-base.avhd", "base.vhd"),
    ("of-middle.avhd", "middle.avhd"),
    ("of-leaf.avhd", "leaf.avhd"),
    ("grandchild.avhd", "of-middle.avhd"),
];

fn family(lab: &Lab) {
    chain(lab);
    for (seed, (name, parent)) in (10..).zip(OTHERS) {
        lab.run(&["create", name, "--parent", parent], 0);
        // The first is empty: to be carried, it needs space for what it takes over.
        if name != OTHERS[0].0 {
            scatter(lab, name, seed);
        }
    }
}

/// What each image reads that must read the same.
struct Known(Vec<(String, String)>);

impl Known {
    fn of(lab: &Lab) -> Self {
        let names = OTHERS.iter().map(|(name, _)| *name).chain(["child.avhd", "leaf.avhd"]);
        Self(names.map(|name| (name.to_owned(), sha256(lab, name))).collect())
    }

    fn leaf(&self) -> &str {
        &self.0.last().unwrap().1
    }

    fn check(&self, lab: &Lab, what: &str) {
        for (name, sha) in &self.0 {
            if name != "leaf.avhd" || lab.exists(name) {
                assert_eq!(&sha256(lab, name), sha, "{name}, {what}");
                let check = lab.vhd(&["check", name]).output().unwrap();
                assert!(matches!(check.status.code(), Some(0 | 4)), "{name}, {what}: {check:?}");
            }
        }
    }

    fn check_done(&self, lab: &Lab, what: &str) {
        self.check(lab, what);
        assert_eq!(sha256(lab, "base.vhd"), self.leaf(), "{what}");
        lab.run(&["check", "base.vhd"], 0);
        assert_eq!(images(lab).len(), OTHERS.len() + 2, "{what}");
    }
}

fn is_begun(lab: &Lab) -> bool {
    lab.exists("leaf.avhd") || lab.exists("leaf.avhd.merge")
}

#[test]
fn a_plan_shows_what_is_carried() {
    let lab = Lab::new();
    family(&lab);
    let known = Known::of(&lab);
    let dry = [&ARGS[..], &["--dry-run"]].concat();
    let before = images(&lab);
    let refused = lab.json(&ARGS[..4], 8);
    assert_eq!(refused["error"]["code"], "VHD-E0207");
    let message = refused["error"]["message"].as_str().unwrap();
    for part in ["of-base.avhd", "of-middle.avhd", "--carry"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let text = stdout(&lab.run(&dry, 0));
    assert_eq!(text.matches("takes over at most").count(), 2, "{text}");
    let planned = lab.json(&dry, 0);
    assert_eq!(images(&lab), before);
    let carried = planned["carried"].as_array().unwrap();
    for (carried, (name, parent)) in carried.iter().zip([OTHERS[0], OTHERS[1]]) {
        assert!(carried["image"].as_str().unwrap().ends_with(name));
        assert!(carried["parent"].as_str().unwrap().ends_with(parent));
        assert!(carried["bytes"].as_u64().unwrap() > 0);
    }
    let done = lab.json(&ARGS, 0);
    assert_eq!(done["carried"], planned["carried"]);
    let bound: u64 = carried.iter().map(|carried| carried["bytes"].as_u64().unwrap()).sum();
    let taken = done["carried_bytes"].as_u64().unwrap();
    assert!(taken > 0 && taken <= bound, "{taken} of {bound}");
    known.check_done(&lab, "done");
    for name in images(&lab) {
        // Nobody is warned about a time stamp.
        assert_eq!(crate::support::stderr(&lab.run(&["info", &name], 0)), "", "{name}");
    }
    lab.run(&["merge", "of-base.avhd", "--carry", "--output", "new.vhd"], 2);
}

#[test]
fn killed_merges_that_carry_lose_nothing_and_go_on() {
    let (original, lab) = (Lab::new(), Lab::new());
    family(&original);
    let known = Known::of(&original);
    restore(&original, &lab);
    let started = Instant::now();
    lab.run(&ARGS, 0);
    let whole = started.elapsed();
    let (mut alive, mut rounds, mut carrying) = (0, 0, 0);
    while alive < kill_rounds() {
        restore(&original, &lab);
        // What was killed goes on, and is killed again, until it is done.
        for _ in 0..3 {
            rounds += 1;
            let delay = whole * (rounds * 37 % 100) / 95;
            alive += u32::from(!killed(&lab, &ARGS, delay));
            known.check(&lab, &format!("killed after {delay:?}"));
            if !is_begun(&lab) {
                break;
            }
            let plan = lab.json(&[&ARGS[..], &["--dry-run"]].concat(), 0);
            carrying += u32::from(plan["resumed_at"] == 0);
        }
        // The same command takes away what is left of a record, too.
        if is_begun(&lab) || lab.exists("leaf.avhd.merge.done") {
            lab.run(&ARGS, 0);
        }
        known.check_done(&lab, "done");
    }
    crate::announce(&format!(
        "merges that carry killed {alive} times in {rounds} rounds, {carrying} times at their beginning"
    ));
}

#[test]
fn a_full_file_system_stops_a_merge_that_carries_and_loses_nothing() {
    let original = Lab::new();
    family(&original);
    let known = Known::of(&original);
    let Some(lab) = Lab::on_a_small_disk(600 * MIB) else {
        return;
    };
    let mut stopped = 0;
    for free in 0..8 {
        restore(&original, &lab);
        lab.fill_but("ballast", free * 1_300_000);
        let run = lab.vhd(&ARGS).output().unwrap();
        if !run.status.success() {
            stopped += 1;
            let message = String::from_utf8_lossy(&run.stderr).into_owned();
            assert_eq!(run.status.code(), Some(1), "{message}");
            assert!(message.contains("VHD-E0303"), "{message}");
        }
        known.check(&lab, "without space");
        std::fs::remove_file(lab.path("ballast")).unwrap();
        if is_begun(&lab) {
            lab.run(&ARGS, 0);
        }
        known.check_done(&lab, "done");
    }
    assert!(stopped > 3, "the space was short {stopped} times of 8");
}
