//! The ranges that a child leaves to its parents and that may read differently over another one.

use std::collections::HashSet;

use crate::device::{ByteRange, Disk, LayeredDevice};
use crate::image::Image;
use crate::ops::OpsError;
use crate::ops::compare::Candidates as _;
use crate::ops::diff::{Files, Layers, Places};
use crate::storage::FileIdentity;

use crate::device::DeviceError;
use crate::ops::Progress;

/// Bytes that a thread compares at once.
const CHUNK: u64 = 1 << 20;

/// The files that a chain is read from.
pub(super) fn files_below(device: &LayeredDevice) -> Files {
    let layers = device.layers().iter();
    layers.map(|layer| FileIdentity::of_open(layer.file())).collect()
}

/// Hands the ranges out, ascending, each once.
pub(super) struct Wanted<'a> {
    places: Places<'a>,
    position: u64,
}

impl<'a> Wanted<'a> {
    pub(super) fn new(child: &'a Disk, parent: &'a Disk, layers: &'a Layers) -> Self {
        Self {
            places: Places::below_leaf(child, parent, layers),
            position: 0,
        }
    }

    /// The next range, at most a chunk, and none across the border of one: threads work on different blocks.
    pub(super) fn next(&mut self, progress: &dyn Progress) -> Result<Option<ByteRange>, OpsError> {
        let Some(range) = self.places.next(self.position)? else {
            progress.advance(self.places.size() - self.position);
            self.position = self.places.size();
            return Ok(None);
        };
        let border = (range.start / CHUNK + 1) * CHUNK;
        let end = range.end().min(border);
        progress.advance(end - self.position);
        self.position = end;
        Ok(Some(ByteRange::new(range.start, end - range.start)))
    }
}

/// The blocks of a child that have no space in its file.
pub(super) struct MissingBlocks {
    present: HashSet<u64>,
    pub(super) block_size: u64,
}

impl MissingBlocks {
    pub(super) fn of(child: &Image) -> Result<Self, DeviceError> {
        let arrangement = child.arrangement()?.ok_or(DeviceError::Unsupported("have a parent"))?;
        let blocks = arrangement.blocks.iter().map(|placed| u64::from(placed.block.0));
        Ok(Self {
            present: blocks.collect(),
            block_size: arrangement.layout.block_size(),
        })
    }

    /// Those that the range lies in.
    pub(super) fn in_range(&self, range: ByteRange) -> impl Iterator<Item = u64> + '_ {
        let blocks = range.start / self.block_size..range.end().div_ceil(self.block_size);
        blocks.filter(|block| !self.present.contains(block))
    }
}
