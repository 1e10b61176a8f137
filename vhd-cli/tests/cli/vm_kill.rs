//! A machine that is killed while its guest writes, over and over.

use std::io::Read as _;
use std::process::Stdio;

use vhd_core::chain::OpenOptions;

use crate::kills::kill_rounds;
use crate::payload::{Payload, has_kvm};
use crate::support::{Lab, beside_the_test};
use crate::vm::{chain, kernel};

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
        kernel(&lab, "guest", &Payload::new().start_disk(0).count_on_disk(0, last + 1));
        let mut command = beside_the_test();
        command.args(["vm", "run", "leaf.avhd", "--kernel", "guest"]);
        command
            .current_dir(lab.path("."))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
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
