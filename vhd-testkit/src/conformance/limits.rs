//! What a device must tell of itself, and what it must refuse.

use std::io::{IoSlice, IoSliceMut};
use std::ops::ControlFlow;

use vhd_core::device::{ByteRange, DeviceError, ZeroOptions};
use vhd_core::units::{u64_from, usize_from};

use super::{Bench, assert_error, read_all};
use crate::bytes::{assert_same, is_zero};

pub(super) fn info(bench: &mut Bench) {
    let info = bench.device.info().clone();
    assert_eq!(
        bench.device.size_bytes(),
        bench.size(),
        "the size is not the one asked for"
    );
    let block = info.logical_block_size;
    assert!(
        bench.size().is_multiple_of(u64::from(block)),
        "the disk is not made of whole logical blocks"
    );
    assert!(
        info.physical_block_size.is_multiple_of(block),
        "physical block size: {info:?}"
    );
    assert!(
        info.preferred_transfer.is_multiple_of(block),
        "preferred transfer: {info:?}"
    );
    assert!(
        info.preferred_transfer <= info.maximum_transfer,
        "preferred and maximum transfer: {info:?}"
    );
    assert!(info.maximum_transfer >= block, "maximum transfer: {info:?}");
    assert_eq!(info.capabilities.write, !bench.read_only, "the write capability");
    let changes = info.capabilities.discard || info.capabilities.fast_zero;
    assert!(
        !bench.read_only || !changes,
        "a read-only disk offers changes: {info:?}"
    );
    assert_eq!(*bench.device.info(), info, "the information changed");
}

/// Every call that takes a range, on `range`. No buffers for a very long one: that would only be slow.
fn calls(bench: &Bench, range: ByteRange) -> Vec<(&'static str, Result<(), DeviceError>)> {
    let device = &bench.device;
    let mut results = vec![("extents", device.extents(range, &mut |_| ControlFlow::Continue(())))];
    if !bench.read_only {
        results.push(("zeroes", device.write_zeroes(range, ZeroOptions::default())));
        if device.info().capabilities.discard {
            results.push(("discard", device.discard(range)));
        }
    }
    if range.len <= 1 << 20 {
        let mut bytes = vec![0x55; usize_from(range.len)];
        results.push((
            "read",
            device.read_vectored_at(&mut [IoSliceMut::new(&mut bytes)], range.start),
        ));
        if !bench.read_only {
            results.push((
                "write",
                device.write_vectored_at(&[IoSlice::new(&bytes)], range.start, false),
            ));
        }
    }
    results
}

pub(super) fn range_errors(bench: &mut Bench) {
    let (size, block) = (bench.size(), bench.block);
    let last = u64::MAX - (block - 1);
    let outside = [
        (size, block),
        (size - block, 2 * block),
        (size + block, block),
        (0, size + block),
        (1 << 50, block),
        (last, block),
        (last - block, 2 * block),
    ];
    for (start, len) in outside {
        for (call, result) in calls(bench, ByteRange::new(start, len)) {
            let what = format!("{call} of {start:#x}+{len:#x} outside a disk of {size:#x}");
            assert_error(result, |error| matches!(error, DeviceError::OutOfRange { .. }), &what);
        }
    }
    if block > 1 {
        for (start, len) in [
            (1, block),
            (block / 2, block),
            (0, block - 1),
            (block, block + 1),
            (1, block - 1),
        ] {
            for (call, result) in calls(bench, ByteRange::new(start, len)) {
                let what = format!("misaligned {call} of {start:#x}+{len:#x}");
                assert_error(result, |error| matches!(error, DeviceError::Misaligned { .. }), &what);
            }
        }
    }
    for (call, result) in calls(bench, ByteRange::new(0, 0))
        .into_iter()
        .chain(calls(bench, ByteRange::new(size, 0)))
    {
        result.unwrap_or_else(|error| panic!("empty {call}: {error}"));
    }
    bench.verify_all("after refused requests");
}

pub(super) fn refuses_changes(bench: &mut Bench) {
    let range = ByteRange::new(0, bench.block);
    let bytes = vec![0x55; usize_from(bench.block)];
    let device = &bench.device;
    let read_only = |error: &DeviceError| matches!(error, DeviceError::ReadOnly);
    for fua in [false, true] {
        assert_error(
            device.write_vectored_at(&[IoSlice::new(&bytes)], 0, fua),
            read_only,
            "a write to a read-only disk",
        );
        for (may_unmap, fast_only) in [(false, false), (true, false), (true, true)] {
            let options = ZeroOptions {
                may_unmap,
                fast_only,
                fua,
            };
            assert_error(
                device.write_zeroes(range, options),
                read_only,
                "zeroes on a read-only disk",
            );
        }
    }
    assert_error(device.discard(range), read_only, "a discard on a read-only disk");
    let refused = |error: &DeviceError| matches!(error, DeviceError::ReadOnly | DeviceError::Unsupported(_));
    assert_error(
        device.resize(bench.size() + bench.block),
        refused,
        "resizing a read-only disk",
    );
    // Nothing to flush: either answer is true.
    if let Err(error) = device.flush() {
        assert!(read_only(&error), "flush of a read-only disk: {error:?}");
    }
    bench.verify_all("after refused changes");
}

pub(super) fn resize(bench: &mut Bench) {
    let (old, new) = (
        bench.size(),
        bench.size() + (64_u64 << 10).next_multiple_of(bench.block),
    );
    let result = bench.device.resize(new);
    if !bench.device.info().capabilities.resize {
        assert_error(
            result,
            |error| matches!(error, DeviceError::Unsupported(_)),
            "resize without the capability",
        );
        assert_eq!(bench.device.size_bytes(), old, "a refused resize changed the size");
        return bench.verify_all("after a refused resize");
    }
    result.expect("resize with the capability");
    assert_eq!(bench.device.size_bytes(), new, "the size after a resize");
    let content = read_all(&*bench.device);
    assert_eq!(u64_from(content.len()), new);
    assert_same(&content[..usize_from(old)], &bench.shadow, "old space after a resize");
    assert!(is_zero(&content[usize_from(old)..]), "new space does not read zero");
    bench.shadow = content;
    let range = ByteRange::new(old - bench.block, 2 * bench.block);
    bench.write(range, false);
    bench.verify_all("a write across the old end");
    shrink(bench, old);
}

/// Takes what is new away again. A device need not cut off what is not zero.
fn shrink(bench: &mut Bench, size: u64) {
    let new = bench.size();
    let tail = ByteRange::new(size, new - size);
    bench
        .device
        .write_zeroes(tail, ZeroOptions::default())
        .expect("zeroes in new space");
    bench.device.resize(size).expect("the former size");
    assert_eq!(bench.device.size_bytes(), size, "the size after a second resize");
    bench.shadow.truncate(usize_from(size));
    bench.verify_all("after the disk became smaller");
    for (call, result) in calls(bench, ByteRange::new(size, bench.block)) {
        let what = format!("{call} of what was cut off");
        assert_error(result, |error| matches!(error, DeviceError::OutOfRange { .. }), &what);
    }
    bench.device.resize(new).expect("the larger size again");
    bench.shadow.resize(usize_from(new), 0);
    bench.verify_all("after the disk grew again");
}
