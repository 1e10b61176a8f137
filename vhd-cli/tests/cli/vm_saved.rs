//! Machines that are saved to a file and go on in another process.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use vhd_core::chain::OpenOptions;

use crate::payload::{Payload, has_kvm};
use crate::support::{Lab, MIB, stderr};
use crate::vm::{chain, kernel};
use crate::vm_control::Running;

/// How often a machine is saved and restored.
fn rounds() -> u32 {
    let rounds = std::env::var("VHD_SAVE_ROUNDS").ok();
    rounds.and_then(|rounds| rounds.parse().ok()).unwrap_or(5)
}

/// A machine that counts on the leaf of a chain, after it wrote `up`.
fn counting(lab: &Lab, label: &str) -> Running {
    chain(lab);
    kernel(
        lab,
        "guest",
        &Payload::on_pci().start_disk(0).print("up").count_on_disk(0, 1),
    );
    Running::start(lab, label, &["leaf.avhd", "--kernel", "guest", "--machine", "vhd-1"])
}

/// Reads so many numbers of the guest's console, which must follow `last`; returns the last one.
pub(crate) fn read_on(running: &mut Running, count: u32, last: u32) -> u32 {
    let console = running.child.stdout.as_mut().unwrap();
    for number in last + 1..=last + count {
        let mut line = [0; 5];
        console.read_exact(&mut line).unwrap();
        assert_eq!(line[..4], number.to_le_bytes());
    }
    last + count
}

/// Saves a machine; returns what else it wrote to its console.
fn save(lab: &Lab, running: Running, file: &str, last: u32) -> u32 {
    lab.run(&["vm", "save", &running.name, file], 0);
    // The disks are free when the command returns.
    lab.run(&["info", "leaf.avhd"], 0);
    let output = running.child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
    for (number, line) in (last + 1..).zip(output.stdout.chunks(5)) {
        // A line may have been cut by the end of the process, and goes on in the next one.
        assert_eq!(line[..line.len().min(4)], number.to_le_bytes()[..line.len().min(4)]);
    }
    last * 5 + u32::try_from(output.stdout.len()).unwrap()
}

pub(crate) fn restore(lab: &Lab, name: &str, file: &str) -> Running {
    Running::start_command(lab, &["restore", file, "--name", name], &[], name)
}

#[test]
fn inv_86_a_guest_on_a_chain_goes_on_in_other_processes() {
    if !has_kvm("saving and restoring machines") {
        return;
    }
    let lab = Lab::new();
    let mut running = counting(&lab, "saved");
    let name = running.name.clone();
    let mut bytes = 0_u32;
    for round in 0..rounds() {
        // The rest of a line, then whole ones.
        let rest = (5 - bytes % 5) % 5;
        let mut line = vec![0; usize::try_from(rest).unwrap()];
        running.child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        let last = read_on(&mut running, 10 + round % 5, bytes.div_ceil(5));
        let file = format!("state-{round}");
        bytes = save(&lab, running, &file, last);
        lab.run(&["check", "leaf.avhd"], 0);
        running = restore(&lab, &name, &file);
    }
    let rest = (5 - bytes % 5) % 5;
    let mut line = vec![0; usize::try_from(rest).unwrap()];
    running.child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    let last = read_on(&mut running, 20, bytes.div_ceil(5));
    lab.run(&["vm", "stop", &name, "--force"], 0);
    let opened = OpenOptions::new().open(&lab.path("leaf.avhd")).unwrap();
    for number in 1..=last {
        let mut stored = [0; 4];
        opened.disk().read_at(&mut stored, u64::from(number) * 4096).unwrap();
        assert_eq!(stored, number.to_le_bytes());
    }
}

#[test]
fn a_disk_that_was_written_since_is_refused() {
    if !has_kvm("disks of saved machines that were changed") {
        return;
    }
    let lab = Lab::new();
    let mut running = counting(&lab, "changed");
    let name = running.name.clone();
    read_on(&mut running, 5, 0);
    save(&lab, running, "state", 5);
    let refused = |reason: &str| {
        let refused = lab.run(&["vm", "restore", "state"], 8);
        let complaint = stderr(&refused);
        assert!(complaint.starts_with("vhd: error[VHD-E0818]"), "{complaint}");
        assert!(
            complaint.contains(reason) && complaint.contains("leaf.avhd"),
            "{complaint}"
        );
    };
    let leaf = lab.path("leaf.avhd");
    let (bytes, time) = (
        fs::read(&leaf).unwrap(),
        fs::metadata(&leaf).unwrap().modified().unwrap(),
    );
    let put_back = || {
        fs::write(&leaf, &bytes).unwrap();
        fs::File::options()
            .write(true)
            .open(&leaf)
            .unwrap()
            .set_modified(time)
            .unwrap();
    };
    lab.write("leaf.avhd", 40 * MIB, b"changed");
    refused("written since");
    // A copy with the time of the original is as good; one without is not, unless somebody knows better.
    put_back();
    fs::rename(&leaf, lab.path("moved")).unwrap();
    fs::copy(lab.path("moved"), &leaf).unwrap();
    refused("written since");
    lab.run(&["new-id", "leaf.avhd"], 0);
    refused("identity");
    fs::remove_file(&leaf).unwrap();
    lab.run(&["vm", "restore", "state"], 1);
    put_back();
    // An ancestor counts like the leaf.
    let base = lab.path("base.vhd");
    let base_time = fs::metadata(&base).unwrap().modified().unwrap();
    lab.write("base.vhd", 50 * MIB, b"changed");
    let again = fs::File::options().write(true).open(&base).unwrap();
    let refused_base = stderr(&lab.run(&["vm", "restore", "state"], 8));
    assert!(refused_base.contains("base.vhd was written since"), "{refused_base}");
    again.set_modified(base_time).unwrap();
    drop(again);
    // The length of the base changed with the write.
    lab.run(&["vm", "restore", "state"], 8);
    let running = Running::start_command(&lab, &["restore", "state", "--trust-disks"], &[], &name);
    let mut running = running;
    running.child.stdout.as_mut().unwrap().read_exact(&mut [0; 10]).unwrap();
    lab.run(&["vm", "stop", &name, "--force"], 0);
    // It went on and wrote: it cannot go on twice.
    running.child.wait().unwrap();
    refused("written since");
}

#[test]
fn machines_that_cannot_be_saved_go_on() {
    if !has_kvm("machines that cannot be saved") {
        return;
    }
    let lab = Lab::new();
    let mut running = counting(&lab, "unsaved");
    let name = running.name.clone();
    fs::write(lab.path("taken"), "mine").unwrap();
    for (file, code, error) in [
        ("taken", 8, "VHD-E03"),
        ("nowhere/state", 1, "VHD-E0302"),
        (".", 8, "VHD-E03"),
        ("/dev/full", 8, "VHD-E03"),
    ] {
        let refused = stderr(&lab.run(&["vm", "save", &name, file], code));
        assert!(refused.starts_with(&format!("vhd: error[{error}")), "{file}: {refused}");
    }
    assert_eq!(fs::read(lab.path("taken")).unwrap(), b"mine");
    let last = read_on(&mut running, 200, 0);
    if let Some(small) = Lab::on_a_small_disk(MIB / 8) {
        let file = small.path("state");
        let refused = stderr(&lab.run(&["vm", "save", &name, file.to_str().unwrap()], 1));
        assert!(refused.contains("state"), "{refused}");
        assert!(!file.exists());
    }
    read_on(&mut running, 200, last);
    lab.run(&["vm", "stop", &name, "--force"], 0);

    let thrown = Running::start(
        &lab,
        "thrown",
        &[
            "--disk",
            "leaf.avhd,snapshot",
            "--kernel",
            "guest",
            "--machine",
            "vhd-1",
        ],
    );
    let refused = stderr(&lab.run(&["vm", "save", &thrown.name, "state"], 8));
    assert!(
        refused.contains("VHD-E0814") && refused.contains("temporary"),
        "{refused}"
    );
    lab.run(&["vm", "stop", &thrown.name, "--force"], 0);
    assert!(!lab.path("state").exists());
}

#[test]
fn what_is_no_saved_machine_is_one_line_with_a_code() {
    if !has_kvm("files that are no saved machines") {
        return;
    }
    let lab = Lab::new();
    let mut running = counting(&lab, "files");
    let name = running.name.clone();
    read_on(&mut running, 5, 0);
    save(&lab, running, "state", 5);
    let file = lab.path("state");
    let (len, blocks) = (
        fs::metadata(&file).unwrap().len(),
        fs::metadata(&file).unwrap().blocks(),
    );
    // 256 MiB of memory, of which a few pages are used.
    assert!(len > 256 * MIB && blocks * 512 < 2 * MIB, "{len} {blocks}");
    let opened = fs::File::options().read(true).write(true).open(&file).unwrap();
    let refused = |code: i32, error: &str, reason: &str| {
        let complaint = stderr(&lab.run(&["vm", "restore", "state"], code));
        assert!(
            complaint.starts_with(&format!("vhd: error[{error}]: state: ")),
            "{complaint}"
        );
        assert!(
            complaint.contains(reason) && complaint.lines().count() == 1,
            "{complaint}"
        );
    };
    let with = |at: u64, byte: u8, check: &dyn Fn()| {
        let mut before = [0];
        opened.read_exact_at(&mut before, at).unwrap();
        opened.write_all_at(&[byte], at).unwrap();
        check();
        opened.write_all_at(&before, at).unwrap();
    };
    with(0, b'X', &|| refused(3, "VHD-E0815", "no saved machine"));
    with(8, 9, &|| refused(8, "VHD-E0816", "version 9"));
    with(200, 0xee, &|| refused(3, "VHD-E0815", "altered"));
    with(len - 256 * MIB + 0x10_0000, 0xee, &|| {
        refused(3, "VHD-E0815", "guest memory")
    });
    opened.set_len(len - 4096).unwrap();
    refused(3, "VHD-E0815", "cut off");
    opened.set_len(len).unwrap();
    fs::write(lab.path("text"), "some text").unwrap();
    let complaint = stderr(&lab.run(&["vm", "restore", "text"], 3));
    assert!(
        complaint.starts_with("vhd: error[VHD-E0815]: text: it is no saved machine"),
        "{complaint}"
    );
    lab.run(&["vm", "restore", "nowhere"], 1);
    // After all of that it is whole: it was put back.
    let again = restore(&lab, &name, "state");
    let mut again = again;
    again.child.stdout.as_mut().unwrap().read_exact(&mut [0; 20]).unwrap();
    // Its disks are in use now, and so is its name.
    let complaint = stderr(&lab.run(&["vm", "restore", "state", "--name", "another-one"], 7));
    assert!(complaint.contains("VHD-E0304"), "{complaint}");
    let complaint = stderr(&lab.run(&["vm", "restore", "state"], 7));
    assert!(complaint.contains("VHD-E0810"), "{complaint}");
    lab.run(&["vm", "stop", &name, "--force"], 0);
}
