//! What became of an interrupted operation.

/// What became of an interrupted operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Recovered {
    /// A leaf was being made and was not used yet: it is gone, and the tree is as it was before.
    LeafRemoved,
    /// A file that nothing referred to any more is gone.
    FileRemoved,
    /// A merge was completed.
    Merged,
    /// A snapshot of a disk in use had been taken, and what was written since is kept.
    SnapshotKept,
    /// A snapshot of a disk in use had not been taken, or nothing had been written since: it is gone, and the disk is as it
    /// was.
    SnapshotUndone,
}
