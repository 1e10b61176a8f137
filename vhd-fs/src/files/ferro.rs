//! What the file systems that the crate ferrosys reads have in common: times, failures, and opening in spite of damage.

use ferrosys::{ReadPolicy, Timestamp, TreeError};

use super::FileError;
use super::entry::Time;

/// Opens a file system strictly, and where that fails leniently: damage is then a note. `open` is told
/// which of the two. What uses something unknown is not opened leniently: it must not be guessed at.
pub(super) fn open_in_spite_of_damage<R, E: Into<TreeError> + Clone + std::fmt::Display>(
    format: &'static str,
    notes: &mut Vec<String>,
    mut open: impl FnMut(ReadPolicy) -> Result<R, E>,
) -> Result<R, FileError> {
    let strict = match open(ReadPolicy::Strict) {
        Ok(reader) => return Ok(reader),
        Err(strict) => strict,
    };
    let failure = failed(format, strict.clone());
    if matches!(failure, FileError::Unsupported { .. } | FileError::Io(_)) {
        return Err(failure);
    }
    let reader = open(ReadPolicy::Lenient).map_err(|_| failure)?;
    notes.push(format!("opened in spite of damage: {strict}"));
    Ok(reader)
}

pub(super) fn time(time: Timestamp) -> Time {
    Time {
        seconds: time.secs,
        nanos: time.nanos.min(Timestamp::NANOS_PER_SEC - 1),
    }
}

/// A failure of ferrosys, whatever the family.
pub(super) fn failed(format: &'static str, error: impl Into<TreeError>) -> FileError {
    match error.into() {
        TreeError::Io { kind, message, .. } => FileError::from_io(format, std::io::Error::new(kind, message)),
        TreeError::Unsupported { detail, .. } => FileError::unsupported(format, detail),
        other => FileError::damaged(format, other),
    }
}
