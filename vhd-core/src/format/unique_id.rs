//! The identity of a disk.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use super::FormatError;

/// The 16 bytes that tell one disk from another and a child its parent (specification, "Hard Disk Footer
/// Format", "Unique Id"). They are opaque: two ids are equal if their bytes are. As text they stand in the
/// order of their bytes; programs that take them for a Windows GUID print the first three groups reversed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UniqueId(pub [u8; 16]);

impl UniqueId {
    /// All zero: no identity. A child of a raw file has it as its parent's.
    pub const NIL: Self = Self([0; 16]);

    /// A new identity.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4().into_bytes())
    }

    /// Whether all bytes are zero.
    #[must_use]
    pub fn is_nil(self) -> bool {
        self == Self::NIL
    }
}

impl fmt::Display for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(Uuid::from_bytes_ref(&self.0).as_hyphenated(), f)
    }
}

impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UniqueId({self})")
    }
}

impl Serialize for UniqueId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UniqueId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl FromStr for UniqueId {
    type Err = FormatError;

    /// Takes 32 hexadecimal digits of either case in the order of the bytes, with or without hyphens.
    fn from_str(text: &str) -> Result<Self, FormatError> {
        Uuid::try_parse(text)
            .map(|uuid| Self(uuid.into_bytes()))
            .map_err(|_| FormatError::UniqueIdText { text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use proptest::prelude::*;

    const BYTES: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xFF];
    const TEXT: &str = "00010203-0405-0607-0809-0a0b0c0d0eff";

    #[test]
    fn text_is_in_byte_order() {
        assert_eq!(UniqueId(BYTES).to_string(), TEXT);
        assert_eq!(TEXT.parse(), Ok(UniqueId(BYTES)));
        assert_eq!(TEXT.to_uppercase().parse(), Ok(UniqueId(BYTES)));
        assert_eq!(TEXT.replace('-', "").parse(), Ok(UniqueId(BYTES)));
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "0",
            "00010203-0405-0607-0809-0a0b0c0d0ef",
            "00010203-0405-0607-0809-0a0b0c0d0efg",
        ] {
            let error = text.parse::<UniqueId>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{text}");
        }
    }

    #[test]
    fn nil_and_random() {
        assert!(UniqueId::NIL.is_nil());
        assert!(!UniqueId(BYTES).is_nil());
        let (one, two) = (UniqueId::random(), UniqueId::random());
        assert!(!one.is_nil());
        assert_ne!(one, two);
    }

    proptest! {
        #[test]
        fn text_survives(bytes: [u8; 16]) {
            prop_assert_eq!(UniqueId(bytes).to_string().parse(), Ok(UniqueId(bytes)));
        }
    }
}
