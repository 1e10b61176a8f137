//! What a server tells of an export before it is used.

use super::wire::{Fields, PutFields as _, within_limit};
use super::{ProtocolError, TransmissionFlags};

/// The kind of an information item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InfoType {
    /// Size and flags.
    Export,
    /// The name.
    Name,
    /// A text for people.
    Description,
    /// Sizes of blocks.
    BlockSize,
    /// Not known here.
    Unknown(u16),
}

impl InfoType {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Export => 0,
            Self::Name => 1,
            Self::Description => 2,
            Self::BlockSize => 3,
            Self::Unknown(number) => number,
        }
    }

    /// The kind with this number.
    #[must_use]
    pub const fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Export,
            1 => Self::Name,
            2 => Self::Description,
            3 => Self::BlockSize,
            other => Self::Unknown(other),
        }
    }
}

/// One thing that a server tells of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InfoItem {
    /// Size and flags; the one item that is always told.
    Export {
        /// Bytes of the export.
        size: u64,
        /// What it can do.
        flags: TransmissionFlags,
    },
    /// The export's own name, which may differ from the one asked for.
    Name(String),
    /// A text for people.
    Description(String),
    /// Sizes of requests, in bytes.
    BlockSize {
        /// Offsets and lengths must be multiples of it.
        minimum: u32,
        /// Offsets and lengths should be multiples of it.
        preferred: u32,
        /// The longest payload.
        maximum: u32,
    },
    /// An item that is not known here.
    Unknown {
        /// Its number.
        number: u16,
        /// Its data.
        data: Vec<u8>,
    },
}

impl InfoItem {
    /// The kind.
    #[must_use]
    pub const fn info_type(&self) -> InfoType {
        match self {
            Self::Export { .. } => InfoType::Export,
            Self::Name(_) => InfoType::Name,
            Self::Description(_) => InfoType::Description,
            Self::BlockSize { .. } => InfoType::BlockSize,
            Self::Unknown { number, .. } => InfoType::Unknown(*number),
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(self.info_type().number());
        match self {
            Self::Export { size, flags } => {
                out.put_u64(*size);
                out.put_u16(flags.bits());
            }
            Self::Name(text) | Self::Description(text) => out.extend_from_slice(within_limit(text).as_bytes()),
            Self::BlockSize {
                minimum,
                preferred,
                maximum,
            } => {
                for size in [minimum, preferred, maximum] {
                    out.put_u32(*size);
                }
            }
            Self::Unknown { data, .. } => out.extend_from_slice(data),
        }
    }

    pub(super) fn decode(fields: &mut Fields<'_>) -> Result<Self, ProtocolError> {
        Ok(match InfoType::from_number(fields.u16()?) {
            InfoType::Export => Self::Export {
                size: fields.u64()?,
                flags: TransmissionFlags::from_bits_retain(fields.u16()?),
            },
            InfoType::Name => Self::Name(fields.rest_text("the name of an export")?),
            InfoType::Description => Self::Description(fields.rest_text("the description of an export")?),
            InfoType::BlockSize => Self::BlockSize {
                minimum: fields.u32()?,
                preferred: fields.u32()?,
                maximum: fields.u32()?,
            },
            InfoType::Unknown(number) => Self::Unknown {
                number,
                data: fields.rest().to_vec(),
            },
        })
    }
}
