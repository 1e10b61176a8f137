//! Real file systems: made, filled and half emptied by their own programs, compacted with --free-space, and
//! checked by their own programs afterwards.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Lab, MIB};
use crate::tools::{have, qemu_reads, run, seven_zip_reads};
use crate::unmount::unmounted_within;

/// Files that are made, of which every second one is deleted.
const FILES: u64 = 24;
const FILE_BYTES: u64 = MIB + 12345;

/// A kind of file system, and what its programs are.
struct Kind {
    name: &'static str,
    programs: &'static [&'static str],
    make: &'static [&'static str],
    check: &'static [&'static str],
    /// What mounts it; mtools where that is empty.
    mount: &'static [&'static str],
    size: u64,
}

const KINDS: &[Kind] = &[
    Kind {
        name: "ext4",
        programs: &["mkfs.ext4", "e2fsck"],
        make: &["mkfs.ext4", "-q", "-F"],
        check: &["e2fsck", "-fn"],
        mount: &["mount"],
        size: 96 * MIB,
    },
    Kind {
        name: "ext2",
        programs: &["mkfs.ext2", "e2fsck"],
        make: &["mkfs.ext2", "-q", "-F", "-b", "1024"],
        check: &["e2fsck", "-fn"],
        mount: &["mount"],
        size: 80 * MIB,
    },
    Kind {
        name: "xfs",
        programs: &["mkfs.xfs", "xfs_repair"],
        make: &["mkfs.xfs", "-q", "-f"],
        check: &["xfs_repair", "-n", "-f"],
        mount: &["mount"],
        size: 320 * MIB,
    },
    Kind {
        name: "ntfs",
        programs: &["mkfs.ntfs", "ntfsfix", "ntfs-3g"],
        make: &["mkfs.ntfs", "-q", "-F", "-Q"],
        check: &["ntfsfix", "-n"],
        mount: &["ntfs-3g"],
        size: 96 * MIB,
    },
    Kind {
        name: "fat16",
        programs: &["mkfs.vfat", "fsck.vfat", "mcopy"],
        make: &["mkfs.vfat", "-F", "16"],
        check: &["fsck.vfat", "-n"],
        mount: &[],
        size: 96 * MIB,
    },
    Kind {
        name: "fat32",
        programs: &["mkfs.vfat", "fsck.vfat", "mcopy"],
        make: &["mkfs.vfat", "-F", "32"],
        check: &["fsck.vfat", "-n"],
        mount: &[],
        size: 96 * MIB,
    },
    Kind {
        name: "exfat",
        programs: &["mkfs.exfat", "fsck.exfat", "mount.exfat-fuse"],
        make: &["mkfs.exfat"],
        check: &["fsck.exfat", "-n"],
        mount: &["mount.exfat-fuse"],
        size: 96 * MIB,
    },
];

fn kind(name: &str) -> &'static Kind {
    KINDS.iter().find(|kind| kind.name == name).expect("a kind in the list")
}

/// Whether loop devices and mounts can be had: not without root.
fn can_mount() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    assert!(
        is_root || std::env::var_os("CI").is_none(),
        "CI must run as root, to mount file systems"
    );
    if !is_root {
        crate::announce("NOT TESTED: compaction with --free-space: not root");
    }
    is_root
}

/// The content of a file, which nothing can make smaller.
fn content(number: u64) -> Vec<u8> {
    let mut state = number + 1;
    let words = (0..FILE_BYTES / 8).flat_map(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state ^ state >> 29).to_le_bytes()
    });
    words.collect()
}

/// A loop device over a file, and what is mounted from it.
struct Mount {
    image: PathBuf,
    device: String,
    dir: PathBuf,
}

impl Mount {
    fn new(kind: &Kind, image: &Path, dir: PathBuf) -> Self {
        fs::create_dir_all(&dir).unwrap();
        let device = run("losetup", ["--find".as_ref(), "--show".as_ref(), image.as_os_str()]);
        let device = String::from_utf8(device).unwrap().trim().to_owned();
        let mount = Self {
            image: image.to_owned(),
            device,
            dir,
        };
        run(kind.mount[0], [mount.device.as_ref(), mount.dir.as_os_str()]);
        mount
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = unmounted_within(std::time::Duration::from_secs(2), &self.dir);
        // The device may be another program's the next moment: it is given back once. A file system in user space ends
        // a moment after it is unmounted, and uses the image until then.
        let _ = Command::new("losetup").args(["--detach", &self.device]).output();
        for _ in 0..500 {
            let attached = Command::new("losetup").arg("--associated").arg(&self.image).output();
            let used = Command::new("fuser").arg(&self.image).output();
            let attached = attached.is_ok_and(|output| !output.stdout.is_empty());
            if !attached && !used.is_ok_and(|output| output.status.success()) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        if !std::thread::panicking() {
            assert!(unmounted, "{}", self.dir.display());
        }
    }
}

/// Makes a file system in `image`, writes files and deletes every second one.
fn make(lab: &Lab, kind: &Kind, image: &Path) {
    File::create(image).unwrap().set_len(kind.size).unwrap();
    let arguments = kind.make[1..].iter().map(AsRef::as_ref);
    run(kind.make[0], arguments.chain([image.as_os_str()]));
    if kind.mount.is_empty() {
        for number in 0..FILES {
            let file = lab.path("one");
            fs::write(&file, content(number)).unwrap();
            run(
                "mcopy",
                [
                    "-i".as_ref(),
                    image.as_os_str(),
                    file.as_os_str(),
                    format!("::f{number}").as_ref(),
                ],
            );
        }
        for number in (0..FILES).step_by(2) {
            run(
                "mdel",
                ["-i".as_ref(), image.as_os_str(), format!("::f{number}").as_ref()],
            );
        }
        return;
    }
    let mount = Mount::new(kind, image, lab.path("mnt"));
    for number in 0..FILES {
        fs::write(mount.dir.join(format!("f{number}")), content(number)).unwrap();
    }
    run("sync", ["-f".as_ref(), mount.dir.as_os_str()]);
    for number in (0..FILES).step_by(2) {
        fs::remove_file(mount.dir.join(format!("f{number}"))).unwrap();
    }
}

/// The file system in `image` is clean, and its files are what they were.
fn check(lab: &Lab, kind: &Kind, image: &Path) {
    let arguments = kind.check[1..].iter().map(AsRef::as_ref);
    run(kind.check[0], arguments.chain([image.as_os_str()]));
    let same = |number: u64, found: &[u8]| assert!(found == content(number), "{}: file {number}", kind.name);
    if kind.mount.is_empty() {
        for number in (1..FILES).step_by(2) {
            let name = format!("::f{number}");
            same(number, &run("mtype", ["-i".as_ref(), image.as_os_str(), name.as_ref()]));
        }
        return;
    }
    let mount = Mount::new(kind, image, lab.path("mnt"));
    for number in (1..FILES).step_by(2) {
        same(number, &fs::read(mount.dir.join(format!("f{number}"))).unwrap());
    }
}

/// Bytes that the file takes on the host.
fn allocated(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

/// What is left may be 5 % more than the files: what the file system itself needs goes into a constant.
fn limit(file_systems: u64) -> u64 {
    file_systems * (FILES / 2 * FILE_BYTES * 105 / 100 + 3 * MIB)
}

#[test]
fn every_file_system_shrinks_to_what_it_uses() {
    if !can_mount() {
        return;
    }
    for kind in KINDS {
        if !have(kind.programs, &format!("compaction with --free-space of {}", kind.name)) {
            continue;
        }
        let lab = Lab::new();
        make(&lab, kind, &lab.path("fs.raw"));
        lab.run(
            &[
                "convert",
                "fs.raw",
                "disk.vhd",
                "--to",
                "dynamic",
                "--block-size",
                "512K",
            ],
            0,
        );
        let before = (lab.len("disk.vhd"), allocated(&lab.path("disk.vhd")));
        let measured = lab.json(&["measure", "disk.vhd"], 0);
        let plain = lab.json(&["compact", "disk.vhd", "--dry-run"], 0);
        assert_eq!(measured["now"]["file_bytes"], plain["file_bytes"], "{}", kind.name);
        let report = lab.json(&["compact", "disk.vhd", "--free-space"], 0);
        assert_eq!(
            report["partitions"][0]["reason"],
            serde_json::Value::Null,
            "{}",
            kind.name
        );
        assert_eq!(
            measured["free_space"]["file_bytes"], report["file_bytes"],
            "{}",
            kind.name
        );
        assert_eq!(report["file_bytes"], lab.len("disk.vhd"));
        let after = (lab.len("disk.vhd"), allocated(&lab.path("disk.vhd")));
        crate::announce(&format!(
            "{}: {before:?} bytes (length, allocated) became {after:?}",
            kind.name
        ));
        assert!(after.1 <= limit(1), "{}: {after:?}, at most {}", kind.name, limit(1));
        lab.run(&["check", "disk.vhd"], 0);
        lab.run(&["convert", "disk.vhd", "after.raw", "--to", "raw"], 0);
        if have(&["qemu-img", "7zz"], "other readers of compacted images") {
            let raw = fs::read(lab.path("after.raw")).unwrap();
            assert!(seven_zip_reads(&lab.path("disk.vhd")) == raw, "{}: 7zz", kind.name);
            let by_qemu = qemu_reads(&lab.path("disk.vhd"));
            assert!(by_qemu == raw, "{}: qemu", kind.name);
        }
        check(&lab, kind, &lab.path("after.raw"));
    }
}

/// Copies what is stored of a file to a place in another one.
fn place(from: &Path, to: &File, at: u64) {
    let bytes = fs::read(from).unwrap();
    for (index, part) in (0..).zip(bytes.chunks(64 << 10)) {
        if part.iter().any(|&byte| byte != 0) {
            to.write_all_at(part, at + index * (64 << 10)).unwrap();
        }
    }
}

/// A disk with these file systems, each in a partition that begins at this many MiB, by a script of sfdisk.
fn divided_disk(lab: &Lab, script: &str, size: u64, parts: &[(&str, u64)]) {
    let disk = File::create(lab.path("disk.raw")).unwrap();
    disk.set_len(size).unwrap();
    fs::write(lab.path("script"), script).unwrap();
    let command = format!(
        "sfdisk -q {} < {}",
        lab.path("disk.raw").display(),
        lab.path("script").display()
    );
    run("sh", ["-c", &command]);
    for (name, at) in parts {
        let image = lab.path(name);
        if *name != "swap" {
            make(lab, kind(name), &image);
        } else {
            fs::write(&image, &content(99).repeat(8)[..8 << 20]).unwrap();
            run("mkswap", [image.as_os_str()]);
        }
        place(&image, &disk, at * MIB);
    }
}

/// Compacts the disk and checks each file system in it.
fn shrink_divided(lab: &Lab, parts: &[(&str, u64)]) -> serde_json::Value {
    lab.run(
        &[
            "convert",
            "disk.raw",
            "disk.vhd",
            "--to",
            "dynamic",
            "--block-size",
            "512K",
        ],
        0,
    );
    let report = lab.json(&["compact", "disk.vhd", "--free-space"], 0);
    lab.run(&["check", "disk.vhd"], 0);
    lab.run(&["convert", "disk.vhd", "after.raw", "--to", "raw"], 0);
    let after = File::open(lab.path("after.raw")).unwrap();
    for (name, at) in parts.iter().filter(|(name, _)| *name != "swap") {
        let mut bytes = vec![0; usize::try_from(kind(name).size).unwrap()];
        after.read_exact_at(&mut bytes, at * MIB).unwrap();
        fs::write(lab.path("part.raw"), bytes).unwrap();
        check(lab, kind(name), &lab.path("part.raw"));
    }
    report
}

#[test]
fn partitions_of_both_tables_shrink_and_strangers_stay() {
    let programs = [
        "sfdisk",
        "mkswap",
        "mkfs.ext4",
        "mkfs.ntfs",
        "ntfs-3g",
        "mkfs.vfat",
        "mcopy",
    ];
    if !can_mount() || !have(&programs, "compaction with --free-space of partitions") {
        return;
    }
    let lab = Lab::new();
    let parts = [("ext4", 1), ("ntfs", 100), ("swap", 200)];
    let script = "label: gpt\nstart=2048,size=196608\nstart=204800,size=196608\nstart=409600,size=16384\n\
                  start=430080,size=8192\n";
    divided_disk(&lab, script, 220 * MIB, &parts);
    // What no one knows is left alone.
    let stranger = content(7);
    let disk = File::options().write(true).open(lab.path("disk.raw")).unwrap();
    disk.write_all_at(&stranger, 210 * MIB).unwrap();
    let report = shrink_divided(&lab, &parts);
    let reasons: Vec<_> = report["partitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| &part["reason_code"])
        .collect();
    assert_eq!(
        reasons,
        [
            &serde_json::Value::Null,
            &serde_json::Value::Null,
            &serde_json::Value::Null,
            &"unrecognised".into()
        ]
    );
    let mut found = vec![0; stranger.len()];
    File::open(lab.path("after.raw"))
        .unwrap()
        .read_exact_at(&mut found, 210 * MIB)
        .unwrap();
    assert!(found == stranger, "an unknown partition was changed");
    assert!(allocated(&lab.path("disk.vhd")) <= limit(2) + 3 * MIB);

    let lab = Lab::new();
    let parts = [("fat32", 1), ("ext2", 101)];
    let script = "label: dos\nstart=2048,size=196608,type=c\nstart=204800,size=184320,type=5\n\
                  start=206848,size=163840,type=83\n";
    divided_disk(&lab, script, 200 * MIB, &parts);
    let report = shrink_divided(&lab, &parts);
    assert_eq!(report["partitions"][1]["number"], 5);
    assert!(allocated(&lab.path("disk.vhd")) <= limit(2));
}

#[test]
fn mounted_and_dirty_file_systems_are_left_alone() {
    let programs = ["mkfs.ext4", "mkfs.xfs"];
    if !can_mount() || !have(&programs, "compaction with --free-space of file systems in use") {
        return;
    }
    for name in ["ext4", "xfs"] {
        let lab = Lab::new();
        make(&lab, kind(name), &lab.path("fs.raw"));
        let mount = Mount::new(kind(name), &lab.path("fs.raw"), lab.path("mnt"));
        fs::write(mount.dir.join("more"), content(3)).unwrap();
        run("sync", ["-f".as_ref(), mount.dir.as_os_str()]);
        fs::copy(lab.path("fs.raw"), lab.path("torn.raw")).unwrap();
        drop(mount);
        lab.run(&["convert", "torn.raw", "disk.vhd", "--to", "dynamic"], 0);
        let before = lab.json(&["hash", "disk.vhd"], 0)["sha256"].clone();
        let report = lab.json(&["compact", "disk.vhd", "--free-space"], 0);
        assert_eq!(report["partitions"][0]["reason_code"], "dirty", "{name}");
        assert_eq!(lab.json(&["hash", "disk.vhd"], 0)["sha256"], before);
    }
}
