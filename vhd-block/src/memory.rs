//! Memory of callers of which no slice may be made: a guest's, a ring's.
//!
//! Rust's slices promise that nobody else changes the bytes. For memory that is shared with somebody nobody can promise that,
//! so it is filled and taken by calls of the system on raw vectors, which need unsafe code. There is none in this crate:
//! whoever has such memory makes the call, on the descriptor and the range of the file that he is given here.

use std::io;
use std::os::fd::BorrowedFd;

use crate::spans::failed;
use crate::units::{u64_from, usize_from};
use crate::{ByteRange, DeviceError, Disk, ReadSpan};

/// Bytes that are moved at once where memory can't be reached by a call on a file.
const BOUNCE: u64 = 256 << 10;

/// Memory that is filled from a disk. Offsets `at` are from its beginning.
pub trait ReadTarget {
    /// Reads at most `len` bytes at `offset` of a file into the memory at `at` (preadv); returns how many.
    ///
    /// # Errors
    /// The system's. An interrupted call is repeated.
    fn read_from(&mut self, file: BorrowedFd<'_>, offset: u64, at: u64, len: u64) -> io::Result<u64>;

    /// Copies bytes to the memory at `at`.
    ///
    /// # Errors
    /// There is no such memory.
    fn fill(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;
}

/// Memory that is written to a disk. Offsets `at` are from its beginning.
pub trait WriteSource {
    /// Writes at most `len` bytes from the memory at `at` to `offset` of a file (pwritev); returns how many.
    ///
    /// # Errors
    /// The system's. An interrupted call is repeated.
    fn write_to(&self, file: BorrowedFd<'_>, offset: u64, at: u64, len: u64) -> io::Result<u64>;

    /// Copies bytes from the memory at `at`.
    ///
    /// # Errors
    /// There is no such memory.
    fn take(&self, at: u64, bytes: &mut [u8]) -> io::Result<()>;
}

impl Disk {
    /// Fills a caller's memory with a range of the disk, without a copy where the disk is in a file.
    ///
    /// # Errors
    /// Those of [`read_at`](Self::read_at), and those of `target` as [`DeviceError::Io`].
    pub fn read_into(&self, range: ByteRange, target: &mut dyn ReadTarget) -> Result<(), DeviceError> {
        let mut bounce = Vec::new();
        let mut done = 0;
        while done < range.len {
            let rest = ByteRange::new(range.start + done, range.len - done);
            let span = match self.info().capabilities.resolve {
                true => self.resolve_read(rest)?,
                false => {
                    let bytes = part_of(&mut bounce, rest.len);
                    self.read_at(bytes, rest.start)?;
                    target.fill(done, bytes).map_err(failed("pass on", rest.start))?;
                    done += u64_from(bytes.len());
                    continue;
                }
            };
            fill(target, &span, done, &mut bounce)?;
            done += span.len();
        }
        Ok(())
    }

    /// Writes a caller's memory to a range of the disk, without a copy where the disk is in a file and the range in whole
    /// blocks; with `fua` it is durable on return.
    ///
    /// Memory that changes meanwhile is written as it is at some moment, sector by sector.
    ///
    /// # Errors
    /// Those of [`write_at`](Self::write_at), and those of `source` as [`DeviceError::Io`].
    pub fn write_from(&self, range: ByteRange, source: &dyn WriteSource, fua: bool) -> Result<(), DeviceError> {
        let spans = self.info().capabilities.resolve && self.is_aligned(range.start, range.len);
        let mut bounce = Vec::new();
        let mut done = 0;
        while done < range.len {
            let rest = ByteRange::new(range.start + done, range.len - done);
            done += match spans {
                true => self.write_span(rest, source, done, &mut bounce)?,
                false => {
                    let bytes = part_of(&mut bounce, rest.len);
                    source.take(done, bytes).map_err(failed("take", rest.start))?;
                    self.write_at(bytes, rest.start)?;
                    u64_from(bytes.len())
                }
            };
        }
        if fua { self.flush() } else { Ok(()) }
    }

    fn write_span(
        &self,
        range: ByteRange,
        source: &dyn WriteSource,
        at: u64,
        bounce: &mut Vec<u8>,
    ) -> Result<u64, DeviceError> {
        let span = self.resolve_write(range)?;
        let (offset, len) = (span.offset(), span.len());
        let mut done = 0;
        while done < len {
            done += match span.file().descriptor(offset + done, len - done) {
                Some(file) => {
                    let wrote = source.write_to(file, offset + done, at + done, len - done);
                    some(wrote, io::ErrorKind::WriteZero).map_err(failed("write", offset + done))?
                }
                None => {
                    let bytes = part_of(bounce, len - done);
                    source
                        .take(at + done, bytes)
                        .map_err(failed("take", range.start + done))?;
                    span.file().write_all_at(bytes, offset + done)?;
                    u64_from(bytes.len())
                }
            };
        }
        span.complete()?;
        Ok(len)
    }
}

fn fill(target: &mut dyn ReadTarget, span: &ReadSpan, at: u64, bounce: &mut Vec<u8>) -> Result<(), DeviceError> {
    let len = span.len();
    let mut done = 0;
    while done < len {
        done += match span {
            ReadSpan::Data { file, offset, .. } => match file.descriptor(offset + done, len - done) {
                Some(found) => {
                    let read = target.read_from(found, offset + done, at + done, len - done);
                    some(read, io::ErrorKind::UnexpectedEof).map_err(failed("read", offset + done))?
                }
                None => {
                    let bytes = part_of(bounce, len - done);
                    file.read_exact_at(bytes, offset + done)?;
                    target
                        .fill(at + done, bytes)
                        .map_err(failed("pass on", offset + done))?;
                    u64_from(bytes.len())
                }
            },
            ReadSpan::Zero { .. } => {
                let bytes = part_of(bounce, len - done);
                bytes.fill(0);
                target.fill(at + done, bytes).map_err(failed("pass on", 0))?;
                u64_from(bytes.len())
            }
        };
    }
    Ok(())
}

/// A call that moves nothing would be repeated for ever.
fn some(moved: io::Result<u64>, nothing: io::ErrorKind) -> io::Result<u64> {
    match moved {
        Ok(0) => Err(nothing.into()),
        other => other,
    }
}

/// A buffer for the first of `len` bytes.
fn part_of(bounce: &mut Vec<u8>, len: u64) -> &mut [u8] {
    let len = usize_from(len.min(BOUNCE));
    if bounce.len() < len {
        bounce.resize(len, 0);
    }
    &mut bounce[..len]
}
