//! Extents: ordered, without gaps, coalesced, and true.

use std::ops::ControlFlow;

use vhd_core::device::{ByteRange, Extent, ExtentKind, ZeroOptions};
use vhd_core::units::usize_from;

use super::Bench;
use crate::bytes::is_zero;

fn collect(bench: &Bench, range: ByteRange) -> Vec<Extent> {
    let mut extents = Vec::new();
    let visit = &mut |extent| {
        extents.push(extent);
        ControlFlow::Continue(())
    };
    bench
        .device
        .extents(range, visit)
        .unwrap_or_else(|error| panic!("extents of {range:?}: {error}"));
    extents
}

/// Whether two neighbours should have been one.
fn joins(a: &Extent, b: &Extent) -> bool {
    let contiguous = match (a.file_offset, b.file_offset) {
        (Some(first), Some(second)) => first.checked_add(a.range.len) == Some(second),
        (None, None) => true,
        _ => false,
    };
    a.kind == b.kind && a.depth == b.depth && contiguous
}

/// Checks the extents of one range against the rules and the content.
fn check(bench: &Bench, range: ByteRange) -> Vec<Extent> {
    let extents = collect(bench, range);
    let mut position = range.start;
    for extent in &extents {
        assert_eq!(
            extent.range.start, position,
            "gap, overlap or disorder in {range:x?}: {extents:x?}"
        );
        assert!(extent.range.len > 0, "an empty extent in {range:x?}: {extents:x?}");
        assert!(
            extent.range.len.is_multiple_of(bench.block),
            "part of a block: {extent:x?}"
        );
        position = extent
            .range
            .start
            .checked_add(extent.range.len)
            .expect("an extent that ends");
        assert!(position <= range.end(), "past the end of {range:x?}: {extents:x?}");
        let content = &bench.shadow[usize_from(extent.range.start)..usize_from(position)];
        let zero = extent.kind == ExtentKind::Data || is_zero(content);
        assert!(zero, "a part that does not read zero is called {extent:x?}");
        let placed = extent.kind == ExtentKind::Hole && extent.file_offset.is_some();
        assert!(!placed, "a hole with a place in a file: {extent:x?}");
    }
    assert_eq!(
        position,
        range.end(),
        "the extents end before {range:x?} does: {extents:x?}"
    );
    let split = extents.windows(2).find(|pair| joins(&pair[0], &pair[1]));
    assert!(split.is_none(), "not coalesced: {split:x?}");
    extents
}

/// The part of `extent` inside `range`, where there is one.
fn clip(extent: &Extent, range: ByteRange) -> Option<Extent> {
    let (start, end) = (extent.range.start.max(range.start), extent.range.end().min(range.end()));
    let file_offset = extent
        .file_offset
        .map(|offset| offset + start.saturating_sub(extent.range.start));
    (start < end).then(|| Extent {
        range: ByteRange::new(start, end - start),
        file_offset,
        ..*extent
    })
}

pub(super) fn extents(bench: &mut Bench) {
    let whole = check(bench, ByteRange::new(0, bench.size()));
    for step in 0..bench.steps {
        let range = bench.range(if step % 2 == 0 { 16 } else { u64::MAX });
        let found = check(bench, range);
        let wanted: Vec<Extent> = whole.iter().filter_map(|extent| clip(extent, range)).collect();
        assert_eq!(
            found, wanted,
            "the extents of {range:x?} are not a part of those of the disk"
        );
    }
    for start in [0, bench.size()] {
        assert_eq!(
            collect(bench, ByteRange::new(start, 0)),
            [],
            "extents of nothing at {start:#x}"
        );
    }
    stops(bench, &whole);
}

/// A visitor that breaks is not called again, and that is no error.
fn stops(bench: &Bench, whole: &[Extent]) {
    for most in 1..=whole.len().min(3) {
        let mut seen = Vec::new();
        let visit = &mut |extent| {
            seen.push(extent);
            if seen.len() == most {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        bench
            .device
            .extents(ByteRange::new(0, bench.size()), visit)
            .expect("a walk that its visitor ends");
        assert_eq!(seen, whole[..most], "after a break");
    }
}

pub(super) fn extents_after_changes(bench: &mut Bench) {
    let whole = ByteRange::new(0, bench.size());
    for step in 0..30 {
        let range = bench.range(if step % 3 == 0 { u64::MAX } else { 20 });
        let most = super::transfer_limit(&*bench.device);
        match step % 5 {
            0 => {
                let options = ZeroOptions {
                    may_unmap: true,
                    ..ZeroOptions::default()
                };
                bench.device.write_zeroes(range, options).expect("zeroes");
                bench.part(range).fill(0);
            }
            1 => bench.device.flush().expect("flush"),
            _ => bench.write(ByteRange::new(range.start, range.len.min(most)), false),
        }
        check(bench, whole);
        check(bench, range);
    }
}
