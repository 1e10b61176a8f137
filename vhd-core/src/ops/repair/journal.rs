//! What a repair changes, as bytes: enough to finish it and to undo it, whatever became of it.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::error::{Doing as _, RepairError};
use crate::format::MAX_DISK_SIZE;
use crate::storage::{OverlayFile, OverlaySource, StorageFile};
use crate::units::{SECTOR_SIZE, u64_from, usize_from};

const MAGIC: [u8; 8] = *b"vhdundo1";
const DIGEST: usize = 32;

/// The changes of a repair: what stood there and what is to stand there. An undo file holds one.
///
/// Below the original end of the file both are kept as bytes, in whole sectors. Behind it there was nothing, and what
/// comes there is bytes, zeroes, or a copy of another part of the file as it was. What is cut off is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    pub(super) original_len: u64,
    pub(super) new_len: u64,
    /// In the order of the file; no two share a byte.
    pub(super) records: Vec<Record>,
}

/// One range that changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) offset: u64,
    pub(super) change: Change,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Inside the original file: as many old bytes as new ones.
    Replace { old: Vec<u8>, new: Vec<u8> },
    /// Behind the original end.
    Append(Vec<u8>),
    /// Behind the original end: a copy of what stood elsewhere.
    Copy { from: u64, len: u64 },
    /// From here to the original end: cut off.
    Cut(Vec<u8>),
}

impl Record {
    pub(super) fn len(&self) -> u64 {
        match &self.change {
            Change::Replace { new: bytes, .. } | Change::Append(bytes) | Change::Cut(bytes) => u64_from(bytes.len()),
            Change::Copy { len, .. } => *len,
        }
    }

    pub(super) fn end(&self) -> u64 {
        self.offset + self.len()
    }
}

impl Journal {
    /// The difference between a view and the file below it.
    pub(super) fn of(overlay: &Arc<OverlayFile>) -> Result<Self, RepairError> {
        let original_len = overlay.base().len().doing("find the length", 0)?;
        let mut journal = Self {
            original_len,
            new_len: overlay.len().doing("find the length", 0)?,
            records: Vec::new(),
        };
        let mut sectors: Vec<(u64, u64)> = Vec::new();
        if journal.new_len < original_len {
            let mut cut = vec![0; usize_from(original_len - journal.new_len)];
            let offset = journal.new_len;
            overlay.base().read_exact_at(&mut cut, offset).doing("read", offset)?;
            let change = Change::Cut(cut);
            journal.records.push(Record { offset, change });
        }
        for change in overlay.changes() {
            let end = change.offset + change.len;
            let inside = end.min(original_len);
            if change.offset < inside {
                let start = change.offset / SECTOR_SIZE * SECTOR_SIZE;
                let stop = inside
                    .next_multiple_of(SECTOR_SIZE)
                    .min(original_len)
                    .min(journal.new_len);
                match sectors.last_mut() {
                    Some((_, last)) if *last >= start => *last = stop.max(*last),
                    _ => sectors.push((start, stop)),
                }
            }
            journal.append(change.offset.max(original_len), end, change.offset, change.source);
        }
        let mut replaced = Vec::new();
        for (start, stop) in sectors {
            replaced.extend(replacement(overlay, start, stop)?);
        }
        replaced.append(&mut journal.records);
        journal.records = replaced;
        Ok(journal)
    }

    /// The part `start..end` of a change that begins at `offset`; zeroes come with the length.
    fn append(&mut self, start: u64, end: u64, offset: u64, source: OverlaySource) {
        if start >= end {
            return;
        }
        let skip = start - offset;
        let change = match source {
            OverlaySource::Zero => return,
            OverlaySource::Bytes(bytes) => Change::Append(bytes[usize_from(skip)..].to_vec()),
            OverlaySource::Base(from) => Change::Copy {
                from: from + skip,
                len: end - start,
            },
        };
        self.records.push(Record { offset: start, change });
    }

    /// The length of the file before the repair, in bytes.
    #[must_use]
    pub fn original_len(&self) -> u64 {
        self.original_len
    }

    /// The length of the file after the repair, in bytes.
    #[must_use]
    pub fn new_len(&self) -> u64 {
        self.new_len
    }

    /// Nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.new_len == self.original_len
    }

    /// The undo file: a head, the records, and the SHA-256 of all that.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let number = |bytes: &mut Vec<u8>, value: u64| bytes.extend_from_slice(&value.to_be_bytes());
        number(&mut bytes, self.original_len);
        number(&mut bytes, self.new_len);
        number(&mut bytes, u64_from(self.records.len()));
        for record in &self.records {
            let (kind, from) = match record.change {
                Change::Replace { .. } => (0, 0),
                Change::Append(_) => (1, 0),
                Change::Copy { from, .. } => (2, from),
                Change::Cut(_) => (3, 0),
            };
            for value in [kind, record.offset, record.len(), from] {
                number(&mut bytes, value);
            }
            match &record.change {
                Change::Replace { old, new } => {
                    bytes.extend_from_slice(old);
                    bytes.extend_from_slice(new);
                }
                Change::Append(end) | Change::Cut(end) => bytes.extend_from_slice(end),
                Change::Copy { .. } => {}
            }
        }
        let digest = Sha256::digest(&bytes);
        bytes.extend_from_slice(&digest);
        bytes
    }

    /// The journal in the bytes of an undo file.
    ///
    /// # Errors
    /// [`RepairError::UndoMismatch`] if they are none, or damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, RepairError> {
        let damaged = || RepairError::mismatch("it is no undo file, or damaged");
        let (body, digest) = bytes
            .split_at_checked(bytes.len().saturating_sub(DIGEST))
            .ok_or_else(damaged)?;
        if Sha256::digest(body).as_slice() != digest {
            return Err(damaged());
        }
        let mut reader = Reader(body);
        if reader.take(u64_from(MAGIC.len())) != Some(&MAGIC) {
            return Err(damaged());
        }
        reader.journal().ok_or_else(damaged)
    }
}

/// What changes between two sectors of the original file; sectors at either end that do not are left out.
fn replacement(overlay: &OverlayFile, start: u64, stop: u64) -> Result<Option<Record>, RepairError> {
    let mut old = vec![0; usize_from(stop - start)];
    let mut new = old.clone();
    overlay.base().read_exact_at(&mut old, start).doing("read", start)?;
    overlay.read_exact_at(&mut new, start).doing("read", start)?;
    let sector = usize_from(SECTOR_SIZE);
    let differs = |(a, b): (&[u8], &[u8])| a != b;
    let Some(first) = old.chunks(sector).zip(new.chunks(sector)).position(differs) else {
        return Ok(None);
    };
    let last = old
        .chunks(sector)
        .zip(new.chunks(sector))
        .rposition(differs)
        .unwrap_or(first);
    let range = first * sector..((last + 1) * sector).min(old.len());
    Ok(Some(Record {
        offset: start + u64_from(range.start),
        change: Change::Replace {
            old: old[range.clone()].to_vec(),
            new: new[range].to_vec(),
        },
    }))
}

/// Takes an undo file apart. Its checksum was right; its numbers are not trusted nevertheless.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize_from(len))?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    fn journal(mut self) -> Option<Journal> {
        let (original_len, new_len, count) = (self.number()?, self.number()?, self.number()?);
        // No image is longer: a disk of the largest size, with as much again in copies.
        if original_len.max(new_len) > 2 * MAX_DISK_SIZE {
            return None;
        }
        let mut records = Vec::new();
        let mut free = 0;
        for _ in 0..count {
            let record = self.record(original_len)?;
            let end = record.offset.checked_add(record.len())?;
            let inside = match record.change {
                Change::Replace { .. } => end <= original_len.min(new_len),
                Change::Append(_) | Change::Copy { .. } => record.offset >= original_len && end <= new_len,
                Change::Cut(_) => record.offset == new_len && end == original_len,
            };
            if !inside || record.offset < free {
                return None;
            }
            free = end;
            records.push(record);
        }
        // What is cut off is kept, and a file that becomes longer ends in what was written last: its footer.
        let ends = original_len == new_len || free == original_len.max(new_len);
        (self.0.is_empty() && ends).then_some(Journal {
            original_len,
            new_len,
            records,
        })
    }

    fn record(&mut self, original_len: u64) -> Option<Record> {
        let (kind, offset, len, from) = (self.number()?, self.number()?, self.number()?, self.number()?);
        let change = match kind {
            0 => Change::Replace {
                old: self.take(len)?.to_vec(),
                new: self.take(len)?.to_vec(),
            },
            1 => Change::Append(self.take(len)?.to_vec()),
            3 => Change::Cut(self.take(len)?.to_vec()),
            2 if from.checked_add(len)? <= original_len => Change::Copy { from, len },
            _ => return None,
        };
        Some(Record { offset, change })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryFile;

    fn journal() -> Journal {
        let base = Arc::new(MemoryFile::from_bytes(vec![7; 3000]));
        let overlay = Arc::new(OverlayFile::new(base).unwrap());
        overlay.write_all_at(&[1, 2], 600).unwrap();
        overlay.write_all_at(&[7; 512], 1024).unwrap();
        overlay.write_all_at(&[3; 20], 2990).unwrap();
        overlay.copy_from_base(4096, 512, 600).unwrap();
        overlay.write_all_at(&[9; 512], 8192).unwrap();
        Journal::of(&overlay).unwrap()
    }

    #[test]
    fn changes_are_whole_sectors_inside_and_bytes_behind() {
        let journal = journal();
        assert_eq!((journal.original_len, journal.new_len), (3000, 8704));
        let shape: Vec<(u64, u64)> = journal
            .records
            .iter()
            .map(|record| (record.offset, record.len()))
            .collect();
        assert_eq!(shape, [(512, 512), (2560, 440), (3000, 10), (4096, 600), (8192, 512)]);
        assert_eq!(journal.records[3].change, Change::Copy { from: 512, len: 600 });
    }

    #[test]
    fn an_undo_file_survives_and_damage_to_it_is_noticed() {
        let bytes = journal().encode();
        assert_eq!(Journal::decode(&bytes).unwrap(), journal());
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(Journal::decode(&damaged).is_err(), "byte {at}");
            assert!(Journal::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }
}
