//! Zeroes and discards.

use vhd_core::device::{ByteRange, DeviceError, ZeroOptions};
use vhd_core::units::usize_from;

use super::{Bench, read_all};
use crate::bytes::{identify, is_zero};

const MODES: [(bool, bool); 4] = [(false, false), (true, false), (false, true), (true, true)];

/// Few blocks, many blocks, and the whole disk; over data and over what is zero already.
fn ranges(bench: &mut Bench) -> Vec<ByteRange> {
    let whole = ByteRange::new(0, bench.size());
    let mut ranges: Vec<ByteRange> = (0..10).map(|_| bench.range(6)).collect();
    ranges.extend((0..4).map(|_| bench.range(u64::MAX)));
    ranges.push(whole);
    ranges
}

pub(super) fn zeroes(bench: &mut Bench) {
    for (may_unmap, fast_only) in MODES {
        for range in ranges(bench) {
            write_around(bench, range);
            let options = ZeroOptions {
                may_unmap,
                fast_only,
                fua: bench.random.bool(),
            };
            match bench.device.write_zeroes(range, options) {
                Ok(()) => bench.part(range).fill(0),
                // The quick part may have been done: the caller did not want the old content.
                Err(DeviceError::NotFast) if fast_only => adopt(bench, range, "refused fast zeroes"),
                Err(error) => panic!("zeroes {options:?} on {range:?}: {error}"),
            }
            bench.verify_all(&format!("zeroes {options:?} on {range:x?}"));
        }
        let range = bench.range(8);
        bench.write(range, false);
        bench.verify(range, "a write over zeroes");
    }
}

/// Writes over both ends of the range: something to zero, and neighbours that must survive.
fn write_around(bench: &mut Bench, range: ByteRange) {
    for edge in [range.start, range.end()] {
        let start = edge.saturating_sub(bench.block).min(bench.size() - 2 * bench.block);
        bench.write(ByteRange::new(start, 2 * bench.block), false);
    }
}

pub(super) fn discards(bench: &mut Bench) {
    let capable = bench.device.info().capabilities.discard;
    for range in ranges(bench) {
        write_around(bench, range);
        match bench.device.discard(range) {
            Ok(()) => adopt(bench, range, "a discard"),
            Err(DeviceError::Unsupported(_)) if !capable => {}
            Err(error) => panic!("discard of {range:?} (capability {capable}): {error}"),
        }
        bench.verify_all(&format!("the disk after a discard of {range:x?}, read again"));
        let range = bench.range(8);
        bench.write(range, false);
        bench.verify_all("a write after a discard");
    }
}

/// Each block of the range reads zero or as before; from here on it must stay what it is now.
fn adopt(bench: &mut Bench, range: ByteRange, what: &str) {
    let found = read_all(&*bench.device);
    let block = usize_from(bench.block);
    for start in (usize_from(range.start)..usize_from(range.end())).step_by(block) {
        let (now, before) = (&found[start..start + block], &bench.shadow[start..start + block]);
        let told = identify(now);
        assert!(
            is_zero(now) || now == before,
            "after {what} {start:#x} is neither zero nor as before: {told}"
        );
    }
    let (start, end) = (usize_from(range.start), usize_from(range.end()));
    bench.part(range).copy_from_slice(&found[start..end]);
}
