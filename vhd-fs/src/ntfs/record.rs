//! A record of the file table and its attributes.

use super::Volume;
use super::fixup::complete;
use super::runs::{Run, decode_runs};
use crate::Unusable;
use crate::bytes::{byte, index, le16, le32, le64};
use crate::window::Window;

const END: u32 = 0xFFFF_FFFF;
/// The list of the records that a file is spread over.
const TYPE_LIST: u32 = 0x20;
/// Characters of `$I30`, the name of what belongs to the index of a directory.
const INDEX_NAME_LENGTH: u8 = 4;
/// A flag of a record.
pub(super) const IN_USE: u16 = 1;
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
    /// Checks a record.
    pub(super) fn decode(window: &Window<'_>, bytes: Vec<u8>, number: u64) -> Result<Self, Unusable> {
        let damaged = || window.damaged("a record of its file table is damaged");
        let list = usize::from(le16(&bytes, 4));
        let bytes = complete(bytes, b"FILE").ok_or_else(damaged)?;
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

    /// The bytes of the record that mean something.
    pub(super) fn used(&self) -> &[u8] {
        let len = index(u64::from(le32(&self.bytes, 24)));
        &self.bytes[..len.min(self.bytes.len())]
    }

    /// The attribute of this type that has no name.
    pub(super) fn attribute(&self, wanted: u32) -> Result<Attribute<'_>, Unusable> {
        self.find(wanted, 0)?.ok_or_else(|| self.is_spread())
    }

    /// The attribute of this type of the directory's index by names, if it has one.
    pub(super) fn index(&self, wanted: u32) -> Result<Option<Attribute<'_>>, Unusable> {
        match self.find(wanted, INDEX_NAME_LENGTH)? {
            None if self.find(TYPE_LIST, 0)?.is_some() => Err(self.is_spread()),
            found => Ok(found),
        }
    }

    fn is_spread(&self) -> Unusable {
        Unusable::Unsupported(self.name, "a file table that is spread over several records")
    }

    fn find(&self, wanted: u32, name_len: u8) -> Result<Option<Attribute<'_>>, Unusable> {
        let damaged = || Unusable::Damaged(self.name, "a record of its file table is damaged");
        let raw = self.attributes().find(|raw| match raw {
            Ok(raw) => le32(raw, 0) == wanted && byte(raw, 9) == name_len,
            Err(_) => true,
        });
        let raw = raw.transpose().map_err(|()| damaged())?;
        raw.map(|raw| Attribute::decode(raw).ok_or_else(damaged)).transpose()
    }

    /// Where all values that are not in the record are, as far as that can be read.
    pub(super) fn all_runs(&self, volume: &Volume<'_>) -> Vec<Run> {
        let attributes = self.attributes().map_while(Result::ok).filter_map(Attribute::decode);
        attributes
            .filter_map(|attribute| attribute.runs(volume).ok())
            .flatten()
            .collect()
    }

    /// The attributes; an error at the end if what is there is none.
    fn attributes(&self) -> impl Iterator<Item = Result<&[u8], ()>> {
        let mut at = Some(usize::from(le16(&self.bytes, 20)));
        std::iter::from_fn(move || {
            let start = at?;
            if le32(&self.bytes, start) == END {
                return None;
            }
            let len = index(u64::from(le32(&self.bytes, start + 4)));
            let raw = start.checked_add(len).and_then(|end| self.bytes.get(start..end));
            let raw = raw.filter(|raw| raw.len() >= RESIDENT_HEADER);
            at = raw.map(|_| start + len);
            Some(raw.ok_or(()))
        })
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

    /// Bytes of the value that were written; what follows reads zero.
    pub(super) fn written(&self) -> u64 {
        match self {
            Self::Resident(_) => self.len(),
            Self::NonResident(bytes) => le64(bytes, 56).min(self.len()),
        }
    }

    /// Where the value is; all of it.
    pub(super) fn whole_runs(&self, volume: &Volume<'_>) -> Result<Vec<Run>, Unusable> {
        let runs = self.runs(volume)?;
        let clusters: u64 = runs.iter().map(|run| run.clusters).sum();
        match clusters * volume.cluster >= self.len() {
            true => Ok(runs),
            false => Err(volume
                .window
                .unsupported("a file table that is spread over several records")),
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
