//! The kinds of failure of a disk: what a program branches on.

use std::error::Error;
use std::io;

/// What went wrong, apart from where. A frontend maps these to its own errors in one table.
///
/// A device adds kinds of its own as [`Refused`](Self::Refused) and [`Failed`](Self::Failed): who knows the device knows
/// the names, and for everyone else it is one of two things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A request outside the disk.
    OutOfRange,
    /// A request that is not aligned.
    Misaligned,
    /// A write to something opened for reading.
    ReadOnly,
    /// A request that the device can't serve.
    Unsupported,
    /// Zeroes that would have to be written out although the caller forbade it.
    NotFast,
    /// An argument that no disk can have.
    InvalidArgument,
    /// The range is in a layer that is not open.
    ParentMissing,
    /// The image's format can address no further block.
    ImageFull,
    /// An earlier flush failed; nothing is written until the disk is opened again.
    Poisoned,
    /// The lease that allows to change the metadata is gone.
    FenceLost,
    /// The host file system failed.
    Io,
    /// A file does not exist.
    NotFound,
    /// The host file system is full.
    NoSpace,
    /// A file exists.
    Exists,
    /// The device refused for a reason of its own, and changed nothing: the reason's stable name.
    Refused(&'static str),
    /// The device failed in a way of its own: the stable name of that.
    Failed(&'static str),
}

impl ErrorKind {
    /// Every kind but those of single devices, for tables that must have an entry for each.
    pub const ALL: &[Self] = &[
        Self::OutOfRange,
        Self::Misaligned,
        Self::ReadOnly,
        Self::Unsupported,
        Self::NotFast,
        Self::InvalidArgument,
        Self::ParentMissing,
        Self::ImageFull,
        Self::Poisoned,
        Self::FenceLost,
        Self::Io,
        Self::NotFound,
        Self::NoSpace,
        Self::Exists,
    ];

    /// The stable name, for scripts and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OutOfRange => "out-of-range",
            Self::Misaligned => "misaligned",
            Self::ReadOnly => "read-only",
            Self::Unsupported => "unsupported",
            Self::NotFast => "not-fast",
            Self::InvalidArgument => "invalid-argument",
            Self::ParentMissing => "parent-missing",
            Self::ImageFull => "image-full",
            Self::Poisoned => "poisoned",
            Self::FenceLost => "fence-lost",
            Self::Io => "io",
            Self::NotFound => "not-found",
            Self::NoSpace => "no-space",
            Self::Exists => "exists",
            Self::Refused(name) | Self::Failed(name) => name,
        }
    }
}

/// The kind of a failure of the host file system.
#[must_use]
pub fn io_kind(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        // A file that may grow no further (RLIMIT_FSIZE, the limit of a file system) is as full as a disk.
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => ErrorKind::NoSpace,
        io::ErrorKind::AlreadyExists => ErrorKind::Exists,
        io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
        io::ErrorKind::Unsupported => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    }
}

/// The message of an error and of each of its causes.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_message = cause.to_string();
        // A transparent wrapper says its cause's words.
        if !message.ends_with(&cause_message) {
            message = format!("{message}: {cause_message}");
        }
        next = cause.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The variants as they stand in this file: a kind that is missing in the list is missing in every table.
    #[test]
    fn the_list_has_every_variant() {
        let source = include_str!("kind.rs").lines();
        let variants = source.filter_map(|line| line.strip_prefix("    ")?.strip_suffix(','));
        let variants: Vec<&str> = variants
            .filter(|name| name.chars().all(char::is_alphanumeric))
            .collect();
        let listed: Vec<String> = ErrorKind::ALL.iter().map(|kind| format!("{kind:?}")).collect();
        assert_eq!(variants, listed);
    }
}
