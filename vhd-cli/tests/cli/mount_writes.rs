//! `vhd mount --rw` under real file systems: random work and verified writes, then their own checks, and other readers.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use fastrand::Rng;
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};

use crate::mounted::{Driver, Loop, Mounted, fuse, hash, load_time, seed, sha256sum};
use crate::nbd::Serving;
use crate::support::{Lab, MIB};
use crate::tools::{have, run, seven_zip_reads};

/// Bytes that a file of the random exerciser has at most.
const LARGEST: u64 = 3 * MIB;
/// Linux `O_DIRECT`.
const DIRECT: i32 = 0x4000;

/// A file system, and how it is made, mounted and checked.
struct Kind {
    name: &'static str,
    size: u64,
    make: &'static [&'static str],
    /// Options of the loop device.
    device: &'static [&'static str],
    check: &'static [&'static str],
}

const KINDS: &[Kind] = &[
    Kind {
        name: "ext4",
        size: 160 * MIB,
        make: &["mkfs.ext4", "-q", "-F"],
        device: &["--direct-io=on"],
        check: &["e2fsck", "-fn"],
    },
    Kind {
        name: "XFS",
        size: 352 * MIB,
        make: &["mkfs.xfs", "-q", "-f"],
        device: &["--direct-io=off"],
        check: &["xfs_repair", "-n"],
    },
];

#[test]
fn file_systems_on_it_stay_sound_under_random_work() {
    let programs = ["fio", "losetup", "mount", "umount", "nbdcopy", "7zz", "sha256sum"];
    if !fuse() || !have(&programs, "file systems on a mounted disk under load") {
        return;
    }
    let mut rng = Rng::with_seed(seed());
    for kind in KINDS {
        if !have(
            &[kind.make[0], kind.check[0]],
            "file systems on a mounted disk under load",
        ) {
            continue;
        }
        let lab = Lab::new();
        lab.dynamic("disk.vhd", kind.size);
        let mounted = Mounted::new(&lab, &["--rw", "disk.vhd"]);
        let device = Loop::new(&mounted.path("disk.raw"), kind.device);
        let source = PathBuf::from(&device.0);
        run(
            kind.make[0],
            kind.make[1..].iter().map(|it| it.as_ref()).chain([source.as_os_str()]),
        );
        let driver = Driver::new(&["mount", "-o", "discard"], &source, &lab.path("inner"), Some(device));
        let written = random_work(&driver.place, &mut rng);
        verified_writes(&driver.place);
        drop(driver);
        let as_mounted = sha256sum(&mounted.path("disk.raw"));
        mounted.unmount();
        lab.run(&["check", "disk.vhd"], 0);
        for (name, bytes) in &written {
            let printed = lab.run(&["cat", &format!("disk.vhd:/{name}")], 0);
            assert!(&printed.get_output().stdout == bytes, "{}: {name}", kind.name);
        }
        read_elsewhere(&lab, &as_mounted);
        let raw = lab.path("disk.vhd.7zz");
        fs::write(&raw, seven_zip_reads(&lab.path("disk.vhd"))).unwrap();
        assert_eq!(sha256sum(&raw), as_mounted, "{}: 7zz", kind.name);
        run(
            kind.check[0],
            kind.check[1..].iter().map(|it| it.as_ref()).chain([raw.as_os_str()]),
        );
    }
}

/// The same bytes by `vhd hash`, and over NBD by a client of others.
fn read_elsewhere(lab: &Lab, expected: &str) {
    assert_eq!(hash(lab, "disk.vhd"), expected);
    let server = Serving::start(lab, &["--read-only", "--unix", "nbd.sock", "disk.vhd"]);
    let uri = format!("nbd+unix:///?socket={}", lab.path("nbd.sock").display());
    let copy = lab.path("disk.nbd");
    run("nbdcopy", [uri.as_ref(), copy.as_os_str()]);
    assert_eq!(sha256sum(&copy), expected);
    drop(server);
}

/// Random work on two files at once; their content.
fn random_work(root: &Path, rng: &mut Rng) -> Vec<(String, Vec<u8>)> {
    let seeds = [rng.u64(..), rng.u64(..)];
    let until = Instant::now() + load_time();
    std::thread::scope(|scope| {
        let work = seeds.map(|seed| {
            let name = format!("random-{seed}");
            let path = root.join(&name);
            (name, scope.spawn(move || exercise(&path, until, Rng::with_seed(seed))))
        });
        work.into_iter()
            .map(|(name, thread)| (name, thread.join().unwrap()))
            .collect()
    })
}

/// Random operations on a file beside a plain vector of bytes.
fn exercise(path: &Path, until: Instant, mut rng: Rng) -> Vec<u8> {
    let open = |direct: bool| {
        let flags = if direct { DIRECT } else { 0 };
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(flags)
            .open(path)
            .unwrap()
    };
    let mut file = open(false);
    let mut model: Vec<u8> = Vec::new();
    let mut steps = 0u32;
    while Instant::now() < until || steps < 200 {
        steps += 1;
        let at = rng.u64(..LARGEST);
        let len = rng.usize(1..100_000).min(usize::try_from(LARGEST - at).unwrap());
        let start = usize::try_from(at).unwrap();
        match rng.u8(..12) {
            0..=4 => {
                let bytes = vec![rng.u8(..); len];
                file.write_all_at(&bytes, at).unwrap();
                model.resize(model.len().max(start + len), 0);
                model[start..start + len].copy_from_slice(&bytes);
            }
            5..=7 if start < model.len() => {
                let len = len.min(model.len() - start);
                let mut read = vec![0; len];
                file.read_exact_at(&mut read, at).unwrap();
                assert!(read == model[start..start + len], "step {steps}: {len} bytes at {at}");
            }
            8 => {
                file.set_len(at).unwrap();
                model.resize(start, 0);
            }
            9 => {
                let flags = [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE][rng.usize(..2)];
                fallocate(
                    &file,
                    flags | FallocateFlags::KEEP_SIZE,
                    at,
                    u64::try_from(len).unwrap(),
                )
                .unwrap();
                let end = (start + len).min(model.len());
                model[start.min(end)..end].fill(0);
            }
            10 => {
                file.sync_all().unwrap();
                // What is read next comes from the disk.
                fadvise(&file, 0, None, Advice::DontNeed).unwrap();
            }
            11 => file = open(false),
            _ => {}
        }
    }
    file.sync_all().unwrap();
    drop(file);
    assert!(fs::read(path).unwrap() == model);
    model
}

/// Writes by fio that it reads again and verifies.
fn verified_writes(root: &Path) {
    let loops = (load_time().as_secs() / 3).max(1);
    for (direct, sizes) in [("1", "4k-128k"), ("0", "512-32k")] {
        let arguments = [
            "--name=verify".into(),
            format!("--directory={}", root.display()),
            "--rw=randwrite".into(),
            "--size=12m".into(),
            "--numjobs=2".into(),
            "--ioengine=psync".into(),
            format!("--direct={direct}"),
            format!("--bsrange={sizes}"),
            format!("--blockalign={}", sizes.split('-').next().unwrap()),
            "--verify=crc32c".into(),
            "--verify_fatal=1".into(),
            "--do_verify=1".into(),
            "--fsync=64".into(),
            format!("--loops={loops}"),
        ];
        run("fio", arguments);
        for job in 0..2 {
            let _ = fs::remove_file(root.join(format!("verify.{job}.0")));
        }
    }
}
