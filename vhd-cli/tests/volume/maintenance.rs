//! Disks of volumes are looked into, mounted, compacted and resized by their names.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use fastrand::Rng;

use crate::support::{Machine, Process, wait};

const MIB: u64 = 1 << 20;

/// A machine with a volume that node a coordinates, whose commands are those of a.
fn lab() -> (Machine, Process) {
    let machine = Machine::with_volume(&["a", "b"]);
    let agent = machine.agent("a");
    machine.coordinator(|node| node == "a");
    (machine.of_node("a"), agent)
}

/// A dynamic disk of 64 MiB with data, and blocks that read zero.
fn with_zeroes(machine: &Machine, disk: &str) {
    let serving = machine.nbd("a", disk);
    let served = serving.disk();
    let mut bytes = vec![0; usize::try_from(2 * MIB).unwrap()];
    Rng::with_seed(1).fill(&mut bytes);
    for block in 0..8 {
        served.write_at(&bytes, block * 2 * MIB).unwrap();
    }
    served.write_at(&vec![0; bytes.len()], 2 * MIB).unwrap();
    served.write_at(&vec![0; bytes.len()], 10 * MIB).unwrap();
    drop(served);
    serving.stop();
}

fn hash(machine: &Machine, disk: &str) -> String {
    machine.json(&["hash", disk, "--json"])["sha256"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn nothing_is_left(machine: &Machine) {
    assert_eq!(fs::read_dir(machine.path("v/.csv/incoming")).unwrap().count(), 0);
    let disks = machine.status()["disks"].clone();
    assert!(
        disks.as_array().unwrap().iter().all(|disk| disk["writer"].is_null()),
        "{disks}"
    );
}

#[test]
fn inv_95_a_disk_is_compacted_in_a_copy_that_takes_its_place() {
    let (machine, _agent) = lab();
    machine.ok(&["create", "v:/disk.vhd", "64M"]);
    machine.ok(&["create", "v:/child.avhd", "--parent", "v:/disk.vhd"]);
    with_zeroes(&machine, "v:/child.avhd");
    machine.ok(&["create", "v:/alone.vhd", "64M"]);
    with_zeroes(&machine, "v:/alone.vhd");
    for disk in ["v:/alone.vhd", "v:/child.avhd"] {
        let file = machine.path(&disk.replace(":/", "/"));
        let (before, content) = (fs::metadata(&file).unwrap().len(), hash(&machine, disk));
        let planned = machine.json(&["compact", disk, "--dry-run", "--json"]);
        assert_eq!(fs::metadata(&file).unwrap().len(), before);
        let done = machine.json(&["compact", disk, "--json"]);
        assert_eq!(
            (&done["image"], &done["file_bytes"]),
            (&disk.into(), &planned["file_bytes"])
        );
        assert!(fs::metadata(&file).unwrap().len() <= before - 4 * MIB, "{done}");
        assert_eq!(hash(&machine, disk), content);
        nothing_is_left(&machine);
        // Its coordinator knows the new table: the next one too.
        with_zeroes(&machine, disk);
        machine.ok(&["check", disk]);
        let serving = machine.nbd("a", disk);
        machine.fails(&["compact", disk], 7, "VHD-E0924");
        serving.stop();
    }
    // Killed anywhere, the disk reads the same, and the next command leaves nothing behind.
    let content = hash(&machine, "v:/alone.vhd");
    for round in 0..12 {
        let mut command = machine.command(&["compact", "v:/alone.vhd"]);
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(10 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(hash(&machine, "v:/alone.vhd"), content);
        machine.ok(&["check", "v:/alone.vhd"]);
    }
    machine.ok(&["compact", "v:/alone.vhd"]);
    machine.ok(&["create", "v:/last.vhd", "1M"]);
    assert_eq!(hash(&machine, "v:/alone.vhd"), content);
    nothing_is_left(&machine);
}

#[test]
fn a_disk_is_resized_unless_others_rely_on_it() {
    let (machine, _agent) = lab();
    machine.ok(&["create", "v:/disk.vhd", "64M"]);
    machine.ok(&["create", "v:/fixed.vhd", "4M", "--type", "fixed"]);
    with_zeroes(&machine, "v:/disk.vhd");
    let size = |disk: &str| {
        machine.json(&["info", disk, "--json"])["virtual_size"]
            .as_u64()
            .unwrap()
    };
    machine.ok(&["resize", "v:/disk.vhd", "16G", "--dry-run"]);
    assert_eq!(size("v:/disk.vhd"), 64 * MIB);
    // Its table does not fit where it is: blocks move.
    let resized = machine.json(&["resize", "v:/disk.vhd", "16G", "--json"]);
    assert!(
        resized["files"][0]["path"].as_str().unwrap().ends_with("/v/disk.vhd"),
        "{resized}"
    );
    machine.ok(&["resize", "v:/fixed.vhd", "+4M"]);
    assert_eq!((size("v:/disk.vhd"), size("v:/fixed.vhd")), (16 << 30, 8 * MIB));
    with_zeroes(&machine, "v:/disk.vhd");
    let serving = machine.nbd("a", "v:/disk.vhd");
    serving.disk().write_at(&[7; 512], (16 << 30) - 512).unwrap();
    serving.stop();
    machine.ok(&["check", "v:/disk.vhd"]);
    nothing_is_left(&machine);
    machine.ok(&["create", "v:/child.avhd", "--parent", "v:/disk.vhd"]);
    machine.fails(&["resize", "v:/disk.vhd", "32G"], 8, "VHD-E0207");
    machine.fails(&["resize", "v:/child.avhd", "32G", "--tree"], 8, "VHD-E0937");
    assert_eq!(size("v:/disk.vhd"), 16 << 30);
    nothing_is_left(&machine);
}

#[test]
fn files_in_a_disk_are_read_by_its_name() {
    let (machine, _agent) = lab();
    let root = machine.path("root/etc");
    fs::create_dir_all(&root).unwrap();
    fs::write(root.join("motd"), "hello\n").unwrap();
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-d"])
        .arg(machine.path("root"))
        .arg(machine.path("fs.raw"))
        .arg("16M");
    match mkfs.output() {
        Ok(made) => assert!(made.status.success()),
        Err(_) if std::env::var_os("CI").is_none() => {
            return eprintln!("NOT TESTED: files in disks of volumes, as mkfs.ext4 is missing");
        }
        Err(error) => panic!("mkfs.ext4: {error}"),
    }
    machine.ok(&["convert", "fs.raw", "v:/fs.vhd", "--from", "raw"]);
    assert_eq!(machine.ok(&["cat", "v:/fs.vhd:/etc/motd"]), "hello\n");
    assert!(machine.ok(&["ls", "v:/fs.vhd:/"]).contains("etc"));
    machine.ok(&["ls", "v:/fs.vhd"]);
    machine.ok(&["cp", "v:/fs.vhd:/etc/motd", "motd"]);
    assert_eq!(fs::read_to_string(machine.path("motd")).unwrap(), "hello\n");
    machine.fails(&["cat", "v:/none.vhd:/etc/motd"], 1, "VHD-E0302");
    // A file of the volume's name wins.
    fs::rename(machine.path("v"), machine.path("elsewhere")).unwrap();
    fs::rename(machine.path("fs.raw"), machine.path("v")).unwrap();
    assert_eq!(machine.ok(&["cat", "v:/etc/motd"]), "hello\n");
}

#[test]
fn a_mount_for_writing_has_the_right_of_the_volume() {
    let (machine, _agent) = lab();
    if File::options().read(true).write(true).open("/dev/fuse").is_err() {
        assert!(std::env::var_os("CI").is_none(), "there is no /dev/fuse");
        return eprintln!("NOT TESTED: mounts of disks of volumes, as there is no /dev/fuse");
    }
    machine.ok(&["create", "v:/disk.vhd", "64M"]);
    fs::create_dir(machine.path("mnt")).unwrap();
    let mount = machine
        .command(&["mount", "--foreground", "--rw", "v:/disk.vhd", "mnt"])
        .spawn()
        .unwrap();
    let mount = Process::of(mount);
    let file = machine.path("mnt/disk.raw");
    wait("the mount", || file.exists());
    let status = machine.status();
    assert_eq!(
        (&status["disks"][0]["writer"], &status["disks"][0]["io"]),
        (&"a".into(), &"direct".into()),
        "{status}"
    );
    assert!(
        machine
            .fails(&["nbd", "--unix", "s", "v:/disk.vhd"], 7, "VHD-E0924")
            .contains("by a (session")
    );
    let mut bytes = vec![0; usize::try_from(6 * MIB).unwrap()];
    Rng::with_seed(3).fill(&mut bytes);
    let written = File::options().write(true).open(&file).unwrap();
    written.write_all_at(&bytes, 5 * MIB).unwrap();
    written.sync_all().unwrap();
    drop(written);
    wait("the unmount", || {
        machine.command(&["umount", "mnt"]).output().unwrap().status.success()
    });
    assert_eq!(mount.end(), Some(0));
    nothing_is_left(&machine);
    machine.ok(&["check", "v:/disk.vhd"]);
    machine.ok(&["convert", "v:/disk.vhd", "out.raw", "--to", "raw"]);
    let mut read = vec![0; bytes.len()];
    File::open(machine.path("out.raw"))
        .unwrap()
        .read_exact_at(&mut read, 5 * MIB)
        .unwrap();
    assert!(read == bytes);
}

#[test]
fn inv_102_a_snapshot_by_path_is_refused_before_it_begins() {
    let (machine, _agent) = lab();
    machine.ok(&["create", "v:/disk.vhd", "64M"]);
    for disk in ["v/disk.vhd", "v:/disk.vhd"] {
        let said = machine
            .command(&["snapshot", "create", disk, "--name", "s"])
            .output()
            .unwrap();
        assert!(!said.status.success());
        let names: Vec<_> = fs::read_dir(machine.path("v"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{disk} left {names:?}");
    }
    machine.fails(&["snapshot", "create", "v/disk.vhd", "--name", "s"], 8, "VHD-E0936");
    with_zeroes(&machine, "v:/disk.vhd");
}
