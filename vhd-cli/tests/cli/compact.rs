//! Compaction as scripts see it: reports, refusals, children, sudden death.
//!
//! VHD_KILL_ROUNDS says how often the command is killed (default 12); 200 and more is the long run:
//! `VHD_KILL_ROUNDS=500 cargo test --release -p vhd-cli --test cli killed_compactions -- --nocapture`

use std::time::{Duration, Instant};

use crate::kill::{interrupt, killed};
use crate::kills::kill_rounds;
use crate::support::{Lab, MIB, stderr, stdout};

/// An image of this many blocks, every second one of zeroes.
fn half_zero(lab: &Lab, name: &str, blocks: u64) {
    lab.dynamic(name, blocks * 2 * MIB);
    let opened = vhd_core::chain::OpenOptions::new()
        .write(true)
        .open(&lab.path(name))
        .unwrap();
    for block in 0..blocks {
        let fill = if block % 2 == 0 {
            0
        } else {
            u8::try_from(block % 250).unwrap() + 1
        };
        opened.disk().write_at(&vec![fill; 2 << 20], block * 2 * MIB).unwrap();
    }
    opened.close().unwrap();
}

pub(crate) fn sha256(lab: &Lab, name: &str) -> String {
    lab.json(&["hash", name], 0)["sha256"].as_str().unwrap().to_owned()
}

#[test]
fn reports_agree_and_the_content_stays() {
    let lab = Lab::new();
    half_zero(&lab, "a.vhd", 16);
    let (before, content) = (lab.len("a.vhd"), sha256(&lab, "a.vhd"));
    let measured = lab.json(&["measure", "a.vhd"], 0);
    assert_eq!(measured["causes"]["zero"], 8);
    assert_eq!(measured["causes"]["unknown-file-system"], 8);
    let planned = lab.json(&["compact", "a.vhd", "--dry-run"], 0);
    assert_eq!(
        (planned["dry_run"].clone(), planned["moved_blocks"].clone()),
        (true.into(), 4.into())
    );
    assert_eq!(lab.len("a.vhd"), before);
    let done = lab.json(&["compact", "a.vhd"], 0);
    for field in ["file_bytes", "dropped_blocks", "moved_blocks", "moved_bytes"] {
        assert_eq!(planned[field], done[field], "{field}");
    }
    assert_eq!(
        (done["file_bytes"].clone(), done["file_bytes_before"].clone()),
        (lab.len("a.vhd").into(), before.into())
    );
    assert_eq!(measured["now"]["file_bytes"], done["file_bytes"]);
    assert_eq!(sha256(&lab, "a.vhd"), content);
    lab.run(&["check", "a.vhd"], 0);
    let again = stdout(&lab.run(&["compact", "a.vhd"], 0));
    assert!(again.contains("dropped: 0 of 8 blocks"), "{again}");
    let people = stdout(&lab.run(&["measure", "a.vhd"], 0));
    assert!(people.contains("8 blocks are in use"), "{people}");
}

#[test]
fn what_can_not_be_compacted_is_refused() {
    let lab = Lab::new();
    lab.fixed("fixed.vhd", MIB);
    half_zero(&lab, "saved.vhd", 2);
    let error = |args: &[&str], exit: i32| lab.json(args, exit)["error"]["code"].as_str().unwrap().to_owned();
    assert_eq!(error(&["compact", "fixed.vhd"], 8), "VHD-E0411");
    assert_eq!(error(&["measure", "other.raw", "--from", "raw"], 8), "VHD-E0411");
    assert_eq!(error(&["compact", "missing.vhd"], 1), "VHD-E0302");
    let mut footer = std::fs::read(lab.path("saved.vhd")).unwrap()[..512].to_vec();
    footer[84] = 1;
    footer[64..68].fill(0);
    let sum: u32 = footer.iter().map(|&byte| u32::from(byte)).sum();
    footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    lab.damage("saved.vhd", 0, &footer);
    lab.damage("saved.vhd", -512, &footer);
    assert_eq!(error(&["compact", "saved.vhd"], 8), "VHD-E0121");
    lab.run(&["compact", "-"], 2);
    lab.run(&["compact", "saved.vhd", "--force-share"], 2);
    lab.run(&["compact", "saved.vhd", "--force"], 2);
    let held = vhd_core::chain::OpenOptions::new()
        .open(&lab.path("saved.vhd"))
        .unwrap();
    assert_eq!(error(&["compact", "saved.vhd"], 7), "VHD-E0304");
    drop(held);
}

#[test]
fn children_read_the_same_and_free_space_of_parents_is_refused() {
    let lab = Lab::new();
    half_zero(&lab, "parent.vhd", 8);
    lab.run(&["create", "child.avhd", "--parent", "parent.vhd"], 0);
    lab.write("child.avhd", 2 * MIB, &[0; 4096]);
    lab.write("child.avhd", 5 * MIB, &[0; 4096]);
    let content = sha256(&lab, "child.avhd");
    let report = lab.json(&["compact", "parent.vhd"], 0);
    assert_eq!(report["children"].as_array().unwrap().len(), 1);
    // The child does not even notice: no warning about another time stamp.
    let run = lab.run(&["hash", "child.avhd"], 0);
    assert_eq!(stderr(&run), "");
    assert_eq!(sha256(&lab, "child.avhd"), content);
    // Its zeroes hide what is not zero below: none of its blocks may go.
    let report = lab.json(&["compact", "child.avhd"], 0);
    assert_eq!(report["dropped_blocks"], 1);
    assert_eq!(sha256(&lab, "child.avhd"), content);
    let refused = lab.json(&["compact", "parent.vhd", "--free-space"], 8);
    assert_eq!(refused["error"]["code"], "VHD-E0207");
    assert!(refused["error"]["message"].as_str().unwrap().contains("child.avhd"));
    lab.run(&["compact", "parent.vhd", "--free-space", "--force"], 0);
    lab.run(&["measure", "child.avhd"], 0);
}

#[test]
fn killed_compactions_lose_nothing_and_go_on() {
    let lab = Lab::new();
    half_zero(&lab, "original.vhd", 48);
    let content = sha256(&lab, "original.vhd");
    let restore = || std::fs::copy(lab.path("original.vhd"), lab.path("a.vhd")).unwrap();
    restore();
    let started = Instant::now();
    lab.run(&["compact", "a.vhd"], 0);
    let (whole, shortest) = (started.elapsed(), lab.len("a.vhd"));
    let (mut alive, mut rounds) = (0, 0);
    while rounds < kill_rounds() {
        restore();
        // The image stays as it was killed, and is killed again, until it is done.
        for _ in 0..3 {
            rounds += 1;
            let delay = whole * (rounds * 37 % 100) / 90;
            let ended = killed(&lab, &["compact", "a.vhd"], delay);
            alive += u32::from(!ended);
            let check = lab.vhd(&["check", "a.vhd"]).output().unwrap();
            assert!(
                matches!(check.status.code(), Some(0 | 4)),
                "{}",
                String::from_utf8_lossy(&check.stdout)
            );
            assert_eq!(sha256(&lab, "a.vhd"), content, "killed after {delay:?}");
            if ended {
                break;
            }
        }
        lab.run(&["compact", "a.vhd"], 0);
        assert_eq!((lab.len("a.vhd"), sha256(&lab, "a.vhd")), (shortest, content.clone()));
    }
    crate::announce(&format!("compaction killed {alive} times in {rounds} rounds"));
    assert!(alive > 0, "no compaction was killed: the test tested nothing");
}

#[test]
fn an_interrupted_compaction_ends_in_order() {
    let lab = Lab::new();
    half_zero(&lab, "a.vhd", 48);
    let content = sha256(&lab, "a.vhd");
    let mut interrupted = 0;
    for part in 1..12 {
        let status = interrupt(&lab, &["compact", "a.vhd"], Duration::from_millis(part * 5)).status;
        interrupted += u32::from(status.code() == Some(1));
        // Holes that were not filled yet are leaked space.
        let check = lab.vhd(&["check", "a.vhd"]).output().unwrap();
        assert!(matches!(check.status.code(), Some(0 | 4)), "{check:?}");
        assert_eq!(sha256(&lab, "a.vhd"), content);
    }
    lab.run(&["compact", "a.vhd"], 0);
    lab.run(&["check", "a.vhd"], 0);
    crate::announce(&format!("compaction interrupted in order {interrupted} times of 11"));
}

#[test]
fn a_full_file_system_stops_a_compaction_and_loses_nothing() {
    let Some(lab) = Lab::on_a_small_disk(64 * MIB) else {
        return;
    };
    half_zero(&lab, "original.vhd", 12);
    let (content, mut stopped) = (sha256(&lab, "original.vhd"), 0);
    for free in 0..12 {
        std::fs::copy(lab.path("original.vhd"), lab.path("a.vhd")).unwrap();
        // What is zero takes no space: a block that moves there needs some.
        let dug = std::process::Command::new("fallocate")
            .args(["--dig-holes"])
            .arg(lab.path("a.vhd"))
            .status();
        assert!(dug.unwrap().success());
        lab.fill_but("ballast", free * 900_000);
        let run = lab.vhd(&["compact", "a.vhd"]).output().unwrap();
        if !run.status.success() {
            stopped += 1;
            let message = String::from_utf8_lossy(&run.stderr).into_owned();
            assert_eq!(run.status.code(), Some(1), "{message}");
            assert!(message.contains("VHD-E0303") && message.contains("a.vhd"), "{message}");
        }
        let check = lab.vhd(&["check", "a.vhd"]).output().unwrap();
        assert!(matches!(check.status.code(), Some(0 | 4)), "{check:?}");
        assert_eq!(sha256(&lab, "a.vhd"), content, "{free}");
        std::fs::remove_file(lab.path("ballast")).unwrap();
        lab.run(&["compact", "a.vhd"], 0);
        lab.run(&["check", "a.vhd"], 0);
        assert_eq!(sha256(&lab, "a.vhd"), content, "{free}");
    }
    assert!(stopped > 0, "the space was never short: the test tested nothing");
}
