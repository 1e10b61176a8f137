//! What a table is read from.

use std::io;
use std::ops::Range;

use crate::TableError;

/// Bytes of a sector on every VHD; the unit of an MBR.
pub(crate) const SECTOR: u64 = 512;
/// Sector sizes that a GPT can count in.
pub(crate) const SECTOR_SIZES: [u64; 2] = [SECTOR, 4096];

/// A disk that can be read.
pub trait ReadAt {
    /// Bytes on the disk.
    fn size(&self) -> u64;

    /// Fills `buf` from byte `offset`; the range is inside the disk.
    ///
    /// # Errors
    /// If the bytes cannot be read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> u64 {
        u64_from(self.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(buf.len())?));
        let bytes = range.and_then(|range| self.get(range));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// `len` bytes from `offset`; `None` if they are not all inside the disk. Callers bound `len`.
pub(crate) fn read(disk: &dyn ReadAt, offset: u64, len: u64) -> Result<Option<Vec<u8>>, TableError> {
    if offset.checked_add(len).is_none_or(|end| end > disk.size()) {
        return Ok(None);
    }
    let mut bytes = vec![0; usize_from(len)];
    disk.read_at(&mut bytes, offset).map_err(TableError::Read)?;
    Ok(Some(bytes))
}

/// Whether two ranges share a byte.
pub(crate) fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

pub(crate) fn u64_from(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// A number that is known to be small.
pub(crate) fn usize_from(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
