//! The log: which entries have to be replayed. Nothing is written; what they change is kept in memory.
//!
//! The log is a ring of entries. Of all runs of valid entries with ascending sequence numbers, the active one is that
//! with the highest; its last entry says where it begins.

use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;
use vhd_block::units::{u64_from, usize_from};

use super::crc32c;
use super::header::Header;
use super::patched::{Patches, SECTOR};
use crate::bytes::{array, le32, le64};
use crate::error::ReadContext as _;
use crate::limits::MAX_LOG;
use crate::{BrokenRule, ImageError, ImageFile, Rule};

const ENTRY_HEADER: usize = 64;
const DESCRIPTOR: usize = 32;
/// Times the length of the log that checksums are computed for: honest entries do not lie in one another.
const MAX_WORK: usize = 4;

/// What replaying a log would do.
pub(super) struct Replay {
    pub(super) patches: Patches,
    /// Entries in the active sequence.
    pub(super) entries: u64,
    /// Bytes that the file has at least, when they are replayed.
    pub(super) file_len: u64,
}

/// Reads the log of an image and finds what has to be replayed; `None` if the image was closed.
pub(super) fn read(file: &dyn ImageFile, header: &Header, file_len: u64) -> Result<Option<Replay>, ImageError> {
    if header.log_guid.is_nil() {
        return Ok(None);
    }
    let (offset, len) = (header.log_offset, u64::from(header.log_len));
    if len > MAX_LOG {
        return Err(ImageError::Unsupported {
            feature: format!("a log of {len:#x} bytes to replay (at most {MAX_LOG:#x})"),
            offset,
        });
    }
    if offset.checked_add(len).is_none_or(|end| end > file_len) || len == 0 {
        let found = format!("a log of {len:#x} bytes in a file of {file_len:#x}");
        return Err(BrokenRule::new(Rule::Log, offset, found, "a log inside the file").into());
    }
    let mut ring = vec![0; usize_from(len)];
    file.read_exact_at(&mut ring, offset).at(offset, ring.len())?;
    let log = Log {
        ring,
        guid: header.log_guid,
        offset,
    };
    let sequence = log.active()?;
    if sequence.is_empty() {
        return Ok(Some(Replay {
            patches: Patches::default(),
            entries: 0,
            file_len,
        }));
    }
    log.replay(&sequence, file_len).map(Some)
}

struct Log {
    ring: Vec<u8>,
    guid: Uuid,
    /// Where in the file it is.
    offset: u64,
}

/// A valid entry.
#[derive(Clone, Copy)]
struct Entry {
    /// Where in the log it begins.
    at: usize,
    len: usize,
    /// Where in the log the sequence begins that this entry ends.
    tail: usize,
    sequence: u64,
    descriptors: usize,
    /// Bytes that the file must have.
    flushed_file_len: u64,
    /// Bytes that the file has to have.
    last_file_len: u64,
}

impl Log {
    /// The entries to replay, in order; none if none was written since the log was begun.
    fn active(&self) -> Result<Vec<Entry>, ImageError> {
        let mut best: Vec<Entry> = Vec::new();
        let mut work = 0;
        let mut start = 0;
        while start < self.ring.len() {
            let run = self.run(start, &mut work)?;
            let Some(head) = run.last() else {
                start += SECTOR;
                continue;
            };
            // A part of this run could not have its beginning either, so the next one begins behind it.
            start += run.iter().map(|entry| entry.len).sum::<usize>();
            let from = run.iter().position(|entry| entry.at == head.tail);
            if let Some(from) = from
                && best.last().is_none_or(|known| known.sequence < head.sequence)
            {
                best = run[from..].to_vec();
            }
        }
        // A writer names the log in the header before it writes the first entry, and changes nothing else before that is
        // durable. Where an entry was begun, that can't be relied on.
        if best.is_empty() && self.has_traces() {
            let found = "entries, but no whole sequence of them";
            return Err(BrokenRule::new(Rule::Log, self.offset, found, "one, as the image was not closed").into());
        }
        Ok(best)
    }

    /// Whether there is anything of an entry of this log, valid or not.
    fn has_traces(&self) -> bool {
        let (sectors, _) = self.ring.as_chunks::<SECTOR>();
        let mut sectors = sectors.iter();
        sectors.any(|sector| sector.starts_with(b"loge") && Uuid::from_bytes_le(array(sector, 32)) == self.guid)
    }

    /// The valid entries from `start` on that follow one another, once around at most.
    fn run(&self, start: usize, work: &mut usize) -> Result<Vec<Entry>, ImageError> {
        let mut run: Vec<Entry> = Vec::new();
        let (mut at, mut total) = (start, 0);
        while let Some(entry) = self.entry(at, work)? {
            total += entry.len;
            let follows = run
                .last()
                .is_none_or(|last| last.sequence.checked_add(1) == Some(entry.sequence));
            if !follows || total > self.ring.len() {
                break;
            }
            at = (at + entry.len) % self.ring.len();
            run.push(entry);
        }
        Ok(run)
    }

    /// The bytes of a part of the ring.
    fn part(&self, at: usize, range: Range<usize>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(range.len());
        let start = (at + range.start) % self.ring.len();
        let first = range.len().min(self.ring.len() - start);
        bytes.extend_from_slice(&self.ring[start..start + first]);
        bytes.extend_from_slice(&self.ring[..range.len() - first]);
        bytes
    }

    /// The entry at a place, if there is a valid one.
    fn entry(&self, at: usize, work: &mut usize) -> Result<Option<Entry>, ImageError> {
        let header = &self.ring[at..at + ENTRY_HEADER];
        let len = usize_from(u64::from(le32(header, 8)));
        let tail = usize_from(u64::from(le32(header, 12)));
        let descriptors = usize_from(u64::from(le32(header, 24)));
        let is_entry = header.starts_with(b"loge")
            && len >= SECTOR
            && len <= self.ring.len()
            && (len | tail).is_multiple_of(SECTOR)
            && tail < self.ring.len()
            && le64(header, 16) > 0
            && Uuid::from_bytes_le(array(header, 32)) == self.guid
            && descriptors <= (len - ENTRY_HEADER) / DESCRIPTOR;
        if !is_entry {
            return Ok(None);
        }
        *work += len;
        if *work > MAX_WORK * self.ring.len() {
            let found = "entries inside one another";
            let offset = self.offset + u64_from(at);
            return Err(BrokenRule::new(Rule::Log, offset, found, "entries behind one another").into());
        }
        let entry = Entry {
            at,
            len,
            tail,
            sequence: le64(header, 16),
            descriptors,
            flushed_file_len: le64(header, 48),
            last_file_len: le64(header, 56),
        };
        let bytes = self.part(at, 0..len);
        let is_whole = le32(&bytes, 4) == crc32c::without_field(&bytes, 4) && entry.changes(&bytes).is_some();
        Ok(is_whole.then_some(entry))
    }

    fn replay(&self, sequence: &[Entry], file_len: u64) -> Result<Replay, ImageError> {
        let head = sequence.last().expect("an active sequence has entries");
        if head.flushed_file_len > file_len {
            let found = format!("a file of {file_len:#x} bytes");
            let expected = format!("{:#x}, as its log says: was it cut?", head.flushed_file_len);
            return Err(BrokenRule::new(Rule::Log, self.offset + u64_from(head.at), found, expected).into());
        }
        let mut patches = Patches::default();
        let mut len = file_len.max(head.last_file_len);
        for entry in sequence {
            let bytes = self.part(entry.at, 0..entry.len);
            for change in entry.changes(&bytes).expect("the entry was valid before") {
                match change {
                    Change::Zero { offset, len: zeroes } => {
                        patches.zeroes(offset, zeroes);
                        len = len.max(offset + zeroes);
                    }
                    Change::Sector { offset, data } => {
                        patches.sector(offset, data);
                        len = len.max(offset + u64_from(SECTOR));
                    }
                }
            }
        }
        Ok(Replay {
            patches,
            entries: u64_from(sequence.len()),
            file_len: len,
        })
    }
}

/// One change of an entry.
enum Change {
    Zero { offset: u64, len: u64 },
    Sector { offset: u64, data: Arc<[u8; SECTOR]> },
}

impl Entry {
    /// What the entry changes; `None` if it is not what it should be.
    fn changes(&self, bytes: &[u8]) -> Option<Vec<Change>> {
        let mut changes = Vec::with_capacity(self.descriptors);
        let mut next_sector = (ENTRY_HEADER + self.descriptors * DESCRIPTOR).next_multiple_of(SECTOR);
        for index in 0..self.descriptors {
            let descriptor = &bytes[ENTRY_HEADER + index * DESCRIPTOR..][..DESCRIPTOR];
            let offset = le64(descriptor, 16);
            if le64(descriptor, 24) != self.sequence || !offset.is_multiple_of(u64_from(SECTOR)) {
                return None;
            }
            changes.push(match &descriptor[..4] {
                b"zero" => {
                    let len = le64(descriptor, 8);
                    offset.checked_add(len).filter(|end| *end <= i64::MAX.cast_unsigned())?;
                    if !len.is_multiple_of(u64_from(SECTOR)) {
                        return None;
                    }
                    Change::Zero { offset, len }
                }
                b"desc" => {
                    offset
                        .checked_add(u64_from(SECTOR))
                        .filter(|end| *end <= i64::MAX.cast_unsigned())?;
                    let sector = bytes.get(next_sector..next_sector + SECTOR)?;
                    next_sector += SECTOR;
                    let data = self.sector(descriptor, sector)?;
                    Change::Sector { offset, data }
                }
                _ => return None,
            });
        }
        Some(changes)
    }

    /// A sector as it is in the file: its ends are in the descriptor.
    fn sector(&self, descriptor: &[u8], stored: &[u8]) -> Option<Arc<[u8; SECTOR]>> {
        let sequence = (u64::from(le32(stored, 4)) << 32) | u64::from(le32(stored, SECTOR - 4));
        if !stored.starts_with(b"data") || sequence != self.sequence {
            return None;
        }
        let mut data: [u8; SECTOR] = array(stored, 0);
        data[..8].copy_from_slice(&descriptor[8..16]);
        data[SECTOR - 4..].copy_from_slice(&descriptor[4..8]);
        Some(Arc::new(data))
    }
}
