//! How a session begins, and how the oldest option ends the negotiation.

use super::wire::{Fields, PutFields as _};
use super::{HandshakeFlags, ProtocolError, TransmissionFlags};

const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943; // NBDMAGIC
const OPTION_MAGIC: u64 = super::option::OPTION_MAGIC;
const OLD_STYLE_MAGIC: u64 = 0x0000_4202_8186_1253;

/// Bytes of zeroes behind the answer to EXPORT_NAME unless both sides agreed to leave them out.
pub const EXPORT_NAME_PADDING: usize = 124;

/// The first message of a session, from the server. The client answers with its
/// [`ClientFlags`](super::ClientFlags) in 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// What the server can do.
    pub flags: HandshakeFlags,
}

impl Greeting {
    /// Bytes.
    pub const SIZE: usize = 18;

    /// Appends the message.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.put_u64(INIT_MAGIC);
        out.put_u64(OPTION_MAGIC);
        out.put_u16(self.flags.bits());
    }

    /// Reads the message. Flags that are not known are kept.
    ///
    /// # Errors
    /// [`ProtocolError::OldStyle`] for a server without options; wrong magic numbers; a message of another size.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields::new("the greeting", bytes);
        fields.magic64(INIT_MAGIC)?;
        match fields.magic64(OPTION_MAGIC) {
            Err(ProtocolError::Magic { found, .. }) if found == OLD_STYLE_MAGIC => return Err(ProtocolError::OldStyle),
            other => other?,
        }
        let flags = HandshakeFlags::from_bits_retain(fields.u16()?);
        fields.end()?;
        Ok(Self { flags })
    }
}

/// The answer to EXPORT_NAME, which has no header: [`EXPORT_NAME_PADDING`] bytes of zeroes may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportNameReply {
    /// Bytes of the export.
    pub size: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
}

impl ExportNameReply {
    /// Bytes, without padding.
    pub const SIZE: usize = 10;

    /// Appends the message.
    pub fn encode(self, padding: bool, out: &mut Vec<u8>) {
        out.put_u64(self.size);
        out.put_u16(self.flags.bits());
        if padding {
            out.resize(out.len() + EXPORT_NAME_PADDING, 0);
        }
    }

    /// Reads the message without its padding. Flags that are not known are kept.
    ///
    /// # Errors
    /// A message of another size.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields::new("the answer to EXPORT_NAME", bytes);
        let size = fields.u64()?;
        let flags = TransmissionFlags::from_bits_retain(fields.u16()?);
        fields.end()?;
        Ok(Self { size, flags })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_greeting_is_what_everyone_sends() {
        let mut out = Vec::new();
        let flags = HandshakeFlags::all();
        Greeting { flags }.encode(&mut out);
        assert_eq!(out, b"NBDMAGICIHAVEOPT\x00\x03");
        assert_eq!(Greeting::decode(&out), Ok(Greeting { flags }));
        assert_eq!(out.len(), Greeting::SIZE);
    }

    #[test]
    fn an_old_server_is_told_from_a_stranger() {
        let mut old = b"NBDMAGIC".to_vec();
        old.put_u64(OLD_STYLE_MAGIC);
        old.put_u16(0);
        assert_eq!(Greeting::decode(&old), Err(ProtocolError::OldStyle));
        let stranger = Greeting::decode(b"SSH-2.0-OpenSSH_9.");
        assert!(matches!(stranger, Err(ProtocolError::Magic { .. })));
    }

    proptest! {
        #[test]
        fn export_name_replies_there_and_back(size: u64, flags: u16, padding: bool) {
            let reply = ExportNameReply { size, flags: TransmissionFlags::from_bits_retain(flags) };
            let mut out = Vec::new();
            reply.encode(padding, &mut out);
            let padded = if padding { EXPORT_NAME_PADDING } else { 0 };
            prop_assert_eq!(out.len(), ExportNameReply::SIZE + padded);
            prop_assert_eq!(ExportNameReply::decode(&out[..ExportNameReply::SIZE]), Ok(reply));
        }
    }
}
