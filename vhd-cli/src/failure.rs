//! Why a command stopped.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

use serde::Serialize;
use vhd_core::ErrorKind;
use vhd_core::error::with_causes;

use crate::cli::usage_error;
use crate::codes::Kind;
use crate::exit::Exit;

/// Why a command stopped: a kind and one message, in which every cause is named once.
#[derive(Debug)]
pub(crate) struct Failure {
    cause: Cause,
    message: String,
    /// The JSON object with this failure has been written already.
    reported: bool,
}

#[derive(Clone, Copy, Debug)]
enum Cause {
    /// The arguments are wrong together; each alone is checked by the grammar.
    Usage,
    Kind(Kind),
}

/// A failure as JSON shows it.
#[derive(Debug, Serialize)]
pub(crate) struct FailureJson<'a> {
    code: &'static str,
    kind: &'static str,
    exit: u8,
    message: &'a str,
}

impl Failure {
    /// A failure of the command itself.
    pub(crate) fn new(kind: Kind, message: impl fmt::Display) -> Self {
        Self {
            cause: Cause::Kind(kind),
            message: message.to_string(),
            reported: false,
        }
    }

    /// Arguments that do not go together.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self {
            cause: Cause::Usage,
            message: message.to_string(),
            reported: false,
        }
    }

    /// A failure of the library: its message and those of all causes.
    pub(crate) fn library(kind: impl Into<ErrorKind>, error: &dyn Error) -> Self {
        Self::new(Kind::Library(kind.into()), with_causes(error))
    }

    /// A failure of the host at `path`.
    pub(crate) fn io(operation: &str, path: &Path, error: &io::Error) -> Self {
        let kind = Kind::Library(vhd_core::storage::io_kind(error));
        Self::new(kind, format!("can't {operation} {}: {error}", path.display()))
    }

    /// Says which file or part of the job it was, for errors that do not know.
    pub(crate) fn about(mut self, subject: impl fmt::Display) -> Self {
        self.message = format!("{subject}: {}", self.message);
        self
    }

    /// Says what to do about it.
    pub(crate) fn with_advice(mut self, advice: &str) -> Self {
        self.message = format!("{}; {advice}", self.message);
        self
    }

    /// The same, when its JSON object is written already.
    pub(crate) fn reported(mut self) -> Self {
        self.reported = true;
        self
    }

    /// The JSON object with this failure has been written already.
    pub(crate) fn is_reported(&self) -> bool {
        self.reported
    }

    /// What the process returns.
    pub(crate) fn exit(&self) -> Exit {
        match self.cause {
            Cause::Usage => Exit::Usage,
            Cause::Kind(kind) => kind.code().exit,
        }
    }

    /// What went wrong; `None` for wrong arguments.
    pub(crate) fn kind(&self) -> Option<Kind> {
        match self.cause {
            Cause::Usage => None,
            Cause::Kind(kind) => Some(kind),
        }
    }

    /// The stable code; that of a failed command for wrong arguments.
    pub(crate) fn code(&self) -> &'static str {
        self.kind()
            .unwrap_or(Kind::Library(ErrorKind::InvalidArgument))
            .code()
            .code
    }

    /// What happened.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// The failure as JSON shows it; `None` for wrong arguments, which may be wrong about `--json` too.
    pub(crate) fn json(&self) -> Option<FailureJson<'_>> {
        let row = self.kind()?.code();
        Some(FailureJson {
            code: row.code,
            kind: row.name,
            exit: row.exit.number(),
            message: &self.message,
        })
    }

    /// The failure as a person sees it.
    pub(crate) fn text(&self) -> String {
        match self.cause {
            Cause::Usage => usage_error(&self.message),
            Cause::Kind(kind) => {
                let next = next_step(kind)
                    .map(|next| format!("\n  next: {next}"))
                    .unwrap_or_default();
                format!("vhd: error[{}]: {}{next}\n", kind.code().code, self.message)
            }
        }
    }
}

/// What a person does next, where that does not follow from the message.
fn next_step(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Library(ErrorKind::ParentMissing | ErrorKind::ParentMismatch) => Some(
            "`vhd doctor DIR` finds it below a directory, whatever it is called, and prints the command that links the image to it; \
             `--parent-dir DIR` reads it there",
        ),
        Kind::Library(ErrorKind::ChainCycle) => {
            Some("`vhd reparent IMAGE FILE` gives one of the images another parent")
        }
        _ => None,
    }
}

impl From<vhd_fs::files::FileError> for Failure {
    fn from(error: vhd_fs::files::FileError) -> Self {
        Self::new(Kind::Files(error.kind()), error)
    }
}

impl From<csv_lock::CsvError> for Failure {
    fn from(error: csv_lock::CsvError) -> Self {
        Self::new(Kind::Cluster(error.code()), error)
    }
}

macro_rules! from_library {
    ($($error:ty),+ $(,)?) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::library(error.kind(), &error)
            }
        }
    )+};
}

from_library!(
    vhd_core::chain::ChainError,
    vhd_core::chain::dependants::DependantsError,
    vhd_core::chain::CreateChildError,
    vhd_block::DeviceError,
    vhd_core::image::CreateError,
    vhd_core::image::OpenError,
    vhd_core::job::JobError,
    vhd_core::ops::OpsError,
    vhd_core::ops::azure::AzureError,
    vhd_core::ops::delta::DeltaError,
    vhd_core::partition::PartitionError,
    vhd_core::record::RecordError,
    vhd_core::ops::compact::CompactError,
    vhd_core::ops::merge::MergeError,
    vhd_core::snapshot::SnapshotError,
    vhd_core::ops::resize::ResizeError,
    vhd_core::ops::new_id::NewIdError,
    vhd_core::ops::reparent::ReparentError,
    vhd_core::ops::verify::VerifyError,
    vhd_core::ops::repair::RepairError,
    vhd_core::storage::StorageError,
    vhd_nbd::client::ClientError,
);

#[cfg(test)]
mod tests {
    use super::*;
    use vhd_core::storage::StorageError;

    #[test]
    fn causes_are_appended_once() {
        let error = StorageError::Io {
            path: "a.vhd".into(),
            operation: "grow",
            source: io::Error::other("it is tired"),
        };
        let failure = Failure::from(error).about("b.vhd");
        assert_eq!(
            failure.text(),
            "vhd: error[VHD-E0301]: b.vhd: can't grow a.vhd: it is tired\n"
        );
        assert_eq!(failure.exit(), Exit::Failed);
    }
}
