//! Room for a larger table, by a holder who has the image to himself.
//!
//! docs/resize.md has the order in which it is used (INV-26).

use vhd_block::DeviceError;

use super::error::IoContext;
use super::{FooterSource, Image};
use crate::format::{ENTRIES_PER_SECTOR, FOOTER_SIZE, table_bytes};
use crate::units::{FileOffset, SECTOR_SIZE, u64_from};

/// Sectors of the table that are written at once.
const BATCH: u64 = 128;

impl Image {
    /// Puts the tail footer at `end`, behind everything that the file has, durably, and clears the former one.
    /// What lies between reads zero.
    pub(crate) fn extend(&mut self, end: u64) -> Result<(), DeviceError> {
        let result = self.check_exclusive().and_then(|()| self.move_footer(end));
        self.poison_on_error(result)
    }

    fn move_footer(&mut self, end: u64) -> Result<(), DeviceError> {
        let file_len = self.file_len()?;
        let former = self.tail_offset(file_len);
        self.file
            .write_all_at(&self.footers.raw, end)
            .io_context("write the footer", end)?;
        // INV-03: the footer at the new end is durable before the one at the old end goes.
        self.file.sync().io_context("sync", end)?;
        let len = u64_from(FOOTER_SIZE).min(end - former);
        self.footers.source = FooterSource::Tail(FileOffset(end));
        crate::storage::clear_range(&*self.file, former, len).io_context("clear a former footer", former)
    }

    /// Writes a table of `entries` entries at `table_offset`: those of the present one from block `first` on, and
    /// behind them unused ones. Not durable before the next [`barrier`](Image::barrier).
    pub(crate) fn write_table(&mut self, table_offset: u64, first: u64, entries: u64) -> Result<(), DeviceError> {
        let result = self
            .check_exclusive()
            .and_then(|()| self.write_sectors(table_offset, first, entries));
        self.poison_on_error(result)
    }

    fn write_sectors(&self, table_offset: u64, first: u64, entries: u64) -> Result<(), DeviceError> {
        let Some(sparse) = self.sparse() else { return Ok(()) };
        let mut sector = first / u64_from(ENTRIES_PER_SECTOR);
        let end = table_bytes(entries) / SECTOR_SIZE;
        while sector < end {
            let next = end.min(sector + BATCH);
            let mut bytes = Vec::new();
            (sector..next).for_each(|sector| sparse.table.encode_sector(sector, &mut bytes));
            let offset = table_offset + sector * SECTOR_SIZE;
            self.file
                .write_all_at(&bytes, offset)
                .io_context("write the block table", offset)?;
            sector = next;
        }
        Ok(())
    }

    fn check_exclusive(&self) -> Result<(), DeviceError> {
        let (_, writer) = self.writer().ok_or(DeviceError::ReadOnly)?;
        writer.poison.check()?;
        writer.check_fence()
    }
}
