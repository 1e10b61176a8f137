//! READ: bytes from the disk into replies.

use std::io;

use vhd_block::is_zero;
use vhd_block::units::{u64_from, usize_from};
use vhd_block::{DeviceError, Disk};

use super::outbox::{MAX_IN_PLACE, Outbox};
use super::rules::Refusal;
use crate::protocol::{Chunk, CommandFlags, ReplyStyle, RequestHeader};

/// Bytes of a long read that are in memory at once, unless it must be answered in one piece.
const PIECE: usize = 256 << 10;

/// Bytes: zeroes shorter than this inside of data are sent as data. A chunk more costs the client more than they do.
const MIN_HOLE: usize = 32 << 10;

/// Bytes; a longer buffer is given back after its use.
const KEEP: usize = 1 << 20;

/// Answers requests to read.
pub(super) struct Reads<'a> {
    disk: &'a Disk,
    /// For data that does not fit the outbox.
    scratch: Vec<u8>,
}

/// A run of bytes that are all zero, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    len: usize,
    zero: bool,
}

impl<'a> Reads<'a> {
    pub(super) fn new(disk: &'a Disk) -> Self {
        Self {
            disk,
            scratch: Vec::new(),
        }
    }

    /// Executes a request whose range has been checked, and puts its reply into `outbox`. Returns whether it succeeded.
    pub(super) fn execute(&mut self, request: &RequestHeader, outbox: &mut Outbox<'_>) -> io::Result<bool> {
        let len = usize_from(request.length);
        let whole = outbox.style() == ReplyStyle::Simple || request.flags.contains(CommandFlags::DF);
        let read = match len {
            0 => return self.nothing(request, outbox),
            1..=MAX_IN_PLACE => self.in_place(request, len, whole, outbox)?,
            _ if whole => self.in_one_piece(request, len, outbox)?,
            _ => return self.in_pieces(request, len, outbox),
        };
        match read {
            Ok(()) => Ok(true),
            Err(error) => {
                refuse(request, &error, request.offset, outbox)?;
                Ok(false)
            }
        }
    }

    fn nothing(&self, request: &RequestHeader, outbox: &mut Outbox<'_>) -> io::Result<bool> {
        if outbox.style() == ReplyStyle::Simple {
            outbox.done(request)?;
        } else {
            outbox.chunk(request, true, &Chunk::None)?;
        }
        Ok(true)
    }

    /// Reads straight into the buffer that is sent.
    fn in_place(
        &self,
        request: &RequestHeader,
        len: usize,
        whole: bool,
        outbox: &mut Outbox<'_>,
    ) -> io::Result<Result<(), DeviceError>> {
        let room = outbox.room(len)?;
        if let Err(error) = self.disk.read_at(room, request.offset) {
            return Ok(Err(error));
        }
        if !whole && is_zero(room) {
            outbox.chunk(request, true, &hole(request.offset, len))?;
        } else {
            outbox.commit(request, len);
        }
        Ok(Ok(()))
    }

    fn in_one_piece(
        &mut self,
        request: &RequestHeader,
        len: usize,
        outbox: &mut Outbox<'_>,
    ) -> io::Result<Result<(), DeviceError>> {
        let buffer = filled(&mut self.scratch, len);
        let read = self.disk.read_at(buffer, request.offset);
        if read.is_ok() {
            outbox.send_data(request, true, request.offset, buffer)?;
        }
        if self.scratch.len() > KEEP {
            self.scratch = Vec::new();
        }
        Ok(read)
    }

    /// Reads and sends piece by piece, what is zero as holes: the data stays in the processor's cache on its way.
    fn in_pieces(&mut self, request: &RequestHeader, len: usize, outbox: &mut Outbox<'_>) -> io::Result<bool> {
        let buffer = filled(&mut self.scratch, PIECE);
        let mut done = 0;
        // A hole that may go on in the next piece.
        let mut pending = 0;
        while done < len {
            let piece = &mut buffer[..PIECE.min(len - done)];
            let offset = request.offset + u64_from(done);
            if let Err(error) = self.disk.read_at(piece, offset) {
                refuse(request, &error, offset, outbox)?;
                return Ok(false);
            }
            let mut at = 0;
            for run in runs(piece) {
                let place = offset + u64_from(at);
                if run.zero {
                    pending += run.len;
                } else {
                    if pending > 0 {
                        let start = place - u64_from(pending);
                        outbox.chunk(request, false, &hole(start, std::mem::take(&mut pending)))?;
                    }
                    let last = done + at + run.len == len;
                    outbox.send_data(request, last, place, &piece[at..at + run.len])?;
                }
                at += run.len;
            }
            done += piece.len();
        }
        if pending > 0 {
            let start = request.offset + u64_from(len - pending);
            outbox.chunk(request, true, &hole(start, pending))?;
        }
        Ok(true)
    }
}

fn filled(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        // Not resized: new zeroes come without being written.
        *buffer = vec![0; len];
    }
    &mut buffer[..len]
}

fn hole(offset: u64, len: usize) -> Chunk<'static> {
    let length = u32::try_from(len).expect("a request of bounded length");
    Chunk::OffsetHole { offset, length }
}

fn refuse(request: &RequestHeader, error: &DeviceError, offset: u64, outbox: &mut Outbox<'_>) -> io::Result<()> {
    let Refusal { errno, message } = Refusal::from_device(error);
    outbox.error(request, errno, message, Some(offset))
}

/// The runs of a piece; those of zeroes have at least [`MIN_HOLE`] bytes.
fn runs(piece: &[u8]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for part in piece.chunks(MIN_HOLE) {
        let (len, zero) = (part.len(), is_zero(part));
        match runs.last_mut() {
            Some(last) if last.zero == zero => last.len += len,
            _ => runs.push(Run { len, zero }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_a_piece() {
        let mut piece = vec![0; 4 * MIN_HOLE + 5];
        let run = |len, zero| Run { len, zero };
        assert_eq!(runs(&piece), [run(piece.len(), true)]);
        piece[MIN_HOLE] = 1;
        piece[2 * MIN_HOLE] = 1;
        let expected = [run(MIN_HOLE, true), run(2 * MIN_HOLE, false), run(MIN_HOLE + 5, true)];
        assert_eq!(runs(&piece), expected);
        assert_eq!(runs(&[]), []);
    }
}
