//! Memory that the largest images take, measured in a process that does nothing else.

mod common;

use std::fs::OpenOptions as FileOptions;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use common::build::{Parent, Sparse, id};
use common::disk::open;
use common::temp_dir;
use vhd_core::chain::{OpenOptions, create_child};
use vhd_core::device::{ByteRange, ExtentKind};
use vhd_core::image::{create_dynamic, create_fixed};
use vhd_core::storage::{HostFile, StorageFile as _};
use vhd_core::units::u64_from;

/// Set in the process that is measured: the file it works on.
const SUBJECT: &str = "VHD_TEST_MEMORY_SUBJECT";
const SIZE: u64 = 2040 << 30;
const BLOCK: u64 = 2 << 20;
const KIB_PER_MIB: u64 = 1 << 10;

/// Runs `work` in a process of its own that runs this test only; returns the most KiB it had in memory.
fn measured(test: &str, subject: &Path, work: impl FnOnce(&Path)) -> Option<u64> {
    if let Some(subject) = std::env::var_os(SUBJECT) {
        work(Path::new(&subject));
        println!("\npeak {} KiB", resident_peak());
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(SUBJECT, subject);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("peak ")?.strip_suffix(" KiB"));
    let peak = line
        .unwrap_or_else(|| panic!("no measurement in {text}"))
        .parse()
        .unwrap();
    println!("{test}: {peak} KiB");
    Some(peak)
}

fn resident_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

fn assert_below(peak: Option<u64>, mebibytes: u64) {
    if let Some(peak) = peak {
        assert!(
            peak < mebibytes * KIB_PER_MIB,
            "{peak} KiB, allowed are {mebibytes} MiB"
        );
    }
}

fn new_file(path: &Path) -> HostFile {
    let file = FileOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .unwrap();
    HostFile::from_file(file).unwrap()
}

#[test]
fn opening_a_dynamic_image_of_2040_gib() {
    let dir = temp_dir();
    let path = dir.path().join("large.vhd");
    if std::env::var_os(SUBJECT).is_none() {
        create_dynamic(&new_file(&path), SIZE, BLOCK).unwrap();
    }
    let peak = measured("opening_a_dynamic_image_of_2040_gib", &path, |path| {
        let opened = open(path, false);
        assert_eq!(opened.disk().size(), SIZE);
        opened.disk().read_at(&mut [1; 4096], SIZE - 4096).unwrap();
    });
    assert_below(peak, 32);
}

#[test]
fn writing_to_a_dynamic_image_of_2040_gib() {
    let dir = temp_dir();
    let path = dir.path().join("large.vhd");
    if std::env::var_os(SUBJECT).is_none() {
        create_dynamic(&new_file(&path), SIZE, BLOCK).unwrap();
    }
    let peak = measured("writing_to_a_dynamic_image_of_2040_gib", &path, |path| {
        let opened = open(path, true);
        for place in (0..64).map(|part| part * (SIZE / 64)) {
            opened.disk().write_at(&[1; 4096], place).unwrap();
        }
        opened.close().unwrap();
    });
    assert_below(peak, 32);
}

/// A child takes a table of its own and what is remembered of its parents.
#[test]
fn opening_a_child_of_2040_gib() {
    let dir = temp_dir();
    let (parent, path) = (dir.path().join("large.vhd"), dir.path().join("child.vhd"));
    if std::env::var_os(SUBJECT).is_none() {
        create_dynamic(&new_file(&parent), SIZE, BLOCK).unwrap();
        create_child(&path, &parent, None, &OpenOptions::new()).unwrap();
    }
    let peak = measured("opening_a_child_of_2040_gib", &path, |path| {
        let opened = open(path, true);
        for place in (0..64).map(|part| part * (SIZE / 64)) {
            opened.disk().read_at(&mut [1; 4096], place).unwrap();
            opened.disk().write_at(&[1; 4096], place).unwrap();
        }
        opened.close().unwrap();
    });
    assert_below(peak, 64);
}

#[test]
fn creating_images_of_2040_gib() {
    let dir = temp_dir();
    let peak = measured("creating_images_of_2040_gib", dir.path(), |dir| {
        create_dynamic(&new_file(&dir.join("dynamic.vhd")), SIZE, BLOCK).unwrap();
        create_fixed(&new_file(&dir.join("fixed.vhd")), SIZE, Default::default()).unwrap();
    });
    assert_below(peak, 12);
}

/// A disk of the largest size with fifty snapshots: what is empty in a layer takes no memory there.
#[test]
fn opening_a_chain_of_51_images_of_2040_gib() {
    const DEPTH: usize = 50;
    let dir = temp_dir();
    let path = |dir: &Path, level: usize| dir.join(format!("{level}.vhd"));
    let place = |level: usize| SIZE / 64 * u64_from(level) + 4096;
    if std::env::var_os(SUBJECT).is_none() {
        create_dynamic(&new_file(&path(dir.path(), 0)), SIZE, BLOCK).unwrap();
        for level in 0..=DEPTH {
            let image = path(dir.path(), level);
            if level > 0 {
                create_child(&image, &path(dir.path(), level - 1), None, &OpenOptions::new()).unwrap();
            }
            let opened = OpenOptions::new().write(true).open(&image).unwrap();
            let byte = u8::try_from(level + 1).unwrap();
            opened.disk().write_at(&[byte; 4096], place(level)).unwrap();
            opened.close().unwrap();
        }
    }
    let peak = measured("opening_a_chain_of_51_images_of_2040_gib", dir.path(), |dir| {
        let opened = open(&path(dir, DEPTH), false);
        for level in 0..=DEPTH {
            let mut read = [0; 4096];
            opened.disk().read_at(&mut read, place(level)).unwrap();
            assert_eq!(usize::from(read[0]), level + 1);
        }
        // And every place of it is asked for.
        let mut stored = 0;
        let all = ByteRange::new(0, SIZE);
        opened
            .disk()
            .extents(all, &mut |extent| {
                stored += if extent.kind == ExtentKind::Data {
                    extent.range.len
                } else {
                    0
                };
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(stored, 4096 * u64_from(DEPTH + 1));
    });
    assert_below(peak, 24);
}

/// What an open image keeps must not add up in a chain.
#[test]
fn opening_and_reading_a_chain_of_200() {
    const DEPTH: usize = 200;
    let dir = temp_dir();
    let path = |dir: &Path, level: usize| dir.join(format!("{level}.vhd"));
    if std::env::var_os(SUBJECT).is_none() {
        for level in 0..=DEPTH {
            let spec = match level {
                0 => Sparse {
                    id: id(0),
                    ..Sparse::new(1 << 20, 4096)
                },
                _ => {
                    let parent = Parent::named(id(level - 1), &format!("{}.vhd", level - 1));
                    Sparse::child(1 << 20, 4096, id(level), parent)
                }
            };
            let spec = spec.store_sector(level * 8, &[1; 512]);
            std::fs::write(path(dir.path(), level), spec.lay().bytes).unwrap();
        }
    }
    let peak = measured("opening_and_reading_a_chain_of_200", dir.path(), |dir| {
        let opened = OpenOptions::new().open(&path(dir, DEPTH)).unwrap();
        let mut bytes = vec![0; 1 << 20];
        opened.disk().read_at(&mut bytes, 0).unwrap();
    });
    assert_below(peak, 32);
}

/// Blocks of one sector whose bitmaps say nothing: as many maps as sectors, in a file that takes hardly any space.
fn read_a_million_maps(test: &str, write: bool) -> Option<u64> {
    const BLOCKS: usize = 1 << 20;
    let dir = temp_dir();
    let path = dir.path().join("hostile.avhd");
    if std::env::var_os(SUBJECT).is_none() {
        let (parent, size) = (dir.path().join("parent.vhd"), u64_from(BLOCKS) * 512);
        let parent_id = create_dynamic(&new_file(&parent), size, BLOCK).unwrap();
        let mut laid = Sparse::child(size, 512, id(7), Parent::named(parent_id.0, "parent.vhd")).lay();
        let first = laid.tail.div_ceil(512);
        for block in 0..BLOCKS {
            laid.point(block, first + 2 * block);
        }
        let file = new_file(&path);
        let (head, tail) = laid.bytes.split_at(laid.tail);
        file.write_all_at(head, 0).unwrap();
        file.write_all_at(tail, u64_from(first + 2 * BLOCKS) * 512).unwrap();
    }
    measured(test, &path, |path| {
        let opened = open(path, write);
        let mut bytes = vec![0; 1 << 20];
        for at in (0..opened.disk().size()).step_by(1 << 20) {
            opened.disk().read_at(&mut bytes, at).unwrap();
        }
    })
}

#[test]
fn maps_of_a_leaf_that_is_read_are_kept_within_a_bound() {
    assert_below(
        read_a_million_maps("maps_of_a_leaf_that_is_read_are_kept_within_a_bound", false),
        160,
    );
}

/// 48 bytes for each, beside the table and what is remembered of the parent.
#[test]
fn maps_of_a_leaf_that_is_written_are_small() {
    assert_below(
        read_a_million_maps("maps_of_a_leaf_that_is_written_are_small", true),
        160,
    );
}
