//! A file record with everything that belongs to it: the attributes of its extension records too.

use ntfs_core::{Attribute, AttributeBody, MftRecordHeader, NtfsFs, parse_attribute_list, parse_attributes};

use super::stream::{Fragment, Stream};
use super::{FORMAT, failed};
use crate::bytes::index;
use crate::files::FileError;
use crate::files::region::Region;

pub(super) const STANDARD_INFORMATION: u32 = 0x10;
const ATTRIBUTE_LIST: u32 = 0x20;
pub(super) const FILE_NAME: u32 = 0x30;
pub(super) const VOLUME_NAME: u32 = 0x60;
pub(super) const DATA: u32 = 0x80;
pub(super) const INDEX_ROOT: u32 = 0x90;
pub(super) const INDEX_ALLOCATION: u32 = 0xA0;
pub(super) const REPARSE_POINT: u32 = 0xC0;

/// Windows keeps an attribute list below 256 KiB.
const MAX_ATTRIBUTE_LIST: u64 = 256 << 10;
/// The name of a file that is 8.3 alone beside a long one.
const NAMESPACE_AT: usize = 0x41;
const NAMESPACE_DOS: u8 = 2;

/// An attribute and the record that it stands in.
struct Found {
    record: usize,
    attribute: Attribute,
}

/// A file.
pub(super) struct Record {
    number: u64,
    header: MftRecordHeader,
    records: Vec<Vec<u8>>,
    attributes: Vec<Found>,
}

impl Record {
    /// Reads the file with this number.
    pub(super) fn read(fs: &NtfsFs<Region>, region: &Region, number: u64) -> Result<Self, FileError> {
        let bytes = fs.read_record(number).map_err(failed)?;
        let header = MftRecordHeader::parse(&bytes).map_err(failed)?;
        if header.is_corrupt() || !header.is_in_use() || !header.is_base_record() {
            return Err(FileError::damaged(FORMAT, format!("record {number} is no file in use")));
        }
        let mut record = Self {
            number,
            header,
            records: Vec::new(),
            attributes: Vec::new(),
        };
        record.add(bytes)?;
        for extension in record.extensions(region, fs.boot().cluster_size())? {
            let bytes = fs.read_record(extension).map_err(failed)?;
            let header = MftRecordHeader::parse(&bytes).map_err(failed)?;
            // The upper 16 bits of a reference are the sequence number.
            if !header.is_in_use() || header.base_record & 0xFFFF_FFFF_FFFF != number {
                let what = format!("record {extension} is no extension of record {number}");
                return Err(FileError::damaged(FORMAT, what));
            }
            record.add(bytes)?;
        }
        Ok(record)
    }

    fn add(&mut self, bytes: Vec<u8>) -> Result<(), FileError> {
        let header = MftRecordHeader::parse(&bytes).map_err(failed)?;
        let attributes = parse_attributes(&bytes, usize::from(header.first_attribute_offset)).map_err(failed)?;
        let record = self.records.len();
        let found = attributes.into_iter().map(|attribute| Found { record, attribute });
        self.attributes.extend(found);
        self.records.push(bytes);
        Ok(())
    }

    /// The records that the attribute list names besides this one, ascending.
    fn extensions(&self, region: &Region, cluster: u64) -> Result<Vec<u64>, FileError> {
        let Some(list) = self.stream(ATTRIBUTE_LIST, None)? else {
            return Ok(Vec::new());
        };
        let bytes = list.whole(region, cluster, MAX_ATTRIBUTE_LIST)?;
        let entries = parse_attribute_list(&bytes).map_err(failed)?;
        let mut numbers: Vec<u64> = entries.iter().map(|entry| entry.base_reference.record_number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.retain(|&number| number != self.number);
        Ok(numbers)
    }

    pub(super) fn is_directory(&self) -> bool {
        self.header.is_directory()
    }

    /// The names of the file, without the short ones beside long ones.
    pub(super) fn names(&self, kind: u32) -> u32 {
        let names = self.attributes.iter().filter(|found| found.attribute.type_code == kind);
        let long =
            names.filter(|found| self.content(found).and_then(|name| name.get(NAMESPACE_AT)) != Some(&NAMESPACE_DOS));
        u32::try_from(long.count()).unwrap_or(u32::MAX).max(1)
    }

    /// The value of an attribute without a name that is kept in the record.
    pub(super) fn resident(&self, kind: u32) -> Option<&[u8]> {
        let mut fitting = self.matching(kind, None);
        fitting.find_map(|found| self.content(found))
    }

    /// The value of an attribute, wherever it is kept.
    pub(super) fn stream(&self, kind: u32, name: Option<&str>) -> Result<Option<Stream>, FileError> {
        let mut fragments = Vec::new();
        for found in self.matching(kind, name) {
            match &found.attribute.body {
                AttributeBody::Resident { .. } => {
                    let content = self.content(found);
                    let content = content.ok_or_else(|| self.damaged("a value leads out of its record"))?;
                    return Ok(Some(Stream::resident(content.to_vec())));
                }
                AttributeBody::NonResident { start_vcn, .. } => {
                    let attribute = &found.attribute;
                    let bytes = self
                        .records
                        .get(found.record)
                        .and_then(|bytes| run_list(bytes, attribute));
                    let bytes = bytes.ok_or_else(|| self.damaged("a run list leads out of its record"))?;
                    let runs = ntfs_core::decode_runlist(bytes).map_err(failed)?;
                    fragments.push(Fragment {
                        start: *start_vcn,
                        runs,
                        attribute: attribute.clone(),
                    });
                }
            }
        }
        Stream::from_fragments(fragments)
    }

    fn matching<'a>(&'a self, kind: u32, name: Option<&'a str>) -> impl Iterator<Item = &'a Found> {
        self.attributes
            .iter()
            .filter(move |found| found.attribute.type_code == kind && found.attribute.name.as_deref() == name)
    }

    fn content(&self, found: &Found) -> Option<&[u8]> {
        found.attribute.resident_content(self.records.get(found.record)?)
    }

    fn damaged(&self, what: &str) -> FileError {
        FileError::damaged(FORMAT, format!("record {}: {what}", self.number))
    }
}

/// The run list of an attribute that is kept outside its record.
fn run_list<'a>(record: &'a [u8], attribute: &Attribute) -> Option<&'a [u8]> {
    let AttributeBody::NonResident { runs_offset, .. } = attribute.body else {
        return None;
    };
    let start = attribute.offset.checked_add(usize::from(runs_offset))?;
    let end = attribute.offset.checked_add(index(u64::from(attribute.length)))?;
    record.get(start..end)
}
