//! Extents as BLOCK_STATUS tells them, and the payload that chooses contexts.

use super::wire::{Fields, PutFields as _};
use super::{HeaderStyle, MAX_DESCRIPTORS, MAX_QUERIES, ProtocolError};

/// The number of a metadata context in one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MetaContextId(pub u32);

/// An extent and its status in one context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Bytes; not 0, and at most 32 bits without extended headers.
    pub length: u64,
    /// What the context says; at most 32 bits without extended headers.
    pub status: u64,
}

impl Descriptor {
    /// Bytes on the wire.
    pub(super) const fn size(style: HeaderStyle) -> usize {
        match style {
            HeaderStyle::Compact => 8,
            HeaderStyle::Extended => 16,
        }
    }

    pub(super) fn encode(self, style: HeaderStyle, out: &mut Vec<u8>) {
        match style {
            HeaderStyle::Compact => {
                out.put_u32(self.length.try_into().expect("a compact extent has 32 bits"));
                out.put_u32(self.status.try_into().expect("a compact status has 32 bits"));
            }
            HeaderStyle::Extended => {
                out.put_u64(self.length);
                out.put_u64(self.status);
            }
        }
    }

    pub(super) fn decode(style: HeaderStyle, fields: &mut Fields<'_>) -> Result<Self, ProtocolError> {
        let (length, status) = match style {
            HeaderStyle::Compact => (fields.u32()?.into(), fields.u32()?.into()),
            HeaderStyle::Extended => (fields.u64()?, fields.u64()?),
        };
        if length == 0 {
            return Err(ProtocolError::Empty { what: "an extent" });
        }
        Ok(Self { length, status })
    }

    pub(super) fn decode_all(style: HeaderStyle, fields: &mut Fields<'_>) -> Result<Vec<Self>, ProtocolError> {
        const WHAT: &str = "a block status chunk";
        let count = fields.left() / Self::size(style);
        if count > 2 * MAX_DESCRIPTORS {
            return Err(ProtocolError::TooMany {
                what: WHAT,
                count: count.try_into().unwrap_or(u64::MAX),
                limit: u64::try_from(2 * MAX_DESCRIPTORS).unwrap_or(u64::MAX),
            });
        }
        if count == 0 {
            return Err(ProtocolError::Empty { what: WHAT });
        }
        (0..count).map(|_| Self::decode(style, fields)).collect()
    }
}

/// The payload of BLOCK_STATUS: which of the session's contexts are asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusFilter {
    /// Bytes of the export that are meant; the header has the length of the payload.
    pub length: u64,
    /// The contexts.
    pub contexts: Vec<MetaContextId>,
}

impl StatusFilter {
    /// Bytes; no longer payload is of use.
    pub const MAX_SIZE: usize = 8 + 4 * MAX_QUERIES as usize;

    /// Appends the payload.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.length);
        for context in &self.contexts {
            out.put_u32(context.0);
        }
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// A payload that is too short, or does not end behind a whole number of contexts.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields::new("the payload of BLOCK_STATUS", bytes);
        let length = fields.u64()?;
        let mut contexts = Vec::new();
        while fields.left() >= 4 {
            contexts.push(MetaContextId(fields.u32()?));
        }
        fields.end()?;
        Ok(Self { length, contexts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn filters_there_and_back(length: u64, contexts in prop::collection::vec(any::<u32>(), 0..9)) {
            let contexts = contexts.into_iter().map(MetaContextId).collect();
            let filter = StatusFilter { length, contexts };
            let mut out = Vec::new();
            filter.encode(&mut out);
            prop_assert_eq!(StatusFilter::decode(&out), Ok(filter));
            out.push(0);
            let refused = StatusFilter::decode(&out);
            prop_assert!(matches!(refused, Err(ProtocolError::TrailingBytes { extra: 1, .. })), "{:?}", refused);
        }
    }
}
