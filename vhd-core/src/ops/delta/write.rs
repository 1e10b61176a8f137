//! Writing a delta front to back.

use std::io::{self, Write};
use std::sync::Arc;

use super::layout::Layout;
use crate::device::{ByteRange, Disk};
use crate::format::{DeltaRecord, DynamicHeader, Footer};
use crate::ops::zeroes::{ZERO_UNIT, for_each_data_run};
use crate::ops::{OpsError, Progress};
use crate::storage::StorageFile;
use crate::units::{BlockIndex, u64_from, usize_from};

/// Bytes of a block that are read and written at once.
const CHUNK: u64 = 1 << 20;

/// Everything that goes into the file.
pub(super) struct Parts<'a> {
    pub(super) image: &'a Disk,
    pub(super) footer: &'a Footer,
    pub(super) header: &'a DynamicHeader,
    pub(super) locators: &'a [(u64, Vec<u8>)],
    pub(super) record: &'a DeltaRecord,
    pub(super) layout: &'a Layout,
}

impl Parts<'_> {
    /// Writes the whole file, and flushes it.
    pub(super) fn write(&self, out: &mut dyn Write, progress: &dyn Progress) -> Result<(), OpsError> {
        let mut out = Counted { out, at: 0 };
        self.write_metadata(&mut out).map_err(OpsError::Output)?;
        let mut buffer = Vec::new();
        let size = self.header.layout.block_size();
        progress.begin(u64_from(self.layout.blocks.len()) * size);
        for placed in &self.layout.blocks {
            out.pad_to(placed.at.0).map_err(OpsError::Output)?;
            out.put(&self.layout.bitmap(placed.block)).map_err(OpsError::Output)?;
            self.write_block(placed.block, &mut out, &mut buffer)?;
            progress.advance(size);
        }
        out.pad_to(self.layout.footer_at).map_err(OpsError::Output)?;
        out.put(&self.footer.encode()).map_err(OpsError::Output)?;
        out.out.flush().map_err(OpsError::Output)
    }

    fn write_metadata(&self, out: &mut Counted<'_>) -> io::Result<()> {
        out.put(&self.footer.encode())?;
        out.put(&self.header.encode())?;
        out.pad_to(self.header.table_offset)?;
        out.put(&self.layout.table(self.header))?;
        for (offset, data) in self.locators {
            out.pad_to(*offset)?;
            out.put(data)?;
        }
        out.pad_to(self.layout.record_at)?;
        out.put(&self.record.encode())
    }

    /// The data of a block: what the delta holds of it, and zeroes where the bitmap is clear.
    fn write_block(&self, block: BlockIndex, out: &mut Counted<'_>, buffer: &mut Vec<u8>) -> Result<(), OpsError> {
        let range = self.layout.range_of(block);
        let mut at = range.start;
        while at < range.end() {
            let chunk = ByteRange::new(at, CHUNK.min(range.end() - at));
            buffer.clear();
            buffer.resize(usize_from(chunk.len), 0);
            for held in self.layout.held(chunk) {
                let within = usize_from(held.start - at);
                let part = &mut buffer[within..within + usize_from(held.len)];
                self.image.read_at(part, held.start).map_err(OpsError::Source)?;
            }
            out.put(buffer).map_err(OpsError::Output)?;
            at = chunk.end();
        }
        Ok(())
    }
}

/// A stream that knows how much was written.
struct Counted<'a> {
    out: &'a mut dyn Write,
    at: u64,
}

impl Counted<'_> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.at += u64_from(bytes.len());
        Ok(())
    }

    /// Writes zeroes up to an offset.
    fn pad_to(&mut self, offset: u64) -> io::Result<()> {
        const ZEROES: [u8; 4096] = [0; 4096];
        while self.at < offset {
            let len = usize_from(offset - self.at).min(ZEROES.len());
            self.put(&ZEROES[..len])?;
        }
        Ok(())
    }
}

/// A file as a stream that leaves holes for zeroes. What is written last must not be zero.
pub(super) struct SparseStream {
    file: Arc<dyn StorageFile>,
    at: u64,
}

impl SparseStream {
    /// Writes to the empty `file` from its start.
    pub(super) fn new(file: Arc<dyn StorageFile>) -> Self {
        Self { file, at: 0 }
    }
}

impl Write for SparseStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Up to the next unit of the file first: a block's data does not begin where a buffer does.
        let unit = u64_from(ZERO_UNIT);
        let head = bytes.len().min(usize_from((unit - self.at % unit) % unit));
        for (at, part) in [(0, &bytes[..head]), (head, &bytes[head..])] {
            for_each_data_run(part, |run| {
                let offset = self.at + u64_from(at + run.start);
                self.file.write_all_at(&part[run], offset)
            })?;
        }
        self.at += u64_from(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
