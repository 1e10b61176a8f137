//! A repair in the making: the file as it would be, and what is said about it.

use std::sync::Arc;

use super::error::{Doing as _, RepairError};
use super::finding::{Certainty, Doubt, RepairCode, RepairFinding};
use crate::device::ByteRange;
use crate::storage::{OverlayFile, StorageFile};
use crate::units::usize_from;

/// The file as it would be after the repair, over the file as it is.
pub(super) struct Draft {
    pub(super) overlay: Arc<OverlayFile>,
    pub(super) original_len: u64,
    /// The valid footer at the end of the file is part of the disk's content: that of an image inside.
    pub(super) tail_is_content: bool,
    pub(super) findings: Vec<RepairFinding>,
    pub(super) doubts: Vec<Doubt>,
}

impl Draft {
    pub(super) fn new(file: Arc<dyn StorageFile>) -> Result<Self, RepairError> {
        let original_len = file.len().doing("find the length", 0)?;
        Ok(Self {
            overlay: Arc::new(OverlayFile::new(file).doing("find the length", 0)?),
            original_len,
            tail_is_content: false,
            findings: Vec::new(),
            doubts: Vec::new(),
        })
    }

    pub(super) fn found(&mut self, code: RepairCode, certainty: Certainty, offset: Option<u64>, message: String) {
        self.findings.push(RepairFinding {
            code,
            certainty,
            offset,
            message,
        });
    }

    /// What the range reads after the repair is not certain.
    pub(super) fn doubt(&mut self, range: ByteRange, reason: String) {
        self.add_doubt(range, reason, false);
    }

    /// What was in the range is lost.
    pub(super) fn lose(&mut self, range: ByteRange, reason: String) {
        self.add_doubt(range, reason, true);
    }

    /// Ranges that follow one another for the same reason become one.
    fn add_doubt(&mut self, range: ByteRange, reason: String, lost: bool) {
        match self.doubts.last_mut() {
            _ if range.len == 0 => {}
            Some(last) if last.reason == reason && last.range.end() == range.start => last.range.len += range.len,
            _ => self.doubts.push(Doubt { range, reason, lost }),
        }
    }

    /// The doubts in the order of the disk, each once.
    pub(super) fn sorted_doubts(&mut self) -> Vec<Doubt> {
        let mut doubts = std::mem::take(&mut self.doubts);
        doubts.sort_by(|a, b| (a.range.start, a.range.len, &a.reason).cmp(&(b.range.start, b.range.len, &b.reason)));
        doubts.dedup();
        for doubt in doubts {
            self.add_doubt(doubt.range, doubt.reason, doubt.lost);
        }
        std::mem::take(&mut self.doubts)
    }

    pub(super) fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, RepairError> {
        let mut bytes = vec![0; usize_from(len)];
        self.overlay.read_exact_at(&mut bytes, offset).doing("read", offset)?;
        Ok(bytes)
    }

    /// The structure at `offset`; `None` where the file ends before it does.
    pub(super) fn structure<const N: usize>(&self, offset: u64) -> Result<Option<[u8; N]>, RepairError> {
        let mut bytes = [0; N];
        match self.overlay.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error).doing("read", offset),
        }
    }

    /// Writes, unless it stands there already; whether it did not.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<bool, RepairError> {
        let end = offset + crate::units::u64_from(bytes.len());
        let there = end <= self.len()? && self.read(offset, end - offset)? == bytes;
        if !there {
            self.overlay.write_all_at(bytes, offset).doing("write", offset)?;
        }
        Ok(!there)
    }

    pub(super) fn len(&self) -> Result<u64, RepairError> {
        self.overlay.len().doing("find the length", 0)
    }
}
