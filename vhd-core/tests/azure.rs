//! Images for Azure: sizes, partition tables as other programs see them, and every rule.
#![forbid(unsafe_code)]

mod common;

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::build::{FOOTER, FOOTER_SUM, put, seal};
use common::disk::{assert_same, create, open, read_all, write_session};
use common::rng::{Rng, random_bytes, seeded};
use common::temp_dir;
use common::tools::{have, qemu_reads, run, seven_zip_reads};
use vhd_core::ErrorKind;
use vhd_core::chain::{OpenOptions, create_child};
use vhd_core::image::{Preallocate, create_dynamic};
use vhd_core::ops::azure::{AzureError, PrepareReport, Rule, Verdict, check, prepare};
use vhd_core::ops::{ConvertOptions, Target};
use vhd_core::storage::{MemoryFile, StorageFile};
use vhd_core::units::{u64_from, usize_from};

const MIB: u64 = 1 << 20;
const OPTIONS: ConvertOptions = ConvertOptions {
    target: Target::Fixed {
        preallocate: Preallocate::Off,
    },
    replace: false,
    durable: false,
    threads: 0,
};

fn prepared(source: &Path, destination: &Path) -> Result<PrepareReport, AzureError> {
    prepare(&open(source, false), destination, &OPTIONS, &())
}

fn broken(bytes: Vec<u8>) -> Vec<Rule> {
    let file: Arc<dyn StorageFile> = Arc::new(MemoryFile::from_bytes(bytes));
    let outcomes = check(&file).unwrap();
    assert_eq!(outcomes.len(), Rule::ALL.len());
    let broken = outcomes.iter().filter(|outcome| outcome.verdict == Verdict::Fail);
    broken.map(|outcome| outcome.rule).collect()
}

/// A raw disk of some size with a GPT, and bytes in its partitions.
fn gpt_disk(path: &Path, size: u64, rng: &mut Rng) {
    std::fs::File::create(path).unwrap().set_len(size).unwrap();
    let mut sfdisk = Command::new("sfdisk")
        .arg("-q")
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let script = b"label: gpt\nsize=4MiB,name=boot\nname=root\n";
    sfdisk.stdin.take().unwrap().write_all(script).unwrap();
    assert!(sfdisk.wait().unwrap().success());
    let bytes = random_bytes(rng, 8192);
    open(path, true).disk().write_at(&bytes, 2 * MIB).unwrap();
    open(path, true).disk().write_at(&bytes, 6 * MIB).unwrap();
}

/// The disk of a fixed image as a file that partitioning programs open.
fn raw_copy(image: &Path) -> PathBuf {
    let mut bytes = std::fs::read(image).unwrap();
    bytes.truncate(bytes.len() - FOOTER);
    let raw = image.with_extension("raw.copy");
    std::fs::write(&raw, bytes).unwrap();
    raw
}

fn assert_sound_gpt(image: &Path) {
    let raw = raw_copy(image);
    let sgdisk = String::from_utf8(run("sgdisk", [OsStr::new("-v"), raw.as_os_str()])).unwrap();
    assert!(sgdisk.contains("No problems found"), "{sgdisk}");
    let sfdisk = String::from_utf8(run("sfdisk", [OsStr::new("--verify"), raw.as_os_str()])).unwrap();
    assert!(sfdisk.contains("No errors detected"), "{sfdisk}");
}

#[test]
fn gpt_disks_of_odd_sizes_are_sound_afterwards() {
    if !have(&["sgdisk", "sfdisk", "qemu-img"], "GPT after azure prepare") {
        return;
    }
    let mut rng = seeded(0xA2_02E, "azure gpt");
    for size in [12 * MIB, 20 * MIB, 30 * MIB + 512, 41 * MIB - 512, 33 * MIB + 4096 * 7] {
        let dir = temp_dir();
        let (raw, vhd) = (dir.path().join("disk.raw"), dir.path().join("disk.vhd"));
        gpt_disk(&raw, size, &mut rng);
        let report = prepared(&raw, &vhd).unwrap();
        let expected = size.max(20 * MIB).next_multiple_of(MIB);
        assert!(report.gpt_moved && report.converted.disk_bytes == expected);
        assert_eq!(report.added_bytes, expected - size);
        assert_eq!(vhd.metadata().unwrap().len(), expected + 512);
        assert_sound_gpt(&vhd);
        let info = run(
            "qemu-img",
            ["info", "-f", "vpc", "--output=json"]
                .map(OsStr::new)
                .into_iter()
                .chain([vhd.as_os_str()]),
        );
        let info = String::from_utf8(info).unwrap();
        assert!(info.contains(&format!("\"virtual-size\": {expected},")), "{info}");
        // All but the ends of the GPT is the same.
        let (before, after) = (std::fs::read(&raw).unwrap(), read_all(&open(&vhd, false).disk()));
        let body = 1024..usize_from(size) - 33 * 512;
        assert_same(&after[body.clone()], &before[body], "content");
        if size < expected {
            let old = usize_from(size) - 512;
            assert!(
                after[old..old + 512].iter().all(|&byte| byte == 0),
                "the old backup header is gone"
            );
        }
        assert_eq!(broken(std::fs::read(&vhd).unwrap()), []);
        // Prepared again, nothing changes.
        let again = dir.path().join("again.vhd");
        prepared(&vhd, &again).unwrap();
        assert_same(&read_all(&open(&again, false).disk()), &after, "prepared twice");
    }
}

#[test]
fn a_backup_that_is_not_at_the_end_is_moved_there() {
    if !have(&["sgdisk", "sfdisk"], "GPT of a disk that had grown") {
        return;
    }
    let mut rng = seeded(0xA2_06E, "azure grown");
    let dir = temp_dir();
    let (raw, vhd) = (dir.path().join("disk.raw"), dir.path().join("disk.vhd"));
    gpt_disk(&raw, 24 * MIB, &mut rng);
    let file = std::fs::File::options().write(true).open(&raw).unwrap();
    file.set_len(32 * MIB).unwrap();
    let mut image = std::fs::read(&raw).unwrap();
    image.extend(common::build::footer(common::build::FIXED, 32 * MIB, [3; 16]));
    assert_eq!(broken(image), [Rule::GptBackupLocation]);
    prepared(&raw, &vhd).unwrap();
    assert_sound_gpt(&vhd);
}

#[test]
fn disks_without_gpt_keep_every_byte() {
    let mut rng = seeded(0xA2_0EE, "azure plain");
    let dir = temp_dir();
    let base = dir.path().join("base.vhd");
    let size = (21 << 20) + 512 * 3;
    create(&base, |file| create_dynamic(file, size, 1 << 20));
    let mut content = vec![0; usize_from(size)];
    write_session(&base, &mut content, &mut rng, 40);
    let leaf = dir.path().join("leaf.avhd");
    create_child(&leaf, &base, None, &OpenOptions::new()).unwrap();
    write_session(&leaf, &mut content, &mut rng, 40);
    let vhd = dir.path().join("out.vhd");
    let report = prepared(&leaf, &vhd).unwrap();
    assert!(!report.gpt_moved);
    content.resize(22 << 20, 0);
    assert_same(&read_all(&open(&vhd, false).disk()), &content, "prepared");
    if have(&["qemu-img", "7zz"], "azure prepare read by others") {
        assert_same(&qemu_reads(&vhd), &content, "qemu");
        assert_same(&seven_zip_reads(&vhd), &content, "7zz");
    }
}

#[test]
fn damaged_partition_tables_are_refused_and_nothing_is_written() {
    if !have(&["sfdisk"], "damaged GPT in azure prepare") {
        return;
    }
    let mut rng = seeded(0xA2_0BA, "azure damaged");
    let dir = temp_dir();
    let (raw, vhd) = (dir.path().join("disk.raw"), dir.path().join("disk.vhd"));
    gpt_disk(&raw, 24 * MIB, &mut rng);
    let sound = std::fs::read(&raw).unwrap();
    for at in [512, 512 + 16, 512 + 40, 512 + 72, 512 + 80, 512 + 91, 1024, 1024 + 40] {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&raw, &bytes).unwrap();
        let error = prepared(&raw, &vhd).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PartitionTable, "{at}: {error}");
        assert!(!vhd.exists() && std::fs::read(&raw).unwrap() == bytes);
    }
    // The last partition ends with the disk, which is cut where the backup would have to be.
    std::fs::write(&raw, &sound[..usize_from(22 * MIB)]).unwrap();
    let error = prepared(&raw, &vhd).unwrap_err();
    assert!(matches!(error, AzureError::Partition(_)) && !vhd.exists(), "{error}");
}

fn fixed_image(size: usize, change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut footer = common::build::footer(common::build::FIXED, u64_from(size), [7; 16]);
    change(&mut footer);
    seal(&mut footer, FOOTER_SUM);
    let mut image = vec![0; size];
    image.extend(footer);
    image
}

#[test]
fn each_rule_is_broken_alone() {
    let size = usize_from(20 * MIB);
    assert_eq!(broken(fixed_image(size, |_| {})), []);
    let cases: [(Rule, Vec<u8>); 7] = [
        (Rule::SizeMib, fixed_image(size + 512, |_| {})),
        (Rule::SizeMinimum, fixed_image(size - usize_from(MIB), |_| {})),
        (Rule::FooterFields, fixed_image(size, |footer| footer[11] = 0)),
        (Rule::FooterFields, fixed_image(size, |footer| footer[84] = 1)),
        (
            Rule::FooterFields,
            fixed_image(size, |footer| put(footer, 16, &[0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF])),
        ),
        (
            Rule::CreatorSize,
            fixed_image(size, |footer| {
                put(footer, 28, b"vpc ");
                put(footer, 56, &[1, 0, 4, 17]);
            }),
        ),
        (Rule::FileLength, {
            let image = fixed_image(size, |_| {});
            let footer = image[size..].to_vec();
            [&image[..size], &[0; 512], &footer].concat()
        }),
    ];
    for (rule, image) in cases {
        assert_eq!(broken(image), [rule]);
    }
    let dynamic = MemoryFile::new();
    create_dynamic(&dynamic, 20 * MIB, 2 * MIB).unwrap();
    assert_eq!(broken(dynamic.to_vec()), [Rule::TypeFixed, Rule::FileLength]);
    let mut vhdx = vec![0; size];
    vhdx[..8].copy_from_slice(b"vhdxfile");
    assert_eq!(broken(vhdx), [Rule::NotVhdx, Rule::FooterValid]);
    assert_eq!(broken(Vec::new()), [Rule::FooterValid]);
}

/// Whatever is wrong with a footer: an answer, and never a pass for a footer that is not valid.
#[test]
fn no_damage_of_a_footer_passes_or_fails_to_be_told() {
    let size = usize_from(MIB) / 8;
    let sound = fixed_image(size, |_| {});
    let file: Arc<dyn StorageFile> = Arc::new(MemoryFile::from_bytes(sound.clone()));
    for at in size..sound.len() {
        for change in [0x01, 0x80, 0xFF] {
            file.write_all_at(&[sound[at] ^ change], u64_from(at)).unwrap();
            let outcomes = check(&file).unwrap();
            let footer = outcomes.iter().find(|outcome| outcome.rule == Rule::FooterValid);
            assert_eq!(footer.unwrap().verdict, Verdict::Fail, "{at}");
        }
        file.write_all_at(&sound[at..=at], u64_from(at)).unwrap();
    }
}
