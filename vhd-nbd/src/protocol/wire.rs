//! Fields of messages, read in turn.

use super::{MAX_STRING, ProtocolError};

/// What is left of a message.
pub(super) struct Fields<'a> {
    what: &'static str,
    rest: &'a [u8],
    taken: usize,
}

impl<'a> Fields<'a> {
    /// The fields of the message `what`.
    pub(super) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self {
            what,
            rest: bytes,
            taken: 0,
        }
    }

    /// The next `len` bytes.
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], ProtocolError> {
        let Some((field, rest)) = self.rest.split_at_checked(len) else {
            return Err(ProtocolError::Truncated {
                what: self.what,
                needed: self.taken.saturating_add(len),
                found: self.taken + self.rest.len(),
            });
        };
        self.rest = rest;
        self.taken += len;
        Ok(field)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        let field = self.bytes(N)?;
        Ok(field.try_into().expect("the field has the length that was asked for"))
    }

    pub(super) fn u16(&mut self) -> Result<u16, ProtocolError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, ProtocolError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, ProtocolError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A length of 32 bits.
    pub(super) fn len32(&mut self) -> Result<usize, ProtocolError> {
        Ok(usize::try_from(self.u32()?).unwrap_or(usize::MAX))
    }

    /// The magic number of the message.
    pub(super) fn magic32(&mut self, expected: u32) -> Result<(), ProtocolError> {
        let found = self.u32()?;
        check_magic(self.what, found.into(), expected.into())
    }

    /// The magic number of the message.
    pub(super) fn magic64(&mut self, expected: u64) -> Result<(), ProtocolError> {
        let found = self.u64()?;
        check_magic(self.what, found, expected)
    }

    /// A string of `len` bytes.
    pub(super) fn text(&mut self, what: &'static str, len: usize) -> Result<String, ProtocolError> {
        if len > MAX_STRING {
            return Err(ProtocolError::TooLong {
                what,
                len: len.try_into().unwrap_or(u64::MAX),
                limit: MAX_STRING.try_into().unwrap_or(u64::MAX),
            });
        }
        let text = std::str::from_utf8(self.bytes(len)?).map_err(|_| ProtocolError::NotText { what })?;
        if text.contains('\0') {
            return Err(ProtocolError::NotText { what });
        }
        Ok(text.to_owned())
    }

    /// The rest as a string.
    pub(super) fn rest_text(&mut self, what: &'static str) -> Result<String, ProtocolError> {
        self.text(what, self.rest.len())
    }

    /// The rest.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        self.taken += self.rest.len();
        std::mem::take(&mut self.rest)
    }

    /// Bytes left.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Nothing must be left.
    pub(super) fn end(&self) -> Result<(), ProtocolError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(ProtocolError::TrailingBytes {
            what: self.what,
            extra: self.rest.len(),
        })
    }
}

fn check_magic(what: &'static str, found: u64, expected: u64) -> Result<(), ProtocolError> {
    if found == expected {
        return Ok(());
    }
    Err(ProtocolError::Magic { what, found, expected })
}

/// Appends fields to a message.
pub(super) trait PutFields {
    fn put_u16(&mut self, value: u16);
    fn put_u32(&mut self, value: u32);
    fn put_u64(&mut self, value: u64);
    /// A string behind its length in 32 bits.
    fn put_text32(&mut self, text: &str);
}

impl PutFields for Vec<u8> {
    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_text32(&mut self, text: &str) {
        self.put_u32(len32(text.len()));
        self.extend_from_slice(text.as_bytes());
    }
}

/// As much of a text as may be sent.
pub(super) fn within_limit(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_STRING)]
}

/// A length as 32 bits.
///
/// # Panics
/// If it has more: messages here are bounded far below.
pub(super) fn len32(len: usize) -> u32 {
    u32::try_from(len).expect("a message is shorter than 4 GiB")
}
