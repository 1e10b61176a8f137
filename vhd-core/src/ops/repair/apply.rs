//! Changing the file for real, so that it can be finished and undone at any time.

use super::error::{Doing as _, RepairError};
use super::journal::{Change, Journal, Record};
use crate::storage::StorageFile;
use crate::units::{SECTOR_SIZE, u64_from, usize_from};

/// Bytes that are compared and copied at once; whole sectors.
const CHUNK: u64 = 256 << 10;

/// How far a repair has come in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalState {
    /// The file is as it was before the repair.
    Untouched,
    /// Some of the changes are in the file.
    Partial,
    /// All changes are in the file.
    Complete,
}

impl Journal {
    /// How far the repair has come in `file`.
    ///
    /// # Errors
    /// [`RepairError::UndoMismatch`] if a byte that the repair changes is neither as it was nor as it is to be: the
    /// file is another one, or was used since.
    pub fn state(&self, file: &dyn StorageFile) -> Result<JournalState, RepairError> {
        let len = file.len().doing("find the length", 0)?;
        let (before, after) = (self.original_len, self.new_len);
        if !(before.min(after)..=before.max(after)).contains(&len) {
            let reason = format!("the file has {len} bytes; it had {before} before the repair and {after} after it");
            return Err(RepairError::mismatch(reason));
        }
        let (mut old, mut new) = (len == self.original_len, len == self.new_len);
        for record in &self.records {
            let (is_old, is_new) = self.compare(file, record, len)?;
            old &= is_old;
            new &= is_new;
        }
        Ok(match (old, new) {
            (_, true) => JournalState::Complete,
            (true, false) => JournalState::Untouched,
            (false, false) => JournalState::Partial,
        })
    }

    /// Whether a record's range is as before, and whether it is as it is to be, sector by sector.
    fn compare(&self, file: &dyn StorageFile, record: &Record, len: u64) -> Result<(bool, bool), RepairError> {
        let (mut all_old, mut all_new) = (true, true);
        for (at, part) in parts(record.offset, record.end(), SECTOR_SIZE) {
            let stored = at.saturating_add(part).min(len).saturating_sub(at);
            let mut bytes = vec![0; usize_from(stored)];
            file.read_exact_at(&mut bytes, at).doing("read", at)?;
            bytes.resize(usize_from(part), 0);
            let (old, new) = self.sides(file, record, at, part)?;
            if !is_mix(&bytes, &old, &new) && !is_mix(&bytes, &new, &old) {
                let reason = format!("the bytes at {at:#x} are neither those before the repair nor those after it");
                return Err(RepairError::mismatch(reason));
            }
            all_old &= bytes == old;
            let is_cut = matches!(record.change, Change::Cut(_));
            all_old &= stored == part || !is_cut;
            all_new &= bytes == new && (stored == 0 || !is_cut) && (stored == part || is_cut);
        }
        Ok((all_old, all_new))
    }

    /// What a part of a record's range was and is to be.
    fn sides(
        &self,
        file: &dyn StorageFile,
        record: &Record,
        at: u64,
        len: u64,
    ) -> Result<(Vec<u8>, Vec<u8>), RepairError> {
        let start = usize_from(at - record.offset);
        let range = start..start + usize_from(len);
        // A crash may leave the length of the file without what was written there.
        let nothing = || vec![0; usize_from(len)];
        Ok(match &record.change {
            Change::Replace { old, new } => (old[range.clone()].to_vec(), new[range].to_vec()),
            Change::Append(new) => (nothing(), new[range].to_vec()),
            Change::Cut(old) => (old[range].to_vec(), nothing()),
            Change::Copy { from, .. } => (nothing(), self.original(file, from + u64_from(start), len)?),
        })
    }

    /// A part of the file as it was before the repair.
    fn original(&self, file: &dyn StorageFile, offset: u64, len: u64) -> Result<Vec<u8>, RepairError> {
        let mut bytes = vec![0; usize_from(len)];
        file.read_exact_at(&mut bytes, offset).doing("read", offset)?;
        let end = offset + len;
        for record in &self.records {
            if let Change::Replace { old, .. } = &record.change {
                let (from, to) = (record.offset.max(offset), record.end().min(end));
                if from < to {
                    let part = &old[usize_from(from - record.offset)..usize_from(to - record.offset)];
                    bytes[usize_from(from - offset)..usize_from(to - offset)].copy_from_slice(part);
                }
            }
        }
        Ok(bytes)
    }

    /// Makes all changes, whatever part of them the file has already, and makes them durable.
    ///
    /// INV-16: the caller has made this journal durable under its name before.
    ///
    /// INV-17: what is appended, the new footer included, is durable before anything refers to it; the copy at the
    /// start comes last, so that one of the footers is good at every moment if one was. The file is shortened only
    /// when the footer before the cut is durable.
    ///
    /// # Errors
    /// [`RepairError::UndoMismatch`] as for [`state`](Journal::state), with nothing changed; [`RepairError::Io`].
    pub fn apply(&self, file: &dyn StorageFile) -> Result<(), RepairError> {
        if self.state(file)? == JournalState::Complete {
            return file.sync().doing("sync", 0);
        }
        if file.len().doing("find the length", 0)? < self.new_len {
            file.set_len(self.new_len).doing("lengthen the file", self.new_len)?;
        }
        for record in self.records.iter().filter(|record| record.offset >= self.original_len) {
            self.write_appended(file, record)?;
        }
        file.sync().doing("sync", 0)?;
        let (first, later): (Vec<&Record>, Vec<&Record>) = self.records.iter().partition(|record| record.offset == 0);
        for record in later {
            write_new(file, record)?;
        }
        file.sync().doing("sync", 0)?;
        for record in first {
            write_new(file, record)?;
        }
        file.sync().doing("sync", 0)?;
        if self.new_len < self.original_len {
            file.set_len(self.new_len).doing("shorten the file", self.new_len)?;
            file.sync().doing("sync", 0)?;
        }
        Ok(())
    }

    fn write_appended(&self, file: &dyn StorageFile, record: &Record) -> Result<(), RepairError> {
        match &record.change {
            Change::Append(new) => file.write_all_at(new, record.offset).doing("write", record.offset),
            Change::Copy { from, len } => {
                for (at, part) in parts(*from, from + len, CHUNK) {
                    let bytes = self.original(file, at, part)?;
                    let to = record.offset + (at - from);
                    file.write_all_at(&bytes, to).doing("write", to)?;
                }
                Ok(())
            }
            Change::Replace { .. } | Change::Cut(_) => Ok(()),
        }
    }

    /// Gives the file back the bytes and the length that it had, and makes that durable.
    ///
    /// # Errors
    /// [`RepairError::UndoMismatch`] as for [`state`](Journal::state), with nothing changed; [`RepairError::Io`].
    pub fn undo(&self, file: &dyn StorageFile) -> Result<(), RepairError> {
        self.state(file)?;
        for record in &self.records {
            if let Change::Replace { old, .. } | Change::Cut(old) = &record.change {
                file.write_all_at(old, record.offset).doing("write", record.offset)?;
            }
        }
        file.sync().doing("sync", 0)?;
        if file.len().doing("find the length", 0)? > self.original_len {
            file.set_len(self.original_len)
                .doing("shorten the file", self.original_len)?;
        }
        file.sync().doing("sync", 0)
    }
}

fn write_new(file: &dyn StorageFile, record: &Record) -> Result<(), RepairError> {
    match &record.change {
        Change::Replace { new, .. } => file.write_all_at(new, record.offset).doing("write", record.offset),
        Change::Append(_) | Change::Copy { .. } | Change::Cut(_) => Ok(()),
    }
}

/// Whether bytes are those of `first` up to somewhere and those of `then` from there on, as a write leaves them that
/// failed within a sector.
fn is_mix(bytes: &[u8], first: &[u8], then: &[u8]) -> bool {
    let same = bytes.iter().zip(first).take_while(|(a, b)| a == b).count();
    bytes[same..] == then[same..]
}

/// A range in parts that end at multiples of `step`.
fn parts(start: u64, end: u64, step: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut at = start;
    std::iter::from_fn(move || {
        let part = end
            .min((at / step + 1) * step)
            .checked_sub(at)
            .filter(|part| *part > 0)?;
        at += part;
        Some((at - part, part))
    })
}
