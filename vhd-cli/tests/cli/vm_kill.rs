//! A machine that is killed while its guest writes, over and over, and while its disk gets snapshots.
//!
//! VHD_KILL_ROUNDS says how often (default 12):
//! `VHD_KILL_ROUNDS=200 cargo test --release -p vhd-cli --test cli vm_kill -- --nocapture`

use std::io::Read as _;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use vhd_core::chain::OpenOptions;
use vhd_core::snapshot::{resolve, survey};

use crate::announce;
use crate::kills::kill_rounds;
use crate::payload::{Payload, has_kvm};
use crate::support::{Lab, MIB, beside_the_test, stderr};
use crate::vm::{chain, kernel};
use crate::vm_live::counted;

/// Acknowledgements that are waited for at least, in each round.
const ACKNOWLEDGED: usize = 5;
/// The most acknowledgements that are waited for: the rounds end at different moments.
const MORE: usize = 60;
/// Numbers that the disk has room for: one in every 4 KiB.
const NUMBERS: u32 = 64 * 256;

#[test]
fn inv_70_what_the_guest_was_told_to_be_flushed_survives_a_kill() {
    if !has_kvm("machines that are killed") {
        return;
    }
    let lab = Lab::new();
    chain(&lab);
    let mut last = 0;
    for round in 0..kill_rounds() {
        let count = ACKNOWLEDGED + fastrand::usize(..MORE);
        let mut child = counting(&lab, "leaf.avhd", last + 1);
        let mut console = child.stdout.take().unwrap();
        let mut acknowledgement = [0; 5];
        for _ in 0..count {
            console.read_exact(&mut acknowledgement).unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What was written before the kill, and not read yet.
        let mut rest = Vec::new();
        console.read_to_end(&mut rest).unwrap();
        let acknowledged = rest.chunks_exact(5).last().unwrap_or(&acknowledgement);
        last = u32::from_le_bytes(acknowledged[..4].try_into().unwrap());
        assert!(last < NUMBERS - 1000, "the disk is too small for so many rounds");
        verify(&lab, last, round);
    }
    lab.run(&["hash", "leaf.avhd"], 0);
}

/// A machine whose guest counts on its disk, from a number on.
fn counting(lab: &Lab, disk: &str, first: u32) -> Child {
    kernel(lab, "guest", &Payload::new().start_disk(0).count_on_disk(0, first));
    let mut command = beside_the_test();
    command.args(["vm", "run", disk, "--kernel", "guest"]);
    command
        .current_dir(lab.path("."))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command.spawn().unwrap()
}

/// Takes snapshots until the machine is gone; those that were said to be taken.
fn take_on(lab: &Lab, over: &AtomicBool, round: u32) -> Vec<String> {
    let mut taken = Vec::new();
    for at in 0.. {
        if over.load(Ordering::SeqCst) {
            break;
        }
        let name = format!("s{round}.{at}");
        let created = lab.vhd(&["snapshot", "create", "disk.vhd", "--name", &name]).assert();
        match created.get_output().status.code() {
            Some(0) => taken.push(name),
            // The machine went in the middle, or is about to: it has the disk and answers no more.
            _ => {
                let said = stderr(&created);
                assert!(said.contains("VHD-E0325") || said.contains("VHD-E0304"), "{said}");
            }
        }
    }
    taken
}

/// INV-50 to INV-53 under a guest: what it was told to be flushed is in the leaf that counts, each snapshot is a cut through
/// its writes, and the next command finishes or undoes what was open.
#[test]
fn inv_53_a_killed_machine_whose_disk_gets_snapshots() {
    if !has_kvm("machines that are killed while their disks get snapshots") {
        return;
    }
    let lab = Lab::new();
    lab.dynamic("disk.vhd", 65 * MIB);
    let (mut last, mut count, mut recovered) = (0, 0, 0);
    for round in 0..kill_rounds() {
        let disk = match lab.exists("disk.vhd.snapshots") {
            true => "disk.vhd@now",
            false => "disk.vhd",
        };
        let mut child = counting(&lab, disk, last + 1);
        let mut console = child.stdout.take().unwrap();
        let mut acknowledgement = [0; 5];
        for _ in 0..ACKNOWLEDGED {
            console.read_exact(&mut acknowledgement).unwrap();
        }
        let before = u32::from_le_bytes(acknowledgement[..4].try_into().unwrap());
        let over = AtomicBool::new(false);
        let taken = thread::scope(|scope| {
            let taker = scope.spawn(|| take_on(&lab, &over, round));
            let reader = scope.spawn(|| {
                let mut rest = Vec::new();
                console.read_to_end(&mut rest).unwrap();
                rest
            });
            thread::sleep(Duration::from_millis(fastrand::u64(5..400)));
            over.store(true, Ordering::SeqCst);
            child.kill().unwrap();
            child.wait().unwrap();
            let rest = reader.join().unwrap();
            let acknowledged = rest.chunks_exact(5).last().unwrap_or(&acknowledgement);
            last = u32::from_le_bytes(acknowledged[..4].try_into().unwrap());
            taker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        assert!(last < NUMBERS - 1000, "the disk is too small for so many rounds");
        let after = lab.run(&["snapshot", "create", "disk.vhd", "--name", "after"], 0);
        recovered += u32::from(stderr(&after).contains("an interrupted command was found"));
        let now = counted(&resolve(&lab.path("disk.vhd"), "now").unwrap());
        assert!(now >= last, "round {round}: {now}, and {last} was flushed");
        let mut least = before;
        for name in &taken {
            let held = counted(&resolve(&lab.path("disk.vhd"), name).unwrap());
            assert!((least..=now).contains(&held), "{name}: {held}, not {least} to {now}");
            least = held;
        }
        count += taken.len();
        let files = survey(&lab.path("disk.vhd")).unwrap().manifest;
        for file in files.files() {
            let code = lab.vhd(&["check", &file.name]).assert().get_output().status.code();
            // Leaked space at most.
            assert!(matches!(code, Some(0 | 4)), "round {round}: {}: {code:?}", file.name);
        }
        for snapshot in files.listed() {
            lab.run(&["snapshot", "delete", "disk.vhd", &snapshot.name], 0);
        }
        // What had been written and not acknowledged may be there: the next guest goes on behind it.
        last = counted(&resolve(&lab.path("disk.vhd"), "now").unwrap());
        assert_eq!(last, now, "round {round}: without the snapshots");
    }
    announce(&format!(
        "{} kills of a machine: {count} snapshots taken, {recovered} in the middle of a command that had to be brought to its end",
        kill_rounds()
    ));
    assert!(count > 0, "no snapshot was taken: the test tested nothing");
}

fn verify(lab: &Lab, last: u32, round: u32) {
    let opened = OpenOptions::new().open(&lab.path("leaf.avhd")).unwrap();
    let disk = opened.disk();
    for number in 1..=last {
        let mut found = [0; 4];
        disk.read_at(&mut found, u64::from(number) * 4096).unwrap();
        assert_eq!(
            u32::from_le_bytes(found),
            number,
            "round {round}: acknowledged up to {last}"
        );
    }
    opened.close().unwrap();
    let checked = lab.vhd(&["check", "leaf.avhd"]).assert();
    // Leaked space at most.
    let code = checked.get_output().status.code();
    assert!(matches!(code, Some(0 | 4)), "round {round}: {code:?}");
}
