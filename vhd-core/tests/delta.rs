//! Deltas of random trees: what they hold, who reads them, and what is refused.
#![forbid(unsafe_code)]

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use common::disk::{assert_reads, assert_same, create, open, read_all};
use common::rng::seeded;
use common::tools::{have, seven_zip_reads};
use common::tree::random_tree;
use common::{announce, temp_dir};
use vhd_core::ErrorKind;
use vhd_core::chain::{OpenOptions, create_child, parent_link};
use vhd_core::check::{Severity, check};
use vhd_core::device::ByteRange;
use vhd_core::image::{Preallocate, create_dynamic, create_fixed};
use vhd_core::ops::delta::{DeltaError, DeltaExport, DeltaImport, ExportReport, ImportReport};
use vhd_core::ops::{ConvertOptions, Target};
use vhd_core::storage::{Access, HostFile, Sharing};
use vhd_core::units::u64_from;

const SECTOR: usize = 512;
const BLOCKS: [u64; 4] = [512 << 10, 1 << 20, 2 << 20, 4 << 20];

fn export(image: &Path, base: &Path, out: &Path, block_size: u64) -> Result<ExportReport, DeltaError> {
    let (image, opened_base) = (open(image, false), open(base, false));
    let link = parent_link(out, base, &opened_base).unwrap();
    let export = DeltaExport::new(&image, &opened_base, &link, block_size, &())?;
    export.write(out, false, false, &())?;
    let mut streamed = Vec::new();
    export.stream(&mut streamed, &())?;
    assert_same(&streamed, &std::fs::read(out).unwrap(), "stream and file");
    assert_eq!(export.report().file_bytes, u64_from(streamed.len()));
    Ok(export.report())
}

fn import(delta: &Path, base: &Path, out: &Path, target: Target) -> Result<ImportReport, DeltaError> {
    let options = ConvertOptions {
        target,
        replace: false,
        durable: false,
        threads: 0,
    };
    DeltaImport::open(delta, base, &OpenOptions::new())?.write(out, &options, &())
}

/// Bytes of the disk that the leaf holds itself.
fn held(image: &Path) -> u64 {
    let mut held = 0;
    let disk = open(image, false).disk();
    disk.extents(ByteRange::new(0, disk.size()), &mut |extent| {
        if extent.depth == 0 {
            held += extent.range.len;
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    held
}

fn different(a: &[u8], b: &[u8]) -> u64 {
    let pairs = a.chunks(SECTOR).zip(b.chunks(SECTOR));
    pairs.filter(|(a, b)| a != b).map(|(a, _)| u64_from(a.len())).sum()
}

#[test]
fn deltas_of_random_trees_read_like_the_image() {
    let mut rng = seeded(0xDE17A, "deltas");
    let seven_zip = have(&["7zz"], "deltas read by 7-Zip");
    for round in 0..5 {
        let dir = temp_dir();
        let nodes = random_tree(dir.path(), &mut rng, 6);
        for pair in 0..6 {
            let (image, base) = (&nodes[rng.usize(..nodes.len())], &nodes[rng.usize(..nodes.len())]);
            let out = dir.path().join(format!("delta-{pair}.avhd"));
            let block_size = BLOCKS[rng.usize(..BLOCKS.len())];
            let report = export(&image.path, &base.path, &out, block_size).unwrap();
            let expected = different(&image.content, &base.content);
            assert_eq!(report.different_bytes, expected, "round {round}");
            assert_eq!(held(&out), expected, "round {round}: only sectors that differ");
            assert_reads(&out, &image.content);
            let file = HostFile::open(&out, Access::ReadOnly, Sharing::Exclusive).unwrap();
            let worst = check(&file).unwrap().worst();
            assert!(worst.is_none_or(|worst| worst == Severity::Note), "{worst:?}");
            if seven_zip {
                assert_same(&seven_zip_reads(&out), &image.content, "7zz");
            }
            let target = [
                Target::Raw,
                Target::Dynamic {
                    block_size: 1 << 20,
                    preallocate: Preallocate::Off,
                },
                Target::Fixed {
                    preallocate: Preallocate::Off,
                },
            ][rng.usize(..3)];
            let result = dir.path().join(format!("result-{pair}.img"));
            let imported = import(&out, &base.path, &result, target).unwrap();
            assert_eq!(imported.record.result_sha256, report.image_sha256);
            assert_reads(&result, &image.content);
        }
    }
}

/// A base, and an image of the same disk with something else in it.
fn pair(dir: &Path, size: u64) -> (PathBuf, PathBuf) {
    let (base, image) = (dir.join("base.vhd"), dir.join("image.avhd"));
    create(&base, |file| create_dynamic(file, size, 512 << 10));
    open(&base, true).disk().write_at(&[1; 8192], 0).unwrap();
    create_child(&image, &base, None, &OpenOptions::new()).unwrap();
    let opened = open(&image, true);
    opened.disk().write_at(&[2; 1024], 1024).unwrap();
    // Zeroes over what the base has, and the base's own bytes again.
    opened.disk().write_at(&[0; 512], 4096).unwrap();
    opened.disk().write_at(&[1; 512], 6144).unwrap();
    opened.close().unwrap();
    (base, image)
}

/// INV-08.
#[test]
fn zeroes_are_stored_and_sectors_that_are_the_same_are_not() {
    let dir = temp_dir();
    let (base, image) = pair(dir.path(), 64 << 10);
    let out = dir.path().join("out.avhd");
    let report = export(&image, &base, &out, 512 << 10).unwrap();
    assert_eq!((report.different_bytes, report.blocks, held(&out)), (1536, 1, 1536));
    let content = read_all(&open(&out, false).disk());
    assert!(content[4096..4608].iter().all(|&byte| byte == 0));
    assert_eq!((content[1024], content[4608], content[6144]), (2, 1, 1));
}

#[test]
fn nothing_different_is_a_delta_without_blocks() {
    let dir = temp_dir();
    let (base, _) = pair(dir.path(), 64 << 10);
    let out = dir.path().join("out.avhd");
    let report = export(&base, &base, &out, 2 << 20).unwrap();
    assert_eq!((report.blocks, report.base_sha256), (0, report.image_sha256));
    import(&out, &base, &dir.path().join("r"), Target::Raw).unwrap();
}

#[test]
fn disks_of_other_sizes_and_foreign_images_are_refused() {
    let dir = temp_dir();
    let (base, image) = pair(dir.path(), 64 << 10);
    let other = dir.path().join("other.vhd");
    create(&other, |file| create_fixed(file, 128 << 10, Preallocate::Off));
    let out = dir.path().join("out.avhd");
    let error = export(&image, &other, &out, 2 << 20).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SizeMismatch);
    let result = dir.path().join("result.vhd");
    let target = Target::Dynamic {
        block_size: 2 << 20,
        preallocate: Preallocate::Off,
    };
    // A child that is no delta, and no child at all.
    for foreign in [&image, &base] {
        let error = import(foreign, &base, &result, target).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DigestMissing, "{error}");
    }
    assert!(!out.exists() && !result.exists());
}

#[test]
fn a_base_or_delta_that_was_changed_is_refused_with_both_digests() {
    let dir = temp_dir();
    let (base, image) = pair(dir.path(), 64 << 10);
    let (out, result) = (dir.path().join("out.avhd"), dir.path().join("result.raw"));
    let report = export(&image, &base, &out, 2 << 20).unwrap();
    let sound = std::fs::read(&out).unwrap();

    open(&out, true).disk().write_at(&[9; 512], 0).unwrap();
    let error = import(&out, &base, &result, Target::Raw).unwrap_err();
    let DeltaError::ResultDigest { expected, found } = &error else {
        panic!("{error}");
    };
    assert!(*expected == report.image_sha256 && expected != found);
    assert_eq!(error.kind(), ErrorKind::DigestMismatch);

    std::fs::write(&out, &sound).unwrap();
    open(&base, true).disk().write_at(&[9; 512], 32768).unwrap();
    let error = import(&out, &base, &result, Target::Raw).unwrap_err();
    assert!(
        matches!(&error, DeltaError::BaseDigest { expected, .. } if *expected == report.base_sha256),
        "{error}"
    );
    assert!(!result.exists());
    std::fs::remove_file(&base).unwrap();
    create(&base, |file| create_dynamic(file, 64 << 10, 512 << 10));
    let error = import(&out, &base, &result, Target::Raw).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentMismatch);
}

/// Whatever byte of a delta's metadata is damaged: the result is right, or there is none.
#[test]
fn no_damage_of_a_delta_gives_another_disk() {
    let dir = temp_dir();
    let (base, image) = pair(dir.path(), 64 << 10);
    let out = dir.path().join("out.avhd");
    export(&image, &base, &out, 512 << 10).unwrap();
    let content = read_all(&open(&image, false).disk());
    let sound = std::fs::read(&out).unwrap();
    let base_bytes = std::fs::read(&base).unwrap();
    let result = dir.path().join("result.raw");
    let (mut refused, mut right) = (0, 0);
    let metadata = (0..4608).step_by(3).chain(sound.len() - 512..sound.len());
    let cuts = [0, 511, 512, 1536, 2048, 4096, sound.len() - 512, sound.len() - 1];
    let cut = cuts.map(|len| sound[..len].to_vec());
    let flipped = metadata.map(|at| {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x55;
        bytes
    });
    for bytes in flipped.chain(cut) {
        std::fs::write(&out, &bytes).unwrap();
        match import(&out, &base, &result, Target::Raw) {
            Ok(_) => {
                assert_same(&std::fs::read(&result).unwrap(), &content, "result");
                std::fs::remove_file(&result).unwrap();
                right += 1;
            }
            Err(_) => {
                assert!(!result.exists());
                refused += 1;
            }
        }
        assert!(std::fs::read(&out).unwrap() == bytes && std::fs::read(&base).unwrap() == base_bytes);
    }
    announce(&format!("damaged deltas: {right} right, {refused} refused"));
    assert!(right > 0 && refused > 0);
}
