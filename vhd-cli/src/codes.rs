//! The one table from kinds of failure to what scripts see: a stable code, a stable name, an exit code.

use vhd_core::ErrorKind;

use crate::exit::Exit;

/// What went wrong, for a program to branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The library said so.
    Library(ErrorKind),
    /// Destination and source are one file.
    SameFile,
    /// Binary data would go to a terminal.
    Terminal,
    /// The destination can't be replaced by a file.
    NotReplaceable,
    /// Standard output could not be written.
    Output,
    /// Standard input could not be read or kept.
    Input,
    /// A step of the tour went wrong.
    Tour,
}

/// What scripts see of a kind of failure. Codes and names never change their meaning; new ones are added.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Code {
    pub(crate) kind: Kind,
    /// `VHD-E` and four digits: 01 the image, 02 the chain, 03 the host's files, 04 requests, 05 the command.
    pub(crate) code: &'static str,
    pub(crate) name: &'static str,
    pub(crate) exit: Exit,
}

const fn library(kind: ErrorKind, code: &'static str, name: &'static str, exit: Exit) -> Code {
    own(Kind::Library(kind), code, name, exit)
}

const fn own(kind: Kind, code: &'static str, name: &'static str, exit: Exit) -> Code {
    Code { kind, code, name, exit }
}

#[rustfmt::skip]
const TABLE: &[Code] = &[
    library(ErrorKind::FooterMissing,   "VHD-E0101", "footer-missing",    Exit::Corrupt),
    library(ErrorKind::FooterChecksum,  "VHD-E0102", "footer-checksum",   Exit::Corrupt),
    library(ErrorKind::FooterVersion,   "VHD-E0103", "footer-version",    Exit::Corrupt),
    library(ErrorKind::DiskType,        "VHD-E0104", "disk-type",         Exit::Corrupt),
    library(ErrorKind::DiskSize,        "VHD-E0105", "disk-size",         Exit::Corrupt),
    library(ErrorKind::HeaderLocation,  "VHD-E0106", "header-location",   Exit::Corrupt),
    library(ErrorKind::HeaderMissing,   "VHD-E0107", "header-missing",    Exit::Corrupt),
    library(ErrorKind::HeaderChecksum,  "VHD-E0108", "header-checksum",   Exit::Corrupt),
    library(ErrorKind::HeaderVersion,   "VHD-E0109", "header-version",    Exit::Corrupt),
    library(ErrorKind::BlockSize,       "VHD-E0110", "block-size",        Exit::Corrupt),
    library(ErrorKind::TableTooShort,   "VHD-E0111", "table-too-short",   Exit::Corrupt),
    library(ErrorKind::TableLocation,   "VHD-E0112", "table-location",    Exit::Corrupt),
    library(ErrorKind::BlockInMetadata, "VHD-E0113", "block-in-metadata", Exit::Corrupt),
    library(ErrorKind::BlockPastEnd,    "VHD-E0114", "block-past-end",    Exit::Corrupt),
    library(ErrorKind::BlockOverlap,    "VHD-E0115", "block-overlap",     Exit::Corrupt),
    library(ErrorKind::FileTooShort,    "VHD-E0116", "file-too-short",    Exit::Corrupt),
    library(ErrorKind::JournalPending,  "VHD-E0117", "journal-pending",   Exit::Corrupt),
    library(ErrorKind::Ambiguous,       "VHD-E0118", "format-ambiguous",  Exit::Refused),

    library(ErrorKind::ParentMissing,   "VHD-E0201", "parent-missing",    Exit::Parent),
    library(ErrorKind::ParentMismatch,  "VHD-E0202", "parent-mismatch",   Exit::Parent),
    library(ErrorKind::ChainCycle,      "VHD-E0203", "chain-cycle",       Exit::Parent),
    library(ErrorKind::ChainTooDeep,    "VHD-E0204", "chain-too-deep",    Exit::Parent),
    library(ErrorKind::SizeMismatch,    "VHD-E0205", "size-mismatch",     Exit::Refused),

    library(ErrorKind::Io,              "VHD-E0301", "io",                Exit::Failed),
    library(ErrorKind::NotFound,        "VHD-E0302", "not-found",         Exit::Failed),
    library(ErrorKind::NoSpace,         "VHD-E0303", "no-space",          Exit::Failed),
    library(ErrorKind::Locked,          "VHD-E0304", "locked",            Exit::Locked),
    library(ErrorKind::Exists,          "VHD-E0305", "exists",            Exit::Refused),

    library(ErrorKind::OutOfRange,      "VHD-E0401", "out-of-range",      Exit::Failed),
    library(ErrorKind::Misaligned,      "VHD-E0402", "misaligned",        Exit::Failed),
    library(ErrorKind::ReadOnly,        "VHD-E0403", "read-only",         Exit::Failed),
    library(ErrorKind::Unsupported,     "VHD-E0404", "unsupported",       Exit::Failed),
    library(ErrorKind::NotFast,         "VHD-E0405", "not-fast",          Exit::Failed),
    library(ErrorKind::ImageFull,       "VHD-E0406", "image-full",        Exit::Failed),
    library(ErrorKind::Poisoned,        "VHD-E0407", "poisoned",          Exit::Failed),
    library(ErrorKind::FenceLost,       "VHD-E0408", "fence-lost",        Exit::Failed),
    library(ErrorKind::InvalidArgument, "VHD-E0409", "invalid-argument",  Exit::Refused),

    own(Kind::SameFile,                 "VHD-E0501", "same-file",         Exit::Refused),
    own(Kind::Terminal,                 "VHD-E0502", "terminal",          Exit::Refused),
    own(Kind::NotReplaceable,           "VHD-E0503", "not-replaceable",   Exit::Refused),
    own(Kind::Output,                   "VHD-E0504", "output",            Exit::Failed),
    own(Kind::Input,                    "VHD-E0505", "input",             Exit::Failed),
    own(Kind::Tour,                     "VHD-E0506", "tour",              Exit::Failed),
];

/// What a kind that is newer than the table gets: the table's test fails then.
const UNLISTED: Code = own(Kind::Library(ErrorKind::Io), "VHD-E0999", "unlisted", Exit::Failed);

impl Kind {
    /// The row of the table.
    pub(crate) fn code(self) -> &'static Code {
        TABLE.iter().find(|row| row.kind == self).unwrap_or(&UNLISTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_kind_of_the_library_has_a_row() {
        for &kind in ErrorKind::ALL {
            assert_eq!(Kind::Library(kind).code().kind, Kind::Library(kind), "{kind:?}");
        }
    }

    #[test]
    fn codes_and_names_are_unique() {
        let codes: HashSet<_> = TABLE.iter().map(|row| row.code).collect();
        let names: HashSet<_> = TABLE.iter().map(|row| row.name).collect();
        assert_eq!((codes.len(), names.len()), (TABLE.len(), TABLE.len()));
    }

    #[test]
    fn a_failure_is_never_a_success() {
        assert!(TABLE.iter().all(|row| row.exit != Exit::Ok));
    }

    #[test]
    fn the_readme_has_the_table() {
        let rows = TABLE
            .iter()
            .map(|row| format!("| {} | {} | {} |", row.code, row.name, row.exit.number()));
        let expected: Vec<String> = rows.collect();
        let readme = include_str!("../README.md").lines();
        let found: Vec<&str> = readme.filter(|line| line.starts_with("| VHD-E")).collect();
        assert_eq!(found, expected);
    }
}
