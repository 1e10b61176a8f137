//! READ: bytes from the disk into replies.

use std::io::{self, IoSliceMut};

use vhd_block::units::{u64_from, usize_from};
use vhd_block::{DeviceError, is_zero};

use super::budget::{PIECE, Piece};
use super::outbox::Outbox;
use super::rules::Refusal;
use super::session::Session;
use crate::protocol::{Chunk, CommandFlags, ReplyStyle, RequestHeader};

/// Bytes: zeroes shorter than this inside of data are sent as data. A chunk more costs the client more than they do.
const MIN_HOLE: usize = 32 << 10;

/// Answers requests to read.
pub(super) struct Reads<'a> {
    session: &'a Session<'a>,
}

/// A run of bytes that are all zero, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    len: usize,
    zero: bool,
}

impl<'a> Reads<'a> {
    pub(super) fn new(session: &'a Session<'a>) -> Self {
        Self { session }
    }

    /// Executes a request whose range has been checked, and puts its reply into `outbox`. Returns whether it succeeded.
    pub(super) fn execute(&self, request: &RequestHeader, outbox: &mut Outbox<'_>) -> io::Result<bool> {
        let len = usize_from(request.length);
        if len == 0 {
            return self.nothing(request, outbox);
        }
        let whole = outbox.style() == ReplyStyle::Simple || request.flags.contains(CommandFlags::DF);
        let read = match self.in_place(request, len, whole, outbox)? {
            Some(read) => read,
            None if whole => self.in_one_piece(request, len, outbox)?,
            None => return self.in_pieces(request, len, outbox),
        };
        match read {
            Ok(()) => Ok(true),
            Err(refusal) => {
                refuse(request, refusal, request.offset, outbox)?;
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

    /// Reads straight into the buffer that is sent; `None` if there is no room in it.
    fn in_place(
        &self,
        request: &RequestHeader,
        len: usize,
        whole: bool,
        outbox: &mut Outbox<'_>,
    ) -> io::Result<Option<Result<(), Refusal>>> {
        let Some(room) = outbox.room(len)? else {
            return Ok(None);
        };
        if let Err(error) = self.session.export.disk().read_at(room, request.offset) {
            return Ok(Some(Err(Refusal::from_device(&error))));
        }
        if !whole && is_zero(room) {
            outbox.chunk(request, true, &hole(request.offset, len))?;
        } else {
            outbox.commit(request, len);
        }
        Ok(Some(Ok(())))
    }

    fn in_one_piece(
        &self,
        request: &RequestHeader,
        len: usize,
        outbox: &mut Outbox<'_>,
    ) -> io::Result<Result<(), Refusal>> {
        let mut pieces = match self.session.take_pieces(len) {
            Ok(pieces) => pieces,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if let Err(error) = self.read_into(&mut pieces, request.offset, len) {
            return Ok(Err(Refusal::from_device(&error)));
        }
        let parts = pieces.iter().zip(lengths(len)).map(|(piece, len)| &piece[..len]);
        outbox.send_data(request, true, request.offset, len, parts).map(Ok)
    }

    fn read_into(&self, pieces: &mut [Piece], offset: u64, len: usize) -> Result<(), DeviceError> {
        let parts = pieces.iter_mut().zip(lengths(len));
        let mut bufs: Vec<_> = parts.map(|(piece, len)| IoSliceMut::new(&mut piece[..len])).collect();
        self.session.export.disk().read_vectored_at(&mut bufs, offset)
    }

    /// Reads and sends piece by piece, what is zero as holes: the data stays in the processor's cache on its way.
    fn in_pieces(&self, request: &RequestHeader, len: usize, outbox: &mut Outbox<'_>) -> io::Result<bool> {
        let mut pieces = match self.session.take_pieces(PIECE) {
            Ok(pieces) => pieces,
            Err(refusal) => {
                refuse(request, refusal, request.offset, outbox)?;
                return Ok(false);
            }
        };
        let buffer = &mut pieces[0];
        let mut done = 0;
        // A hole that may go on in the next piece.
        let mut pending = 0;
        while done < len {
            let piece = &mut buffer[..PIECE.min(len - done)];
            let offset = request.offset + u64_from(done);
            if let Err(error) = self.session.export.disk().read_at(piece, offset) {
                refuse(request, Refusal::from_device(&error), offset, outbox)?;
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
                    let data = [&piece[at..at + run.len]].into_iter();
                    outbox.send_data(request, last, place, run.len, data)?;
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

/// How `len` bytes lie in pieces.
fn lengths(len: usize) -> impl Iterator<Item = usize> {
    (0..len).step_by(PIECE).map(move |at| PIECE.min(len - at))
}

fn hole(offset: u64, len: usize) -> Chunk<'static> {
    let length = u32::try_from(len).expect("a request of bounded length");
    Chunk::OffsetHole { offset, length }
}

fn refuse(request: &RequestHeader, refusal: Refusal, offset: u64, outbox: &mut Outbox<'_>) -> io::Result<()> {
    let Refusal { errno, message } = refusal;
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
