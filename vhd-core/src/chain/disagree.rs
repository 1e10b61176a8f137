//! Where a child and its parent disagree without the chain being broken.

use std::path::Path;

use super::error::ChainWarning;
use crate::format::Timestamp;

/// Seconds by which two time stamps of one file may differ: FAT keeps every second one only.
const TIMESTAMP_TOLERANCE: u32 = 2;

/// What a child says.
pub(super) struct Recorded<'a> {
    pub(super) path: &'a Path,
    pub(super) disk_size: u64,
    pub(super) parent_timestamp: Option<Timestamp>,
}

/// What its parent is.
pub(super) struct Actual<'a> {
    pub(super) path: &'a Path,
    pub(super) disk_size: u64,
    /// When the file was last modified, if that is known.
    pub(super) modified: Option<Timestamp>,
    /// The time stamp in its footer, if it has one.
    pub(super) in_footer: Option<Timestamp>,
}

/// What is worth a warning about a child and its parent.
pub(super) fn disagreements(child: &Recorded<'_>, parent: &Actual<'_>) -> Vec<ChainWarning> {
    let size = (child.disk_size != parent.disk_size).then(|| ChainWarning::ParentSize {
        child: child.path.to_owned(),
        child_size: child.disk_size,
        parent: parent.path.to_owned(),
        parent_size: parent.disk_size,
    });
    size.into_iter().chain(timestamp(child, parent)).collect()
}

/// Whether the time stamp that a child recorded is that of its parent. Three conventions are in use: not set, the
/// parent file's modification time, and the time stamp in the parent's footer.
pub(super) fn times_agree(recorded: Timestamp, modified: Timestamp, in_footer: Option<Timestamp>) -> bool {
    recorded == Timestamp::UNSET
        || recorded.0.abs_diff(modified.0) <= TIMESTAMP_TOLERANCE
        || in_footer == Some(recorded)
}

/// A mismatch is worth a warning only, since copying a file changes its time.
fn timestamp(child: &Recorded<'_>, parent: &Actual<'_>) -> Option<ChainWarning> {
    let (recorded, found) = (child.parent_timestamp?, parent.modified?);
    (!times_agree(recorded, found, parent.in_footer)).then(|| ChainWarning::ParentTimestamp {
        child: child.path.to_owned(),
        parent: parent.path.to_owned(),
        recorded,
        found,
    })
}
