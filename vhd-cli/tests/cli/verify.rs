//! `vhd verify` as scripts see it: verdicts, exit codes, refusals, sudden death.
//!
//! VHD_KILL_ROUNDS says how often the command is killed (default 12).

use std::fs;
use std::time::{Duration, Instant};

use crate::kill::{interrupt, killed};
use crate::kills::kill_rounds;
use crate::support::{Lab, MIB, stderr, stdout};

/// base.vhd, middle.avhd, leaf.avhd, each with something of its own.
fn three(lab: &Lab) {
    lab.dynamic("base.vhd", 9 * MIB);
    lab.write("base.vhd", MIB, &[1; 4096]);
    lab.run(&["create", "middle.avhd", "--parent", "base.vhd"], 0);
    lab.write("middle.avhd", 5 * MIB, &[2; 512]);
    lab.run(&["create", "leaf.avhd", "--parent", "middle.avhd"], 0);
    lab.write("leaf.avhd", 3 * MIB, &[3; 512]);
}

fn verdicts(lab: &Lab, args: &[&str], code: i32) -> Vec<(String, String)> {
    let json = lab.json(args, code);
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let layers = json["layers"].as_array().unwrap().iter();
    layers
        .map(|layer| (text(&layer["path"]), text(&layer["verdict"])))
        .collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(path, verdict): &(&str, &str)| ((*path).to_owned(), (*verdict).to_owned());
    expected.iter().map(owned).collect()
}

#[test]
fn ancestors_are_recorded_verified_and_found_changed() {
    let lab = Lab::new();
    three(&lab);
    let recorded = verdicts(&lab, &["verify", "leaf.avhd", "--record"], 0);
    assert_eq!(
        recorded,
        pairs(&[("middle.avhd", "recorded"), ("base.vhd", "recorded")])
    );
    assert!(lab.exists("base.vhd.digest") && lab.exists("middle.avhd.digest") && !lab.exists("leaf.avhd.digest"));
    let unchanged = pairs(&[("middle.avhd", "unchanged"), ("base.vhd", "unchanged")]);
    assert_eq!(verdicts(&lab, &["verify", "leaf.avhd"], 0), unchanged);
    lab.write("leaf.avhd", 0, &[9; 4096]);
    lab.run(&["compact", "base.vhd"], 0);
    assert_eq!(verdicts(&lab, &["verify", "leaf.avhd"], 0), unchanged);
    let presumed = verdicts(&lab, &["verify", "leaf.avhd", "--fast"], 0);
    assert_eq!(presumed[0].1, "presumed");

    lab.write("base.vhd", 8 * MIB + 512, &[4]);
    let json = lab.json(&["verify", "leaf.avhd"], 5);
    assert_eq!(json["mode"], "verify");
    let base = &json["layers"][1];
    assert_eq!((&base["verdict"], &base["depth"]), (&"changed".into(), &2.into()));
    assert_eq!(base["ranges"], serde_json::json!([{"start": 8 * MIB, "length": MIB}]));
    assert_eq!(base["changed_bytes"], MIB);
    assert_eq!(json["layers"][0]["verdict"], "unchanged");
    let told = lab.run(&["verify", "leaf.avhd"], 5);
    assert!(stdout(&told).contains("base.vhd: CHANGED within 1.00 MiB in 1 range (record of "));
    assert!(
        stderr(&told).contains("vhd: error[VHD-E0413]: base.vhd: changed"),
        "{}",
        stderr(&told)
    );
}

#[test]
fn records_are_never_replaced_in_silence() {
    let lab = Lab::new();
    three(&lab);
    lab.run(&["verify", "leaf.avhd", "--record"], 0);
    lab.write("base.vhd", 0, &[7]);
    let before = fs::read(lab.path("base.vhd.digest")).unwrap();
    let kept = pairs(&[("middle.avhd", "kept"), ("base.vhd", "kept")]);
    assert_eq!(verdicts(&lab, &["verify", "leaf.avhd", "--record"], 0), kept);
    assert_eq!(fs::read(lab.path("base.vhd.digest")).unwrap(), before);
    lab.run(&["verify", "leaf.avhd"], 5);
    let replaced = pairs(&[("middle.avhd", "replaced"), ("base.vhd", "replaced")]);
    assert_eq!(
        verdicts(&lab, &["verify", "leaf.avhd", "--record", "--update"], 0),
        replaced
    );
    lab.run(&["verify", "leaf.avhd"], 0);
}

#[test]
fn nothing_to_verify_by_is_no_success() {
    let lab = Lab::new();
    three(&lab);
    let refused = |args: &[&str]| {
        let told = stderr(&lab.run(args, 8));
        assert!(told.contains("vhd: error[VHD-E0120]: "), "{args:?}: {told}");
    };
    refused(&["verify", "leaf.avhd"]);
    refused(&["verify", "leaf.avhd", "--allow-missing"]);
    refused(&["verify", "base.vhd"]);
    refused(&["verify", "other.raw"]);
    lab.run(&["verify", "middle.avhd", "--record"], 0);
    // The base has a record now, the one in the middle has none.
    refused(&["verify", "leaf.avhd"]);
    lab.run(&["verify", "leaf.avhd", "--allow-missing"], 0);
    lab.run(&["verify", "middle.avhd"], 0);
    lab.run(&["verify", "base.vhd"], 0);
    lab.write("base.vhd", MIB, &[0]);
    let expected = pairs(&[("middle.avhd", "no-record"), ("base.vhd", "changed")]);
    assert_eq!(verdicts(&lab, &["verify", "leaf.avhd", "--allow-missing"], 5), expected);
}

#[test]
fn the_image_itself_is_recorded_where_that_is_asked_for() {
    let lab = Lab::new();
    three(&lab);
    let told = stderr(&lab.run(&["verify", "base.vhd", "--record"], 8));
    assert!(told.contains("--include-image"), "{told}");
    assert_eq!(
        verdicts(&lab, &["verify", "base.vhd", "--record", "--include-image"], 0),
        pairs(&[("base.vhd", "recorded")])
    );
    lab.run(&["verify", "base.vhd"], 0);
    let missing = verdicts(&lab, &["verify", "middle.avhd", "--include-image"], 8);
    assert_eq!(
        missing,
        pairs(&[("middle.avhd", "no-record"), ("base.vhd", "unchanged")])
    );
}

#[test]
fn what_is_wrong_with_a_record_is_told_and_the_others_are_verified() {
    let lab = Lab::new();
    three(&lab);
    lab.run(&["verify", "leaf.avhd", "--record"], 0);
    let good = fs::read(lab.path("middle.avhd.digest")).unwrap();
    lab.damage("middle.avhd.digest", 80, &[0xAA]);
    let json = lab.json(&["verify", "leaf.avhd"], 3);
    assert_eq!(json["layers"][0]["error"]["code"], "VHD-E0123");
    assert_eq!(json["layers"][1]["verdict"], "unchanged");
    fs::copy(lab.path("base.vhd.digest"), lab.path("middle.avhd.digest")).unwrap();
    let json = lab.json(&["verify", "leaf.avhd"], 8);
    assert_eq!(json["layers"][0]["error"]["code"], "VHD-E0124");
    assert_eq!(json["layers"][0]["error"]["kind"], "digest-other-disk");
    // A change is worse than a record that says nothing.
    lab.write("base.vhd", MIB, &[0]);
    let told = stderr(&lab.run(&["verify", "leaf.avhd"], 5));
    assert!(told.contains("VHD-E0413"), "{told}");
    fs::write(lab.path("middle.avhd.digest"), good).unwrap();
    assert_eq!(verdicts(&lab, &["verify", "leaf.avhd"], 5)[0].1, "unchanged");
}

#[test]
fn what_can_not_be_verified_is_refused() {
    let lab = Lab::new();
    three(&lab);
    lab.run(&["verify", "-"], 2);
    lab.run(&["verify", "leaf.avhd", "--update"], 2);
    lab.run(&["verify", "leaf.avhd", "--record", "--fast"], 2);
    lab.run(&["verify", "leaf.avhd", "--record", "--allow-missing"], 2);
    assert_eq!(lab.json(&["verify", "missing.vhd"], 1)["error"]["code"], "VHD-E0302");
    let writer = vhd_core::chain::OpenOptions::new()
        .write(true)
        .open(&lab.path("leaf.avhd"))
        .unwrap();
    assert_eq!(
        lab.json(&["verify", "leaf.avhd", "--record"], 7)["error"]["code"],
        "VHD-E0304"
    );
    // What a running machine never writes can be recorded and verified meanwhile.
    lab.run(&["verify", "leaf.avhd", "--record", "--force-share"], 0);
    lab.run(&["verify", "leaf.avhd", "--force-share"], 0);
    drop(writer);
    fs::rename(lab.path("base.vhd"), lab.path("elsewhere.vhd")).unwrap();
    fs::remove_file(lab.path("base.vhd.digest")).unwrap();
    lab.run(&["verify", "middle.avhd", "--explicit-parents"], 6);
}

/// An image of this many blocks of bytes, none of them zero.
fn dense(lab: &Lab, name: &str, blocks: u64) {
    lab.dynamic(name, blocks * 2 * MIB);
    let opened = vhd_core::chain::OpenOptions::new()
        .write(true)
        .open(&lab.path(name))
        .unwrap();
    for block in 0..blocks {
        let fill = u8::try_from(block % 250).unwrap() + 1;
        opened.disk().write_at(&vec![fill; 2 << 20], block * 2 * MIB).unwrap();
    }
    opened.close().unwrap();
}

#[test]
fn killed_recordings_leave_the_old_record_or_the_new_one() {
    let lab = Lab::new();
    dense(&lab, "a.vhd", 64);
    let args = ["verify", "a.vhd", "--include-image", "--record", "--update"];
    let started = Instant::now();
    lab.run(&args, 0);
    let whole = started.elapsed();
    let (mut alive, mut new, mut old, mut none) = (0, 0, 0, 0);
    for round in 0..kill_rounds() {
        // Every second time there is no record before.
        let before = (round % 2 == 0).then(|| fs::read(lab.path("a.vhd.digest")).unwrap());
        if before.is_none() {
            fs::remove_file(lab.path("a.vhd.digest")).unwrap();
        }
        let delay = whole * (round * 37 % 100) / 80;
        alive += u32::from(!killed(&lab, &args, delay));
        match (before, fs::read(lab.path("a.vhd.digest")).ok()) {
            (None, None) => none += 1,
            (Some(before), Some(after)) if before == after => old += 1,
            _ => new += 1,
        }
        if !lab.exists("a.vhd.digest") {
            lab.run(&["verify", "a.vhd"], 8);
            lab.run(&args, 0);
        }
        lab.run(&["verify", "a.vhd"], 0);
    }
    crate::announce(&format!(
        "recording killed {alive} times of {}: {none} without a record, {old} old, {new} new",
        kill_rounds()
    ));
    assert!(alive > 0, "no recording was killed: the test tested nothing");
}

#[test]
fn an_interrupted_recording_ends_in_order() {
    let lab = Lab::new();
    dense(&lab, "a.vhd", 64);
    let mut interrupted = 0;
    for part in 1..12 {
        let output = interrupt(
            &lab,
            &["verify", "a.vhd", "--include-image", "--record", "--update"],
            Duration::from_millis(part * 4),
        );
        if output.status.code() == Some(1) {
            interrupted += 1;
            assert!(
                String::from_utf8_lossy(&output.stderr).contains("VHD-E0412"),
                "{output:?}"
            );
        }
        let names: Vec<String> = lab
            .names()
            .into_iter()
            .filter(|name| name.contains("partial"))
            .collect();
        assert!(names.is_empty() || output.status.code().is_none(), "{names:?}");
    }
    crate::announce(&format!("recording interrupted in order {interrupted} times of 11"));
    lab.run(&["verify", "a.vhd", "--include-image", "--record", "--update"], 0);
    lab.run(&["verify", "a.vhd"], 0);
}

#[test]
fn a_full_file_system_leaves_the_old_record_or_none() {
    let Some(lab) = Lab::on_a_small_disk(8 * MIB) else {
        return;
    };
    // A page of every block of the disk: little space, and a record of several pages.
    lab.fixed("a.vhd", 800 * MIB);
    for block in 0..400 {
        lab.write("a.vhd", block * 2 * MIB, &[1]);
    }
    let args = ["verify", "a.vhd", "--include-image", "--record", "--update"];
    let record = || fs::read(lab.path("a.vhd.digest")).ok();
    for _ in 0..2 {
        let before = record();
        for pages in 0..3 {
            lab.fill_but("ballast", pages * 4096);
            let told = stderr(&lab.run(&args, 1));
            assert!(told.contains("VHD-E0303") && told.contains("a.vhd.digest"), "{told}");
            assert_eq!(record(), before, "{pages} pages free");
            fs::remove_file(lab.path("ballast")).unwrap();
        }
        lab.run(&args, 0);
        assert!(lab.len("a.vhd.digest") > 3 * 4096);
        lab.run(&["verify", "a.vhd"], 0);
    }
}
