//! Random work for a disk, the same for the same seed.

use std::io::IoSlice;

use vhd_core::device::{BlockDevice, ByteRange, DeviceError, ZeroOptions};
use vhd_core::units::usize_from;

use crate::bytes::pattern;
use crate::model::{CrashModel, FlushMark};
use crate::rng::rng;

/// One step of work on a disk. `fill` is the generation of the pattern that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Write the pattern.
    Write {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Generation of the pattern.
        fill: u64,
    },
    /// Write the pattern, durable on return.
    FuaWrite {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Generation of the pattern.
        fill: u64,
    },
    /// Write zeroes.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The space may be given back.
        may_unmap: bool,
    },
    /// Discard.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Make everything durable.
    Flush,
    /// Close the disk properly and open it again: for the caller to do.
    Reopen,
}

/// What [`Op::begin`] tells [`Op::end`].
#[derive(Debug)]
#[must_use = "hand it to `Op::end` when the operation returned"]
pub struct Begun {
    mark: FlushMark,
}

impl Op {
    /// Does it to `device`; [`Op::Reopen`] only flushes.
    ///
    /// # Errors
    /// Those of the device.
    pub fn run(&self, device: &dyn BlockDevice) -> Result<(), DeviceError> {
        match *self {
            Self::Write { offset, len, fill } => write(device, offset, len, fill, false),
            Self::FuaWrite { offset, len, fill } => write(device, offset, len, fill, true),
            Self::WriteZeroes { offset, len, may_unmap } => device.write_zeroes(
                ByteRange::new(offset, len),
                ZeroOptions {
                    may_unmap,
                    ..ZeroOptions::default()
                },
            ),
            Self::Discard { offset, len } => device.discard(ByteRange::new(offset, len)),
            Self::Flush | Self::Reopen => device.flush(),
        }
    }

    /// Tells `model` before the device gets the operation: from here a crash may leave any part of it.
    pub fn begin(&self, model: &mut CrashModel) -> Begun {
        match *self {
            Self::Write { offset, len, fill } | Self::FuaWrite { offset, len, fill } => {
                model.write(offset, &pattern(offset, usize_from(len), fill));
            }
            Self::WriteZeroes { offset, len, .. } => model.write_zeroes(offset, len),
            Self::Discard { offset, len } => model.discard(offset, len),
            Self::Flush | Self::Reopen => {}
        }
        Begun {
            mark: model.begin_flush(),
        }
    }

    /// Tells `model` that the operation returned without an error.
    pub fn end(&self, model: &mut CrashModel, begun: Begun) {
        match *self {
            Self::FuaWrite { offset, len, .. } => model.durable(offset, len),
            Self::Flush | Self::Reopen => model.end_flush(begun.mark),
            Self::Write { .. } | Self::WriteZeroes { .. } | Self::Discard { .. } => {}
        }
    }
}

fn write(device: &dyn BlockDevice, offset: u64, len: u64, fill: u64, fua: bool) -> Result<(), DeviceError> {
    device.write_vectored_at(&[IoSlice::new(&pattern(offset, usize_from(len), fill))], offset, fua)
}

/// The disk that a workload is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes of an allocation block: some operations cover exactly one, some cross from one to the next.
    pub block: u64,
    /// Bytes that every offset and length is a multiple of.
    pub unit: u64,
    /// How many of the blocks the work keeps coming back to.
    pub hot_blocks: u64,
}

impl Geometry {
    /// A disk with sectors of 512 bytes and work on four blocks, mostly.
    #[must_use]
    pub const fn new(size: u64, block: u64) -> Self {
        Self {
            size,
            block,
            unit: 512,
            hot_blocks: 4,
        }
    }

    fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block)
    }

    /// A range in units, not empty and inside the disk, from four numbers of any value.
    fn range(&self, how: u64, block: u64, start: u64, len: u64) -> (u64, u64) {
        let first = block % self.blocks() * self.block;
        let in_block = self.block / self.unit;
        let (offset, len) = match how % 8 {
            // A whole block; from inside a block into the next; a few units inside.
            0 => (first, self.block),
            1 => (
                first + (in_block - 1 - start % in_block.min(8)) * self.unit,
                (2 + len % 15) * self.unit,
            ),
            2 => (first + start % in_block * self.unit, (1 + len % in_block) * self.unit),
            _ => (first + start % in_block * self.unit, (1 + len % 4) * self.unit),
        };
        let offset = offset.min(self.size - self.unit);
        (offset, len.min(self.size - offset))
    }
}

/// An endless stream of operations. Each write has a generation of its own.
#[derive(Clone, Debug)]
pub struct Workload {
    random: fastrand::Rng,
    geometry: Geometry,
    hot: Vec<u64>,
    fill: u64,
}

impl Workload {
    /// The work of `seed` on a disk of this geometry.
    ///
    /// # Panics
    /// When the disk or its blocks are not made of whole units, or there are none.
    #[must_use]
    pub fn new(seed: u64, geometry: Geometry) -> Self {
        let Geometry {
            size,
            block,
            unit,
            hot_blocks,
        } = geometry;
        assert!(unit > 0 && block >= unit && size >= unit, "{geometry:?} has no room");
        assert!(
            size.is_multiple_of(unit) && block.is_multiple_of(unit),
            "{geometry:?} is not made of whole units"
        );
        let mut random = rng(seed);
        let hot = (0..hot_blocks.max(1))
            .map(|_| random.u64(..geometry.blocks()))
            .collect();
        Self {
            random,
            geometry,
            hot,
            fill: 0,
        }
    }

    fn range(&mut self) -> (u64, u64) {
        let random = &mut self.random;
        let cold = random.u8(..10) == 0;
        let block = if cold {
            random.u64(..)
        } else {
            self.hot[random.usize(..self.hot.len())]
        };
        self.geometry
            .range(random.u64(..), block, random.u64(..), random.u64(..))
    }
}

impl Iterator for Workload {
    type Item = Op;

    fn next(&mut self) -> Option<Op> {
        let (offset, len) = self.range();
        self.fill += 1;
        let fill = self.fill;
        Some(match self.random.u8(..100) {
            0..60 => Op::Write { offset, len, fill },
            60..68 => Op::FuaWrite { offset, len, fill },
            68..76 => Op::WriteZeroes {
                offset,
                len,
                may_unmap: self.random.bool(),
            },
            76..82 => Op::Discard { offset, len },
            82..97 => Op::Flush,
            _ => Op::Reopen,
        })
    }
}

/// A `proptest` strategy for scripts of up to `most` operations; it shrinks to fewer and simpler ones.
/// Give the writes different generations with [`number_fills`], so that a failure can tell them apart.
#[cfg(feature = "proptest")]
pub fn ops(geometry: Geometry, most: usize) -> impl proptest::strategy::Strategy<Value = Vec<Op>> {
    use proptest::prelude::*;
    let numbers = (
        0..100_u8,
        0..8_u64,
        0..geometry.blocks(),
        0..1_u64 << 16,
        0..1_u64 << 16,
    );
    let op = numbers.prop_map(move |(kind, how, block, start, len)| {
        // Small numbers are the simple cases, for that is where shrinking goes.
        let (offset, len) = geometry.range(7 - how, block, start, len);
        match kind {
            0..60 => Op::Write { offset, len, fill: 1 },
            60..75 => Op::Flush,
            75..83 => Op::FuaWrite { offset, len, fill: 1 },
            83..91 => Op::WriteZeroes {
                offset,
                len,
                may_unmap: how.is_multiple_of(2),
            },
            91..97 => Op::Discard { offset, len },
            _ => Op::Reopen,
        }
    });
    proptest::collection::vec(op, 0..=most).prop_map(number_fills)
}

/// Numbers the generations of the writes from 1.
#[must_use]
pub fn number_fills(mut ops: Vec<Op>) -> Vec<Op> {
    let mut next = 0;
    for op in &mut ops {
        if let Op::Write { fill, .. } | Op::FuaWrite { fill, .. } = op {
            next += 1;
            *fill = next;
        }
    }
    ops
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelDisk;

    const GEOMETRY: Geometry = Geometry::new(8 * 4096 + 1024, 4096);

    #[test]
    fn equal_seeds_give_equal_work_inside_the_disk() {
        let work = |seed| Workload::new(seed, GEOMETRY).take(5000).collect::<Vec<_>>();
        assert_eq!(work(3), work(3));
        assert_ne!(work(3), work(4));
        let disk = ModelDisk::new(GEOMETRY.size);
        work(3).iter().for_each(|op| op.run(&disk).unwrap());
    }

    #[test]
    fn the_model_agrees_with_the_simplest_disk() {
        let (disk, mut model) = (ModelDisk::new(GEOMETRY.size), CrashModel::new(GEOMETRY.size));
        for op in Workload::new(5, GEOMETRY).take(1000) {
            let begun = op.begin(&mut model);
            model.check(&disk.bytes()).unwrap();
            op.run(&disk).unwrap();
            op.end(&mut model, begun);
            model.check(&disk.bytes()).unwrap();
            model.check_now(&disk.bytes()).unwrap();
        }
    }

    #[cfg(feature = "proptest")]
    proptest::proptest! {
        #[test]
        fn scripts_stay_inside_the_disk(script in ops(GEOMETRY, 40)) {
            let disk = ModelDisk::new(GEOMETRY.size);
            script.iter().for_each(|op| op.run(&disk).unwrap());
        }
    }
}
