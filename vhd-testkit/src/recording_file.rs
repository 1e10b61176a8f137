//! A file that remembers what was done to it.

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhd_core::storage::{Segment, StorageFile};
use vhd_core::units::u64_from;

use crate::operation::{Operation, OperationKind, total};

/// What a [`RecordingFile`] recorded; clones are of the same file.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    operations: Arc<Mutex<Vec<Operation>>>,
}

impl Recorder {
    /// Every operation so far, in the order they began, failed ones included.
    #[must_use]
    pub fn operations(&self) -> Vec<Operation> {
        self.lock().clone()
    }

    /// The operations so far, and forgets them.
    #[must_use]
    pub fn take(&self) -> Vec<Operation> {
        std::mem::take(&mut *self.lock())
    }

    /// The kinds of the operations so far that change or sync the file: `[Sync]` for a flush of nothing.
    #[must_use]
    pub fn changes(&self) -> Vec<OperationKind> {
        self.lock()
            .iter()
            .map(|operation| operation.kind)
            .filter(|kind| kind.is_change())
            .collect()
    }

    /// How many operations of a kind there were.
    #[must_use]
    pub fn count(&self, kind: OperationKind) -> usize {
        self.lock().iter().filter(|operation| operation.kind == kind).count()
    }

    /// How many bytes the operations of a kind concerned.
    #[must_use]
    pub fn bytes(&self, kind: OperationKind) -> u64 {
        self.lock()
            .iter()
            .filter(|operation| operation.kind == kind)
            .map(|operation| operation.len)
            .sum()
    }

    /// Forgets everything so far.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Operation>> {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, kind: OperationKind, offset: u64, len: u64) {
        self.lock().push(Operation::new(kind, offset, len));
    }
}

/// Wraps a file and records every call on it.
#[derive(Clone, Debug)]
pub struct RecordingFile<F> {
    file: F,
    recorder: Recorder,
}

impl<F: StorageFile> RecordingFile<F> {
    /// A wrapper with an empty record.
    pub fn new(file: F) -> Self {
        Self {
            file,
            recorder: Recorder::default(),
        }
    }

    /// The record, to keep while the file itself is given away.
    pub fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// The file inside.
    pub fn inner(&self) -> &F {
        &self.file
    }
}

impl<F: StorageFile> StorageFile for RecordingFile<F> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.recorder.record(OperationKind::Read, offset, u64_from(buf.len()));
        self.file.read_exact_at(buf, offset)
    }

    fn read_exact_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        self.recorder
            .record(OperationKind::Read, offset, total(bufs.iter().map(|buf| buf.len())));
        self.file.read_exact_vectored_at(bufs, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.recorder.record(OperationKind::Write, offset, u64_from(buf.len()));
        self.file.write_all_at(buf, offset)
    }

    fn write_all_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.recorder
            .record(OperationKind::Write, offset, total(bufs.iter().map(|buf| buf.len())));
        self.file.write_all_vectored_at(bufs, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.recorder.record(OperationKind::Len, 0, 0);
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.recorder.record(OperationKind::SetLen, len, 0);
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.recorder.record(OperationKind::Sync, 0, 0);
        self.file.sync()
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.recorder.record(OperationKind::PunchHole, offset, len);
        self.file.punch_hole(offset, len)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.recorder.record(OperationKind::ZeroRange, offset, len);
        self.file.zero_range(offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.recorder.record(OperationKind::Allocate, offset, len);
        self.file.allocate(offset, len)
    }

    fn segment_at(&self, offset: u64) -> io::Result<(Segment, u64)> {
        self.recorder.record(OperationKind::Segment, offset, 0);
        self.file.segment_at(offset)
    }

    fn share_range_from(&self, source: &dyn StorageFile, source_offset: u64, offset: u64, len: u64) -> io::Result<()> {
        self.recorder.record(OperationKind::Share, offset, len);
        self.file.share_range_from(source, source_offset, offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crash_file::CrashFile;

    #[test]
    fn records_kind_place_and_size() {
        let file = RecordingFile::new(CrashFile::new());
        let recorder = file.recorder();
        file.write_all_vectored_at(&[IoSlice::new(&[1; 10]), IoSlice::new(&[2; 20])], 5)
            .unwrap();
        assert_eq!(file.len().unwrap(), 35);
        file.sync().unwrap();
        assert_eq!(recorder.bytes(OperationKind::Write), 30);
        assert_eq!(recorder.changes(), [OperationKind::Write, OperationKind::Sync]);
        assert_eq!(recorder.take()[0], Operation::new(OperationKind::Write, 5, 30));
        file.read_exact_at(&mut [0; 7], 0).unwrap();
        assert_eq!(recorder.operations(), [Operation::new(OperationKind::Read, 0, 7)]);
        assert_eq!(recorder.count(OperationKind::Read), 1);
    }
}
