//! What is wrong with an image, or odd.

use std::fmt;

use serde::Serialize;
use vhd_core::check;

use crate::commands::check::severity_name;
use crate::exit::Exit;
use crate::failure::Failure;

/// How bad it is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Weight {
    /// The content is not, or not all, certain.
    Corrupt,
    /// A parent is missing, is another disk, or the child's own descendant.
    Parent,
    /// A parent holds something else than was recorded of it.
    Changed,
    /// It could not be looked at.
    Failed,
    /// Another program uses it: it was not looked at.
    Locked,
    /// It is no image that is read here, or one that is read with reservations.
    Refused,
    /// Wrong or unfinished, but nothing is lost.
    Repairable,
    /// Space that nothing uses.
    Leak,
    /// Allowed, and perhaps of interest.
    Note,
}

impl Weight {
    /// What the process returns if this is the worst.
    pub(crate) fn exit(self) -> Exit {
        match self {
            Self::Corrupt => Exit::Corrupt,
            Self::Parent => Exit::Parent,
            Self::Changed => Exit::Differ,
            Self::Failed => Exit::Failed,
            Self::Locked => Exit::Locked,
            Self::Refused => Exit::Refused,
            Self::Repairable | Self::Leak => Exit::Repairable,
            Self::Note => Exit::Ok,
        }
    }

    /// The weight of what keeps a file from being looked at.
    fn of_failure(failure: &Failure) -> Self {
        match failure.exit() {
            Exit::Corrupt => Self::Corrupt,
            Exit::Parent => Self::Parent,
            Exit::Locked => Self::Locked,
            Exit::Refused => Self::Refused,
            _ => Self::Failed,
        }
    }

    /// The stable name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Corrupt => severity_name(check::Severity::Corrupt),
            Self::Parent => "parent",
            Self::Changed => "changed",
            Self::Failed => "failed",
            Self::Locked => "locked",
            Self::Refused => "refused",
            Self::Repairable => severity_name(check::Severity::Repairable),
            Self::Leak => severity_name(check::Severity::Leak),
            Self::Note => severity_name(check::Severity::Note),
        }
    }
}

impl From<check::Severity> for Weight {
    fn from(severity: check::Severity) -> Self {
        match severity {
            check::Severity::Corrupt => Self::Corrupt,
            check::Severity::Repairable => Self::Repairable,
            check::Severity::Leak => Self::Leak,
            check::Severity::Note => Self::Note,
        }
    }
}

/// What is wrong with an image, or odd.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    /// The image, from the directory.
    pub(crate) path: String,
    /// Which member of the forest it is.
    #[serde(skip)]
    pub(crate) member: usize,
    pub(crate) code: String,
    pub(crate) severity: Weight,
    /// Where in the file.
    pub(crate) offset: Option<u64>,
    pub(crate) message: String,
}

impl Finding {
    /// A finding about the image as a whole.
    pub(crate) fn new(member: usize, code: &str, severity: Weight, message: impl fmt::Display) -> Self {
        Self {
            path: String::new(),
            member,
            code: code.to_owned(),
            severity,
            offset: None,
            message: message.to_string(),
        }
    }

    /// What keeps the image from being looked at.
    pub(crate) fn of_failure(member: usize, failure: &Failure) -> Self {
        let name = failure.kind().map_or("usage", |kind| kind.code().name);
        Self::new(member, name, Weight::of_failure(failure), failure.message())
    }

    /// What a check found.
    pub(crate) fn of_check(member: usize, found: &check::Finding) -> Self {
        Self {
            offset: found.offset,
            ..Self::new(member, found.code.as_str(), found.severity.into(), &found.message)
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  {:<10} {}: {}", self.severity.name(), self.path, self.code)?;
        if let Some(offset) = self.offset {
            write!(f, " at {offset:#x}")?;
        }
        writeln!(f, ": {}", self.message.replace('\n', "\n    "))
    }
}
