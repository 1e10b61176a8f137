//! The headers of replies in the transmission phase.

use super::wire::{Fields, PutFields as _};
use super::{ChunkType, Errno, HeaderStyle, ProtocolError, ReplyFlags};

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_MAGIC: u32 = 0x6e8a_278c;

/// Bytes that tell which header follows: they are its first.
pub const REPLY_MAGIC_SIZE: usize = 4;

/// How a server replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyStyle {
    /// One header per request, data behind it.
    Simple,
    /// One or more chunks per request (a request without data in its reply may have a simple one).
    Structured,
    /// One or more chunks per request, with extended headers.
    Extended,
}

impl ReplyStyle {
    /// How requests look where replies look like this.
    #[must_use]
    pub const fn header_style(self) -> HeaderStyle {
        match self {
            Self::Simple | Self::Structured => HeaderStyle::Compact,
            Self::Extended => HeaderStyle::Extended,
        }
    }

    /// Bytes of the header of a reply, or of each of its chunks.
    #[must_use]
    pub const fn header_size(self) -> usize {
        match self {
            Self::Simple => SimpleReply::SIZE,
            Self::Structured => 20,
            Self::Extended => 32,
        }
    }

    /// The style of a header that begins with this number.
    ///
    /// # Errors
    /// It begins no reply.
    pub fn from_magic(magic: [u8; REPLY_MAGIC_SIZE]) -> Result<Self, ProtocolError> {
        match u32::from_be_bytes(magic) {
            SIMPLE_MAGIC => Ok(Self::Simple),
            STRUCTURED_MAGIC => Ok(Self::Structured),
            EXTENDED_MAGIC => Ok(Self::Extended),
            found => Err(ProtocolError::Magic {
                what: "a reply",
                found: found.into(),
                expected: SIMPLE_MAGIC.into(),
            }),
        }
    }
}

/// A reply without chunks; behind a successful one to READ follow the bytes that were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// Why the request failed; `None` if it did not.
    pub error: Option<Errno>,
    /// The request's.
    pub cookie: u64,
}

impl SimpleReply {
    /// Bytes.
    pub const SIZE: usize = 16;

    /// The reply on the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&SIMPLE_MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.error.map_or(0, Errno::number).to_be_bytes());
        bytes[8..].copy_from_slice(&self.cookie.to_be_bytes());
        bytes
    }
}

/// What precedes the payload of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Whether it is the last; flags that are not known are kept.
    pub flags: ReplyFlags,
    /// What the payload is.
    pub chunk: ChunkType,
    /// The request's.
    pub cookie: u64,
    /// The request's; 0 without extended headers, which don't carry it.
    pub offset: u64,
    /// Bytes of payload; 32 bits without extended headers.
    pub length: u64,
}

impl ChunkHeader {
    /// Bytes of the longest header.
    pub const MAX_SIZE: usize = 32;

    /// Appends the header.
    ///
    /// # Panics
    /// If the length has more than 32 bits and the style is compact.
    pub fn encode(&self, style: HeaderStyle, out: &mut Vec<u8>) {
        out.put_u32(match style {
            HeaderStyle::Compact => STRUCTURED_MAGIC,
            HeaderStyle::Extended => EXTENDED_MAGIC,
        });
        out.put_u16(self.flags.bits());
        out.put_u16(self.chunk.number());
        out.put_u64(self.cookie);
        match style {
            HeaderStyle::Compact => out.put_u32(self.length.try_into().expect("a compact length has 32 bits")),
            HeaderStyle::Extended => {
                out.put_u64(self.offset);
                out.put_u64(self.length);
            }
        }
    }
}

/// The header of any reply, for a client that has to look what came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyHeader {
    /// A simple reply.
    Simple(SimpleReply),
    /// A chunk.
    Chunk(ChunkHeader),
}

impl ReplyHeader {
    /// Reads a header from [`ReplyStyle::header_size`] bytes, its magic number included.
    ///
    /// # Errors
    /// A wrong magic number; bytes of another size.
    pub fn decode(style: ReplyStyle, bytes: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields::new("a reply", bytes);
        fields.magic32(match style {
            ReplyStyle::Simple => SIMPLE_MAGIC,
            ReplyStyle::Structured => STRUCTURED_MAGIC,
            ReplyStyle::Extended => EXTENDED_MAGIC,
        })?;
        let header = if style == ReplyStyle::Simple {
            Self::Simple(SimpleReply {
                error: Errno::from_number(fields.u32()?),
                cookie: fields.u64()?,
            })
        } else {
            let flags = ReplyFlags::from_bits_retain(fields.u16()?);
            let chunk = ChunkType::from_number(fields.u16()?);
            let cookie = fields.u64()?;
            let (offset, length) = match style.header_style() {
                HeaderStyle::Compact => (0, fields.u32()?.into()),
                HeaderStyle::Extended => (fields.u64()?, fields.u64()?),
            };
            Self::Chunk(ChunkHeader {
                flags,
                chunk,
                cookie,
                offset,
                length,
            })
        };
        fields.end()?;
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn style_of(bytes: &[u8]) -> ReplyStyle {
        ReplyStyle::from_magic(bytes[..REPLY_MAGIC_SIZE].try_into().unwrap()).unwrap()
    }

    proptest! {
        #[test]
        fn simple_replies_there_and_back(error: u32, cookie: u64) {
            let reply = SimpleReply { error: Errno::from_number(error), cookie };
            let bytes = reply.to_bytes();
            prop_assert_eq!(style_of(&bytes), ReplyStyle::Simple);
            prop_assert_eq!(ReplyHeader::decode(ReplyStyle::Simple, &bytes), Ok(ReplyHeader::Simple(reply)));
        }

        #[test]
        fn chunk_headers_there_and_back(
            flags: u16, chunk: u16, cookie: u64, offset: u64, length: u64, extended: bool,
        ) {
            let style = if extended { ReplyStyle::Extended } else { ReplyStyle::Structured };
            let header = ChunkHeader {
                flags: ReplyFlags::from_bits_retain(flags),
                chunk: ChunkType::from_number(chunk),
                cookie,
                offset: if extended { offset } else { 0 },
                length: if extended { length } else { length & 0xffff_ffff },
            };
            let mut out = Vec::new();
            header.encode(style.header_style(), &mut out);
            prop_assert_eq!(out.len(), style.header_size());
            prop_assert_eq!(style_of(&out), style);
            prop_assert_eq!(ReplyHeader::decode(style, &out), Ok(ReplyHeader::Chunk(header)));
        }
    }
}
