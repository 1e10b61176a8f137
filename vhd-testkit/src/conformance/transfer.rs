//! Reads and writes of every alignment.

use std::io::{IoSlice, IoSliceMut};

use vhd_core::device::{ByteRange, ZeroOptions};

use super::{Bench, transfer_limit};

/// Ranges that meet the edges where devices go wrong: the start, the end, and multiples of powers of two.
fn edges(bench: &Bench) -> Vec<ByteRange> {
    let (block, size) = (bench.block, bench.size());
    let mut ranges = vec![
        ByteRange::new(0, block),
        ByteRange::new(size - block, block),
        ByteRange::new(size, 0),
    ];
    for shift in 12..22 {
        let middle = (1_u64 << shift).next_multiple_of(block);
        if middle + 2 * block <= size {
            ranges.push(ByteRange::new(middle - block, block));
            ranges.push(ByteRange::new(middle, block));
            ranges.push(ByteRange::new(middle - block, 3 * block));
        }
    }
    ranges
}

pub(super) fn reads(bench: &mut Bench) {
    bench.verify_all("initial content");
    for range in edges(bench) {
        bench.verify(range, "read at an edge");
    }
    let most = transfer_limit(&*bench.device) / bench.block;
    for step in 0..bench.steps {
        let range = bench.range(if step % 16 == 0 { most } else { most.min(40) });
        bench.verify(range, "random read");
    }
    bench
        .device
        .read_vectored_at(&mut [], 0)
        .expect("a read without buffers");
    bench
        .device
        .read_vectored_at(&mut [IoSliceMut::new(&mut [])], 0)
        .expect("a read of nothing");
}

pub(super) fn writes(bench: &mut Bench) {
    for range in edges(bench) {
        bench.write(range, false);
        bench.verify(range, "read after write at an edge");
    }
    bench.verify_all("writes at edges");
    // The whole disk, then again: every block is allocated, then every block is overwritten.
    for _ in 0..2 {
        let (size, step) = (bench.size(), transfer_limit(&*bench.device));
        for start in (0..size).step_by(vhd_core::units::usize_from(step)) {
            bench.write(ByteRange::new(start, step.min(size - start)), false);
        }
        bench.verify_all("the whole disk written");
    }
    bench
        .device
        .write_vectored_at(&[], 0, false)
        .expect("a write without buffers");
    bench
        .device
        .write_vectored_at(&[IoSlice::new(&[])], 0, true)
        .expect("a write of nothing");
    bench.verify_all("after empty writes");
}

/// Everything mixed, each step compared around its range, the whole disk at the end.
pub(super) fn script(bench: &mut Bench) {
    let most = (transfer_limit(&*bench.device) / bench.block).min(64);
    for _ in 0..bench.steps {
        let range = bench.range(most);
        match bench.random.u8(..8) {
            0 => {
                let options = ZeroOptions {
                    may_unmap: bench.random.bool(),
                    ..ZeroOptions::default()
                };
                bench.device.write_zeroes(range, options).expect("zeroes in a script");
                bench.part(range).fill(0);
            }
            1 => bench.device.flush().expect("flush in a script"),
            _ => {
                let fua = bench.random.u8(..8) == 0;
                bench.write(range, fua);
            }
        }
        let start = range.start.saturating_sub(bench.block);
        let end = (range.end() + bench.block).min(bench.size());
        bench.verify(ByteRange::new(start, end - start), "a step of a random script");
    }
    bench.verify_all("a random script");
}

pub(super) fn flush_and_fua(bench: &mut Bench) {
    bench.device.flush().expect("a flush of nothing");
    for round in 0..20 {
        let range = bench.range(8);
        bench.write(range, round % 2 == 0);
        bench.device.flush().expect("a flush");
        bench.device.flush().expect("a second flush");
        bench.verify(range, "read after flush");
    }
    let range = bench.range(8);
    let options = ZeroOptions {
        fua: true,
        ..ZeroOptions::default()
    };
    bench.device.write_zeroes(range, options).expect("zeroes with fua");
    bench.part(range).fill(0);
    bench.verify_all("flushes");
}
