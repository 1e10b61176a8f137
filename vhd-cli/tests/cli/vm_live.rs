//! Commands that work on the disks of machines that run: snapshots, merges, a larger disk; and machines that are saved after them.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vhd_core::chain::OpenOptions;
use vhd_core::snapshot::resolve;

use crate::payload::{Payload, READ, STORE, has_kvm};
use crate::support::{Lab, MIB, stderr};
use crate::vm::kernel;
use crate::vm_control::Running;
use crate::vm_saved::{read_on, restore};

/// Numbers that are waited for at a time.
const SOME: u32 = 25;

/// How often snapshots come and go.
fn cycles() -> u32 {
    let cycles = std::env::var("VHD_LIVE_CYCLES").ok();
    cycles.map_or(6, |cycles| cycles.parse().expect("a number of cycles"))
}

/// base <- middle <- leaf, each of the first two with some content; room for 65,536 numbers.
fn chain(lab: &Lab) {
    lab.dynamic("base.vhd", 256 * MIB);
    lab.write("base.vhd", 255 * MIB, &[1; 4096]);
    lab.run(&["create", "middle.vhd", "--parent", "base.vhd"], 0);
    lab.write("middle.vhd", 254 * MIB, &[2; 4096]);
    lab.run(&["create", "leaf.vhd", "--parent", "middle.vhd"], 0);
}

/// A machine that counts on a disk and reads back what it has written.
fn counting(lab: &Lab, label: &str, disk: &str) -> Running {
    let guest = Payload::on_pci().start_disk(0).print("up");
    kernel(lab, "guest", &guest.count_and_read_back(0, 1));
    Running::start(lab, label, &[disk, "--kernel", "guest", "--machine", "vhd-1"])
}

/// How far the numbers go that an image holds; behind the next one that was under way there are none.
pub(crate) fn counted(image: &Path) -> u32 {
    let opened = OpenOptions::new().open(image).unwrap();
    let holds = |number: u32| {
        let mut found = [0; 4];
        opened.disk().read_at(&mut found, u64::from(number) * 4096).unwrap();
        let found = u32::from_le_bytes(found);
        assert!(
            found == number || found == 0,
            "{}: {found} at {number}",
            image.display()
        );
        found == number
    };
    let count = (1..).take_while(|number| holds(*number)).count();
    let count = u32::try_from(count).unwrap();
    assert!(
        (count + 1..count + 100).all(|number| !holds(number)),
        "{}: a gap",
        image.display()
    );
    count
}

fn bytes_of(lab: &Lab, names: [&str; 2]) -> [Vec<u8>; 2] {
    names.map(|name| fs::read(lab.path(name)).unwrap())
}

fn hash(lab: &Lab, image: &str) -> Value {
    lab.json(&["hash", image], 0)["sha256"].clone()
}

fn create(lab: &Lab, disk: &str, name: &str) -> PathBuf {
    lab.run(&["snapshot", "create", disk, "--name", name], 0);
    resolve(&lab.path(disk), name).unwrap()
}

#[test]
fn snapshots_come_and_go_under_a_guest() {
    if !has_kvm("snapshots of a disk of a machine") {
        return;
    }
    let lab = Lab::new();
    chain(&lab);
    let ancestors = bytes_of(&lab, ["base.vhd", "middle.vhd"]);
    let mut running = counting(&lab, "live", "leaf.vhd");
    let name = running.name.clone();
    let mut last = 0;
    lab.run(&["snapshot", "create", "leaf.vhd", "--name", "no", "--offline"], 7);
    for cycle in 0..cycles() {
        last = read_on(&mut running, SOME, last);
        let frozen = create(&lab, "leaf.vhd", "backup");
        let kept = counted(&frozen);
        assert!(kept >= last, "cycle {cycle}: {kept}, and the guest had flushed {last}");
        let before = hash(&lab, "leaf.vhd@backup");
        last = read_on(&mut running, kept + SOME - last, last);
        assert_eq!(hash(&lab, "leaf.vhd@backup"), before, "cycle {cycle}");
        lab.run(&["snapshot", "delete", "leaf.vhd", "backup"], 0);
        assert!(!lab.exists("leaf.vhd.snapshots"), "cycle {cycle}: {:?}", lab.names());
        last = read_on(&mut running, SOME, last);
    }
    lab.run(&["vm", "stop", &name, "--force"], 0);
    assert_eq!(running.end().2.lines().count(), 1, "that it was ended");
    lab.run(&["check", "leaf.vhd"], 0);
    assert!(counted(&lab.path("leaf.vhd")) >= last);
    assert!(
        bytes_of(&lab, ["base.vhd", "middle.vhd"]) == ancestors,
        "the parents have changed"
    );
    crate::announce(&format!(
        "{} snapshots under a guest that read back {last} numbers",
        cycles()
    ));
}

/// Saves the machine, and has it go on by its file: what it has counted to, at least.
fn move_on(lab: &Lab, mut running: Running, last: u32) -> (Running, u32) {
    lab.run(&["vm", "save", &running.name, "state"], 0);
    let mut rest = Vec::new();
    running.child.stdout.as_mut().unwrap().read_to_end(&mut rest).unwrap();
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
    let name = running.name.clone();
    let mut again = restore(lab, &name, "state");
    // The line that was cut by the end of the process.
    let mut line = vec![0; (5 - rest.len() % 5) % 5];
    again.child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    rest.extend(line);
    for (number, line) in (last + 1..).zip(rest.chunks(5)) {
        assert_eq!(line[..4], number.to_le_bytes());
    }
    let last = last + u32::try_from(rest.len() / 5).unwrap();
    let last = read_on(&mut again, SOME, last);
    fs::remove_file(lab.path("state")).unwrap();
    (again, last)
}

#[test]
fn inv_75_a_machine_whose_chain_has_changed_goes_on_elsewhere() {
    if !has_kvm("saving machines whose chains have changed") {
        return;
    }
    let lab = Lab::new();
    chain(&lab);
    let mut running = counting(&lab, "moved", "leaf.vhd");
    let mut last = read_on(&mut running, SOME, 0);
    let info = |name: &str| {
        let info = lab.run(&["vm", "info", name, "--json"], 0);
        let info: Value = serde_json::from_slice(&info.get_output().stdout).unwrap();
        info["disks"][0].clone()
    };
    let id = info(&running.name)["id"].clone();
    // The leaf is another file.
    let first = create(&lab, "leaf.vhd", "first");
    let kept = counted(&first);
    (running, last) = move_on(&lab, running, last);
    assert_eq!(info(&running.name)["id"], id, "the guest's serial number");
    // Again, in the machine that was restored; then there are fewer files.
    create(&lab, "leaf.vhd", "second");
    (running, last) = move_on(&lab, running, last);
    lab.run(&["snapshot", "delete", "leaf.vhd", "second"], 0);
    (running, last) = move_on(&lab, running, last);
    assert_eq!(counted(&first), kept);
    lab.run(&["snapshot", "delete", "leaf.vhd", "first"], 0);
    (running, last) = move_on(&lab, running, last);
    // An ancestor is gone.
    lab.run(&["merge", "middle.vhd"], 0);
    assert!(!lab.exists("middle.vhd"));
    (running, last) = move_on(&lab, running, last);
    // The leaf is, and so is what the command line called it.
    lab.run(&["merge", "leaf.vhd"], 0);
    last = read_on(&mut running, SOME, last);
    assert!(!lab.exists("leaf.vhd"));
    (running, last) = move_on(&lab, running, last);
    let image = info(&running.name)["image"].as_str().unwrap().to_owned();
    assert!(image.ends_with("base.vhd"), "{image}");
    lab.run(&["vm", "stop", &running.name, "--force"], 0);
    drop(running);
    lab.run(&["create", "leaf.vhd", "--parent", "base.vhd"], 0);
    // What it was called leads to the leaf all the time.
    create(&lab, "leaf.vhd", "third");
    kernel(
        &lab,
        "guest",
        &Payload::on_pci()
            .start_disk(0)
            .print("up")
            .count_and_read_back(0, last + 1),
    );
    let run = ["leaf.vhd@now", "--kernel", "guest", "--machine", "vhd-1"];
    let mut running = Running::start(&lab, "now", &run);
    create(&lab, "leaf.vhd", "fourth");
    last = read_on(&mut running, SOME, last);
    (running, last) = move_on(&lab, running, last);
    let image = info(&running.name)["image"].as_str().unwrap().to_owned();
    assert!(image.ends_with("leaf.vhd@now"), "{image}");
    lab.run(&["vm", "stop", &running.name, "--force"], 0);
    running.end();
    let now = resolve(&lab.path("leaf.vhd"), "now").unwrap();
    assert!(counted(&now) >= last);
    lab.run(&["check", now.to_str().unwrap()], 0);
}

#[test]
fn a_saved_machine_knows_the_leaf_that_it_had() {
    if !has_kvm("disks of saved machines that have got snapshots since") {
        return;
    }
    let lab = Lab::new();
    chain(&lab);
    let mut running = counting(&lab, "since", "leaf.vhd");
    read_on(&mut running, SOME, 0);
    create(&lab, "leaf.vhd", "live");
    lab.run(&["vm", "save", &running.name, "state"], 0);
    // It would be a machine that writes to what is frozen now.
    lab.run(&["snapshot", "create", "leaf.vhd", "--name", "later"], 0);
    let refused = stderr(&lab.run(&["vm", "restore", "state"], 8));
    assert_eq!(refused.lines().count(), 1, "{refused}");
    let names = ["base.vhd", "middle.vhd", "leaf.vhd"];
    names.iter().for_each(|name| drop(lab.run(&["check", name], 0)));
}

#[test]
fn a_guest_is_told_of_a_larger_disk() {
    if !has_kvm("a disk of a machine that becomes larger") {
        return;
    }
    let lab = Lab::new();
    lab.dynamic("data.vhd", 16 * MIB);
    let sectors = u32::try_from(32 * MIB / 512).unwrap();
    let guest = Payload::on_pci().start_disk(0).print("up");
    let guest = guest.request(0, READ, sectors - 8, 512).print_status(0);
    let guest = guest.wait_for_capacity(0, sectors).request(0, STORE, sectors - 8, 512);
    kernel(&lab, "guest", &guest.print_status(0).power_off());
    let mut running = Running::start(&lab, "larger", &["data.vhd", "--kernel", "guest", "--machine", "vhd-1"]);
    let mut status = [0];
    running.child.stdout.as_mut().unwrap().read_exact(&mut status).unwrap();
    assert_eq!(&status, b"1", "it is behind the end");
    let planned = lab.json(&["resize", "data.vhd", "32M", "--dry-run"], 0);
    assert_eq!(planned["dry_run"], json!(true));
    lab.run(&["resize", "data.vhd", "8M", "--shrink"], 7);
    lab.run(&["resize", "data.vhd", "32M"], 0);
    assert_eq!(running.end(), (0, "0".to_owned(), String::new()));
    assert_eq!(lab.json(&["info", "data.vhd"], 0)["virtual_size"], json!(32 * MIB));
    lab.run(&["check", "data.vhd"], 0);
}

/// Disks that are added while the machine runs, and some that nobody writes to.
#[test]
fn which_disks_of_a_machine_take_jobs() {
    if !has_kvm("jobs on disks of machines") {
        return;
    }
    let lab = Lab::new();
    for image in ["added.vhd", "read.vhd", "thrown.vhd"] {
        lab.dynamic(image, 16 * MIB);
    }
    kernel(&lab, "guest", &Payload::on_pci().print("up").spin());
    let disks = ["--disk", "read.vhd,ro", "--disk", "thrown.vhd,snapshot", "--allow", "."];
    let run = [&disks[..], &["--kernel", "guest", "--machine", "vhd-1"]].concat();
    let running = Running::start(&lab, "which", &run);
    lab.run(&["vm", "disk", "add", &running.name, "added.vhd,id=added"], 0);
    create(&lab, "added.vhd", "one");
    lab.run(&["snapshot", "delete", "added.vhd", "one"], 0);
    for image in ["read.vhd", "thrown.vhd"] {
        let refused = lab.json(&["resize", image, "32M"], 7);
        assert_eq!(refused["error"]["code"], "VHD-E0304", "{image}: {refused}");
    }
    lab.run(&["vm", "stop", &running.name, "--force"], 0);
    running.end();
    lab.run(&["check", "added.vhd"], 0);
    // There is nobody to ask any more.
    lab.run(&["resize", "added.vhd", "32M"], 0);
}
