//! Appending to the journal of one's own epoch.

use super::frame::encode;
use super::record::Record;
use crate::error::{CsvError, VolumeContext};
use crate::id::{Epoch, OpId};
use crate::volume::{VolumeFile, epoch_file};

/// The end of a journal. After a failed append or sync nothing more may be appended: the coordinator takes a new epoch.
pub(crate) struct JournalWriter<F> {
    file: F,
    epoch: Epoch,
    end: u64,
    next: u64,
    waiting: Vec<u8>,
}

impl<F: VolumeFile> JournalWriter<F> {
    /// The journal that was just created as `file`.
    pub(crate) fn new(file: F, epoch: Epoch) -> Self {
        Self {
            file,
            epoch,
            end: 0,
            next: 0,
            waiting: Vec::new(),
        }
    }

    /// The place that the next record gets.
    pub(crate) fn next_id(&self) -> OpId {
        OpId {
            epoch: self.epoch,
            seq: self.next,
        }
    }

    /// How long the journal is, in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.end
    }

    /// Adds a record to the next append.
    pub(crate) fn push(&mut self, record: &Record) {
        let payload = serde_json::to_vec(record).expect("records have string keys alone");
        self.waiting.extend(encode(self.epoch, self.next, &payload));
        self.next += 1;
    }

    /// Whether records wait for an append.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Writes what was pushed, and makes it durable.
    ///
    /// # Errors
    /// Failures of the volume: then this journal is at its end.
    pub(crate) fn append(&mut self) -> Result<(), CsvError> {
        let name = epoch_file(self.epoch);
        let bytes = std::mem::take(&mut self.waiting);
        self.file.write_at(&bytes, self.end).at("writing", &name)?;
        self.end += bytes.len() as u64;
        self.file.sync().at("syncing", &name)
    }
}
