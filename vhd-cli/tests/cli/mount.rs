//! `vhd mount`, with the kernel's FUSE: what it shows, what can be written, and how it ends.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use crate::mounted::{Mounted, active_file, fuse, hash, sha256sum, unmount};
use crate::support::{Lab, MIB, stderr};
use crate::tools::{have, run};

/// A chain of two with a snapshot: `disk.vhd` and its snapshot `monday`.
fn disk_with_snapshot(lab: &Lab) {
    lab.dynamic("disk.vhd", 64 * MIB);
    lab.write("disk.vhd", MIB, &[1; 8192]);
    lab.run(&["snapshot", "create", "disk.vhd", "--name", "monday"], 0);
}

#[test]
fn the_disk_and_its_parts_are_shown() {
    let lab = Lab::new();
    if !fuse() {
        return;
    }
    disk_with_snapshot(&lab);
    let now = hash(&lab, "disk.vhd@now");
    let mounted = Mounted::new(&lab, &["disk.vhd@now"]);
    let mut names: Vec<_> = fs::read_dir(&mounted.place)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["disk.raw", "files", "info.json", "layers", "partitions", "snapshots"]
    );
    assert_eq!(sha256sum(&mounted.path("disk.raw")), now);
    assert_eq!(
        sha256sum(&mounted.path("snapshots/monday/disk.raw")),
        hash(&lab, "disk.vhd@monday")
    );
    let info: serde_json::Value = serde_json::from_slice(&fs::read(mounted.path("info.json")).unwrap()).unwrap();
    assert_eq!(info["virtual_size"], 64 * MIB);
    assert_eq!(fs::read_dir(mounted.path("layers")).unwrap().count(), 2);
    // The leaf alone has nothing yet, the base has all.
    assert!(
        fs::read(mounted.path("layers/0.raw"))
            .unwrap()
            .iter()
            .all(|&byte| byte == 0)
    );
    assert_eq!(sha256sum(&mounted.path("layers/1.raw")), now);
    // A snapshot that is taken now appears: nobody writes through this mount.
    mounted.unmount();
}

/// Whichever state of the disk is mounted: another command goes on with the disk meanwhile.
#[test]
fn a_new_snapshot_appears_without_a_new_mount() {
    let lab = Lab::new();
    if !fuse() {
        return;
    }
    disk_with_snapshot(&lab);
    for (number, mounted_as) in ["disk.vhd@now", "disk.vhd@monday", "disk.vhd"].into_iter().enumerate() {
        let mounted = Mounted::new(&lab, &[mounted_as]);
        let before = sha256sum(&mounted.path("disk.raw"));
        let (name, place) = (format!("later{number}"), 8 * MIB * u64::try_from(number).unwrap());
        assert!(!mounted.path("snapshots").join(&name).exists());
        // What was mounted as the present state is frozen now, and what is written goes into a new file.
        lab.run(
            &["snapshot", "create", "disk.vhd", "--name", &format!("frozen{number}")],
            0,
        );
        lab.write(&active_file(&lab, "disk.vhd"), place, &[9; 4096]);
        lab.run(&["snapshot", "create", "disk.vhd", "--name", &name], 0);
        let names: Vec<_> = fs::read_dir(mounted.path("snapshots"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 3 + 2 * number, "{names:?}");
        let new = mounted.path("snapshots").join(&name);
        assert_eq!(
            sha256sum(&new.join("disk.raw")),
            hash(&lab, &format!("disk.vhd@{name}"))
        );
        let mut read = [0; 4096];
        File::open(new.join("disk.raw"))
            .unwrap()
            .read_exact_at(&mut read, place)
            .unwrap();
        assert_eq!(read, [9; 4096]);
        assert_eq!(sha256sum(&mounted.path("disk.raw")), before);
        assert_eq!(
            sha256sum(&mounted.path("snapshots/monday/disk.raw")),
            hash(&lab, "disk.vhd@monday")
        );
        mounted.unmount();
    }
}

/// The deleted one's file is in use, and stays as it is until nobody reads it; its name leads to another one.
#[test]
fn a_snapshot_is_deleted_and_another_one_gets_its_name() {
    let lab = Lab::new();
    if !fuse() {
        return;
    }
    disk_with_snapshot(&lab);
    lab.write(&active_file(&lab, "disk.vhd"), 0, &[1; 4096]);
    lab.run(&["snapshot", "create", "disk.vhd", "--name", "side"], 0);
    lab.run(&["snapshot", "apply", "disk.vhd", "monday"], 0);
    let mounted = Mounted::new(&lab, &["disk.vhd@now"]);
    let side = mounted.path("snapshots/side/disk.raw");
    let (held, old) = (File::open(&side).unwrap(), sha256sum(&side));
    lab.run(&["snapshot", "delete", "disk.vhd", "side"], 0);
    wait_until(|| !mounted.path("snapshots/side").exists());
    lab.run(&["snapshot", "create", "disk.vhd", "--name", "between"], 0);
    lab.write(&active_file(&lab, "disk.vhd"), 0, &[2; 4096]);
    lab.run(&["snapshot", "create", "disk.vhd", "--name", "side"], 0);
    wait_until(|| side.exists());
    assert_eq!(sha256sum(&side), hash(&lab, "disk.vhd@side"));
    assert_ne!(sha256sum(&side), old);
    let mut read = [0; 4096];
    held.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(read, [1; 4096]);
    drop(held);
    mounted.unmount();
    lab.run(&["check", "disk.vhd@side"], 0);
}

/// A snapshot of which nothing was looked at is not locked: its file goes at once.
#[test]
fn a_snapshot_that_nobody_looks_at_keeps_no_command_waiting() {
    let lab = Lab::new();
    if !fuse() {
        return;
    }
    disk_with_snapshot(&lab);
    lab.run(&["snapshot", "create", "disk.vhd", "--name", "side"], 0);
    lab.run(&["snapshot", "apply", "disk.vhd", "monday"], 0);
    let mounted = Mounted::new(&lab, &["disk.vhd@now"]);
    let listed = fs::read_dir(mounted.path("snapshots")).unwrap();
    assert!(
        listed
            .map(|entry| entry.unwrap().metadata().unwrap())
            .all(|meta| meta.is_dir())
    );
    let files = lab.names().len();
    lab.run(&["snapshot", "delete", "disk.vhd", "side"], 0);
    assert_eq!(lab.names().len(), files - 1);
    wait_until(|| !mounted.path("snapshots/side").exists());
    // Its neighbour, whose file the mounted state stands on, stays readable.
    assert_eq!(
        sha256sum(&mounted.path("snapshots/monday/disk.raw")),
        hash(&lab, "disk.vhd@monday")
    );
    mounted.unmount();
}

fn wait_until(done: impl Fn() -> bool) {
    for _ in 0..500 {
        if done() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("it does not happen");
}

#[test]
fn holes_and_stored_bytes_are_told() {
    let lab = Lab::new();
    if !fuse() {
        return;
    }
    lab.dynamic("disk.vhd", 64 * MIB);
    lab.write("disk.vhd", 4 * MIB, &[1; 4096]);
    lab.write("disk.vhd", 40 * MIB, &[2; 4096]);
    let mounted = Mounted::new(&lab, &["disk.vhd"]);
    let file = File::open(mounted.path("disk.raw")).unwrap();
    let meta = file.metadata().unwrap();
    assert_eq!(meta.len(), 64 * MIB);
    assert!(
        meta.blocks() * 512 < 8 * MIB && meta.blocks() > 0,
        "{} blocks",
        meta.blocks()
    );
    let seek = |from, data| {
        let to = if data {
            rustix::fs::SeekFrom::Data(from)
        } else {
            rustix::fs::SeekFrom::Hole(from)
        };
        rustix::fs::seek(&file, to)
    };
    assert_eq!(seek(0, true).unwrap(), 4 * MIB);
    let hole = seek(4 * MIB, false).unwrap();
    assert!((4 * MIB + 4096..=6 * MIB).contains(&hole), "{hole}");
    assert_eq!(seek(hole, true).unwrap(), 40 * MIB);
    assert_eq!(seek(60 * MIB, false).unwrap(), 60 * MIB);
    assert_eq!(seek(60 * MIB, true), Err(rustix::io::Errno::NXIO));
    assert_eq!(seek(64 * MIB, false), Err(rustix::io::Errno::NXIO));
    drop(file);
    mounted.unmount();
}

#[test]
fn a_read_only_mount_changes_no_byte_and_no_time() {
    let lab = Lab::new();
    if !fuse() {
        return;
    }
    disk_with_snapshot(&lab);
    let state = |lab: &Lab| {
        let files = lab.names().into_iter().filter(|name| name != "mnt");
        let facts = files.map(|name| {
            let meta = lab.path(&name).metadata().unwrap();
            let bytes = if meta.is_file() {
                fs::read(lab.path(&name)).unwrap()
            } else {
                Vec::new()
            };
            (
                name,
                bytes,
                meta.mtime(),
                meta.mtime_nsec(),
                meta.ctime(),
                meta.ctime_nsec(),
            )
        });
        facts.collect::<Vec<_>>()
    };
    let before = state(&lab);
    let mounted = Mounted::new(&lab, &["disk.vhd@now"]);
    sha256sum(&mounted.path("disk.raw"));
    let refused = File::options().write(true).open(mounted.path("disk.raw"));
    assert_eq!(
        refused.unwrap_err().raw_os_error(),
        Some(rustix::io::Errno::ROFS.raw_os_error())
    );
    assert!(File::create(mounted.path("new")).is_err() && fs::remove_file(mounted.path("disk.raw")).is_err());
    mounted.unmount();
    assert!(state(&lab) == before, "something changed");
}

#[test]
fn a_writable_mount_takes_writes_of_any_kind() {
    let lab = Lab::new();
    if !fuse() {
        return;
    }
    lab.dynamic("disk.vhd", 64 * MIB);
    let mounted = Mounted::new(&lab, &["--rw", "disk.vhd"]);
    let path = mounted.path("disk.raw");
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let bytes: Vec<u8> = (0..=255).cycle().take(70_001).collect();
    file.write_all_at(&bytes, 4_095).unwrap();
    file.write_all_at(&[5; 4096], 64 * MIB - 4096).unwrap();
    file.sync_all().unwrap();
    let mut read = vec![0; bytes.len()];
    file.read_exact_at(&mut read, 4_095).unwrap();
    assert!(read == bytes);
    // As a block device that is full.
    let behind = file.write_at(&[1], 64 * MIB).unwrap_err();
    assert_eq!(behind.raw_os_error(), Some(rustix::io::Errno::NOSPC.raw_os_error()));
    assert_eq!(
        file.set_len(1).unwrap_err().raw_os_error(),
        Some(rustix::io::Errno::PERM.raw_os_error())
    );
    let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, hole, 8192, 8192).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::ZERO_RANGE, 32_768, 100).unwrap();
    file.read_exact_at(&mut read[..8192], 8192).unwrap();
    assert!(read[..8192].iter().all(|&byte| byte == 0));
    drop(file);
    let direct = run(
        "dd",
        [
            "if=/dev/zero",
            &format!("of={}", path.display()),
            "bs=1M",
            "count=2",
            "seek=20",
            "conv=notrunc",
            "oflag=direct",
            "status=none",
        ],
    );
    assert!(direct.is_empty());
    let expected = fs::read(&path).unwrap();
    mounted.unmount();
    lab.run(&["check", "disk.vhd"], 0);
    lab.run(&["convert", "disk.vhd", "copy.raw", "--to", "raw"], 0);
    assert!(fs::read(lab.path("copy.raw")).unwrap() == expected);
}

#[test]
fn a_file_system_can_be_made_and_used_on_it() {
    let lab = Lab::new();
    let programs = ["mkfs.ext4", "mount", "umount", "e2fsck", "debugfs"];
    if !fuse() || !have(&programs, "a file system on a mounted disk") {
        return;
    }
    lab.dynamic("disk.vhd", 96 * MIB);
    let mounted = Mounted::new(&lab, &["--rw", "disk.vhd"]);
    let raw = mounted.path("disk.raw");
    run("mkfs.ext4", ["-q".as_ref(), "-F".as_ref(), raw.as_os_str()]);
    let inner = lab.path("inner");
    fs::create_dir(&inner).unwrap();
    run(
        "mount",
        ["-o".as_ref(), "loop".as_ref(), raw.as_os_str(), inner.as_os_str()],
    );
    for number in 0..50u8 {
        fs::write(
            inner.join(format!("file-{number}")),
            vec![number; 10_000 * usize::from(number)],
        )
        .unwrap();
    }
    run("umount", [inner.as_os_str()]);
    mounted.unmount();
    lab.run(&["check", "disk.vhd"], 0);
    lab.run(&["convert", "disk.vhd", "copy.raw", "--to", "raw"], 0);
    run("e2fsck", ["-fn".as_ref(), lab.path("copy.raw").as_os_str()]);
    // The same files by the mount's own reader, and without a mount.
    let mounted = Mounted::new(&lab, &["disk.vhd"]);
    for number in 0..50u8 {
        let bytes = fs::read(mounted.path(&format!("files/p0/file-{number}"))).unwrap();
        assert!(bytes == vec![number; 10_000 * usize::from(number)], "{number}");
    }
    mounted.unmount();
    assert_eq!(
        lab.run(&["cat", "disk.vhd:/file-3"], 0).get_output().stdout,
        vec![3; 30_000]
    );
}

#[test]
fn a_signal_flushes_and_unmounts() {
    let lab = Lab::new();
    if !fuse() {
        return;
    }
    lab.dynamic("disk.vhd", 64 * MIB);
    for busy in [false, true] {
        let mut mounted = Mounted::new(&lab, &["--rw", "disk.vhd"]);
        let file = File::options()
            .read(true)
            .write(true)
            .open(mounted.path("disk.raw"))
            .unwrap();
        file.write_all_at(&[7; 4096], 9 * MIB).unwrap();
        let file = busy.then_some(file);
        let process = rustix::process::Pid::from_child(&mounted.process);
        rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
        assert!(mounted.process.wait().unwrap().success());
        drop(file);
        assert_eq!(fs::read_dir(lab.path("mnt")).unwrap().count(), 0);
        lab.run(&["convert", "disk.vhd", "copy.raw", "--to", "raw", "--force"], 0);
        let mut read = [0; 4096];
        File::open(lab.path("copy.raw"))
            .unwrap()
            .read_exact_at(&mut read, 9 * MIB)
            .unwrap();
        assert_eq!(read, [7; 4096]);
    }
}

#[test]
fn it_goes_to_the_background_when_it_is_ready() {
    let lab = Lab::new();
    if !fuse() {
        return;
    }
    lab.chain();
    fs::create_dir(lab.path("mnt")).unwrap();
    lab.run(&["mount", "leaf.avhd", "mnt"], 0);
    assert_eq!(sha256sum(&lab.path("mnt/disk.raw")), hash(&lab, "leaf.avhd"));
    let told = stderr(&lab.run(&["mount", "leaf.avhd", "mnt/disk.raw"], 1));
    assert!(told.contains("VHD-E0708"), "{told}");
    unmount(&lab, "mnt");
    let told = stderr(&lab.run(&["umount", "mnt"], 1));
    assert!(told.contains("VHD-E0710"), "{told}");
    // What fails is said before it goes to the background.
    let told = stderr(&lab.run(&["mount", "missing.vhd", "mnt"], 1));
    assert!(told.contains("VHD-E0302"), "{told}");
    fs::remove_file(lab.path("parent.vhd")).unwrap();
    lab.run(&["mount", "leaf.avhd", "mnt"], 6);
    let told = stderr(&lab.run(&["mount", "leaf.avhd", "nowhere"], 6));
    assert!(told.contains("VHD-E0201"), "{told}");
}

#[test]
fn a_mount_that_is_in_use_stays() {
    let lab = Lab::new();
    if !fuse() {
        return;
    }
    lab.dynamic("disk.vhd", 8 * MIB);
    let mounted = Mounted::new(&lab, &["disk.vhd"]);
    let file = File::open(mounted.path("disk.raw")).unwrap();
    let told = stderr(&lab.run(&["umount", "mnt"], 7));
    assert!(told.contains("VHD-E0709"), "{told}");
    drop(file);
    mounted.unmount();
}

/// The kernel reads it by itself, and sees what the image has: its bytes and its length.
#[test]
fn a_raw_base_is_shown_as_it_is() {
    let lab = Lab::new();
    if !fuse() {
        return;
    }
    let bytes: Vec<u8> = (0..4 * MIB).map(|at| u8::try_from(at % 251).unwrap()).collect();
    fs::write(lab.path("base.raw"), &bytes).unwrap();
    lab.run(&["create", "leaf.avhd", "--parent", "base.raw", "--from", "raw"], 0);
    let mounted = Mounted::new(&lab, &["--parent", "raw:base.raw", "leaf.avhd"]);
    assert!(fs::read(mounted.path("layers/1.raw")).unwrap() == bytes);
    assert!(fs::read(mounted.path("disk.raw")).unwrap() == bytes);
    assert_eq!(mounted.path("layers/1.raw").metadata().unwrap().len(), 4 * MIB);
    assert!(fs::write(mounted.path("layers/1.raw"), b"x").is_err());
    mounted.unmount();
    let mounted = Mounted::new(&lab, &["--from", "raw", "base.raw"]);
    for name in ["disk.raw", "layers/0.raw"] {
        assert!(fs::read(mounted.path(name)).unwrap() == bytes, "{name}");
        assert!(fs::write(mounted.path(name), b"x").is_err(), "{name}");
    }
    mounted.unmount();
    assert!(fs::read(lab.path("base.raw")).unwrap() == bytes);
}

#[test]
fn a_chain_of_300_images_is_shown() {
    let lab = Lab::new();
    if !fuse() {
        return;
    }
    lab.dynamic("0.vhd", 8 * MIB);
    for depth in 1..300u64 {
        let (parent, child) = (format!("{}.vhd", depth - 1), format!("{depth}.vhd"));
        lab.run(&["create", &child, "--parent", &parent], 0);
        lab.write(
            &child,
            depth * 8192 % (8 * MIB),
            &[u8::try_from(depth % 251).unwrap(); 512],
        );
    }
    let mounted = Mounted::new(&lab, &["299.vhd"]);
    assert_eq!(sha256sum(&mounted.path("disk.raw")), hash(&lab, "299.vhd"));
    assert_eq!(fs::read_dir(mounted.path("layers")).unwrap().count(), 300);
    mounted.unmount();
}
