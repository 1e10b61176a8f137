//! A partition as its file system sees it.

use std::cell::RefCell;

use crate::bytes::index;
use crate::free_map::FreeMap;
use crate::units::Units;
use crate::{ReadAt, Unusable};

/// Bytes of an allocation map that are in memory at once.
const MAP_CHUNK: u64 = 64 << 10;

/// A part of a disk. No read leaves it.
#[derive(Clone, Copy)]
pub(crate) struct Window<'a> {
    disk: &'a dyn ReadAt,
    pub(crate) start: u64,
    pub(crate) len: u64,
    /// What is read, for messages.
    pub(crate) name: &'static str,
    /// What a reader found to be the file system's own structures: all that it has read, and what it claimed.
    structures: Option<&'a RefCell<Units>>,
}

impl<'a> Window<'a> {
    /// The bytes `start..start + len` of the disk, which must be inside it.
    pub(crate) fn new(disk: &'a dyn ReadAt, start: u64, len: u64) -> Self {
        Self {
            disk,
            start,
            len,
            name: "partition",
            structures: None,
        }
    }

    /// The same for a reader of a file system, whose structures are noted.
    pub(crate) fn for_reader(self, name: &'static str, structures: &'a RefCell<Units>) -> Self {
        Self {
            name,
            structures: Some(structures),
            ..self
        }
    }

    /// An empty set of units of the partition.
    pub(crate) fn units(&self) -> Units {
        Units::new(self.start, self.start.saturating_add(self.len))
    }

    /// Says that bytes are a structure of the file system, so that they can't be free (INV-45). They need not be
    /// inside the partition.
    pub(crate) fn claim(&self, at: u64, len: u64) {
        if let Some(structures) = self.structures {
            let from = self.start.saturating_add(at);
            structures.borrow_mut().add_touched(from, from.saturating_add(len));
        }
    }

    pub(crate) fn damaged(&self, what: &'static str) -> Unusable {
        Unusable::Damaged(self.name, what)
    }

    pub(crate) fn dirty(&self, why: &'static str) -> Unusable {
        Unusable::Dirty(self.name, why)
    }

    pub(crate) fn unsupported(&self, what: &'static str) -> Unusable {
        Unusable::Unsupported(self.name, what)
    }

    /// Fills the buffer.
    pub(crate) fn read_into(&self, at: u64, buffer: &mut [u8]) -> Result<(), Unusable> {
        let len = crate::bytes::count(buffer.len());
        if at.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(self.damaged("a structure is not inside the partition"));
        }
        self.claim(at, len);
        Ok(self.disk.read_at(buffer, self.start + at)?)
    }

    /// `len` bytes; callers bound `len`.
    pub(crate) fn read(&self, at: u64, len: u64) -> Result<Vec<u8>, Unusable> {
        if at.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(self.damaged("a structure is not inside the partition"));
        }
        let mut bytes = vec![0; index(len)];
        self.read_into(at, &mut bytes)?;
        Ok(bytes)
    }

    /// Bytes where they are, or nothing where the partition ends before. They may be anything's, and are not noted.
    pub(crate) fn peek(&self, at: u64, len: u64) -> Result<Vec<u8>, Unusable> {
        match at.checked_add(len) {
            Some(end) if end <= self.len => {
                let mut bytes = vec![0; index(len)];
                self.disk.read_at(&mut bytes, self.start + at)?;
                Ok(bytes)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// An empty map of the partition.
    pub(crate) fn free_map(&self) -> FreeMap {
        FreeMap::new(self.start, self.len)
    }

    /// Calls `action` with `len` bytes from `at` in pieces.
    pub(crate) fn for_each_chunk(
        &self,
        at: u64,
        len: u64,
        mut action: impl FnMut(&[u8]) -> Result<(), Unusable>,
    ) -> Result<(), Unusable> {
        let mut done = 0;
        while done < len {
            let take = MAP_CHUNK.min(len - done);
            let chunk = self.read(at.saturating_add(done), take)?;
            action(&chunk)?;
            done += take;
        }
        Ok(())
    }
}

/// Calls `action` with the first unit and the number of each run of clear bits among the first `bits` of a map
/// whose lowest bit is the first unit.
pub(crate) fn clear_runs(map: &[u8], bits: u64, mut action: impl FnMut(u64, u64)) {
    let mut start = None;
    let mut at = 0;
    while at < bits {
        let byte = map.get(index(at / 8)).copied().unwrap_or(0xFF);
        // Whole bytes of one kind are most of a map.
        if at.is_multiple_of(8) && at + 8 <= bits && (byte == 0 || byte == 0xFF) {
            if byte == 0 {
                start.get_or_insert(at);
            } else if let Some(first) = start.take() {
                action(first, at - first);
            }
            at += 8;
            continue;
        }
        let used = byte >> (at % 8) & 1 == 1;
        if !used {
            start.get_or_insert(at);
        } else if let Some(first) = start.take() {
            action(first, at - first);
        }
        at += 1;
    }
    if let Some(first) = start {
        action(first, bits - first);
    }
}
