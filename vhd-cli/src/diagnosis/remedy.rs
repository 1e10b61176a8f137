//! What puts something right: a command to paste, or, where there is none, what a person has to find out.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::shell::path_word;

/// What a command risks, the safest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Safety {
    /// It changes nothing.
    Reads,
    /// It goes on with a job that has begun; no disk reads otherwise afterwards.
    Finishes,
    /// It changes the image, loses nothing, and `vhd repair --undo` takes it back.
    Undoable,
    /// It changes what an image records of others, and no data.
    Records,
    /// As `Undoable`, but some of the disk is lost or in doubt: `vhd repair` without `--yes` lists it.
    Assumes,
    /// It records the present state as right: only a person can know that it is.
    Accepts,
    /// It rearranges the file to give space back; the disk reads the same.
    Shrinks,
}

impl Safety {
    /// In a few words.
    fn text(self) -> &'static str {
        match self {
            Self::Reads => "changes nothing",
            Self::Finishes => "finishes what was begun",
            Self::Undoable => "loses nothing; --undo takes it back",
            Self::Records => "changes a header, no data",
            Self::Assumes => "part of the disk is lost or in doubt; --undo takes it back",
            Self::Accepts => "only if you know that the parent holds what it held",
            Self::Shrinks => "gives space back; the disk reads the same",
        }
    }
}

/// What comes first among commands that are as safe as each other: a link is made to a parent that is sound by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Look,
    Job,
    Repair,
    Link,
    Space,
}

/// A command that puts something right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Remedy {
    /// The image that it is about, from the directory.
    pub(crate) path: String,
    #[serde(skip)]
    pub(crate) member: usize,
    pub(crate) safety: Safety,
    #[serde(skip)]
    pub(crate) step: Step,
    /// What it is for.
    pub(crate) purpose: String,
    pub(crate) command: String,
}

impl Remedy {
    pub(crate) fn new(member: usize, step: Step, safety: Safety, purpose: impl fmt::Display, command: String) -> Self {
        Self {
            path: String::new(),
            member,
            step,
            safety,
            purpose: purpose.to_string(),
            command,
        }
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A purpose of several lines would not be a comment any more.
        let purpose = self.purpose.replace('\n', " ");
        writeln!(
            f,
            "# {}: {purpose} ({})\n{}",
            self.path.replace('\n', " "),
            self.safety.text(),
            self.command
        )
    }
}

/// Something that no command puts right by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Advice {
    /// The image that it is about, from the directory.
    pub(crate) path: String,
    #[serde(skip)]
    pub(crate) member: usize,
    pub(crate) message: String,
}

impl Advice {
    pub(crate) fn new(member: usize, message: impl fmt::Display) -> Self {
        Self {
            path: String::new(),
            member,
            message: message.to_string(),
        }
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  {}: {}", self.path, self.message)
    }
}

/// A command on one image, with words behind its name.
pub(crate) fn on_image(command: &str, image: &Path, rest: &str) -> String {
    let image = path_word(image);
    match rest {
        "" => format!("vhd {command} {image}"),
        rest => format!("vhd {command} {image} {rest}"),
    }
}
