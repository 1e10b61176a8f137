//! Disks on a volume: named by it, written by one node, allocated by its coordinator.

use std::fs;

use fastrand::Rng;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::Machine;

const MIB: u64 = 1 << 20;

/// A machine with a volume that node a coordinates.
fn lab() -> (Machine, crate::support::Process) {
    let machine = Machine::with_volume(&["a", "b"]);
    let agent = machine.agent("a");
    machine.coordinator(|node| node == "a");
    // Commands of no node in particular are those of a.
    (machine.of_node("a"), agent)
}

fn writer_of<'s>(status: &'s Value, path: &str) -> Option<&'s str> {
    let disks = status["disks"].as_array().unwrap();
    let disk = disks.iter().find(|disk| disk["path"] == path);
    disk.expect("the disk is one of the volume").get("writer")?.as_str()
}

#[test]
fn commands_take_the_names_of_disks() {
    let (machine, _agent) = lab();
    machine.ok(&["create", "v:/web.vhd", "64M"]);
    machine.ok(&["create", "v:/fixed.vhd", "1M", "--type", "fixed"]);
    assert_eq!(machine.status()["disks"].as_array().unwrap().len(), 2);
    machine.fails(&["create", "v:/web.vhd", "64M"], 8, "VHD-E0305");
    machine.fails(&["create", "v:/no/such/dir.vhd", "64M"], 1, "VHD-E0932");
    machine.fails(&["create", "v:/../web.vhd", "64M"], 8, "VHD-E0929");
    machine.fails(&["create", "v:/.csv/web.vhd", "64M"], 8, "VHD-E0929");
    machine.fails(&["info", "w:/web.vhd"], 8, "VHD-E0915");
    machine.fails(&["info", "v:/none.vhd"], 1, "VHD-E0302");
    let mut content = vec![0; 5 << 20];
    Rng::with_seed(1).fill(&mut content[1 << 20..2 << 20]);
    fs::write(machine.path("in.raw"), &content).unwrap();
    machine.ok(&["convert", "in.raw", "v:/in.vhd"]);
    machine.fails(&["convert", "in.raw", "v:/in.vhd"], 8, "VHD-E0305");
    machine.ok(&["convert", "in.raw", "v:/in.vhd", "--force"]);
    machine.ok(&["convert", "v:/in.vhd", "out.raw"]);
    assert!(fs::read(machine.path("out.raw")).unwrap() == content);
    assert_eq!(
        machine.json(&["hash", "v:/in.vhd", "--json"])["sha256"],
        machine.json(&["hash", "in.raw", "--from", "raw", "--json"])["sha256"]
    );
    machine.ok(&["map", "v:/in.vhd"]);
    machine.ok(&["check", "v:/in.vhd"]);
    machine.ok(&["create", "v:/child.avhd", "--parent", "v:/in.vhd"]);
    machine.ok(&["convert", "v:/child.avhd", "child.raw", "--to", "raw"]);
    assert!(fs::read(machine.path("child.raw")).unwrap() == content);
    // The child finds its parent from where it is, wherever the volume is mounted.
    fs::rename(machine.path("v"), machine.path("moved")).unwrap();
    machine.ok(&["check", "moved/child.avhd"]);
    // Nothing that was prepared stays behind.
    assert_eq!(fs::read_dir(machine.path("moved/.csv/incoming")).unwrap().count(), 0);
}

#[test]
fn what_a_killed_command_prepared_is_removed_by_the_next() {
    let (machine, agent) = lab();
    let mut left = 0;
    for round in 0..20 {
        let name = format!("v:/{round}.vhd");
        let mut command = machine.command(&["create", &name, "4M", "--type", "fixed", "--preallocate", "full"]);
        let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(round));
        child.kill().unwrap();
        let created = child.wait().unwrap().success();
        left += fs::read_dir(machine.path("v/.csv/incoming")).unwrap().count();
        // The disk is there, whole, or is not.
        match machine.path(&name.replace(":/", "/")).exists() {
            true => drop(machine.ok(&["check", &name])),
            false => assert!(!created),
        }
    }
    println!("{left} files were left");
    // One whose process is not known here is not ours to remove.
    fs::write(machine.path("v/.csv/incoming/other"), "").unwrap();
    machine.ok(&["create", "v:/last.vhd", "1M"]);
    assert_eq!(fs::read_dir(machine.path("v/.csv/incoming")).unwrap().count(), 1);
    drop(agent);
    // Disks and files agree.
    let _agent = machine.agent("a");
    machine.coordinator(|node| node == "a");
    for disk in machine.status()["disks"].as_array().unwrap() {
        assert!(
            machine.path("v").join(disk["path"].as_str().unwrap()).exists(),
            "{disk}"
        );
    }
}

#[test]
fn a_file_called_like_a_disk_of_a_volume_wins() {
    let (machine, _agent) = lab();
    machine.ok(&["create", "v:/web.vhd", "64M"]);
    machine.ok(&["create", "local.vhd", "2M"]);
    fs::create_dir(machine.path("v:")).unwrap();
    fs::rename(machine.path("local.vhd"), machine.path("v:/web.vhd")).unwrap();
    let size = |machine: &Machine| machine.json(&["info", "v:/web.vhd", "--json"])["virtual_size"].clone();
    assert_eq!(size(&machine), 2 * MIB);
    fs::remove_dir_all(machine.path("v:")).unwrap();
    assert_eq!(size(&machine), 64 * MIB);
    // A path inside an image, where no command takes one.
    fs::rename(machine.path("v"), machine.path("d")).unwrap();
    fs::write(machine.path("v"), "").unwrap();
    machine.fails(&["info", "v:/web.vhd"], 1, "VHD-E0302");
}

#[test]
fn inv_98_a_disk_has_one_writer_who_is_named() {
    let (machine, _agent) = lab();
    machine.ok(&["create", "v:/web.vhd", "64M"]);
    let serving = machine.nbd("a", "v:/web.vhd");
    assert_eq!(writer_of(&machine.status(), "web.vhd"), Some("a"));
    machine.fails(
        &["nbd", "--unix", "second.nbd", "--volume", "v", "web.vhd"],
        7,
        "VHD-E0924",
    );
    let other = machine.of_node("b");
    let refused = other.fails(&["nbd", "--unix", "second.nbd", "v:/web.vhd"], 7, "VHD-E0924");
    assert!(refused.contains("written by a "), "{refused}");
    other.fails(&["volume", "evict", "v", "a"], 7, "VHD-E0935");
    let machine = other.of_node("a");
    // The process has ended, however: its disk is free for whoever asks next.
    serving.kill();
    assert_eq!(writer_of(&machine.status(), "web.vhd"), Some("a"));
    let serving = machine.nbd("b", "v:/web.vhd");
    assert_eq!(writer_of(&machine.status(), "web.vhd"), Some("b"));
    serving.stop();
    assert_eq!(writer_of(&machine.status(), "web.vhd"), None);
    // A process that is stopped is not gone. It is when it was fenced.
    let serving = machine.nbd("a", "v:/web.vhd");
    serving.signal(Signal::STOP);
    let other = machine.of_node("b");
    other.fails(&["nbd", "--unix", "second.nbd", "v:/web.vhd"], 7, "VHD-E0924");
    let _agent_of_b = other.agent("b");
    let fenced = other.json(&["volume", "fence", "a", "--confirm", "--json"]);
    assert_eq!(fenced["freed"][0]["disk"], "web.vhd");
    other.nbd("b", "v:/web.vhd").stop();
}

#[test]
fn inv_102_a_file_of_a_volume_is_not_changed_by_its_path() {
    let (machine, _agent) = lab();
    machine.ok(&["create", "v:/web.vhd", "64M"]);
    machine.ok(&["create", "v:/child.avhd", "--parent", "v:/web.vhd"]);
    machine.ok(&["create", "other.vhd", "64M"]);
    let before = fs::read(machine.path("v/web.vhd")).unwrap();
    for command in [
        &["nbd", "--unix", "s", "v/web.vhd", "--ignore-children"][..],
        &["compact", "v/web.vhd"],
        &["resize", "v/web.vhd", "128M", "--ignore-children"],
        &["new-id", "v/web.vhd", "--ignore-children"],
        &["reparent", "v/child.avhd", "v/web.vhd"],
        &["merge", "v/child.avhd"],
        &["convert", "other.vhd", "v/child.avhd", "--force", "--to", "dynamic"],
    ] {
        machine.fails(command, 8, "VHD-E0936");
    }
    assert!(fs::read(machine.path("v/web.vhd")).unwrap() == before);
    machine.fails(&["nbd", "--unix", "s", "--resizable", "v:/web.vhd"], 8, "VHD-E0937");
}

#[test]
fn inv_100_blocks_come_from_the_coordinator_and_the_image_is_sound() {
    let (machine, _agent) = lab();
    for (disk, create) in [
        ("v:/web.vhd", &["create", "v:/web.vhd", "200M"][..]),
        (
            "v:/small.vhd",
            &["create", "v:/small.vhd", "200M", "--block-size", "512K"],
        ),
        ("v:/child.avhd", &["create", "v:/child.avhd", "--parent", "v:/web.vhd"]),
    ] {
        machine.ok(create);
        let mut model = vec![0u8; 200 << 20];
        let mut random = Rng::with_seed(7);
        for round in 0..2 {
            let serving = machine.nbd("a", disk);
            let served = serving.disk();
            if round == 0 {
                served.read_at(&mut model, 0).unwrap();
            }
            // In a row, then anywhere, in odd pieces.
            for step in 0..120u64 {
                let len = random.usize(1..200_000);
                let offset = match step < 60 {
                    true => step * 700_000 + round * 1000,
                    false => random.u64(0..(200 << 20) - 200_000),
                };
                let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(len).collect();
                served.write_at(&bytes, offset).unwrap();
                model[usize::try_from(offset).unwrap()..][..len].copy_from_slice(&bytes);
            }
            served.flush().unwrap();
            drop(served);
            serving.stop();
            machine.ok(&["check", disk]);
        }
        let serving = machine.nbd("b", disk);
        let mut found = vec![1; model.len()];
        serving.disk().read_at(&mut found, 0).unwrap();
        assert!(found == model, "{disk}");
        serving.stop();
    }
}

#[test]
fn a_writer_that_is_killed_leaves_what_it_flushed_and_a_sound_image() {
    let (machine, _agent) = lab();
    for create in [
        &["create", "v:/web.vhd", "64M"][..],
        &["create", "v:/child.avhd", "--parent", "v:/web.vhd"],
    ] {
        machine.ok(create);
        let disk = create[1];
        let serving = machine.nbd("a", disk);
        let served = serving.disk();
        served.write_at(&[7; 100_000], 1_000_000).unwrap();
        served.flush().unwrap();
        served.write_at(&[8; 100_000], 20_000_000).unwrap();
        serving.kill();
        machine.run(&["check", disk], 0);
        let serving = machine.nbd("b", disk);
        let mut found = vec![0; 100_000];
        serving.disk().read_at(&mut found, 1_000_000).unwrap();
        assert!(found == [7; 100_000]);
        serving.stop();
        machine.ok(&["check", disk]);
    }
}

#[test]
fn a_disk_that_was_there_before_the_volume_becomes_one_of_it() {
    let machine = Machine::new();
    fs::create_dir(machine.path("v")).unwrap();
    machine.ok(&["create", "v/old.vhd", "64M"]);
    machine.ok(&["volume", "init", "v", "--name", "v"]);
    machine.ok(&["volume", "join", "v", "--node", "a"]);
    let _agent = machine.agent("a");
    machine.coordinator(|node| node == "a");
    let serving = machine.nbd("a", "v:/old.vhd");
    serving.disk().write_at(&[1; 4096], 0).unwrap();
    serving.stop();
    machine.ok(&["check", "v:/old.vhd"]);
    assert_eq!(machine.status()["disks"][0]["path"], "old.vhd");
}
