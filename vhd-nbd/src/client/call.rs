//! A request that waits for its reply, and what the reply brings.

use std::io::IoSliceMut;

use vhd_block::units::{u64_from, usize_from};
use vhd_block::{ByteRange, scatter};

use super::broken::Break;
use super::inbox::Receiver;
use crate::protocol::{
    Chunk, ChunkHeader, ChunkType, Descriptor, Errno, MAX_DESCRIPTORS, MetaContextId, ReplyFlags, ReplyHeader,
    ReplyStyle,
};

/// Parts that a read may come in before they join: more would only cost memory.
const MAX_PARTS: usize = 4096;

/// Bytes; the payload of the longest error: number, length, text, offset.
const MAX_ERROR: usize = 4 + 2 + u16::MAX as usize + 8;

/// Bytes; the payload of the longest list of extents.
const MAX_STATUS: usize = 8 + 2 * MAX_DESCRIPTORS * 16;

/// What a server answers instead of doing it.
#[derive(Clone, Debug)]
pub(super) struct ServerError {
    pub(super) errno: Errno,
    /// What it says about it; may be empty.
    pub(super) message: String,
}

/// What a request is to bring.
pub(super) enum Wanted<'w, 'b> {
    /// That it is done.
    Nothing,
    /// Bytes of the export.
    Bytes(Bytes<'w, 'b>),
    /// Extents in a context.
    Status(MetaContextId, &'w mut Vec<Descriptor>),
}

/// Where the bytes of a read belong.
pub(super) struct Bytes<'w, 'b> {
    pub(super) bufs: &'w mut [IoSliceMut<'b>],
    /// How far into the buffers the range begins.
    pub(super) skip: usize,
    /// The bytes of the export.
    pub(super) range: ByteRange,
    /// What has arrived, as offsets of start and end, ascending and apart from one another.
    arrived: Vec<(u64, u64)>,
}

/// A request that waits for its reply.
pub(super) struct Call<'w, 'b> {
    wanted: Wanted<'w, 'b>,
    /// The offset of the request, which long headers of replies repeat.
    offset: u64,
    error: Option<ServerError>,
}

impl<'w, 'b> Call<'w, 'b> {
    pub(super) fn new(wanted: Wanted<'w, 'b>) -> Self {
        Self {
            wanted,
            offset: 0,
            error: None,
        }
    }

    /// The request with this offset is sent, perhaps again: what came is forgotten.
    pub(super) fn begin(&mut self, offset: u64) {
        self.offset = offset;
        self.error = None;
        match &mut self.wanted {
            Wanted::Nothing => {}
            Wanted::Bytes(bytes) => bytes.arrived.clear(),
            Wanted::Status(_, descriptors) => descriptors.clear(),
        }
    }

    /// How the server answered, after all of it has come.
    pub(super) fn result(&mut self) -> Result<(), ServerError> {
        self.error.take().map_or(Ok(()), Err)
    }

    /// Takes what follows a header; `true` if the reply is whole.
    pub(super) fn take(
        &mut self,
        header: ReplyHeader,
        style: ReplyStyle,
        receiver: &mut Receiver<'_>,
    ) -> Result<bool, Break> {
        let whole = match header {
            ReplyHeader::Chunk(header) => {
                if style == ReplyStyle::Extended && header.offset != self.offset {
                    return Err(Break::protocol("a reply with the offset of another request"));
                }
                self.take_chunk(header, style, receiver)?;
                header.flags.contains(ReplyFlags::DONE)
            }
            ReplyHeader::Simple(reply) => {
                match (reply.error, &mut self.wanted) {
                    (Some(errno), _) => self.fail(errno, String::new()),
                    (None, Wanted::Nothing) => {}
                    (None, Wanted::Bytes(bytes)) if style == ReplyStyle::Simple => {
                        bytes.receive(bytes.range, receiver)?
                    }
                    (None, _) => return Err(Break::protocol("a reply without what was asked for")),
                }
                true
            }
        };
        if whole && self.error.is_none() && !self.is_complete() {
            return Err(Break::protocol("a reply without all that was asked for"));
        }
        Ok(whole)
    }

    fn take_chunk(&mut self, header: ChunkHeader, style: ReplyStyle, receiver: &mut Receiver<'_>) -> Result<(), Break> {
        let status = match style {
            ReplyStyle::Extended => ChunkType::BlockStatusExtended,
            ReplyStyle::Simple | ReplyStyle::Structured => ChunkType::BlockStatus,
        };
        let unexpected = || Err(Break::protocol("a chunk that was not asked for"));
        match (header.chunk, &mut self.wanted) {
            (ChunkType::OffsetData, Wanted::Bytes(bytes)) => bytes.take_data(header.length, receiver),
            (ChunkType::OffsetHole, Wanted::Bytes(bytes)) => {
                let payload = receiver.payload(header.length, 12)?;
                match Chunk::decode(header.chunk, &payload)? {
                    Chunk::OffsetHole { offset, length } => bytes.clear(ByteRange::new(offset, length.into())),
                    _ => unexpected(),
                }
            }
            (chunk, Wanted::Status(wanted, found)) if chunk == status => {
                let payload = receiver.payload(header.length, MAX_STATUS)?;
                match Chunk::decode(header.chunk, &payload)? {
                    Chunk::BlockStatus { context, descriptors } if context == *wanted && found.is_empty() => {
                        **found = descriptors;
                        Ok(())
                    }
                    _ => unexpected(),
                }
            }
            (ChunkType::None, _) if header.length == 0 => Ok(()),
            (chunk, _) if chunk.is_error() => {
                let payload = receiver.payload(header.length, MAX_ERROR)?;
                // An error of a kind that is not known is an error all the same.
                match Chunk::decode(chunk, &payload)? {
                    Chunk::Error { error, message, .. } => self.fail(error, message),
                    _ => self.fail(Errno::Inval, String::new()),
                }
                Ok(())
            }
            _ => unexpected(),
        }
    }

    /// The first error of a reply is the one to tell.
    fn fail(&mut self, errno: Errno, message: String) {
        self.error.get_or_insert(ServerError { errno, message });
    }

    fn is_complete(&self) -> bool {
        match &self.wanted {
            Wanted::Nothing => true,
            Wanted::Bytes(bytes) => bytes.arrived == [(bytes.range.start, bytes.range.end())],
            Wanted::Status(_, descriptors) => !descriptors.is_empty(),
        }
    }
}

impl<'w, 'b> Bytes<'w, 'b> {
    /// The bytes of `range`, to the buffers behind their first `skip` bytes.
    pub(super) fn new(bufs: &'w mut [IoSliceMut<'b>], skip: usize, range: ByteRange) -> Self {
        Self {
            bufs,
            skip,
            range,
            arrived: Vec::new(),
        }
    }

    fn take_data(&mut self, length: u64, receiver: &mut Receiver<'_>) -> Result<(), Break> {
        let mut offset = [0; Chunk::DATA_PREFIX];
        if length <= u64_from(offset.len()) {
            return Err(Break::protocol("a data chunk without data"));
        }
        receiver.fill(&mut offset)?;
        let range = ByteRange::new(u64::from_be_bytes(offset), length - u64_from(offset.len()));
        self.receive(range, receiver)
    }

    fn receive(&mut self, range: ByteRange, receiver: &mut Receiver<'_>) -> Result<(), Break> {
        let start = self.note(range)?;
        scatter::for_each_mut(self.bufs, start, usize_from(range.len), |part, _| receiver.fill(part))
    }

    fn clear(&mut self, range: ByteRange) -> Result<(), Break> {
        let start = self.note(range)?;
        scatter::for_each_mut(self.bufs, start, usize_from(range.len), |part, _| {
            part.fill(0);
            Ok(())
        })
    }

    /// Notes that a range comes, which must be a new one of those asked for; returns where in the buffers it belongs.
    fn note(&mut self, range: ByteRange) -> Result<usize, Break> {
        let (start, end) = (range.start, range.end());
        if start < self.range.start || end > self.range.end() || range.len > self.range.len {
            return Err(Break::protocol("bytes that were not asked for"));
        }
        let at = self.arrived.partition_point(|(_, before)| *before <= start);
        if self.arrived.get(at).is_some_and(|(next, _)| *next < end) {
            return Err(Break::protocol("the same bytes twice"));
        }
        let joins_next = self.arrived.get(at).is_some_and(|(next, _)| *next == end);
        let joins_last = at > 0 && self.arrived[at - 1].1 == start;
        match (joins_last, joins_next) {
            (true, true) => self.arrived[at - 1].1 = self.arrived.remove(at).1,
            (true, false) => self.arrived[at - 1].1 = end,
            (false, true) => self.arrived[at].0 = start,
            (false, false) if self.arrived.len() == MAX_PARTS => {
                return Err(Break::protocol("a read in more parts than are of use"));
            }
            (false, false) => self.arrived.insert(at, (start, end)),
        }
        Ok(self.skip + usize_from(start - self.range.start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_read_come_in_any_order_but_once() {
        let mut buf = [0; 100];
        let mut bufs = [IoSliceMut::new(&mut buf)];
        let mut bytes = Bytes::new(&mut bufs, 10, ByteRange::new(1000, 50));
        for (start, len, expected) in [
            (1010, 10, Some(20)),
            (1030, 10, Some(40)),
            (1019, 2, None),
            (1009, 2, None),
            (990, 5, None),
            (1049, 2, None),
            (u64::MAX, 1, None),
            (1000, u64::MAX, None),
            (1020, 10, Some(30)),
            (1000, 10, Some(10)),
            (1040, 10, Some(50)),
            (1000, 50, None),
        ] {
            assert_eq!(bytes.note(ByteRange::new(start, len)).ok(), expected, "{start}+{len}");
        }
        assert_eq!(bytes.arrived, [(1000, 1050)]);
        let mut bytes = Bytes::new(&mut bufs, 0, ByteRange::new(0, 1 << 20));
        let mut parts = (0..=u64_from(MAX_PARTS)).map(|part| bytes.note(ByteRange::new(part * 2, 1)).is_ok());
        assert!(parts.by_ref().take(MAX_PARTS).all(|taken| taken));
        assert_eq!(parts.next(), Some(false));
    }
}
