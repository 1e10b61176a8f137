//! File systems that fill up: real ones. What was accepted can be flushed, what was flushed is there, and the same
//! process goes on when there is space again.
//!
//! A longer run: `VHD_FULL_ROUNDS=60 cargo test --release -p vhd-core --test full_disk -- --nocapture` (so many rounds for
//! each file system and type of image). VHD_TEST_SEED replaces the first seed.
#![cfg(not(loom))]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::mounts::{BTRFS, BTRFS_QUOTA, EXT4, Kind, Mount, TMPFS, XFS};
use common::rng::{Rng, chance};
use common::tools::run;
use common::{announce, temp_dir};
use vhd_block::ErrorKind;
use vhd_core::chain::{ImageFormat, OpenOptions, OpenedDisk, create_child};
use vhd_core::check::{Severity, check};
use vhd_core::image::create_dynamic;
use vhd_core::storage::{Access, HostFile, Sharing, StagedFile};

const MIB: u64 = 1 << 20;
const DISK: u64 = 64 * MIB;
const BLOCK: u64 = 512 << 10;
const SECTOR: u64 = 512;

/// What is written to.
#[derive(Clone, Copy, Debug)]
enum Subject {
    Dynamic,
    Differencing,
    /// A child whose file shares all its space with a copy: overwriting takes space.
    SharedChild,
    Raw,
}

fn publish(path: &Path, make: impl FnOnce(&HostFile)) {
    let staged = StagedFile::create_beside(path).unwrap();
    make(&staged.storage());
    staged.publish(true, true).unwrap();
}

impl Subject {
    fn create(self, dir: &Path) -> PathBuf {
        let (disk, base) = (dir.join("disk.vhd"), dir.join("base.vhd"));
        let dynamic = |path: &Path| {
            publish(path, |file| {
                create_dynamic(file, DISK, BLOCK).unwrap();
            });
        };
        match self {
            Self::Dynamic => dynamic(&disk),
            Self::Differencing => {
                dynamic(&base);
                create_child(&disk, &base, None, &OpenOptions::new()).unwrap();
            }
            Self::SharedChild => {
                dynamic(&base);
                create_child(&disk, &base, None, &OpenOptions::new()).unwrap();
                let opened = OpenOptions::new().write(true).open(&disk).unwrap();
                for block in 0..8 {
                    opened.disk().write_at(&[9; 4096], block * BLOCK).unwrap();
                }
                opened.close().unwrap();
                let (from, to) = (disk.as_os_str(), dir.join("copy.vhd"));
                run("cp", ["--reflink=auto".as_ref(), from, to.as_os_str()]);
                run("mv", [to.as_os_str(), disk.as_os_str()]);
                run("cp", ["--reflink=auto".as_ref(), from, to.as_os_str()]);
            }
            Self::Raw => {
                let disk = dir.join("disk.img");
                fs::File::create(&disk).unwrap().set_len(DISK).unwrap();
                return disk;
            }
        }
        disk
    }
}

/// The disk as it must be: a number for each sector, and whether a failed write left its sector unknown.
struct Model {
    sectors: Vec<u64>,
    next: u64,
}

/// A sector that a failed write may have reached.
const UNKNOWN: u64 = u64::MAX;

impl Model {
    fn new(disk: &OpenedDisk) -> Self {
        let mut model = Self {
            sectors: vec![0; usize::try_from(DISK / SECTOR).unwrap()],
            next: 1000,
        };
        let mut bytes = vec![0; usize::try_from(DISK).unwrap()];
        disk.disk().read_at(&mut bytes, 0).unwrap();
        for (sector, bytes) in model.sectors.iter_mut().zip(bytes.chunks(512)) {
            *sector = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        }
        model
    }

    /// Writes at random; whether there was space.
    fn write(&mut self, disk: &OpenedDisk, rng: &mut Rng) -> bool {
        let len = SECTOR << rng.u32(0..10);
        let offset = rng.u64(0..=(DISK - len) / SECTOR) * SECTOR;
        self.next += 1;
        let bytes: Vec<u8> = (0..len / 8).flat_map(|_| self.next.to_le_bytes()).collect();
        let result = disk.disk().write_at(&bytes, offset);
        let range = usize::try_from(offset / SECTOR).unwrap()..usize::try_from((offset + len) / SECTOR).unwrap();
        self.sectors[range].fill(if result.is_ok() { self.next } else { UNKNOWN });
        match result {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
                false
            }
        }
    }

    /// What was accepted reads the same through `disk`.
    fn check(&self, disk: &OpenedDisk, what: &str) {
        let mut bytes = vec![0; usize::try_from(DISK).unwrap()];
        disk.disk().read_at(&mut bytes, 0).unwrap();
        for (number, (&expected, sector)) in self.sectors.iter().zip(bytes.chunks(512)).enumerate() {
            let found = u64::from_le_bytes(sector[..8].try_into().unwrap());
            assert!(
                expected == UNKNOWN || found == expected,
                "{what}: sector {number} is {found}, and {expected} was accepted"
            );
        }
    }
}

/// What another process would see now: nothing of ours but the file.
fn as_another_sees_it(path: &Path, model: &Model, what: &str) {
    let opened = OpenOptions::new().force_share(true).open(path).unwrap();
    model.check(&opened, what);
    if path.extension().is_some_and(|extension| extension == "vhd") {
        let file = Arc::new(HostFile::open(path, Access::ReadOnly, Sharing::Unlocked).unwrap());
        let found = check(&*file).unwrap();
        let worst = found.findings.iter().map(|finding| finding.severity).max();
        assert!(worst < Some(Severity::Corrupt), "{what}: {:?}", found.findings);
    }
}

/// One disk that runs out of space and gets some back, twice; how often a write was refused.
fn round(mount: &Mount, subject: Subject, seed: u64) -> u32 {
    let what = format!("{}, {subject:?}, VHD_TEST_SEED={seed:#x}", mount.kind.name);
    let rng = &mut vhd_testkit::rng::rng(seed);
    let dir = mount.dir.join("round");
    // A quota counts what was removed until then.
    run("sync", ["-f".as_ref(), mount.dir.as_os_str()]);
    fs::create_dir(&dir).unwrap();
    let path = subject.create(&dir);
    mount.fill_up("filler-1", rng.u64(1..8) * MIB);
    mount.fill_up("filler-2", rng.u64(..MIB));
    let is_raw = path.extension().is_some_and(|extension| extension == "img");
    let format = is_raw.then_some(ImageFormat::Raw);
    let opened = OpenOptions::new().format(format).write(true).open(&path).unwrap();
    let mut model = Model::new(&opened);
    let mut refused = 0;
    for phase in 0..3 {
        for _ in 0..400 {
            if !model.write(&opened, rng) {
                refused += 1;
                if chance(rng, 50) {
                    break;
                }
            }
            if chance(rng, 4) {
                opened
                    .disk()
                    .flush()
                    .unwrap_or_else(|error| panic!("{what}: a flush failed: {error:?}"));
                if chance(rng, 20) {
                    as_another_sees_it(&path, &model, &what);
                }
            }
        }
        opened
            .disk()
            .flush()
            .unwrap_or_else(|error| panic!("{what}: a flush failed: {error:?}"));
        model.check(&opened, &what);
        as_another_sees_it(&path, &model, &what);
        // Space again, for the same process.
        let _ = fs::remove_file(mount.dir.join(["filler-2", "filler-1", "none"][phase]));
    }
    opened
        .close()
        .unwrap_or_else(|error| panic!("{what}: the close failed: {error:?}"));
    as_another_sees_it(&path, &model, &what);
    fs::remove_dir_all(&dir).unwrap();
    refused
}

fn rounds() -> u64 {
    std::env::var("VHD_FULL_ROUNDS").map_or(1, |rounds| rounds.parse().expect("a number of rounds"))
}

fn rounds_on(kind: Kind, prepare: impl Fn(&Mount)) {
    let dir = temp_dir();
    let Some(mount) = Mount::new(kind, dir.path(), "a full file system") else {
        return;
    };
    prepare(&mount);
    let first = vhd_testkit::rng::seed(0xF011);
    let (mut count, mut refused) = (0, 0);
    for subject in [
        Subject::Dynamic,
        Subject::Differencing,
        Subject::SharedChild,
        Subject::Raw,
    ] {
        for number in 0..rounds() {
            refused += round(&mount, subject, first + number);
            count += 1;
        }
    }
    assert!(refused > 0, "{}: no write was refused", kind.name);
    announce(&format!(
        "{}: {count} rounds, {refused} writes refused, first seed {first:#x}",
        kind.name
    ));
}

#[test]
fn inv_40_ext4_fills_up() {
    rounds_on(EXT4, |_| ());
}

#[test]
fn inv_40_xfs_fills_up() {
    rounds_on(XFS, |_| ());
}

#[test]
fn inv_40_btrfs_fills_up() {
    rounds_on(BTRFS, |_| ());
}

#[test]
fn inv_40_tmpfs_fills_up() {
    rounds_on(TMPFS, |_| ());
}

/// A quota that holds for root too: that of a btrfs subvolume. It is far below what the file system has.
#[test]
fn inv_40_a_quota_is_used_up() {
    rounds_on(BTRFS_QUOTA, |mount| {
        let dir = mount.dir.as_os_str();
        run("btrfs", ["quota", "enable"].map(OsStr::new).into_iter().chain([dir]));
        run(
            "btrfs",
            ["qgroup", "limit", "60M"].map(OsStr::new).into_iter().chain([dir]),
        );
    });
}
