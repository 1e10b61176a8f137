//! Options: what a client asks for before transmission.

use super::wire::{Fields, PutFields as _, len32};
use super::{InfoType, MetaContextRequest, ProtocolError};

pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // IHAVEOPT

/// The kind of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionType {
    /// Choose an export and go on; cannot say why not.
    ExportName,
    /// End the session.
    Abort,
    /// List the exports.
    List,
    /// Change to TLS.
    StartTls,
    /// Ask about an export.
    Info,
    /// Choose an export and go on.
    Go,
    /// Use structured replies.
    StructuredReply,
    /// List the metadata contexts of an export.
    ListMetaContext,
    /// Choose metadata contexts.
    SetMetaContext,
    /// Use extended headers.
    ExtendedHeaders,
    /// Not known here.
    Unknown(u32),
}

impl OptionType {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::ExportName => 1,
            Self::Abort => 2,
            Self::List => 3,
            Self::StartTls => 5,
            Self::Info => 6,
            Self::Go => 7,
            Self::StructuredReply => 8,
            Self::ListMetaContext => 9,
            Self::SetMetaContext => 10,
            Self::ExtendedHeaders => 11,
            Self::Unknown(number) => number,
        }
    }

    /// The kind with this number.
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::ExportName,
            2 => Self::Abort,
            3 => Self::List,
            5 => Self::StartTls,
            6 => Self::Info,
            7 => Self::Go,
            8 => Self::StructuredReply,
            9 => Self::ListMetaContext,
            10 => Self::SetMetaContext,
            11 => Self::ExtendedHeaders,
            other => Self::Unknown(other),
        }
    }
}

/// What precedes the data of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// The kind.
    pub option: OptionType,
    /// Bytes of data that follow.
    pub length: u32,
}

impl OptionHeader {
    /// Bytes.
    pub const SIZE: usize = 16;

    /// Appends the header.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.put_u64(OPTION_MAGIC);
        out.put_u32(self.option.number());
        out.put_u32(self.length);
    }

    /// Reads the header.
    ///
    /// # Errors
    /// A wrong magic number; bytes of another size.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields::new("an option", bytes);
        fields.magic64(OPTION_MAGIC)?;
        let option = OptionType::from_number(fields.u32()?);
        let length = fields.u32()?;
        fields.end()?;
        Ok(Self { option, length })
    }
}

/// The data of INFO and GO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoRequest {
    /// The export.
    pub name: String,
    /// What the client wants to know of it.
    pub items: Vec<InfoType>,
}

/// An option with its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionRequest {
    /// Choose an export and go on; cannot say why not.
    ExportName(String),
    /// End the session.
    Abort,
    /// List the exports.
    List,
    /// Change to TLS.
    StartTls,
    /// Ask about an export.
    Info(InfoRequest),
    /// Choose an export and go on.
    Go(InfoRequest),
    /// Use structured replies.
    StructuredReply,
    /// List the metadata contexts of an export; all of them if there are no queries.
    ListMetaContext(MetaContextRequest),
    /// Choose metadata contexts; none if there are no queries.
    SetMetaContext(MetaContextRequest),
    /// Use extended headers.
    ExtendedHeaders,
    /// An option that is not known here.
    Unknown {
        /// Its number.
        number: u32,
        /// Its data.
        data: Vec<u8>,
    },
}

impl OptionRequest {
    /// The kind.
    #[must_use]
    pub const fn option(&self) -> OptionType {
        match self {
            Self::ExportName(_) => OptionType::ExportName,
            Self::Abort => OptionType::Abort,
            Self::List => OptionType::List,
            Self::StartTls => OptionType::StartTls,
            Self::Info(_) => OptionType::Info,
            Self::Go(_) => OptionType::Go,
            Self::StructuredReply => OptionType::StructuredReply,
            Self::ListMetaContext(_) => OptionType::ListMetaContext,
            Self::SetMetaContext(_) => OptionType::SetMetaContext,
            Self::ExtendedHeaders => OptionType::ExtendedHeaders,
            Self::Unknown { number, .. } => OptionType::Unknown(*number),
        }
    }

    /// Appends the option with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let data = self.data();
        let header = OptionHeader {
            option: self.option(),
            length: len32(data.len()),
        };
        header.encode(out);
        out.extend_from_slice(&data);
    }

    fn data(&self) -> Vec<u8> {
        match self {
            Self::ExportName(name) => name.clone().into_bytes(),
            Self::Info(request) | Self::Go(request) => request.data(),
            Self::ListMetaContext(request) | Self::SetMetaContext(request) => request.data(),
            Self::Unknown { data, .. } => data.clone(),
            Self::Abort | Self::List | Self::StartTls | Self::StructuredReply | Self::ExtendedHeaders => Vec::new(),
        }
    }

    /// Reads the data of an option. What comes with ABORT is ignored, as the protocol wants it.
    ///
    /// # Errors
    /// Data that the option does not take, or that does not end where its fields do; strings that are too long or no
    /// text; too many queries.
    pub fn decode(option: OptionType, data: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields::new("the data of the option", data);
        let request = match option {
            OptionType::ExportName => Self::ExportName(fields.rest_text(NAME)?),
            OptionType::Abort => return Ok(Self::Abort),
            OptionType::List => Self::List,
            OptionType::StartTls => Self::StartTls,
            OptionType::Info => Self::Info(InfoRequest::decode(&mut fields)?),
            OptionType::Go => Self::Go(InfoRequest::decode(&mut fields)?),
            OptionType::StructuredReply => Self::StructuredReply,
            OptionType::ListMetaContext => Self::ListMetaContext(MetaContextRequest::decode(&mut fields)?),
            OptionType::SetMetaContext => Self::SetMetaContext(MetaContextRequest::decode(&mut fields)?),
            OptionType::ExtendedHeaders => Self::ExtendedHeaders,
            OptionType::Unknown(number) => Self::Unknown {
                number,
                data: fields.rest().to_vec(),
            },
        };
        fields.end()?;
        Ok(request)
    }
}

/// What the name of an export is called in errors.
pub(super) const NAME: &str = "the name of an export";

impl InfoRequest {
    fn data(&self) -> Vec<u8> {
        let mut data = Vec::new();
        data.put_text32(&self.name);
        data.put_u16(u16::try_from(self.items.len()).expect("there are few kinds of information"));
        for item in &self.items {
            data.put_u16(item.number());
        }
        data
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self, ProtocolError> {
        let len = fields.len32()?;
        let name = fields.text(NAME, len)?;
        let count = usize::from(fields.u16()?);
        let list = fields.bytes(count * 2)?;
        let items = list.chunks_exact(2);
        let items = items
            .map(|item| InfoType::from_number(u16::from_be_bytes([item[0], item[1]])))
            .collect();
        Ok(Self { name, items })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::MAX_STRING;
    use proptest::prelude::*;

    fn texts() -> impl Strategy<Value = String> {
        "[^\\x00]{0,40}"
    }

    fn info() -> impl Strategy<Value = InfoRequest> {
        (texts(), prop::collection::vec(any::<u16>(), 0..8)).prop_map(|(name, items)| InfoRequest {
            name,
            items: items.into_iter().map(InfoType::from_number).collect(),
        })
    }

    fn contexts() -> impl Strategy<Value = MetaContextRequest> {
        (texts(), prop::collection::vec(texts(), 0..8))
            .prop_map(|(export, queries)| MetaContextRequest { export, queries })
    }

    fn requests() -> impl Strategy<Value = OptionRequest> {
        prop_oneof![
            texts().prop_map(OptionRequest::ExportName),
            Just(OptionRequest::Abort),
            Just(OptionRequest::List),
            Just(OptionRequest::StartTls),
            info().prop_map(OptionRequest::Info),
            info().prop_map(OptionRequest::Go),
            Just(OptionRequest::StructuredReply),
            contexts().prop_map(OptionRequest::ListMetaContext),
            contexts().prop_map(OptionRequest::SetMetaContext),
            Just(OptionRequest::ExtendedHeaders),
            (12u32.., prop::collection::vec(any::<u8>(), 0..50))
                .prop_map(|(number, data)| OptionRequest::Unknown { number, data }),
        ]
    }

    proptest! {
        #[test]
        fn options_there_and_back(request in requests()) {
            let mut out = Vec::new();
            request.encode(&mut out);
            let (header, data) = out.split_at(OptionHeader::SIZE);
            let header = OptionHeader::decode(header).unwrap();
            prop_assert_eq!(usize::try_from(header.length).unwrap(), data.len());
            prop_assert_eq!(OptionRequest::decode(header.option, data), Ok(request.clone()));
            // Cut anywhere, it is another option or none, and never a panic.
            for end in 0..data.len() {
                let cut = OptionRequest::decode(header.option, &data[..end]);
                prop_assert_ne!(cut, Ok(request.clone()));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(number: u32, data in prop::collection::vec(any::<u8>(), 0..200)) {
            for number in [number, number % 12] {
                let _ = OptionRequest::decode(OptionType::from_number(number), &data);
            }
            let _ = OptionHeader::decode(&data);
        }
    }

    #[test]
    fn data_where_there_is_none_is_refused() {
        for option in [
            OptionType::List,
            OptionType::StartTls,
            OptionType::StructuredReply,
            OptionType::ExtendedHeaders,
        ] {
            let refused = OptionRequest::decode(option, b"x");
            assert!(
                matches!(refused, Err(ProtocolError::TrailingBytes { extra: 1, .. })),
                "{option:?}"
            );
        }
        assert_eq!(OptionRequest::decode(OptionType::Abort, b"x"), Ok(OptionRequest::Abort));
    }

    #[test]
    fn names_are_bounded_text() {
        let name = |bytes: &[u8]| OptionRequest::decode(OptionType::ExportName, bytes);
        assert!(name(&[b'a'; MAX_STRING]).is_ok());
        assert!(matches!(
            name(&[b'a'; MAX_STRING + 1]),
            Err(ProtocolError::TooLong { .. })
        ));
        assert!(matches!(name(b"a\0b"), Err(ProtocolError::NotText { .. })));
        assert!(matches!(name(b"a\xffb"), Err(ProtocolError::NotText { .. })));
        let too_long = OptionRequest::decode(OptionType::Go, b"\xff\xff\xff\xffdisk\0\0");
        assert!(matches!(too_long, Err(ProtocolError::TooLong { .. })));
    }
}
