//! Replies to options.

use super::option::NAME;
use super::wire::{Fields, PutFields as _, len32, within_limit};
use super::{InfoItem, MAX_OPTION_LENGTH, MAX_STRING, MetaContextId, OptionType, ProtocolError};

const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const ACK: u32 = 1;
const SERVER: u32 = 2;
const INFO: u32 = 3;
const META_CONTEXT: u32 = 4;
const ERROR_BIT: u32 = 1 << 31;

/// Why an option is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyError {
    /// The option is not known.
    Unsupported,
    /// The server does not want to.
    Policy,
    /// The option is wrong.
    Invalid,
    /// The server can't.
    Platform,
    /// TLS comes first.
    TlsRequired,
    /// No such export.
    Unknown,
    /// The server is about to stop.
    Shutdown,
    /// The client must promise to keep to block sizes.
    BlockSizeRequired,
    /// The option is too long.
    TooBig,
    /// Extended headers come first, or rule this out.
    ExtendedHeaderRequired,
    /// An error that is not known here, with its number.
    Other(u32),
}

impl ReplyError {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u32 {
        ERROR_BIT
            | match self {
                Self::Unsupported => 1,
                Self::Policy => 2,
                Self::Invalid => 3,
                Self::Platform => 4,
                Self::TlsRequired => 5,
                Self::Unknown => 6,
                Self::Shutdown => 7,
                Self::BlockSizeRequired => 8,
                Self::TooBig => 9,
                Self::ExtendedHeaderRequired => 10,
                Self::Other(number) => number,
            }
    }

    const fn from_number(number: u32) -> Self {
        match number & !ERROR_BIT {
            1 => Self::Unsupported,
            2 => Self::Policy,
            3 => Self::Invalid,
            4 => Self::Platform,
            5 => Self::TlsRequired,
            6 => Self::Unknown,
            7 => Self::Shutdown,
            8 => Self::BlockSizeRequired,
            9 => Self::TooBig,
            10 => Self::ExtendedHeaderRequired,
            _ => Self::Other(number),
        }
    }
}

/// What precedes the data of a reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option that is answered.
    pub option: OptionType,
    /// The number of the reply's kind.
    pub reply: u32,
    /// Bytes of data that follow.
    pub length: u32,
}

impl OptionReplyHeader {
    /// Bytes.
    pub const SIZE: usize = 20;

    /// Appends the header.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.put_u64(REPLY_MAGIC);
        out.put_u32(self.option.number());
        out.put_u32(self.reply);
        out.put_u32(self.length);
    }

    /// Reads the header.
    ///
    /// # Errors
    /// A wrong magic number; a length that a client need not accept; bytes of another size.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        const WHAT: &str = "the reply to an option";
        let mut fields = Fields::new(WHAT, bytes);
        fields.magic64(REPLY_MAGIC)?;
        let option = OptionType::from_number(fields.u32()?);
        let reply = fields.u32()?;
        let length = fields.u32()?;
        fields.end()?;
        if length > MAX_OPTION_LENGTH {
            return Err(ProtocolError::TooLong {
                what: WHAT,
                len: length.into(),
                limit: MAX_OPTION_LENGTH.into(),
            });
        }
        Ok(Self { option, reply, length })
    }
}

/// A reply to an option, with its data. Only the last reply to an option is `Ack` or `Error`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionReply {
    /// Done.
    Ack,
    /// An export.
    Server {
        /// Its name.
        name: String,
        /// A text for people; may be empty.
        description: String,
    },
    /// Something about an export.
    Info(InfoItem),
    /// A metadata context.
    MetaContext {
        /// Its number in this session; 0 in lists.
        id: MetaContextId,
        /// Its name.
        name: String,
    },
    /// The option is refused.
    Error {
        /// Why.
        error: ReplyError,
        /// A text for people; may be empty.
        message: String,
    },
    /// A reply that is not known here.
    Unknown {
        /// Its number.
        number: u32,
        /// Its data.
        data: Vec<u8>,
    },
}

impl OptionReply {
    /// Whether the reply is one that `option` can have.
    #[must_use]
    pub const fn belongs_to(&self, option: OptionType) -> bool {
        match self {
            Self::Ack | Self::Error { .. } => true,
            Self::Server { .. } => matches!(option, OptionType::List),
            Self::Info(_) => matches!(option, OptionType::Info | OptionType::Go),
            Self::MetaContext { .. } => matches!(option, OptionType::ListMetaContext | OptionType::SetMetaContext),
            Self::Unknown { .. } => false,
        }
    }

    /// Appends the reply to `option` with its header. Texts are cut to [`MAX_STRING`].
    pub fn encode(&self, option: OptionType, out: &mut Vec<u8>) {
        let data = self.data();
        let header = OptionReplyHeader {
            option,
            reply: self.number(),
            length: len32(data.len()),
        };
        header.encode(out);
        out.extend_from_slice(&data);
    }

    fn number(&self) -> u32 {
        match self {
            Self::Ack => ACK,
            Self::Server { .. } => SERVER,
            Self::Info(_) => INFO,
            Self::MetaContext { .. } => META_CONTEXT,
            Self::Error { error, .. } => error.number(),
            Self::Unknown { number, .. } => *number,
        }
    }

    fn data(&self) -> Vec<u8> {
        let mut data = Vec::new();
        match self {
            Self::Ack => {}
            Self::Server { name, description } => {
                data.put_text32(within_limit(name));
                data.extend_from_slice(within_limit(description).as_bytes());
            }
            Self::Info(item) => item.encode(&mut data),
            Self::MetaContext { id, name } => {
                data.put_u32(id.0);
                data.extend_from_slice(within_limit(name).as_bytes());
            }
            Self::Error { message, .. } => data.extend_from_slice(within_limit(message).as_bytes()),
            Self::Unknown { data: unknown, .. } => data.extend_from_slice(unknown),
        }
        data
    }

    /// Reads the data of a reply.
    ///
    /// # Errors
    /// Data that does not end where its fields do; strings that are too long or no text.
    pub fn decode(number: u32, data: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields::new("the data of a reply", data);
        let reply = match number {
            ACK => Self::Ack,
            SERVER => {
                let len = fields.len32()?;
                Self::Server {
                    name: fields.text(NAME, len)?,
                    description: fields.rest_text("the description of an export")?,
                }
            }
            INFO => Self::Info(InfoItem::decode(&mut fields)?),
            META_CONTEXT => Self::MetaContext {
                id: MetaContextId(fields.u32()?),
                name: fields.rest_text("the name of a metadata context")?,
            },
            error if error & ERROR_BIT != 0 => Self::Error {
                error: ReplyError::from_number(error),
                message: error_text(fields.rest()),
            },
            other => Self::Unknown {
                number: other,
                data: fields.rest().to_vec(),
            },
        };
        fields.end()?;
        Ok(reply)
    }
}

/// The text of an error, whatever its bytes are: the error itself matters more.
pub(super) fn error_text(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(MAX_STRING)];
    String::from_utf8_lossy(shown).replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::TransmissionFlags;
    use proptest::prelude::*;

    fn texts() -> impl Strategy<Value = String> {
        "[^\\x00]{0,40}"
    }

    fn items() -> impl Strategy<Value = InfoItem> {
        prop_oneof![
            (any::<u64>(), any::<u16>()).prop_map(|(size, flags)| InfoItem::Export {
                size,
                flags: TransmissionFlags::from_bits_retain(flags)
            }),
            texts().prop_map(InfoItem::Name),
            texts().prop_map(InfoItem::Description),
            any::<[u32; 3]>().prop_map(|[minimum, preferred, maximum]| InfoItem::BlockSize {
                minimum,
                preferred,
                maximum
            }),
            (4u16.., prop::collection::vec(any::<u8>(), 0..9))
                .prop_map(|(number, data)| InfoItem::Unknown { number, data }),
        ]
    }

    fn replies() -> impl Strategy<Value = OptionReply> {
        prop_oneof![
            Just(OptionReply::Ack),
            (texts(), texts()).prop_map(|(name, description)| OptionReply::Server { name, description }),
            items().prop_map(OptionReply::Info),
            (any::<u32>(), texts()).prop_map(|(id, name)| OptionReply::MetaContext {
                id: MetaContextId(id),
                name
            }),
            (0u32..20, texts()).prop_map(|(number, message)| OptionReply::Error {
                error: ReplyError::from_number(ERROR_BIT | number),
                message
            }),
            (5u32..1000, prop::collection::vec(any::<u8>(), 0..9))
                .prop_map(|(number, data)| OptionReply::Unknown { number, data }),
        ]
    }

    #[test]
    fn long_texts_are_cut() {
        let long = "\u{e4}".repeat(3000);
        let (name, description, message) = (long.clone(), long.clone(), long.clone());
        for reply in [
            OptionReply::Error {
                error: ReplyError::Unknown,
                message,
            },
            OptionReply::MetaContext {
                id: MetaContextId(1),
                name: long.clone(),
            },
            OptionReply::Info(InfoItem::Description(long)),
            OptionReply::Server { name, description },
        ] {
            let mut out = Vec::new();
            reply.encode(OptionType::Go, &mut out);
            let (header, data) = out.split_at(OptionReplyHeader::SIZE);
            let header = OptionReplyHeader::decode(header).unwrap();
            assert_eq!(usize::try_from(header.length).unwrap(), data.len());
            assert!(OptionReply::decode(header.reply, data).is_ok(), "{reply:?}");
        }
    }

    proptest! {
        #[test]
        fn replies_there_and_back(reply in replies(), option: u32) {
            let mut out = Vec::new();
            let option = OptionType::from_number(option);
            reply.encode(option, &mut out);
            let (header, data) = out.split_at(OptionReplyHeader::SIZE);
            let header = OptionReplyHeader::decode(header).unwrap();
            prop_assert_eq!(header.option, option);
            prop_assert_eq!(usize::try_from(header.length).unwrap(), data.len());
            prop_assert_eq!(OptionReply::decode(header.reply, data), Ok(reply));
        }

        #[test]
        fn any_bytes_are_read_or_refused(number: u32, data in prop::collection::vec(any::<u8>(), 0..200)) {
            for number in [number, number % 6] {
                let _ = OptionReply::decode(number, &data);
            }
            let _ = OptionReplyHeader::decode(&data);
        }
    }
}
