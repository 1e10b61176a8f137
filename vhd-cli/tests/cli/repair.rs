//! Repair as scripts see it: plans, exit codes, undo, sudden death, full file systems.
//!
//! VHD_KILL_ROUNDS says how often the command is killed (default 12); 200 and more is the long run:
//! `VHD_KILL_ROUNDS=500 cargo test --release -p vhd-cli --test cli killed_repairs -- --nocapture`

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Instant;

use vhd_core::job::RepairJob;

use crate::compact::sha256;
use crate::kill::killed;
use crate::kills::kill_rounds;
use crate::support::{Lab, MIB, stderr, stdout};
use crate::tools;

/// An image of full blocks in the order of the disk.
fn full(lab: &Lab, name: &str, blocks: u64) {
    lab.dynamic(name, blocks * 2 * MIB);
    for block in 0..blocks {
        let fill = u8::try_from(block % 250).unwrap() + 1;
        lab.write(name, block * 2 * MIB, &vec![fill; 2 << 20]);
    }
}

#[test]
fn a_plan_changes_nothing_and_an_undo_gives_every_byte_back() {
    let lab = Lab::new();
    full(&lab, "a.vhd", 3);
    let (content, sound) = (sha256(&lab, "a.vhd"), fs::read(lab.path("a.vhd")).unwrap());
    assert_eq!(lab.json(&["repair", "a.vhd"], 0)["verdict"], "sound");
    lab.damage("a.vhd", -512, &[0; 512]);
    lab.damage("a.vhd", 512, &[0; 1024]);
    let damaged = fs::read(lab.path("a.vhd")).unwrap();
    let plan = lab.json(&["repair", "a.vhd"], 4);
    assert_eq!(
        (plan["verdict"].as_str(), plan["findings"][0]["code"].as_str()),
        (Some("repairable"), Some("header-restored"))
    );
    assert_eq!(plan["changes"].as_array().unwrap().len(), 2);
    assert_eq!(fs::read(lab.path("a.vhd")).unwrap(), damaged);
    assert!(!lab.exists("a.vhd.undo"));
    fs::set_permissions(lab.path("a.vhd"), fs::Permissions::from_mode(0o600)).unwrap();
    let done = stdout(&lab.run(&["repair", "a.vhd", "--yes"], 0));
    let undo = fs::metadata(lab.path("a.vhd.undo")).unwrap();
    assert_eq!(undo.permissions().mode() & 0o777, 0o600);
    assert!(done.ends_with("a.vhd: repaired; --undo takes it back\n"), "{done}");
    lab.run(&["check", "a.vhd"], 0);
    assert_eq!(
        (sha256(&lab, "a.vhd"), fs::read(lab.path("a.vhd")).unwrap()),
        (content, sound)
    );
    // Done is done: the undo file stays.
    lab.run(&["repair", "a.vhd", "--yes"], 0);
    assert_eq!(lab.json(&["repair", "a.vhd", "--undo"], 0)["verdict"], "undone");
    assert_eq!(fs::read(lab.path("a.vhd")).unwrap(), damaged);
    assert!(!lab.exists("a.vhd.undo"));
    assert_eq!(
        lab.json(&["repair", "a.vhd", "--undo"], 1)["error"]["code"],
        "VHD-E0302"
    );
}

#[test]
fn what_is_in_doubt_is_told() {
    let lab = Lab::new();
    full(&lab, "a.vhd", 3);
    let file = fs::File::options().write(true).open(lab.path("a.vhd")).unwrap();
    file.set_len(lab.len("a.vhd") - 512 - MIB).unwrap();
    let plan = lab.json(&["repair", "a.vhd", "--yes"], 0);
    let doubt = &plan["doubts"][0];
    assert_eq!(
        (doubt["first_lba"].as_u64(), doubt["sectors"].as_u64()),
        (Some(5 * 2048), Some(2048))
    );
    let text = stdout(&lab.run(&["repair", "a.vhd"], 0));
    assert_eq!(text, "a.vhd: nothing to repair\n");
    lab.run(&["hash", "a.vhd"], 0);
}

#[test]
fn refusals_have_codes_and_change_nothing() {
    let lab = Lab::new();
    let error = |args: &[&str], exit: i32| lab.json(args, exit)["error"]["code"].as_str().unwrap().to_owned();
    assert_eq!(error(&["repair", "other.raw", "--yes"], 3), "VHD-E0125");
    assert_eq!(error(&["repair", "missing.vhd"], 1), "VHD-E0302");
    full(&lab, "a.vhd", 2);
    lab.damage("a.vhd", 0, &[0; 512]);
    lab.damage("a.vhd", -512, &[0; 512]);
    assert_eq!(error(&["repair", "a.vhd", "--yes"], 8), "VHD-E0414");
    assert!(!lab.exists("a.vhd.undo"));
    lab.run(&["repair", "a.vhd", "--size", "4M", "--yes"], 0);
    // Used since: the undo file does not fit any more.
    lab.write("a.vhd", 0, &[9; 512]);
    lab.damage("a.vhd", -512, &[0; 512]);
    fs::write(lab.path("copy.undo"), fs::read(lab.path("a.vhd.undo")).unwrap()).unwrap();
    lab.damage("a.vhd.undo", 30, &[9]);
    assert_eq!(error(&["repair", "a.vhd", "--undo"], 8), "VHD-E0126");
    assert!(stderr(&lab.run(&["repair", "a.vhd"], 4)).contains("left alone"));
    assert_eq!(error(&["repair", "a.vhd", "--yes"], 8), "VHD-E0305");
    lab.run(&["repair", "-"], 2);
    lab.run(&["repair", "a.vhd", "--undo", "--yes"], 2);
    let held = vhd_core::chain::OpenOptions::new().open(&lab.path("a.vhd")).unwrap();
    assert_eq!(error(&["repair", "a.vhd", "--yes"], 7), "VHD-E0304");
    drop(held);
}

#[test]
fn long_plans_are_summed_up() {
    let lab = Lab::new();
    full(&lab, "a.vhd", 24);
    for block in (0..24).step_by(2) {
        lab.damage("a.vhd", 1536 + 4 * block, &0xFFFF_FF00_u32.to_be_bytes());
    }
    let text = stdout(&lab.run(&["repair", "a.vhd"], 4));
    for kind in ["entry-restored", "IN DOUBT"] {
        assert!(
            text.contains(&format!("... and 4 more {kind} (--verbose lists them)")),
            "{text}"
        );
        assert_eq!(text.lines().filter(|line| line.contains(kind)).count(), 9, "{text}");
    }
    assert!(
        text.ends_with("after a repair it opens again; 49152 sectors in doubt; nothing was changed, --yes does it\n")
    );
    let text = stdout(&lab.run(&["repair", "a.vhd", "--verbose"], 4));
    assert_eq!(
        text.lines().filter(|line| line.contains("IN DOUBT")).count(),
        12,
        "{text}"
    );
    let plan = lab.json(&["repair", "a.vhd"], 4);
    assert_eq!(plan["findings"].as_array().unwrap().len(), 12);
    assert_eq!(
        (plan["lost_sectors"].as_u64(), plan["doubtful_sectors"].as_u64()),
        (Some(0), Some(49152))
    );
    let check = stdout(&lab.run(&["check", "a.vhd"], 3));
    assert!(check.contains("more block-past-end (--verbose lists them)"), "{check}");
    assert!(
        check.ends_with("after vhd repair it opens again; 49152 sectors in doubt, which it lists\n"),
        "{check}"
    );
}

#[test]
fn a_lost_bitmap_reads_as_other_programs_read_it() {
    let lab = Lab::new();
    full(&lab, "a.vhd", 3);
    let content = sha256(&lab, "a.vhd");
    let bytes = fs::read(lab.path("a.vhd")).unwrap();
    let entry: [u8; 4] = bytes[1540..1544].try_into().unwrap();
    lab.damage("a.vhd", i64::from(u32::from_be_bytes(entry)) * 512, &[0; 512]);
    assert_eq!(
        lab.json(&["check", "a.vhd"], 3)["files"][0]["repair"]["doubtful_sectors"],
        4096
    );
    let done = lab.json(&["repair", "a.vhd", "--yes"], 0);
    assert_eq!(
        (
            done["doubts"][0]["first_lba"].as_u64(),
            done["doubts"][0]["lost"].as_bool()
        ),
        (Some(4096), Some(false))
    );
    assert_eq!(sha256(&lab, "a.vhd"), content);
    assert_eq!(fs::read(lab.path("a.vhd")).unwrap(), bytes);
    lab.run(&["check", "a.vhd"], 0);
}

#[test]
fn facts_do_not_win_over_a_sound_image() {
    let lab = Lab::new();
    full(&lab, "a.vhd", 2);
    for wrong in [["--size", "5M"], ["--type", "fixed"]] {
        let refused = lab.json(&[&["repair", "a.vhd"][..], &wrong].concat(), 8);
        assert_eq!(refused["error"]["code"], "VHD-E0135");
    }
    lab.run(&["repair", "a.vhd", "--size", "4M", "--type", "dynamic"], 0);
}

#[test]
fn others_read_what_was_repaired() {
    if !tools::have(&["qemu-img", "7zz"], "repaired images read by qemu and 7-Zip") {
        return;
    }
    let lab = Lab::new();
    fs::write(lab.path("a.raw"), vec![7; 6 << 20]).unwrap();
    for (name, options) in [
        ("dynamic", "subformat=dynamic,force_size=on"),
        ("fixed", "subformat=fixed,force_size=on"),
    ] {
        let image = lab.path("q.vhd");
        tools::qemu_convert(&lab.path("a.raw"), "raw", &image, "vpc", &["-o", options]);
        let content = tools::qemu_reads(&image);
        // A copying tool added something; for an image of blocks the copy and the header are gone as well.
        let mut bytes = fs::read(&image).unwrap();
        bytes.extend_from_slice(&[0x6B; 3000]);
        if name == "dynamic" {
            bytes[..512].fill(0);
            bytes[512 + 34] ^= 0xFF;
        }
        fs::write(&image, bytes).unwrap();
        lab.run(&["repair", "q.vhd", "--yes"], 0);
        lab.run(&["check", "q.vhd"], 0);
        assert_eq!(tools::qemu_reads(&image), content, "{name}");
        assert_eq!(tools::seven_zip_reads(&image), content, "{name}");
        fs::remove_file(lab.path("q.vhd.undo")).unwrap();
    }
}

/// Damage whose repair writes much: both footers, a table entry, and a block that needs a copy.
fn much_damaged(lab: &Lab, name: &str) {
    full(lab, name, 12);
    let bytes = fs::read(lab.path(name)).unwrap();
    lab.damage(name, 1536 + 4 * 3, &bytes[1536 + 4 * 5..1536 + 4 * 6]);
    lab.damage(name, 0, &[0; 8]);
    lab.damage(name, -512, &[0; 8]);
}

#[test]
fn killed_repairs_are_finished_or_undone() {
    let lab = Lab::new();
    much_damaged(&lab, "original.vhd");
    let damaged = fs::read(lab.path("original.vhd")).unwrap();
    let restore = || {
        fs::write(lab.path("a.vhd"), &damaged).unwrap();
        let _ = fs::remove_file(lab.path("a.vhd.undo"));
    };
    restore();
    let started = Instant::now();
    let report = lab.json(&["repair", "a.vhd", "--yes"], 0);
    let whole = started.elapsed();
    assert!(!report["doubts"].as_array().unwrap().is_empty());
    let repaired = fs::read(lab.path("a.vhd")).unwrap();
    let (mut alive, mut partial, mut undoing) = (0, 0, 0);
    for round in 0..kill_rounds() {
        restore();
        let delay = whole * (round * 37 % 100) / 95;
        alive += u32::from(!killed(&lab, &["repair", "a.vhd", "--yes"], delay));
        let now = fs::read(lab.path("a.vhd")).unwrap();
        let between = now != damaged && now != repaired;
        partial += u32::from(between);
        assert!(!between || lab.exists("a.vhd.undo"), "changed without an undo file");
        if round % 2 == 0 {
            lab.run(&["repair", "a.vhd", "--yes"], 0);
            assert!(
                fs::read(lab.path("a.vhd")).unwrap() == repaired,
                "killed after {delay:?}"
            );
        } else if lab.exists("a.vhd.undo") {
            undoing += u32::from(!killed(&lab, &["repair", "a.vhd", "--undo"], delay / 2));
            if lab.exists("a.vhd.undo") {
                lab.run(&["repair", "a.vhd", "--undo"], 0);
            }
            assert!(
                fs::read(lab.path("a.vhd")).unwrap() == damaged,
                "undone after {delay:?}"
            );
        }
        assert!(!lab.exists("a.vhd.job"), "still open after {delay:?}");
    }
    crate::announce(&format!(
        "repair killed {alive} times in {} rounds ({partial} in the middle of changes), undoing {undoing} times",
        kill_rounds()
    ));
    assert!(alive > 0, "no repair was killed: the test tested nothing");
}

/// All changes are in the image, and the repair, or its undoing, was killed before it ended.
#[test]
fn a_repair_that_was_killed_at_its_end_is_open_until_it_is_run_again() {
    let ways: [(&[&str], bool); 3] = [
        (&["repair", "a.vhd", "--yes"], true),
        (&["repair", "a.vhd", "--undo"], false),
        (&["repair", "a.vhd", "--yes", "--verbose"], true),
    ];
    for (again, repaired) in ways {
        let lab = Lab::new();
        much_damaged(&lab, "a.vhd");
        lab.run(&["repair", "a.vhd", "--yes"], 0);
        let bytes = fs::read(lab.path("a.vhd")).unwrap();
        RepairJob::of(&lab.path("a.vhd")).begin().unwrap();
        assert_eq!(lab.json(&["compact", "a.vhd"], 8)["error"]["code"], "VHD-E0307");
        assert_eq!(lab.json(&["repair", "a.vhd"], 4)["verdict"], "unfinished");
        lab.run(again, 0);
        assert!(!lab.exists("a.vhd.job"), "{again:?}");
        assert_eq!(fs::read(lab.path("a.vhd")).unwrap() == bytes, repaired, "{again:?}");
        if repaired {
            assert_eq!(lab.json(&["repair", "a.vhd"], 0)["verdict"], "sound");
            lab.run(&["compact", "a.vhd"], 0);
        }
    }
}

#[test]
fn nothing_new_is_based_on_or_copied_from_an_image_whose_repair_is_open() {
    let lab = Lab::new();
    full(&lab, "a.vhd", 4);
    lab.run(&["create", "b.avhd", "--parent", "a.vhd"], 0);
    lab.run(&["create", "c.avhd", "--parent", "b.avhd"], 0);
    lab.damage("a.vhd", -512, &[0; 8]);
    lab.run(&["repair", "a.vhd", "--yes"], 0);
    RepairJob::of(&lab.path("a.vhd")).begin().unwrap();
    let before = lab.names();
    for args in [
        &["create", "new.avhd", "--parent", "a.vhd"][..],
        &["export-delta", "c.avhd", "new.avhd", "--since", "a.vhd"],
        &["merge", "c.avhd", "--output", "new.avhd"],
        &["reparent", "c.avhd", "--parent", "a.vhd", "--rebase"],
        &["convert", "a.vhd", "new.raw", "--to", "raw"],
        &["export-delta", "a.vhd", "new.avhd", "--since", "b.avhd"],
    ] {
        assert_eq!(lab.json(args, 8)["error"]["code"], "VHD-E0307", "{args:?}");
        assert_eq!(lab.names(), before, "{args:?}");
    }
    lab.run(&["export-delta", "c.avhd", "-", "--since", "a.vhd"], 8);
    lab.run(&["convert", "a.vhd", "-", "--to", "raw"], 8);
    lab.run(&["azure", "prepare", "a.vhd", "new.vhd"], 8);
    assert_eq!(lab.names(), before);
    // Looking at it is worth a warning, and its children read what they read.
    assert!(stderr(&lab.run(&["hash", "a.vhd"], 0)).contains("unfinished repair"));
    lab.run(&["convert", "c.avhd", "new.raw", "--to", "raw"], 0);
    lab.run(&["repair", "a.vhd", "--yes"], 0);
    lab.run(&["export-delta", "c.avhd", "new.avhd", "--since", "a.vhd"], 0);
}

/// A small file system in memory, for as long as it is held. `None`, loudly, where mounting is not allowed.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(kib: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={kib}k");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(dir.path())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(dir));
        }
        crate::announce("NOT TESTED: repairs on a full file system: mounting one is not allowed here");
        None
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_file_system_loses_nothing() {
    let lab = Lab::new();
    much_damaged(&lab, "a.vhd");
    let damaged = fs::read(lab.path("a.vhd")).unwrap();
    lab.run(&["repair", "a.vhd", "--yes"], 0);
    let repaired = fs::read(lab.path("a.vhd")).unwrap();
    let undo = fs::read(lab.path("a.vhd.undo")).unwrap();
    let needed = (repaired.len() + undo.len()) / 1024 + 64;
    let Some(small) = Small::mount(u64::try_from(needed).unwrap()) else {
        return;
    };
    let (image, filler) = (small.0.path().join("a.vhd"), small.0.path().join("filler"));
    let run = |flag: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_vhd"))
            .arg("repair")
            .arg(&image)
            .arg(flag)
            .output()
            .unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let mut full = 0;
    for step in 0..16_usize {
        fs::write(&image, &damaged).unwrap();
        // What is left reaches from nothing to almost enough.
        let room = (repaired.len() + undo.len() - damaged.len()) * step / 15;
        let free = needed * 1024 - damaged.len();
        fs::write(&filler, vec![1; free.saturating_sub(room) / 4096 * 4096]).unwrap_or_default();
        let (code, message) = run("--yes");
        if code != 0 {
            assert!(code == 1 && message.contains("VHD-E0303"), "{code}: {message}");
            full += 1;
        }
        fs::remove_file(&filler).unwrap();
        if step % 2 == 0 {
            assert_eq!(run("--yes").0, 0);
            assert!(
                fs::read(&image).unwrap() == repaired,
                "finished after space was freed, step {step}"
            );
        }
        let undone = small.0.path().join("a.vhd.undo").exists();
        assert!(!undone || run("--undo").0 == 0);
        assert!(fs::read(&image).unwrap() == damaged, "undone, step {step}");
    }
    crate::announce(&format!("repair on a full file system: stopped {full} times of 16"));
    assert!(full > 3, "the file system was never full: the test tested nothing");
}
