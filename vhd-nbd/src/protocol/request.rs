//! Requests of the transmission phase.

use super::wire::{Fields, PutFields as _};
use super::{CommandFlags, ProtocolError};

const COMPACT_MAGIC: u32 = 0x2560_9513;
const EXTENDED_MAGIC: u32 = 0x21e4_1c71;

/// How wide the fields of requests are, and with them those of replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderStyle {
    /// Lengths of 32 bits.
    Compact,
    /// Lengths of 64 bits, and payloads for more commands than WRITE.
    Extended,
}

impl HeaderStyle {
    /// Bytes of a request header.
    #[must_use]
    pub const fn request_size(self) -> usize {
        match self {
            Self::Compact => 28,
            Self::Extended => 32,
        }
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read bytes.
    Read,
    /// Write the payload.
    Write,
    /// End the session; there is no reply.
    Disconnect,
    /// Make what was written durable.
    Flush,
    /// The bytes are not needed any more.
    Trim,
    /// The bytes will be read soon.
    Cache,
    /// Make the bytes zero.
    WriteZeroes,
    /// Tell about extents.
    BlockStatus,
    /// Change the size to the offset; there is no length.
    Resize,
    /// Not known here.
    Unknown(u16),
}

impl Command {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
            Self::Resize => 8,
            Self::Unknown(number) => number,
        }
    }

    /// The command with this number.
    #[must_use]
    pub const fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            8 => Self::Resize,
            other => Self::Unknown(other),
        }
    }
}

/// A request without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// How to execute it; flags that are not known are kept.
    pub flags: CommandFlags,
    /// What to do.
    pub command: Command,
    /// The client's own mark, which the reply has too.
    pub cookie: u64,
    /// The first byte of the export that is meant.
    pub offset: u64,
    /// Bytes of the export that are meant, or of the payload that follows.
    pub length: u64,
}

impl RequestHeader {
    /// Appends the header.
    ///
    /// # Panics
    /// If the length has more than 32 bits and the style is compact.
    pub fn encode(&self, style: HeaderStyle, out: &mut Vec<u8>) {
        out.put_u32(match style {
            HeaderStyle::Compact => COMPACT_MAGIC,
            HeaderStyle::Extended => EXTENDED_MAGIC,
        });
        out.put_u16(self.flags.bits());
        out.put_u16(self.command.number());
        out.put_u64(self.cookie);
        out.put_u64(self.offset);
        match style {
            HeaderStyle::Compact => out.put_u32(self.length.try_into().expect("a compact length has 32 bits")),
            HeaderStyle::Extended => out.put_u64(self.length),
        }
    }

    /// Reads the header from [`HeaderStyle::request_size`] bytes.
    ///
    /// # Errors
    /// A wrong magic number, after which nothing that the peer sends can be understood; bytes of another size.
    pub fn decode(style: HeaderStyle, bytes: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields::new("a request", bytes);
        fields.magic32(match style {
            HeaderStyle::Compact => COMPACT_MAGIC,
            HeaderStyle::Extended => EXTENDED_MAGIC,
        })?;
        let flags = CommandFlags::from_bits_retain(fields.u16()?);
        let command = Command::from_number(fields.u16()?);
        let cookie = fields.u64()?;
        let offset = fields.u64()?;
        let length = match style {
            HeaderStyle::Compact => fields.u32()?.into(),
            HeaderStyle::Extended => fields.u64()?,
        };
        fields.end()?;
        Ok(Self {
            flags,
            command,
            cookie,
            offset,
            length,
        })
    }

    /// Bytes of payload that follow the header. With extended headers the flag `PAYLOAD_LEN` says that there are any,
    /// whatever the command is. A write has them without the flag too: qemu never sets it.
    #[must_use]
    pub fn payload_length(&self, style: HeaderStyle) -> u64 {
        let flag = style == HeaderStyle::Extended && self.flags.contains(CommandFlags::PAYLOAD_LEN);
        if flag || self.command == Command::Write {
            self.length
        } else {
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn requests_there_and_back(flags: u16, command: u16, cookie: u64, offset: u64, length: u64, extended: bool) {
            let style = if extended { HeaderStyle::Extended } else { HeaderStyle::Compact };
            let header = RequestHeader {
                flags: CommandFlags::from_bits_retain(flags),
                command: Command::from_number(command),
                cookie,
                offset,
                length: if extended { length } else { length & 0xffff_ffff },
            };
            let mut out = Vec::new();
            header.encode(style, &mut out);
            prop_assert_eq!(out.len(), style.request_size());
            prop_assert_eq!(RequestHeader::decode(style, &out), Ok(header));
            out[0] ^= 1;
            let refused = RequestHeader::decode(style, &out);
            prop_assert!(matches!(refused, Err(ProtocolError::Magic { .. })), "{:?}", refused);
        }
    }

    #[test]
    fn who_has_a_payload() {
        let header = |command, flags| RequestHeader {
            flags,
            command,
            cookie: 0,
            offset: 0,
            length: 512,
        };
        let (none, payload) = (CommandFlags::empty(), CommandFlags::PAYLOAD_LEN);
        let length = |command, flags, style| header(command, flags).payload_length(style);
        assert_eq!(length(Command::Write, none, HeaderStyle::Compact), 512);
        assert_eq!(length(Command::Read, payload, HeaderStyle::Compact), 0);
        assert_eq!(length(Command::Write, none, HeaderStyle::Extended), 512);
        assert_eq!(length(Command::Write, payload, HeaderStyle::Extended), 512);
        assert_eq!(length(Command::Read, none, HeaderStyle::Extended), 0);
        assert_eq!(length(Command::Unknown(99), payload, HeaderStyle::Extended), 512);
    }
}
