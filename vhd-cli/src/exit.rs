//! The exit codes, in one place: scripts rely on them.

use std::process::ExitCode;

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Exit {
    /// Done. For `check`: nothing found, or notes alone. For `compare`: identical.
    Ok,
    /// The command could not run: a file is missing or unreadable, the disk is full, and the like.
    Failed,
    /// The command line is wrong.
    Usage,
    /// An image is corrupt.
    Corrupt,
    /// `check`: only leaked space, or damage that loses nothing. `repair`: it can be repaired, and was not.
    Repairable,
    /// `compare`, `diff`: the contents differ. `verify`: an ancestor changed. `vm cpu compare`: B cannot run what A started.
    Differ,
    /// A parent is missing, is another disk, or is its own ancestor.
    Parent,
    /// Another program uses the image.
    Locked,
    /// Refused, and nothing was changed: the file is not a VHD, or neither that nor a raw disk, the destination exists,
    /// sizes do not match, there is no record to verify by.
    Refused,
    /// `vm run`: the guest asked for a reset.
    GuestReset,
    /// `vm run`: the guest's kernel panicked.
    GuestPanic,
    /// `nbd --run`: what the command ended with, other than 0.
    Command(u8),
}

impl Exit {
    /// Every exit code, ascending.
    pub(crate) const ALL: &[Self] = &[
        Self::Ok,
        Self::Failed,
        Self::Usage,
        Self::Corrupt,
        Self::Repairable,
        Self::Differ,
        Self::Parent,
        Self::Locked,
        Self::Refused,
        Self::GuestReset,
        Self::GuestPanic,
    ];

    /// The number that the process returns.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Corrupt => 3,
            Self::Repairable => 4,
            Self::Differ => 5,
            Self::Parent => 6,
            Self::Locked => 7,
            Self::Refused => 8,
            Self::GuestReset => 9,
            Self::GuestPanic => 10,
            Self::Command(code) => code,
        }
    }

    /// The worse of two, of commands that take several images: could not be seen or done at all is worse than refused,
    /// and damage is the worst.
    pub(crate) fn worse(self, other: Self) -> Self {
        let rank = |exit: Self| match exit {
            Self::Ok => 0,
            Self::Differ => 1,
            Self::Repairable => 2,
            Self::Refused => 3,
            Self::Locked => 4,
            Self::Parent => 5,
            Self::Failed => 6,
            Self::Usage | Self::GuestReset | Self::GuestPanic | Self::Command(_) => 7,
            Self::Corrupt => 8,
        };
        if rank(other) > rank(self) { other } else { self }
    }

    /// What it means, in the words of help and manual pages.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "done; check: clean or notes alone; compare, diff: identical; vm run: the guest powered off",
            Self::Failed => "could not run: a file is missing or unreadable, no space left, ...",
            Self::Usage => "the command line is wrong",
            Self::Corrupt => "an image is corrupt",
            Self::Differ => {
                "compare, diff: the contents differ; verify: an ancestor changed; vm cpu compare: B cannot run what A started"
            }
            Self::Repairable => "check: only leaked space or repairable findings; repair: it can be repaired",
            Self::Parent => "a parent is missing, another disk, or its own ancestor",
            Self::Locked => "another program uses the image",
            Self::Refused => {
                "refused, nothing changed: not a VHD (or raw disk), destination exists, sizes differ, no usable digest record, ..."
            }
            Self::GuestReset => "vm run: the guest asked for a reset; it is not started again",
            Self::GuestPanic => "vm run: the guest's kernel panicked",
            Self::Command(_) => "nbd --run: that of the command",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.number().into()
    }
}

/// The exit codes as the help shows them.
pub(crate) fn help() -> String {
    let lines = Exit::ALL
        .iter()
        .map(|exit| format!("  {}  {}", exit.number(), exit.meaning()));
    format!("Exit codes:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_ascend_and_the_help_has_them_all() {
        let numbers: Vec<u8> = Exit::ALL.iter().map(|exit| exit.number()).collect();
        assert_eq!(numbers, (0..=10).collect::<Vec<u8>>());
        let help = help();
        for exit in Exit::ALL {
            assert!(help.contains(&format!("  {}  {}", exit.number(), exit.meaning())));
        }
    }

    #[test]
    fn the_readme_has_the_table() {
        for exit in Exit::ALL {
            let row = format!("\n| {} | {} |\n", exit.number(), exit.meaning());
            assert!(include_str!("../README.md").contains(&row), "{row}");
        }
    }
}
