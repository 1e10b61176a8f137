//! Space for blocks that somebody else gives out: the coordinator of a cluster volume.
//!
//! INV-100: the entry is in the file's table, and the space in the file, before the answer. So nothing of a block is
//! unpublished, the file's length and its footer at the end are not this image's, and the bits in the block's bitmap, which
//! begin as zeroes, say what of it is data: they reach the file after the data, as ever (INV-02).

use std::io;
use std::sync::Arc;

use vhd_block::DeviceError;

use super::error::IoContext;
use super::poison::Poison;
use super::sparse::Sparse;
use super::table::Slot;
use crate::format::TableEntry;
use crate::storage::StorageFile;
use crate::sync::{Mutex, lock};
use crate::units::{BlockIndex, FileOffset};

/// Gives out space for the blocks of an image that is open for writing.
pub trait BlockSource: Send + Sync {
    /// Space for `block`, and for others if that is likely to be needed: pairs of block and place in the file, in bytes, where
    /// its bitmap begins. All of them are in the file's table already. A block that had space keeps it; space that is new reads
    /// zero.
    ///
    /// # Errors
    /// [`NoBlock`]; the image's table is as it was.
    fn allocate(&self, block: u32) -> Result<Vec<(u32, u64)>, NoBlock>;
}

/// Why there is no space for a block.
#[derive(Debug)]
pub enum NoBlock {
    /// The right to write the image is lost: nothing is written to it any more.
    Lost {
        /// How that is known.
        reason: String,
    },
    /// It could not be had now.
    Failed(io::Error),
}

/// Where an image gets the space for its blocks.
pub(super) struct Granted {
    source: Arc<dyn BlockSource>,
    /// Held while it is asked.
    asking: Mutex<()>,
}

impl Granted {
    pub(super) fn new(source: Arc<dyn BlockSource>) -> Self {
        Self {
            source,
            asking: Mutex::new(()),
        }
    }

    pub(super) fn source(&self) -> Arc<dyn BlockSource> {
        Arc::clone(&self.source)
    }

    /// The slot of a block that has its space from here on.
    pub(super) fn slot(
        &self,
        sparse: &Sparse,
        poison: &Poison,
        file: &dyn StorageFile,
        block: BlockIndex,
    ) -> Result<Slot, DeviceError> {
        let _asking = lock(&self.asking);
        let slot = sparse.table.get(block);
        if slot.is_allocated() {
            return Ok(slot);
        }
        let given = match self.source.allocate(block.0) {
            Ok(given) => given,
            Err(NoBlock::Lost { reason }) => return poison.on_error(Err(DeviceError::FenceLost { reason })),
            Err(NoBlock::Failed(source)) => return Err(source).io_context("allocate a block", 0),
        };
        let end = file.len().io_context("find the length", 0)?;
        for (number, place) in given {
            let other = BlockIndex(number);
            if u64::from(number) >= sparse.blocks() || sparse.table.get(other).is_allocated() {
                continue;
            }
            sparse
                .table
                .allocate(other, Slot::published(entry_for(sparse, place, end)?));
        }
        match sparse.table.get(block) {
            slot if slot.is_allocated() => Ok(slot),
            _ => Err(refused(0, "the block is not among those that were given")),
        }
    }
}

/// The table entry for a place that was given, if a block can be there.
fn entry_for(sparse: &Sparse, place: u64, end: u64) -> Result<TableEntry, DeviceError> {
    let behind_table = sparse.table_offset + sparse.table.file_bytes();
    let inside = place >= behind_table
        && place
            .checked_add(sparse.layout.stored_bytes())
            .is_some_and(|block_end| block_end <= end);
    let entry = TableEntry::at(FileOffset(place)).filter(|_| inside);
    entry.ok_or_else(|| refused(place, "no block can be where one was given"))
}

fn refused(place: u64, reason: &str) -> DeviceError {
    DeviceError::Io {
        operation: "allocate a block",
        offset: place,
        source: io::Error::new(io::ErrorKind::InvalidData, reason),
    }
}
