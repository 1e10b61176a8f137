//! `vhd vm run` with guests that are assembled here, on the KVM of this host.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use vhd_core::chain::OpenOptions;

use crate::payload::{FLUSH, Payload, READ, STORE, data, has_kvm};
use crate::support::{Lab, MIB, beside_the_test, stderr, stdout};

/// Where the guests find a text, and where they copy it to: sectors.
const FROM: u32 = 3;
const TO: u32 = 9000;
const TEXT: &[u8] = b"from the base";

/// A chain of three images, the leaf being the disk, with a text in the base.
pub(crate) fn chain(lab: &Lab) {
    lab.dynamic("base.vhd", 64 * MIB);
    lab.write("base.vhd", u64::from(FROM) * 512, TEXT);
    lab.run(&["create", "middle.avhd", "--parent", "base.vhd"], 0);
    lab.run(&["create", "leaf.avhd", "--parent", "middle.avhd"], 0);
}

/// Writes a guest to a file.
pub(crate) fn kernel(lab: &Lab, name: &str, guest: &Payload) {
    fs::write(lab.path(name), guest.elf()).unwrap();
}

/// A guest that prints the text, copies it, and prints the statuses of reading, writing and flushing.
fn copies() -> Payload {
    Payload::new()
        .start_disk(0)
        .request(0, READ, FROM, 512)
        .print_status(0)
        .print_memory(data(0), 13)
        .request(0, STORE, TO, 512)
        .print_status(0)
        .request(0, FLUSH, 0, 0)
        .print_status(0)
        .power_off()
}

fn copied(image: &Path) -> Vec<u8> {
    let opened = OpenOptions::new().open(image).unwrap();
    let mut bytes = vec![0; TEXT.len()];
    opened.disk().read_at(&mut bytes, u64::from(TO) * 512).unwrap();
    bytes
}

/// A machine that runs beside the test.
fn start(lab: &Lab, args: &[&str]) -> Child {
    let mut command = beside_the_test();
    command.args(args).current_dir(lab.path("."));
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

#[test]
fn a_guest_works_on_the_leaf_of_a_chain() {
    if !has_kvm("a guest on a chain of images") {
        return;
    }
    let lab = Lab::new();
    chain(&lab);
    kernel(&lab, "guest", &copies());
    let ancestors = ["base.vhd", "middle.avhd"].map(|name| fs::read(lab.path(name)).unwrap());
    let ran = lab.run(&["vm", "run", "leaf.avhd", "--kernel", "guest"], 0);
    assert_eq!(stdout(&ran), "0from the base00");
    assert_eq!(copied(&lab.path("leaf.avhd")), TEXT);
    lab.run(&["check", "leaf.avhd"], 0);
    assert_eq!(
        ancestors,
        ["base.vhd", "middle.avhd"].map(|name| fs::read(lab.path(name)).unwrap())
    );
}

#[test]
fn other_disks_are_read_only_or_thrown_away() {
    if !has_kvm("read-only and temporary disks") {
        return;
    }
    let lab = Lab::new();
    chain(&lab);
    lab.dynamic("a,b.vhd", 64 * MIB);
    lab.write("a,b.vhd", u64::from(FROM) * 512, TEXT);
    fs::copy(lab.path("a,b.vhd"), lab.path("c.vhd")).unwrap();
    lab.run(&["snapshot", "create", "c.vhd", "--name", "monday"], 0);
    kernel(&lab, "guest", &copies());
    let before = lab.names();
    // The status of a write to a read-only disk is 1; a flush of it succeeds.
    for (disk, output) in [
        ("leaf.avhd,ro", "0from the base10"),
        ("leaf.avhd,snapshot,id=x", "0from the base00"),
        ("a,,b.vhd,ro", "0from the base10"),
        ("c.vhd@monday", "0from the base10"),
    ] {
        let image = disk.split(',').next().unwrap();
        let bytes = fs::read(lab.path(image)).ok();
        let ran = lab.run(&["vm", "run", "--kernel", "guest", "--disk", disk], 0);
        assert_eq!(stdout(&ran), output, "{disk}");
        assert_eq!(fs::read(lab.path(image)).ok(), bytes, "{disk}");
    }
    assert_eq!(lab.names(), before);
}

#[test]
fn a_raw_disk_is_written_where_its_format_is_said() {
    if !has_kvm("a raw disk of a guest") {
        return;
    }
    let lab = Lab::new();
    let mut bytes = vec![0; 8 * MIB as usize];
    bytes[FROM as usize * 512..][..TEXT.len()].copy_from_slice(TEXT);
    fs::write(lab.path("disk.img"), bytes).unwrap();
    kernel(&lab, "guest", &copies());
    assert!(stderr(&lab.run(&["vm", "run", "disk.img", "--kernel", "guest"], 8)).contains("VHD-E0133"));
    let ran = lab.run(&["vm", "run", "raw:disk.img", "--kernel", "guest"], 0);
    assert_eq!(stdout(&ran), "0from the base00");
    let bytes = fs::read(lab.path("disk.img")).unwrap();
    assert_eq!(&bytes[TO as usize * 512..][..TEXT.len()], TEXT);
}

#[test]
fn the_exit_code_tells_how_the_guest_ended() {
    if !has_kvm("exit codes of guests") {
        return;
    }
    let lab = Lab::new();
    let panic = Payload::new().print("Kernel panic - not syncing: x\r\n");
    for (guest, code) in [
        (Payload::new().power_off(), 0),
        (Payload::new().halt(), 0),
        (Payload::new().out(0x64, 0xfe).spin(), 9),
        (panic.out(0x64, 0xfe).spin(), 10),
    ] {
        kernel(&lab, "guest", &guest);
        let ran = lab.run(&["vm", "run", "--kernel", "guest"], code);
        assert_eq!(stderr(&ran), "");
    }
}

#[test]
fn standard_input_is_the_guests_console() {
    if !has_kvm("input of a guest") {
        return;
    }
    let lab = Lab::new();
    kernel(
        &lab,
        "guest",
        &(0..7).fold(Payload::new(), |guest, _| guest.echo()).power_off(),
    );
    let mut command = lab.vhd(&["vm", "run", "--kernel", "guest"]);
    // From a pipe, the escape of terminals is a byte like any other.
    let ran = command.write_stdin("ab\x01xcde").assert().code(0);
    assert_eq!(stdout(&ran), "ab\x01xcde");
}

#[test]
fn a_signal_ends_the_machine_in_order() {
    if !has_kvm("signals to a machine") {
        return;
    }
    let lab = Lab::new();
    chain(&lab);
    kernel(&lab, "guest", &Payload::new().start_disk(0).print("up").spin());
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut child = start(&lab, &["vm", "run", "leaf.avhd", "--kernel", "guest"]);
        let mut up = [0; 2];
        child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        // Meanwhile nobody else gets the disk.
        let refused = lab.run(&["vm", "run", "leaf.avhd", "--kernel", "guest"], 7);
        assert!(stderr(&refused).contains("VHD-E0304"), "{}", stderr(&refused));
        kill_process(Pid::from_child(&child), signal).unwrap();
        let ended = child.wait_with_output().unwrap();
        let complaint = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{complaint}");
        assert!(complaint.starts_with("vhd: error[VHD-E0807]: "), "{complaint}");
        lab.run(&["check", "leaf.avhd"], 0);
    }
}

#[test]
fn bad_input_is_one_line_with_a_code() {
    if !has_kvm("refusals of machines") {
        return;
    }
    let lab = Lab::new();
    chain(&lab);
    kernel(&lab, "guest", &Payload::new().power_off());
    fs::write(lab.path("text"), "no kernel").unwrap();
    fs::write(lab.path("cut"), &Payload::new().power_off().elf()[..0x1001]).unwrap();
    fs::write(lab.path("large"), vec![0; 16 << 20]).unwrap();
    lab.run(&["create", "orphan.avhd", "--parent", "middle.avhd"], 0);
    fs::create_dir(lab.path("elsewhere")).unwrap();
    fs::rename(lab.path("orphan.avhd"), lab.path("elsewhere/orphan.avhd")).unwrap();
    let before = lab.names();
    let long = "a".repeat(2048);
    let cases: &[(&[&str], i32, &str, &str)] = &[
        (&["--kernel", "text"], 8, "VHD-E0802", "text: not a kernel"),
        (&["--kernel", "leaf.avhd"], 8, "VHD-E0802", "VHD image"),
        (&["--kernel", "cut"], 8, "VHD-E0802", "cut off"),
        (&["--kernel", "nowhere"], 1, "VHD-E0302", "nowhere"),
        (&["--kernel", "."], 1, "VHD-E0301", "no regular file"),
        (&["--kernel", "guest", "--initrd", "nowhere"], 1, "VHD-E0302", "nowhere"),
        (
            &["--kernel", "guest", "--initrd", "large", "--memory", "16M"],
            8,
            "VHD-E0803",
            "initramfs",
        ),
        (
            &["--kernel", "guest", "--memory", "1M"],
            8,
            "VHD-E0803",
            "1048576 bytes",
        ),
        (&["--kernel", "guest", "--append", &long], 8, "VHD-E0805", "2047"),
        (&["--kernel", "guest", "--append", "a\nb"], 8, "VHD-E0805", "ASCII"),
        (&["--kernel", "guest", "nowhere.vhd"], 1, "VHD-E0302", "nowhere.vhd"),
        (&["--kernel", "guest", "text"], 8, "VHD-E0", "text"),
        (&["--kernel", "guest", "base.vhd"], 8, "VHD-E0207", "--ignore-children"),
        (
            &["--kernel", "guest", "elsewhere/orphan.avhd", "--explicit-parents"],
            6,
            "VHD-E0201",
            "orphan",
        ),
        (&["--kernel", "guest", "nbd://host:99999/disk"], 8, "VHD-E0610", "99999"),
    ];
    for (args, code, error, text) in cases {
        let args: Vec<&str> = ["vm", "run"].iter().chain(*args).copied().collect();
        let ran = lab.run(&args, *code);
        let complaint = stderr(&ran);
        assert!(
            complaint.starts_with(&format!("vhd: error[{error}")),
            "{args:?}: {complaint}"
        );
        assert!(complaint.contains(text), "{args:?}: {complaint}");
        assert_eq!(stdout(&ran), "", "{args:?}");
    }
    assert_eq!(lab.names(), before);
    // The disks that were opened before the failure are free again.
    lab.run(&["vm", "run", "leaf.avhd", "--kernel", "guest"], 0);
}

#[test]
fn wrong_command_lines() {
    let lab = Lab::new();
    let nine: Vec<&str> = (0..9).flat_map(|_| ["--disk", "x.vhd"]).collect();
    let cases: &[&[&str]] = &[
        &["--initrd", "i"],
        &["--kernel", "k", "--cpus", "0"],
        &["--kernel", "k", "--cpus", "9"],
        &["--kernel", "k", "--memory", "lots"],
        &["--kernel", "k", "--disk", "x.vhd,rw"],
        &["--kernel", "k", "--disk", "x.vhd,ro,snapshot"],
        &["--kernel", "k", "--force-share"],
        &["--kernel", "k", "-"],
        &["--kernel", "k", "--name", "a/b"],
        &["--kernel", "k", "--events"],
        &[&["--kernel", "k"], nine.as_slice()].concat(),
    ];
    for args in cases {
        let args: Vec<&str> = ["vm", "run"].iter().chain(*args).copied().collect();
        lab.run(&args, 2);
    }
}

#[test]
fn without_kvm_it_says_what_it_needs() {
    let lab = Lab::new();
    kernel(&lab, "guest", &Payload::new().power_off());
    // A mount namespace in which /dev/kvm is something else.
    let script = "mount --bind /dev/null /dev/kvm && exec \"$0\" vm run --kernel guest";
    let vhd = env!("CARGO_BIN_EXE_vhd");
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script, vhd])
        .current_dir(lab.path("."));
    let ran = command.output().unwrap();
    let complaint = String::from_utf8_lossy(&ran.stderr);
    if !complaint.starts_with("vhd:") && std::env::var_os("CI").is_none() {
        return crate::announce(&format!("NOT TESTED: a host without KVM: {complaint}"));
    }
    assert_eq!(ran.status.code(), Some(1), "{complaint}");
    assert!(
        complaint.starts_with("vhd: error[VHD-E0801]: /dev/kvm cannot be used"),
        "{complaint}"
    );
    assert_eq!(complaint.lines().count(), 1);
}

#[test]
fn a_closed_console_does_not_stop_the_guest() {
    if !has_kvm("a console that nobody reads") {
        return;
    }
    let lab = Lab::new();
    chain(&lab);
    kernel(&lab, "guest", &copies());
    let mut child = start(&lab, &["vm", "run", "leaf.avhd", "--kernel", "guest"]);
    drop(child.stdout.take());
    // Input that the guest never reads is not waited for either.
    let _ = child.stdin.take().unwrap().write_all(&[b'x'; 4096]);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(copied(&lab.path("leaf.avhd")), TEXT);
}
