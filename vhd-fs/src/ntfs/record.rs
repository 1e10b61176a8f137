//! A record of the file table and its attributes.

use super::Volume;
use super::runs::{Run, decode_runs};
use crate::Unusable;
use crate::bytes::{byte, has, index, le16, le32, le64};
use crate::window::Window;

const END: u32 = 0xFFFF_FFFF;
const STRIDE: usize = 512;
const IN_USE: u16 = 1;
const RESIDENT_HEADER: usize = 24;
const NON_RESIDENT_HEADER: usize = 64;

/// A record, its sectors checked and completed.
pub(super) struct Record {
    bytes: Vec<u8>,
    name: &'static str,
}

/// The value of an attribute.
pub(super) enum Attribute<'a> {
    Resident(&'a [u8]),
    NonResident(&'a [u8]),
}

impl Record {
    /// Checks a record. The last two bytes of each sector stand in a list of their own, and in their place is a
    /// number that tells whether all sectors were written.
    pub(super) fn decode(window: &Window<'_>, mut bytes: Vec<u8>, number: u64) -> Result<Self, Unusable> {
        let damaged = || window.damaged("a record of its file table is damaged");
        let (list, entries) = (usize::from(le16(&bytes, 4)), usize::from(le16(&bytes, 6)));
        let sectors = bytes.len() / STRIDE;
        if !has(&bytes, 0, b"FILE") || entries != sectors + 1 || list + 2 * entries > STRIDE - 2 {
            return Err(damaged());
        }
        let written = le16(&bytes, list);
        for sector in 0..sectors {
            let at = (sector + 1) * STRIDE - 2;
            if le16(&bytes, at) != written {
                return Err(damaged());
            }
            let saved = le16(&bytes, list + 2 * (sector + 1)).to_le_bytes();
            bytes[at..at + 2].copy_from_slice(&saved);
        }
        let own_number = u64::from(le32(&bytes, 44));
        // Records of before Windows XP do not have their number.
        let has_number = list >= 48;
        if le16(&bytes, 22) & IN_USE == 0 || has_number && own_number != number {
            return Err(damaged());
        }
        Ok(Self {
            bytes,
            name: window.name,
        })
    }

    /// The attribute of this type that has no name.
    pub(super) fn attribute(&self, wanted: u32) -> Result<Attribute<'_>, Unusable> {
        let damaged = || Unusable::Damaged(self.name, "a record of its file table is damaged");
        let mut at = usize::from(le16(&self.bytes, 20));
        loop {
            let kind = le32(&self.bytes, at);
            let len = index(u64::from(le32(&self.bytes, at + 4)));
            let attribute = at.checked_add(len).and_then(|end| self.bytes.get(at..end));
            if kind == END || kind > wanted {
                return Err(Unusable::Unsupported(
                    self.name,
                    "a file table that is spread over several records",
                ));
            }
            let attribute = attribute
                .filter(|bytes| bytes.len() >= RESIDENT_HEADER)
                .ok_or_else(damaged)?;
            if kind == wanted && byte(attribute, 9) == 0 {
                return Attribute::decode(attribute).ok_or_else(damaged);
            }
            at += len;
        }
    }
}

impl<'a> Attribute<'a> {
    fn decode(bytes: &'a [u8]) -> Option<Self> {
        // Compressed, encrypted or sparse: none of the system's files is.
        if le16(bytes, 12) != 0 {
            return None;
        }
        if byte(bytes, 8) == 0 {
            let (len, start) = (index(u64::from(le32(bytes, 16))), usize::from(le16(bytes, 20)));
            return Some(Self::Resident(bytes.get(start..start.checked_add(len)?)?));
        }
        let is_first = le64(bytes, 16) == 0;
        (is_first && bytes.len() >= NON_RESIDENT_HEADER).then_some(Self::NonResident(bytes))
    }

    /// Bytes of the value.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Resident(value) => crate::bytes::count(value.len()),
            Self::NonResident(bytes) => le64(bytes, 48),
        }
    }

    /// Where the value is, from its start to the end that this record knows.
    pub(super) fn runs(&self, volume: &Volume<'_>) -> Result<Vec<Run>, Unusable> {
        let damaged = || volume.window.damaged("the place of a file is damaged");
        let Self::NonResident(bytes) = self else {
            return Err(damaged());
        };
        let encoded = bytes.get(usize::from(le16(bytes, 32))..).ok_or_else(damaged)?;
        decode_runs(encoded, volume.clusters).ok_or_else(damaged)
    }
}
