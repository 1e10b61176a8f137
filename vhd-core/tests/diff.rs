//! Differences of disks that share layers, against what the disks read.
#![forbid(unsafe_code)]

mod common;

use std::ops::ControlFlow;
use std::path::Path;

use common::disk::{create, open};
use common::rng::seeded;
use common::temp_dir;
use common::tree::random_tree;
use vhd_core::device::ByteRange;
use vhd_core::image::create_dynamic;
use vhd_core::ops::{DiffMode, Difference, compare, diff};
use vhd_core::units::{u64_from, usize_from};

const SECTOR: usize = 512;

fn ranges(a: &Path, b: &Path, mode: DiffMode) -> (Difference, Vec<ByteRange>) {
    let mut found = Vec::new();
    let (a, b) = (open(a, false), open(b, false));
    let difference = diff(&a, &b, mode, &(), &mut |range| {
        found.push(range);
        ControlFlow::Continue(())
    });
    (difference.unwrap(), found)
}

/// The sectors that differ, coalesced.
fn expected(a: &[u8], b: &[u8]) -> Vec<ByteRange> {
    let mut ranges: Vec<ByteRange> = Vec::new();
    for (sector, (left, right)) in a.chunks(SECTOR).zip(b.chunks(SECTOR)).enumerate() {
        if left != right {
            let (at, len) = (u64_from(sector * SECTOR), u64_from(left.len()));
            match ranges.last_mut() {
                Some(last) if last.end() == at => last.len += len,
                _ => ranges.push(ByteRange::new(at, len)),
            }
        }
    }
    ranges
}

fn covers(outer: &[ByteRange], inner: &ByteRange) -> bool {
    outer
        .iter()
        .any(|range| range.start <= inner.start && inner.end() <= range.end())
}

#[test]
fn random_trees_differ_where_their_contents_do() {
    let mut rng = seeded(0xD1FF, "diff of trees");
    for _ in 0..8 {
        let dir = temp_dir();
        let nodes = random_tree(dir.path(), &mut rng, 7);
        for (i, a) in nodes.iter().enumerate() {
            for (j, b) in nodes.iter().enumerate() {
                let (difference, found) = ranges(&a.path, &b.path, DiffMode::Content);
                assert_eq!(found, expected(&a.content, &b.content), "{i} and {j}");
                let shared = a.chain.iter().rev().zip(b.chain.iter().rev());
                assert_eq!(difference.shared_layers, shared.take_while(|(a, b)| a == b).count());
                let whole = compare(
                    &open(&a.path, false).disk(),
                    &open(&b.path, false).disk(),
                    &(),
                    &mut |_| ControlFlow::Continue(()),
                );
                let whole = whole.unwrap();
                let comparison = difference.comparison;
                assert!(comparison.compared_bytes <= whole.compared_bytes, "{i} and {j}");
                assert_eq!(comparison.different_bytes, whole.different_bytes);
                assert_eq!(comparison.first_difference, whole.first_difference);
                assert!(i != j || comparison.compared_bytes == 0);

                let (listed, allocated) = ranges(&a.path, &b.path, DiffMode::Allocated);
                assert!(found.iter().all(|range| covers(&allocated, range)), "{i} and {j}");
                assert_eq!(listed.comparison.compared_bytes, 0);
                assert!(listed.comparison.different_bytes >= comparison.different_bytes);
            }
        }
    }
}

#[test]
fn only_what_is_not_shared_is_read() {
    let dir = temp_dir();
    let base = dir.path().join("base.vhd");
    create(&base, |file| create_dynamic(file, 64 << 20, 2 << 20));
    open(&base, true).disk().write_at(&vec![7; 48 << 20], 0).unwrap();
    let paths = ["a.avhd", "b.avhd"].map(|name| dir.path().join(name));
    for (number, path) in (1..).zip(&paths) {
        vhd_core::chain::create_child(path, &base, None, &vhd_core::chain::OpenOptions::new()).unwrap();
        let opened = open(path, true);
        opened
            .disk()
            .write_at(&[number; 4096], u64::from(number) << 20)
            .unwrap();
        // The same in both: owned by layers that are not shared, but no difference.
        opened.disk().write_at(&[9; 4096], 5 << 20).unwrap();
        opened.close().unwrap();
    }
    let (difference, found) = ranges(&paths[0], &paths[1], DiffMode::Content);
    assert_eq!(found, [ByteRange::new(1 << 20, 4096), ByteRange::new(2 << 20, 4096)]);
    assert_eq!(difference.comparison.compared_bytes, 3 * 4096);
    let (_, allocated) = ranges(&paths[0], &paths[1], DiffMode::Allocated);
    assert_eq!(allocated.len(), 3);
}

#[test]
fn disks_that_share_nothing_and_differ_in_size() {
    let mut rng = seeded(0x51FE, "diff of strangers");
    let dir = temp_dir();
    let mut contents = Vec::new();
    for (index, size) in [3_usize << 20, 4 << 20].into_iter().enumerate() {
        let mut content = vec![0; size];
        for _ in 0..40 {
            let at = rng.usize(..size / SECTOR) * SECTOR;
            content[at..at + SECTOR].fill(rng.u8(..4));
        }
        std::fs::write(dir.path().join(format!("{index}.raw")), &content).unwrap();
        contents.push(content);
    }
    let longest = contents[1].len();
    contents[0].resize(longest, 0);
    let (difference, found) = ranges(&dir.path().join("0.raw"), &dir.path().join("1.raw"), DiffMode::Content);
    assert_eq!(found, expected(&contents[0], &contents[1]));
    assert_eq!(difference.shared_layers, 0);
    assert!(usize_from(difference.comparison.compared_bytes) <= longest);
}

/// The longer disk goes on for more than is compared at once.
#[test]
fn a_disk_reads_zero_far_behind_its_end() {
    let dir = temp_dir();
    let paths = ["short.raw", "long.raw"].map(|name| dir.path().join(name));
    std::fs::write(&paths[0], vec![0; 4096]).unwrap();
    let mut long = vec![0; 11 << 20];
    long[10 << 20] = 1;
    std::fs::write(&paths[1], long).unwrap();
    let expected = [ByteRange::new(10 << 20, 512)];
    assert_eq!(ranges(&paths[0], &paths[1], DiffMode::Content).1, expected);
    assert_eq!(ranges(&paths[1], &paths[0], DiffMode::Content).1, expected);
    let (short, long) = (open(&paths[0], false), open(&paths[1], false));
    let compared = compare(&short.disk(), &long.disk(), &(), &mut |_| ControlFlow::Continue(()));
    assert_eq!(compared.unwrap().different_bytes, 512);
}

#[test]
fn a_visitor_that_has_seen_enough_is_not_asked_again() {
    let dir = temp_dir();
    for name in ["a.raw", "b.raw"] {
        let fill = name.as_bytes()[0];
        std::fs::write(dir.path().join(name), vec![fill; 1 << 20]).unwrap();
    }
    let (a, b) = (
        open(&dir.path().join("a.raw"), false),
        open(&dir.path().join("b.raw"), false),
    );
    for mode in [DiffMode::Content, DiffMode::Allocated] {
        let mut calls = 0;
        let found = diff(&a, &b, mode, &(), &mut |_| {
            calls += 1;
            ControlFlow::Break(())
        });
        assert!(!found.unwrap().comparison.identical && calls == 1);
    }
}
