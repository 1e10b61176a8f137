//! Images go between this library, qemu and 7-Zip in both directions, and all read the same bytes.
//!
//! qemu is asked about fixed and dynamic images only, since it ignores parents without a word; 7-Zip about all.

mod common;

use std::path::Path;

use common::build::{FOOTER, ends_in_footer};
use common::disk::{assert_reads, assert_same, create, open, write_session};
use common::rng::{Rng, chance, random_bytes, seeded};
use common::temp_dir;
use common::tools::{have, qemu_convert, qemu_opens, qemu_reads, qemu_writes, run, seven_zip_reads};
use vhd_core::chain::{OpenOptions, create_child};
use vhd_core::check;
use vhd_core::format::DiskType;
use vhd_core::image::{Preallocate, create_dynamic, create_fixed};
use vhd_core::units::{u64_from, usize_from};

const PROGRAMS: &[&str] = &["qemu-img", "qemu-io", "7zz"];
const SECTOR: usize = 512;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const OPERATIONS: usize = 40;

/// A size of some MiB that is a multiple of a sector and of nothing else.
fn odd_size(rng: &mut Rng, mebibytes: u64) -> u64 {
    let sectors = rng.u64(..mebibytes * MIB / 512) | 1;
    MIB + sectors * 512
}

/// What must hold of a file after each of our sessions.
fn assert_sound(image: &Path, model: &[u8]) {
    let bytes = std::fs::read(image).unwrap();
    let tail = &bytes[bytes.len() - FOOTER..];
    assert!(ends_in_footer(&bytes), "{}", image.display());
    let opened = open(image, false);
    let image_type = opened.chain().unwrap().leaf().footer().disk_type;
    if image_type != DiskType::Fixed {
        assert_eq!(&bytes[..FOOTER], tail, "{}: the copy", image.display());
    }
    assert_eq!(opened.warnings(), [], "{}", image.display());
    let report = check::check(&**opened.chain().unwrap().leaf().file()).unwrap();
    assert!(report.worst() <= Some(check::Severity::Note), "{report:?}");
    drop(opened);
    qemu_opens(image);
    assert_reads(image, model);
    assert_same(&seven_zip_reads(image), model, "as 7-Zip reads it");
    if image_type != DiskType::Differencing {
        assert_same(&qemu_reads(image), model, "as qemu reads it");
    }
}

/// Writes random ranges with qemu.
fn qemu_session(image: &Path, model: &mut [u8], rng: &mut Rng) {
    let sectors = model.len() / SECTOR;
    let mut writes = Vec::new();
    for _ in 0..8 {
        let (start, byte) = (rng.usize(..sectors), rng.u8(..));
        let count = 1 + rng.usize(..(sectors - start).min(200));
        writes.push((start * SECTOR, count * SECTOR, byte));
        model[start * SECTOR..(start + count) * SECTOR].fill(byte);
    }
    qemu_writes(image, &writes);
}

#[test]
fn our_fixed_images_are_read_by_all() {
    if !have(PROGRAMS, "our fixed images in other programs") {
        return;
    }
    let dir = temp_dir();
    let image = dir.path().join("fixed.vhd");
    for (seed, preallocate) in [(1, Preallocate::Off), (2, Preallocate::Falloc), (3, Preallocate::Full)] {
        let mut rng = seeded(seed, "fixed image of ours");
        let size = odd_size(&mut rng, 8);
        create(&image, |file| create_fixed(file, size, preallocate));
        let mut model = vec![0; usize_from(size)];
        assert_sound(&image, &model);
        write_session(&image, &mut model, &mut rng, OPERATIONS);
        assert_sound(&image, &model);
        assert_eq!(std::fs::metadata(&image).unwrap().len(), size + u64_from(FOOTER));
        std::fs::remove_file(&image).unwrap();
    }
}

#[test]
fn our_dynamic_images_are_read_by_all() {
    if !have(PROGRAMS, "our dynamic images in other programs") {
        return;
    }
    let dir = temp_dir();
    let image = dir.path().join("dynamic.vhd");
    let blocks = [512 * KIB, MIB, 2 * MIB, 4 * MIB, 16 * MIB];
    for (seed, block_size) in (10..).zip(blocks) {
        let mut rng = seeded(seed, "dynamic image of ours");
        let size = odd_size(&mut rng, 20);
        create(&image, |file| create_dynamic(file, size, block_size));
        let mut model = vec![0; usize_from(size)];
        assert_sound(&image, &model);
        for _ in 0..2 {
            write_session(&image, &mut model, &mut rng, OPERATIONS);
            assert_sound(&image, &model);
        }
        std::fs::remove_file(&image).unwrap();
    }
}

/// Sizes at which something ends: a sector, a block, a table sector.
#[test]
fn our_images_of_extreme_sizes_are_read_by_all() {
    if !have(PROGRAMS, "our images of extreme sizes in other programs") {
        return;
    }
    let dir = temp_dir();
    let image = dir.path().join("size.vhd");
    let block = 512 * KIB;
    let sizes = [
        512,
        1024,
        4096,
        block - 512,
        block,
        block + 512,
        128 * block,
        128 * block + 512,
    ];
    for (seed, size) in (20..).zip(sizes) {
        let mut rng = seeded(seed, "dynamic image of an extreme size");
        create(&image, |file| create_dynamic(file, size, block));
        let mut model = vec![0; usize_from(size)];
        write_session(&image, &mut model, &mut rng, 8);
        let last = model.len() - SECTOR;
        let opened = open(&image, true);
        opened.disk().write_at(&[0xE7; SECTOR], u64_from(last)).unwrap();
        opened.close().unwrap();
        model[last..].fill(0xE7);
        assert_sound(&image, &model);
        std::fs::remove_file(&image).unwrap();
    }
}

#[test]
fn our_chains_are_read_by_seven_zip() {
    if !have(PROGRAMS, "our chains in other programs") {
        return;
    }
    for (seed, depth) in [(30, 2_usize), (31, 3), (32, 4)] {
        let mut rng = seeded(seed, "chain of ours");
        let dir = temp_dir();
        let size = odd_size(&mut rng, 8);
        let mut image = dir.path().join("base.vhd");
        if chance(&mut rng, 50) {
            create(&image, |file| create_fixed(file, size, Preallocate::Off));
        } else {
            create(&image, |file| create_dynamic(file, size, 2 * MIB));
        }
        let mut model = vec![0; usize_from(size)];
        write_session(&image, &mut model, &mut rng, OPERATIONS);
        let mut layers = vec![(image.clone(), model.clone())];
        for level in 1..=depth {
            let child = dir.path().join(format!("level {level}.avhd"));
            let block_size = rng.choice([512 * KIB, MIB, 2 * MIB, 4 * MIB]).unwrap();
            create_child(&child, &image, Some(block_size), &OpenOptions::new()).unwrap();
            assert_sound(&child, &model);
            write_session(&child, &mut model, &mut rng, OPERATIONS);
            assert_sound(&child, &model);
            image = child;
            layers.push((image.clone(), model.clone()));
        }
        for (layer, content) in &layers {
            assert_sound(layer, content);
        }
    }
}

#[test]
fn images_that_qemu_converts_are_read() {
    if !have(PROGRAMS, "images of qemu-img convert") {
        return;
    }
    let dir = temp_dir();
    let (raw, image) = (dir.path().join("disk.raw"), dir.path().join("disk.vhd"));
    let options = [
        ("subformat=dynamic", DiskType::Dynamic),
        ("subformat=fixed", DiskType::Fixed),
    ];
    for (seed, (subformat, disk_type)) in (40..).zip(options) {
        for force_size in [true, false] {
            let mut rng = seeded(seed, subformat);
            let size = odd_size(&mut rng, 6);
            let mut content = random_bytes(&mut rng, usize_from(size));
            let hole = rng.usize(..content.len() / 2);
            content[hole..hole + usize_from(MIB / 2)].fill(0);
            std::fs::write(&raw, &content).unwrap();
            let option = format!("{subformat}{}", if force_size { ",force_size=on" } else { "" });
            qemu_convert(&raw, "raw", &image, "vpc", &["-o", &option]);
            let opened = open(&image, false);
            let size = usize_from(opened.disk().size());
            assert_eq!(opened.chain().unwrap().leaf().footer().disk_type, disk_type);
            assert!(size >= content.len(), "qemu rounds up to whole cylinders");
            assert!(
                !force_size || size == content.len(),
                "qemu keeps the size it is told to force"
            );
            drop(opened);
            content.resize(size, 0);
            assert_reads(&image, &content);
            write_session(&image, &mut content, &mut rng, OPERATIONS);
            assert_sound(&image, &content);
        }
    }
}

/// Each in turn writes what the other has written before.
fn take_turns(image: &Path, rng: &mut Rng) {
    let mut model = vec![0; usize_from(open(image, false).disk().size())];
    for _ in 0..3 {
        qemu_session(image, &mut model, rng);
        assert_reads(image, &model);
        assert_same(&seven_zip_reads(image), &model, "after qemu, as 7-Zip reads it");
        write_session(image, &mut model, rng, OPERATIONS / 2);
        assert_sound(image, &model);
    }
}

#[test]
fn our_images_survive_sessions_of_qemu_and_of_ours() {
    if !have(PROGRAMS, "qemu writing into our images") {
        return;
    }
    let dir = temp_dir();
    let image = dir.path().join("ours.vhd");
    for (seed, block_size) in [(50, 512 * KIB), (51, 2 * MIB)] {
        let mut rng = seeded(seed, "our image, written by both");
        let size = odd_size(&mut rng, 16);
        create(&image, |file| create_dynamic(file, size, block_size));
        take_turns(&image, &mut rng);
        std::fs::remove_file(&image).unwrap();
    }
}

#[test]
fn images_of_qemu_survive_sessions_of_ours_and_of_qemu() {
    if !have(PROGRAMS, "writing into images of qemu") {
        return;
    }
    let dir = temp_dir();
    let image = dir.path().join("theirs.vhd");
    let options = [
        "subformat=dynamic",
        "subformat=dynamic,force_size=on",
        "subformat=fixed,force_size=on",
        "subformat=fixed",
    ];
    for (seed, option) in (60..).zip(options) {
        let mut rng = seeded(seed, option);
        let size = odd_size(&mut rng, 12).to_string();
        let path = image.to_str().unwrap();
        run("qemu-img", ["create", "-q", "-f", "vpc", "-o", option, path, &size]);
        assert_reads(&image, &vec![0; usize_from(open(&image, false).disk().size())]);
        take_turns(&image, &mut rng);
        std::fs::remove_file(&image).unwrap();
    }
}
