//! Disks of machines that run: added, removed, resized.

use std::fs;
use std::io::Read as _;

use vhd_core::chain::OpenOptions;

use crate::payload::{Payload, READ, STORE, data, has_kvm};
use crate::support::{Lab, MIB, stderr, stdout};
use crate::vm::{chain, kernel};
use crate::vm_control::Running;

/// Where a guest learns of new disks.
const ADDED: u16 = 0x620;
const DISKS: u32 = 8;

fn console(running: &mut Running, expected: &str) {
    let mut bytes = vec![0; expected.len()];
    running.child.stdout.as_mut().unwrap().read_exact(&mut bytes).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), expected);
}

fn refuses(lab: &Lab, args: &[&str], code: i32, error: &str, reason: &str) {
    let complaint = stderr(&lab.run(args, code));
    assert!(
        complaint.starts_with(&format!("vhd: error[{error}]")),
        "{args:?}: {complaint}"
    );
    assert!(complaint.contains(reason), "{args:?}: {complaint}");
}

/// A guest that takes eight disks as they come, writes its number to each, and lets go of what it is asked for.
fn takes_disks() -> Payload {
    let guest = (0..DISKS).fold(Payload::on_pci().print("up"), |guest, disk| {
        let guest = guest.wait_for_port(ADDED).place_disk(disk).start_disk(disk);
        let guest = guest.store(data(disk), 1000 + disk);
        guest.request(disk, STORE, 7, 512).print_status(disk)
    });
    let guest = (0..DISKS).fold(guest, |guest, _| guest.release_what_is_asked().print("r"));
    guest.echo().power_off()
}

#[test]
fn eight_disks_come_and_go_in_any_order() {
    if !has_kvm("disks that are added to a machine") {
        return;
    }
    let lab = Lab::new();
    kernel(&lab, "guest", &takes_disks());
    let mut running = Running::start(
        &lab,
        "eight",
        &["--kernel", "guest", "--machine", "vhd-1", "--events", "events"],
    );
    let name = running.name.clone();
    for disk in 0..DISKS {
        let image = format!("{disk}.vhd");
        lab.dynamic(&image, 16 * MIB);
        lab.run(&["vm", "disk", "add", &name, &format!("{image},id=d{disk}")], 0);
        console(&mut running, "0");
    }
    lab.dynamic("ninth.vhd", 16 * MIB);
    refuses(
        &lab,
        &["vm", "disk", "add", &name, "ninth.vhd"],
        8,
        "VHD-E0814",
        "at most 8",
    );
    refuses(
        &lab,
        &["vm", "disk", "add", &name, "ninth.vhd,id=d3"],
        8,
        "VHD-E0814",
        "already",
    );
    // What was not added is free; what was added is not.
    lab.run(&["check", "ninth.vhd"], 0);
    lab.write("ninth.vhd", 0, b"x");
    refuses(
        &lab,
        &["vm", "disk", "add", &name, "0.vhd,id=again"],
        7,
        "VHD-E0304",
        "0.vhd",
    );
    assert_eq!(stdout(&lab.run(&["vm", "info", &name], 0)).matches("disk:").count(), 8);
    for disk in [3, 0, 7, 1, 6, 2, 5, 4] {
        lab.run(&["vm", "disk", "remove", &name, &format!("d{disk}")], 0);
        console(&mut running, "r");
        refuses(
            &lab,
            &["vm", "disk", "remove", &name, &format!("d{disk}")],
            8,
            "VHD-E0814",
            "no disk",
        );
        // It is closed, with what the guest wrote.
        let opened = OpenOptions::new()
            .write(true)
            .open(&lab.path(&format!("{disk}.vhd")))
            .unwrap();
        let mut number = [0; 4];
        opened.disk().read_at(&mut number, 7 * 512).unwrap();
        assert_eq!(u32::from_le_bytes(number), 1000 + disk);
        opened.close().unwrap();
    }
    lab.run(&["vm", "stop", &name, "--force"], 0);
    let events = fs::read_to_string(lab.path("events")).unwrap();
    assert_eq!(events.matches("disk-added").count(), 8);
    assert_eq!(events.matches("disk-removed").count(), 8);
}

#[test]
fn a_disk_grows_under_a_guest() {
    if !has_kvm("a disk that grows under a guest") {
        return;
    }
    let lab = Lab::new();
    chain(&lab);
    lab.dynamic("data.vhd", 16 * MIB);
    let sectors = u32::try_from(32 * MIB / 512).unwrap();
    let guest = Payload::on_pci()
        .start_disk(0)
        .print("up")
        .request(0, READ, sectors - 8, 512)
        .print_status(0);
    let guest = guest
        .wait_for_capacity(0, sectors)
        .request(0, STORE, sectors - 8, 512)
        .print_status(0);
    kernel(&lab, "guest", &guest.echo().power_off());
    let run = ["--kernel", "guest", "--machine", "vhd-1"];
    refuses(
        &lab,
        &["vm", "run", "--kernel", "guest", "--disk", "leaf.avhd,resizable"],
        8,
        "VHD-E0814",
        "based on",
    );
    let mut running = Running::start(
        &lab,
        "grows",
        &[&["--disk", "data.vhd,resizable,id=data"], &run[..]].concat(),
    );
    let name = running.name.clone();
    console(&mut running, "1");
    refuses(
        &lab,
        &["vm", "disk", "resize", &name, "other", "32M"],
        8,
        "VHD-E0814",
        "no disk",
    );
    refuses(
        &lab,
        &["vm", "disk", "resize", &name, "data", "8M"],
        8,
        "VHD-E0814",
        "--shrink",
    );
    lab.run(&["vm", "disk", "resize", &name, "data", "32M"], 0);
    console(&mut running, "0");
    assert!(stdout(&lab.run(&["vm", "info", &name], 0)).contains("32.00 MiB"));
    lab.run(&["vm", "stop", &name, "--force"], 0);
    lab.run(&["check", "data.vhd"], 0);
    let opened = OpenOptions::new().open(&lab.path("data.vhd")).unwrap();
    assert_eq!(opened.disk().size(), 32 * MIB);
    // Without the option it is refused.
    let running = Running::start(&lab, "rigid", &[&["--disk", "leaf.avhd,id=data"], &run[..]].concat());
    refuses(
        &lab,
        &["vm", "disk", "resize", &running.name, "data", "128M"],
        8,
        "VHD-E0814",
        "resizable",
    );
    lab.run(&["vm", "stop", &running.name, "--force"], 0);
}

#[test]
fn guests_that_do_not_let_go_and_machines_without_slots() {
    if !has_kvm("disks that are not let go of") {
        return;
    }
    let lab = Lab::new();
    chain(&lab);
    kernel(&lab, "guest", &Payload::on_pci().print("up").spin());
    let running = Running::start(&lab, "keeps", &["leaf.avhd", "--kernel", "guest", "--machine", "vhd-1"]);
    let info = stdout(&lab.run(&["vm", "info", &running.name], 0));
    let id = info.split("disk:").nth(1).unwrap().split_whitespace().next().unwrap();
    refuses(
        &lab,
        &["vm", "disk", "remove", &running.name, id, "--timeout", "0"],
        1,
        "VHD-E0819",
        "let go",
    );
    lab.run(&["vm", "stop", &running.name, "--force"], 0);
    kernel(&lab, "guest", &Payload::new().print("up").spin());
    let running = Running::start(&lab, "slotless", &["--kernel", "guest", "--machine", "mmio"]);
    refuses(
        &lab,
        &["vm", "disk", "add", &running.name, "leaf.avhd"],
        8,
        "VHD-E0814",
        "vhd-1",
    );
    lab.run(&["info", "leaf.avhd"], 0);
    lab.run(&["vm", "stop", &running.name, "--force"], 0);
    lab.run(&["check", "leaf.avhd"], 0);
}
