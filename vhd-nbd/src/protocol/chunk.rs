//! The payloads of reply chunks.

use super::option_reply::error_text;
use super::wire::{Fields, PutFields as _, len32, within_limit};
use super::{ChunkHeader, Descriptor, Errno, HeaderStyle, MetaContextId, ProtocolError, ReplyFlags};

/// The kind of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkType {
    /// Nothing: only says that the reply ends.
    None,
    /// Bytes of the export.
    OffsetData,
    /// Zeroes of the export.
    OffsetHole,
    /// Extents in one context.
    BlockStatus,
    /// Extents in one context, with extended headers.
    BlockStatusExtended,
    /// The request failed.
    Error,
    /// The request failed at one place.
    ErrorOffset,
    /// Not known here.
    Unknown(u16),
}

const ERROR_BIT: u16 = 1 << 15;

impl ChunkType {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::None => 0,
            Self::OffsetData => 1,
            Self::OffsetHole => 2,
            Self::BlockStatus => 5,
            Self::BlockStatusExtended => 6,
            Self::Error => ERROR_BIT | 1,
            Self::ErrorOffset => ERROR_BIT | 2,
            Self::Unknown(number) => number,
        }
    }

    /// The kind with this number.
    #[must_use]
    pub const fn from_number(number: u16) -> Self {
        match number {
            0 => Self::None,
            1 => Self::OffsetData,
            2 => Self::OffsetHole,
            5 => Self::BlockStatus,
            6 => Self::BlockStatusExtended,
            0x8001 => Self::Error,
            0x8002 => Self::ErrorOffset,
            other => Self::Unknown(other),
        }
    }

    /// Whether a chunk of this kind says that the request failed, known or not.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.number() & ERROR_BIT != 0
    }
}

/// The payload of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// Nothing: only says that the reply ends.
    None,
    /// Bytes of the export.
    OffsetData {
        /// The first byte's place.
        offset: u64,
        /// The bytes.
        data: &'a [u8],
    },
    /// Zeroes of the export.
    OffsetHole {
        /// The first byte's place.
        offset: u64,
        /// Bytes; not 0.
        length: u32,
    },
    /// Extents in one context; the chunk's kind depends on the style of headers.
    BlockStatus {
        /// The context.
        context: MetaContextId,
        /// The extents, in order; at least one.
        descriptors: Vec<Descriptor>,
    },
    /// The request failed.
    Error {
        /// Why.
        error: Errno,
        /// A text for people; may be empty.
        message: String,
        /// Where; `None` if anywhere.
        offset: Option<u64>,
    },
    /// A chunk that is not known here.
    Unknown {
        /// Its number.
        number: u16,
        /// Its payload.
        data: &'a [u8],
    },
}

impl<'a> Chunk<'a> {
    /// Bytes of an [`OffsetData`](Self::OffsetData) payload before the data.
    pub const DATA_PREFIX: usize = 8;

    /// The kind.
    #[must_use]
    pub const fn chunk_type(&self, style: HeaderStyle) -> ChunkType {
        match self {
            Self::None => ChunkType::None,
            Self::OffsetData { .. } => ChunkType::OffsetData,
            Self::OffsetHole { .. } => ChunkType::OffsetHole,
            Self::BlockStatus { .. } => match style {
                HeaderStyle::Compact => ChunkType::BlockStatus,
                HeaderStyle::Extended => ChunkType::BlockStatusExtended,
            },
            Self::Error { offset: None, .. } => ChunkType::Error,
            Self::Error { offset: Some(_), .. } => ChunkType::ErrorOffset,
            Self::Unknown { number, .. } => ChunkType::Unknown(*number),
        }
    }

    /// Appends the chunk with its header, in reply to the request of this cookie and offset.
    pub fn encode(&self, style: HeaderStyle, flags: ReplyFlags, cookie: u64, offset: u64, out: &mut Vec<u8>) {
        let header = ChunkHeader {
            flags,
            chunk: self.chunk_type(style),
            cookie,
            offset,
            length: self.payload_size(style).try_into().unwrap_or(u64::MAX),
        };
        header.encode(style, out);
        match self {
            Self::None => {}
            Self::OffsetData { offset, data } => {
                out.put_u64(*offset);
                out.extend_from_slice(data);
            }
            Self::OffsetHole { offset, length } => {
                out.put_u64(*offset);
                out.put_u32(*length);
            }
            Self::BlockStatus { context, descriptors } => {
                out.put_u32(context.0);
                if style == HeaderStyle::Extended {
                    out.put_u32(len32(descriptors.len()));
                }
                for descriptor in descriptors {
                    descriptor.encode(style, out);
                }
            }
            Self::Error { error, message, offset } => {
                let message = within_limit(message);
                out.put_u32(error.number());
                out.put_u16(u16::try_from(message.len()).expect("a text of at most 4096 bytes"));
                out.extend_from_slice(message.as_bytes());
                if let Some(offset) = offset {
                    out.put_u64(*offset);
                }
            }
            Self::Unknown { data, .. } => out.extend_from_slice(data),
        }
    }

    /// Bytes of the chunk with its header, at most.
    #[must_use]
    pub fn size(&self, style: HeaderStyle) -> usize {
        ChunkHeader::MAX_SIZE + self.payload_size(style)
    }

    fn payload_size(&self, style: HeaderStyle) -> usize {
        match self {
            Self::None => 0,
            Self::OffsetData { data, .. } => Self::DATA_PREFIX + data.len(),
            Self::OffsetHole { .. } => 12,
            Self::BlockStatus { descriptors, .. } => {
                let prefix = match style {
                    HeaderStyle::Compact => 4,
                    HeaderStyle::Extended => 8,
                };
                prefix + descriptors.len() * Descriptor::size(style)
            }
            Self::Error { message, offset, .. } => 6 + within_limit(message).len() + offset.map_or(0, |_| 8),
            Self::Unknown { data, .. } => data.len(),
        }
    }

    /// Reads a payload of the kind that its header says.
    ///
    /// # Errors
    /// A payload that does not end where its fields do; an error that is none; extents without bytes, or in another
    /// number than the chunk says.
    pub fn decode(chunk: ChunkType, payload: &'a [u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields::new("a chunk", payload);
        let decoded = match chunk {
            ChunkType::None => Self::None,
            ChunkType::OffsetData => Self::OffsetData {
                offset: fields.u64()?,
                data: match fields.rest() {
                    [] => return Err(ProtocolError::Empty { what: "a data chunk" }),
                    data => data,
                },
            },
            ChunkType::OffsetHole => Self::OffsetHole {
                offset: fields.u64()?,
                length: match fields.u32()? {
                    0 => return Err(ProtocolError::Empty { what: "a hole" }),
                    length => length,
                },
            },
            ChunkType::BlockStatus => Self::BlockStatus {
                context: MetaContextId(fields.u32()?),
                descriptors: Descriptor::decode_all(HeaderStyle::Compact, &mut fields)?,
            },
            ChunkType::BlockStatusExtended => decode_extended_status(&mut fields)?,
            ChunkType::Error => decode_error(&mut fields, false)?,
            ChunkType::ErrorOffset => decode_error(&mut fields, true)?,
            ChunkType::Unknown(number) => Self::Unknown {
                number,
                data: fields.rest(),
            },
        };
        fields.end()?;
        Ok(decoded)
    }
}

fn decode_extended_status<'a>(fields: &mut Fields<'_>) -> Result<Chunk<'a>, ProtocolError> {
    let context = MetaContextId(fields.u32()?);
    let said = u64::from(fields.u32()?);
    let descriptors = Descriptor::decode_all(HeaderStyle::Extended, fields)?;
    let found = descriptors.len().try_into().unwrap_or(u64::MAX);
    if said != found {
        return Err(ProtocolError::DescriptorCount { said, found });
    }
    Ok(Chunk::BlockStatus { context, descriptors })
}

fn decode_error<'a>(fields: &mut Fields<'_>, with_offset: bool) -> Result<Chunk<'a>, ProtocolError> {
    let error = Errno::from_number(fields.u32()?).ok_or(ProtocolError::NoError)?;
    let len = usize::from(fields.u16()?);
    let message = error_text(fields.bytes(len)?);
    let offset = if with_offset { Some(fields.u64()?) } else { None };
    Ok(Chunk::Error { error, message, offset })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{MAX_STRING, ReplyHeader, ReplyStyle};
    use proptest::prelude::*;

    fn there_and_back(chunk: &Chunk<'_>, style: ReplyStyle) {
        let mut out = Vec::new();
        chunk.encode(style.header_style(), ReplyFlags::DONE, 7, 0, &mut out);
        let (header, payload) = out.split_at(style.header_size());
        let Ok(ReplyHeader::Chunk(header)) = ReplyHeader::decode(style, header) else {
            panic!("no chunk: {header:?}");
        };
        assert_eq!((header.cookie, header.flags), (7, ReplyFlags::DONE));
        assert_eq!(usize::try_from(header.length).unwrap(), payload.len());
        assert_eq!(Chunk::decode(header.chunk, payload).as_ref(), Ok(chunk));
        if !matches!(chunk, Chunk::None | Chunk::OffsetData { .. } | Chunk::Unknown { .. }) {
            for end in 0..payload.len() {
                assert_ne!(Chunk::decode(header.chunk, &payload[..end]).as_ref(), Ok(chunk));
            }
        }
    }

    fn descriptors() -> impl Strategy<Value = Vec<Descriptor>> {
        let descriptor = (1..=u64::from(u32::MAX), 0..=u64::from(u32::MAX));
        let descriptor = descriptor.prop_map(|(length, status)| Descriptor { length, status });
        prop::collection::vec(descriptor, 1..20)
    }

    proptest! {
        #[test]
        fn chunks_there_and_back(
            offset: u64, length in 1u32.., error in 1u32.., message in "[^\\x00]{0,40}", located: bool,
            data in prop::collection::vec(any::<u8>(), 1..50), descriptors in descriptors(), context: u32,
        ) {
            let error = Errno::from_number(error).unwrap();
            let context = MetaContextId(context);
            for style in [ReplyStyle::Structured, ReplyStyle::Extended] {
                there_and_back(&Chunk::None, style);
                there_and_back(&Chunk::OffsetData { offset, data: &data }, style);
                there_and_back(&Chunk::OffsetHole { offset, length }, style);
                let status = Chunk::BlockStatus { context, descriptors: descriptors.clone() };
                there_and_back(&status, style);
                let offset = located.then_some(offset);
                there_and_back(&Chunk::Error { error, message: message.clone(), offset }, style);
                there_and_back(&Chunk::Unknown { number: 99, data: &data }, style);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(number: u16, data in prop::collection::vec(any::<u8>(), 0..200)) {
            for number in [number, number % 7, 0x8000 | (number % 4)] {
                let _ = Chunk::decode(ChunkType::from_number(number), &data);
            }
        }
    }

    #[test]
    fn chunks_that_say_nothing_are_refused() {
        let refused = |chunk, payload: &[u8]| Chunk::decode(chunk, payload).map(|_| ()).unwrap_err();
        assert!(matches!(
            refused(ChunkType::OffsetHole, &[0; 12]),
            ProtocolError::Empty { .. }
        ));
        assert!(matches!(
            refused(ChunkType::OffsetData, &[0; 8]),
            ProtocolError::Empty { .. }
        ));
        assert_eq!(refused(ChunkType::Error, &[0; 6]), ProtocolError::NoError);
        assert!(matches!(
            refused(ChunkType::BlockStatus, &[0; 4]),
            ProtocolError::Empty { .. }
        ));
        assert!(matches!(
            refused(ChunkType::BlockStatus, &[0; 12]),
            ProtocolError::Empty { .. }
        ));
        let mut lying = vec![0, 0, 0, 1, 0, 0, 0, 2];
        lying.extend([1; 16]);
        let found = refused(ChunkType::BlockStatusExtended, &lying);
        assert_eq!(found, ProtocolError::DescriptorCount { said: 2, found: 1 });
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let message = "\u{e4}".repeat(3000);
        let mut out = Vec::new();
        let chunk = Chunk::Error {
            error: Errno::Io,
            message,
            offset: None,
        };
        chunk.encode(HeaderStyle::Compact, ReplyFlags::DONE, 0, 0, &mut out);
        assert_eq!(out.len(), 20 + 6 + MAX_STRING);
    }
}
