//! The file that an image is in.

use std::io::{self, IoSliceMut};

/// Whether the bytes at a file offset are stored or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Stored bytes (they may be zero).
    Data,
    /// A hole: reads zero and takes no space.
    Hole,
}

/// The file that an image is in, for reading. All calls are positional and take `&self`.
#[expect(
    clippy::len_without_is_empty,
    reason = "a file asks the system for its length, and that can fail"
)]
pub trait ImageFile: Send + Sync {
    /// Fills `buf` from `offset`; an end of file inside is `UnexpectedEof`.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Fills `bufs` in turn from `offset`.
    fn read_exact_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for buf in bufs {
            self.read_exact_at(buf, at)?;
            at += vhd_block::units::u64_from(buf.len());
        }
        Ok(())
    }

    /// The length of the file in bytes.
    fn len(&self) -> io::Result<u64>;

    /// What stands at `offset`, and where that ends. Files that do not know are one segment of data.
    fn segment_at(&self, offset: u64) -> io::Result<(Segment, u64)> {
        Ok((Segment::Data, self.len()?.max(offset)))
    }
}

impl ImageFile for Vec<u8> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        let bytes = self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(vhd_block::units::u64_from(self.as_slice().len()))
    }
}
