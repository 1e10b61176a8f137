//! Machines whose processes are kept to their own files.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use crate::payload::{Payload, STORE, data, has_kvm};
use crate::support::{Lab, MIB, stderr, stdout};
use crate::vm::kernel;
use crate::vm_control::Running;

/// Where a guest learns of new disks.
const ADDED: u16 = 0x620;

/// Whether this kernel keeps processes to files. Where it does not, this says so, and in CI that is a failure.
fn is_kept(lab: &Lab, name: &str) -> bool {
    let info = stdout(&lab.run(&["vm", "info", name], 0));
    let files = info.lines().find(|line| line.starts_with("files:")).unwrap();
    if files.starts_with("files:    landlock") {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "CI needs a kernel with landlock: {files}"
    );
    let _ = writeln!(
        std::io::stderr(),
        "NOT TESTED: machines that keep to their files: {files}"
    );
    false
}

/// Two directories that have nothing to do with each other: images in one are not looked for in the other.
fn labs() -> (Lab, Lab) {
    (Lab::new(), Lab::new())
}

/// A guest that takes one disk more, writes to it, and lets go of it.
fn takes_a_disk() -> Payload {
    let guest = Payload::on_pci().place_disk(0).start_disk(0).print("up");
    let guest = guest.wait_for_port(ADDED).place_disk(1).start_disk(1);
    let guest = guest.store(data(1), 4711).request(1, STORE, 7, 512).print_status(1);
    guest.release_what_is_asked().print("r").echo().power_off()
}

fn start(lab: &Lab, label: &str, more: &[&str]) -> Running {
    lab.dynamic("own.vhd", 64 * MIB);
    kernel(lab, "guest", &takes_a_disk());
    let mut args = vec!["own.vhd", "--kernel", "guest", "--machine", "vhd-1"];
    args.extend(more);
    Running::start(lab, label, &args)
}

fn says(running: &mut Running, expected: &str) {
    let mut bytes = vec![0; expected.len()];
    running.child.stdout.as_mut().unwrap().read_exact(&mut bytes).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), expected);
}

/// Asks as a command would that passes nothing; the answer.
fn ask(running: &Running, request: &str) -> String {
    let mut stream = UnixStream::connect(running.socket()).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer
}

fn add_request(image: &str) -> String {
    format!(
        "{{\"version\":1,\"request\":\"disk-add\",\"disk\":{{\"image\":{image:?},\"read_only\":true,\"snapshot\":false,\"id\":null}}}}\n"
    )
}

#[test]
fn a_disk_from_elsewhere_is_passed_with_its_locks() {
    if !has_kvm("disks that are passed to a confined machine") {
        return;
    }
    let (lab, other) = labs();
    let mut running = start(&lab, "passed", &[]);
    let name = running.name.clone();
    if !is_kept(&lab, &name) {
        return drop(lab.run(&["vm", "stop", &name, "--force"], 0));
    }
    other.dynamic("base.vhd", 16 * MIB);
    other.run(&["create", "added.avhd", "--parent", "base.vhd"], 0);
    let added = other.path("added.avhd");
    let added = added.to_str().unwrap();
    // A directory that is not the machine's has no place for what a resize needs.
    let refused = stderr(&lab.run(&["vm", "disk", "add", &name, &format!("{added},resizable")], 8));
    assert!(refused.starts_with("vhd: error[VHD-E0822]"), "{refused}");
    lab.run(&["vm", "disk", "add", &name, &format!("{added},id=added")], 0);
    says(&mut running, "0");
    // It is in use, and so is its parent.
    let refused = stderr(&other.run(&["compact", "added.avhd"], 7));
    assert!(refused.contains("VHD-E0304"), "{refused}");
    let refused = stderr(&lab.run(&["vm", "snapshot", "create", &name, "s"], 8));
    assert!(
        refused.contains("VHD-E0814") && refused.contains("confined"),
        "{refused}"
    );
    // Those of the machine itself have their snapshots still.
    lab.run(&["snapshot", "create", "own.vhd", "--name", "live"], 0);
    lab.run(&["snapshot", "delete", "own.vhd", "live"], 0);
    lab.run(&["vm", "disk", "remove", &name, "added"], 0);
    says(&mut running, "r");
    let opened = vhd_core::chain::OpenOptions::new()
        .write(true)
        .open(&other.path("added.avhd"))
        .unwrap();
    let mut number = [0; 4];
    opened.disk().read_at(&mut number, 7 * 512).unwrap();
    assert_eq!(u32::from_le_bytes(number), 4711);
    opened.close().unwrap();
    other.run(&["check", "added.avhd"], 0);
    // Without that disk the machine has snapshots, and goes back to them.
    lab.run(&["vm", "snapshot", "create", &name, "s"], 0);
    lab.run(&["vm", "snapshot", "apply", &name, "s", "--discard-current"], 0);
    lab.run(&["vm", "snapshot", "delete", &name, "s"], 0);
    lab.run(&["vm", "stop", &name, "--force"], 0);
}

#[test]
fn a_layer_over_a_disk_from_elsewhere_is_passed_too() {
    if !has_kvm("thrown-away layers that are passed to a confined machine") {
        return;
    }
    let (lab, other) = labs();
    let mut running = start(&lab, "thrown", &[]);
    let name = running.name.clone();
    other.dynamic("disk.vhd", 16 * MIB);
    let before = fs::read(other.path("disk.vhd")).unwrap();
    let disk = other.path("disk.vhd");
    lab.run(
        &[
            "vm",
            "disk",
            "add",
            &name,
            &format!("{},snapshot,id=added", disk.display()),
        ],
        0,
    );
    says(&mut running, "0");
    lab.run(&["vm", "disk", "remove", &name, "added"], 0);
    says(&mut running, "r");
    lab.run(&["vm", "stop", &name, "--force"], 0);
    assert_eq!(fs::read(other.path("disk.vhd")).unwrap(), before);
}

#[test]
fn the_process_opens_nothing_elsewhere_by_itself() {
    if !has_kvm("files that a confined machine does not open") {
        return;
    }
    let (lab, other) = labs();
    other.dynamic("base.vhd", 16 * MIB);
    let base = other.path("base.vhd");
    // Its leaf is beside the machine's disk; the kernel refuses the parent.
    lab.run(&["create", "inside.avhd", "--parent", base.to_str().unwrap()], 0);
    let inside = lab.path("inside.avhd");
    let confined = start(&lab, "keeps", &[]);
    if is_kept(&lab, &confined.name) {
        for image in [
            inside.to_str().unwrap(),
            base.to_str().unwrap(),
            "/etc/passwd",
            "/nowhere/x.vhd",
        ] {
            assert_eq!(ask(&confined, &add_request(image)).trim(), "\"outside\"", "{image}");
        }
        // Nothing was kept of it, and the machine goes on.
        assert_eq!(
            stdout(&lab.run(&["vm", "info", &confined.name], 0))
                .matches("disk:")
                .count(),
            1
        );
    }
    lab.run(&["vm", "stop", &confined.name, "--force"], 0);
    drop(confined.end());
    let free = Running::start(
        &lab,
        "free",
        &["own.vhd", "--kernel", "guest", "--machine", "vhd-1", "--sandbox", "off"],
    );
    assert_eq!(ask(&free, &add_request(inside.to_str().unwrap())).trim(), "\"done\"");
    assert!(stdout(&lab.run(&["vm", "info", &free.name], 0)).contains("files:    off"));
    lab.run(&["vm", "stop", &free.name, "--force"], 0);
}

#[test]
fn a_confined_machine_is_saved_anywhere() {
    if !has_kvm("saving a confined machine elsewhere") {
        return;
    }
    let (lab, other) = labs();
    let running = start(&lab, "elsewhere", &[]);
    let file = other.path("state");
    let file = file.to_str().unwrap();
    // A command that goes away instead of giving the file its name does not end the machine.
    let gone = ask(&running, "{\"version\":1,\"request\":\"save-into\",\"file\":\"x\"}\n0");
    assert!(gone.contains("did not pass"), "{gone}");
    lab.run(&["vm", "save", &running.name, file], 0);
    let (name, (code, _, said)) = (running.name.clone(), running.end());
    assert_eq!(code, 0, "{said}");
    let restored = Running::start_command(&other, &["restore"], &["state"], &name);
    while !stdout(&lab.run(&["vm", "list"], 0)).contains(&name) {}
    lab.run(&["vm", "pause", &name], 0);
    lab.run(&["vm", "stop", &name, "--force"], 0);
    drop(restored.end());
}
