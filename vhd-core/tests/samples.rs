//! Real images by real software read to the contents that independent readers agree on.
//!
//! The images are no part of the repository: where they are not beside it, this test says so and checks nothing.

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use vhd_core::ErrorKind;
use vhd_core::chain::OpenOptions;
use vhd_core::ops::repair::{Facts, RepairPlan};
use vhd_core::storage::{Access, HostFile, Sharing, StorageFile};

const GOLDEN: &[(&str, &str, u64)] = &[
    (
        "dfvfs/ext2.vhd",
        "870be7ae16c1fa8faab05c6eb9205dc9a7ae35c5f552c5cf8a267c0bc6a5cb99",
        4_212_736,
    ),
    (
        "dfvfs/fat-differential.vhd",
        "f4b61a33ee2f7e8c19f737792a4107e46340026a9a829e4169b751901cc3ef02",
        4_194_304,
    ),
    (
        "dfvfs/fat-parent.vhd",
        "bbdb657bc5aa2fde44e2456149f9257a862cb84f4668e338b90e357b0fbdf118",
        4_194_304,
    ),
    (
        "dfvfs/ntfs-differential.vhd",
        "b7922a46a6b08fa4f4fc0c51a25d5587d1d49f15cfade45ca740dd07110ae144",
        4_194_304,
    ),
    (
        "dfvfs/ntfs-dynamic.vhd",
        "8b10b52e3d1e76075d05a5101a6536b9fa8376a5b8f7c22f502d0987d165c876",
        4_194_304,
    ),
    (
        "dfvfs/ntfs-fixed.vhd",
        "cd81fade3878f1b2957f1ece168201876bdf4e90c9b30f60c2f232eba5fea76c",
        4_194_304,
    ),
    (
        "dfvfs/ntfs-parent.vhd",
        "c91d1766dd4b3327f33a082cbf958d3566dd84a3d71c2473a5ae6155e53171de",
        4_194_304,
    ),
    (
        "sleuthkit/image.vhd",
        "84c172cd6e864e2a2ca00b60b531a3c7b1376e5257174bfdc4987f3f6312ad3c",
        104_448,
    ),
];

/// Empty disks of 127 GiB: their size is checked, and that nothing is allocated.
const EMPTY: &[&str] = &[
    "qemu-iotests/hyperv2012r2-dynamic.vhd",
    "qemu-iotests/virtualpc-dynamic.vhd",
];

const NEGATIVE: &[&str] = &["dfvfs/image.vhd", "dfvfs/image-differential.vhd"];

/// Unpacks every sample into a directory; `None`, loudly, if there are none.
fn samples() -> Option<tempfile::TempDir> {
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/samples");
    if !packed.is_dir() {
        common::announce("NOT TESTED: no sample images beside the repository; their golden hashes were not checked");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    for (name, ..) in GOLDEN {
        unpack(&packed, name, dir.path());
    }
    for name in EMPTY.iter().chain(NEGATIVE) {
        unpack(&packed, name, dir.path());
    }
    Some(dir)
}

fn unpack(packed: &Path, name: &str, dir: &Path) {
    let target = dir.join(name);
    std::fs::create_dir_all(target.parent().unwrap()).unwrap();
    let status = Command::new("zstd")
        .args(["-dqf", "-o"])
        .arg(&target)
        .arg(packed.join(format!("{name}.zst")))
        .status();
    assert!(
        status.expect("zstd is installed by scripts/test-deps.sh").success(),
        "{name}"
    );
}

fn sha256(path: &Path) -> String {
    let opened = OpenOptions::new()
        .open(path)
        .unwrap_or_else(|error| panic!("{}: {error:?}", path.display()));
    let disk = opened.disk();
    let mut bytes = vec![0; usize::try_from(disk.size()).unwrap()];
    disk.read_at(&mut bytes, 0).unwrap();
    Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[test]
fn every_sample_reads_to_its_golden_hash() {
    let Some(dir) = samples() else { return };
    for (name, golden, size) in GOLDEN {
        let path = dir.path().join(name);
        assert_eq!(sha256(&path), *golden, "{name}");
        assert_eq!(OpenOptions::new().open(&path).unwrap().disk().size(), *size, "{name}");
    }
}

/// What is done to the bytes of an image.
type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);

/// The structures of each sample damaged one after the other: repaired, it reads the same.
#[test]
fn damaged_samples_are_repaired_to_the_same_content() {
    let Some(dir) = samples() else { return };
    let mut repaired = 0;
    for (name, golden, _) in GOLDEN {
        let path = dir.path().join(name);
        let sound = std::fs::read(&path).unwrap();
        let fixed = !sound.starts_with(b"conectix");
        let tail = sound.len() - 512;
        let damages: [(&str, bool, Damage<'_>); 9] = [
            ("tail zeroed", fixed, &|bytes| bytes[tail..].fill(0)),
            ("tail cut off", fixed, &|bytes| bytes.truncate(tail)),
            ("cookie of the tail", false, &|bytes| bytes[tail] = 0),
            ("garbage behind", false, &|bytes| bytes.resize(tail + 5000, 0x6B)),
            ("copy zeroed", fixed, &|bytes| bytes[..512].fill(0)),
            ("both cookies", fixed, &|bytes| {
                bytes[0] = 0;
                bytes[tail] = 0;
            }),
            ("copy zeroed and garbage behind", fixed, &|bytes| {
                bytes[..512].fill(0);
                bytes.resize(tail + 5000, 0x6B);
            }),
            ("cookie of the header", fixed, &|bytes| bytes[512] = 0),
            ("header version", fixed, &|bytes| bytes[512 + 25] = 7),
        ];
        for (what, impossible, damage) in damages {
            if impossible {
                continue;
            }
            let mut bytes = sound.clone();
            damage(&mut bytes);
            std::fs::write(&path, bytes).unwrap();
            let file = HostFile::open(&path, Access::ReadWrite, Sharing::Exclusive).unwrap();
            let file: Arc<dyn StorageFile> = Arc::new(file);
            let plan = RepairPlan::new(Arc::clone(&file), &Facts::default());
            let plan = plan.unwrap_or_else(|error| panic!("{name}, {what}: {error}"));
            assert!(!plan.is_empty() && plan.doubts().is_empty(), "{name}, {what}");
            plan.journal().apply(&*file).unwrap();
            drop((plan, file));
            assert_eq!(sha256(&path), *golden, "{name}, {what}");
            repaired += 1;
        }
        std::fs::write(&path, sound).unwrap();
    }
    common::announce(&format!("{repaired} damaged samples repaired to their golden hashes"));
}

#[test]
fn empty_disks_have_their_current_size_and_no_blocks() {
    let Some(dir) = samples() else { return };
    for name in EMPTY {
        let opened = OpenOptions::new().open(&dir.path().join(name)).unwrap();
        assert_eq!(opened.disk().size(), 136_365_211_648, "{name}");
        assert_eq!(opened.chain().unwrap().leaf().allocated_bytes(), 0, "{name}");
    }
}

#[test]
fn damaged_samples_are_refused_with_a_reason() {
    let Some(dir) = samples() else { return };
    for name in NEGATIVE {
        let error = OpenOptions::new().open(&dir.path().join(name)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FooterChecksum, "{name}: {error:?}");
    }
}

#[test]
fn a_child_without_its_parent_is_refused() {
    let Some(dir) = samples() else { return };
    let dir = dir.path().join("dfvfs");
    std::fs::rename(dir.join("fat-parent.vhd"), dir.join("elsewhere.bin")).unwrap();
    let error = OpenOptions::new().open(&dir.join("fat-differential.vhd")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentMissing);
    assert!(
        error.to_string().contains("fat-parent.vhd"),
        "the paths tried are listed: {error}"
    );
    let named = OpenOptions::new().parents([dir.join("elsewhere.bin")]);
    assert!(named.open(&dir.join("fat-differential.vhd")).is_ok());
    let wrong = OpenOptions::new().parents([dir.join("ntfs-parent.vhd")]);
    assert_eq!(
        wrong.open(&dir.join("fat-differential.vhd")).unwrap_err().kind(),
        ErrorKind::ParentMismatch
    );
}
