//! Why a file with a machine cannot be restored.

use std::io;

/// Why a file with a machine cannot be restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// It is no file with a machine.
    #[error("it is no saved machine: it does not begin with {:?}", String::from_utf8_lossy(super::container::MAGIC).trim_end())]
    NotAState,
    /// The process that wrote it ended before it was complete.
    #[error("it was never completed: the machine's process ended while it was written")]
    Unfinished,
    /// It ends too early.
    #[error("it is cut off: it has {found} bytes, and {expected} were written")]
    Truncated {
        /// Bytes.
        expected: u64,
        /// Bytes.
        found: u64,
    },
    /// What was written is not what is there.
    #[error("it was altered: {what} at offset {offset:#x} does not match its digest")]
    Altered {
        /// What.
        what: String,
        /// Where in the file.
        offset: u64,
    },
    /// Its digests match, and what is in it cannot be.
    #[error("its section {section} {what}")]
    Damaged {
        /// The kind of section.
        section: String,
        /// What is wrong with it.
        what: String,
    },
    /// It was written by a newer version, or an older one that is not read any more.
    #[error(
        "{what} has version {found}, and this program reads up to version {known}; use the version of vhd that saved it, or a newer one"
    )]
    Version {
        /// What.
        what: String,
        /// As found.
        found: u32,
        /// The newest that is known.
        known: u32,
    },
    /// It needs something that this program does not have.
    #[error(
        "its section {section} needs {feature:?}, which this program does not know; use the version of vhd that saved it, or a newer one"
    )]
    Requirement {
        /// The kind of section.
        section: String,
        /// What it needs.
        feature: String,
    },
    /// The machine has a device with features that this program does not have.
    #[error(
        "a device of it has features {missing:#x} that this program does not have; use the version of vhd that saved it, or a newer one"
    )]
    Features {
        /// Bits.
        missing: u64,
    },
    /// This host's processors are not like those that the guest knows.
    #[error("this host's processors lack what the guest was started with: {}", reasons.join("; "))]
    Processor {
        /// What is missing.
        reasons: Vec<String>,
    },
    /// The disks are not those of the machine.
    #[error("the machine has disks in slots {expected:?}, and was given some for {found:?}")]
    Disks {
        /// As saved.
        expected: Vec<usize>,
        /// As given.
        found: Vec<usize>,
    },
    /// The host cannot read or write it.
    #[error("cannot {operation}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl StateError {
    /// What is in a section cannot be.
    pub(crate) fn damaged(section: &str, what: &str) -> Self {
        Self::Damaged {
            section: section.to_owned(),
            what: what.to_owned(),
        }
    }
}

/// A failure of the host.
pub(super) fn io(operation: &'static str) -> impl Fn(io::Error) -> StateError {
    move |source| StateError::Io { operation, source }
}
