//! Which files the process of a machine may open by their paths: landlock rules, which the threads that are started afterwards
//! inherit.
//!
//! Descriptors that are open keep their rights, and what is passed over a socket brings its own. So a machine opens its disks
//! first, then calls [`Sandbox::confine_files`], and starts its threads last. seccomp ([`Sandbox::confine_process`]) says which
//! system calls a thread may make; this says on which paths.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreated, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope, make_bitflags,
};

use crate::error::host;
use crate::{Error, Sandbox};

/// What these rules are made of: files since Linux 5.13, devices since 6.10, signals and abstract sockets since 6.12.
const KNOWN: ABI = ABI::V6;

/// What a process may do with a file, or with all that is below a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read files and directories.
    Read,
    /// Use a device, or a file that is there.
    Use,
    /// List, make, rename and remove directories.
    Arrange,
    /// Make sockets, and remove them and empty directories.
    Meet,
    /// Read, write, make, rename and remove files and directories.
    Change,
}

impl Access {
    fn rights(self) -> BitFlags<AccessFs> {
        let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
        match self {
            Self::Read => read,
            Self::Use => make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate | IoctlDev}),
            Self::Arrange => make_bitflags!(AccessFs::{ReadDir | MakeDir | RemoveDir}),
            Self::Meet => make_bitflags!(AccessFs::{ReadDir | MakeSock | RemoveFile | RemoveDir}),
            Self::Change => {
                let never = make_bitflags!(AccessFs::{Execute | MakeChar | MakeBlock | IoctlDev});
                AccessFs::from_all(KNOWN) & !never
            }
        }
    }
}

/// Paths, and what may be done there.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    rules: Vec<(PathBuf, Access)>,
}

impl Reach {
    /// Adds a file or directory. One that does not exist cannot be opened then, also when somebody makes it later.
    pub fn allow(&mut self, path: impl Into<PathBuf>, access: Access) {
        let rule = (path.into(), access);
        if !self.rules.contains(&rule) {
            self.rules.push(rule);
        }
    }

    /// Whether files beside this one may be made and changed. Links in its path are followed.
    #[must_use]
    pub fn may_change_beside(&self, file: &Path) -> bool {
        let real = file.canonicalize().ok();
        let directories = [file.parent(), real.as_deref().and_then(Path::parent)];
        directories.into_iter().flatten().all(|directory| {
            let directory = directory.canonicalize();
            directory.is_ok_and(|directory| self.changeable().any(|allowed| directory.starts_with(allowed)))
        })
    }

    fn changeable(&self) -> impl Iterator<Item = PathBuf> {
        let rules = self.rules.iter().filter(|(_, access)| *access == Access::Change);
        rules.filter_map(|(path, _)| path.canonicalize().ok())
    }
}

/// How far the kernel keeps a process to what it may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confined {
    /// In all that the rules say.
    Whole,
    /// In part: this kernel knows an older version of landlock.
    Partly {
        /// The version.
        abi: i32,
    },
    /// Not at all: this kernel has no landlock, or it is not enabled.
    Not,
    /// Nobody asked for it.
    Off,
}

impl fmt::Display for Confined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => write!(f, "landlock"),
            Self::Partly { abi } => write!(f, "landlock in part (version {abi} of {})", KNOWN as i32),
            Self::Not => write!(f, "no landlock in this kernel"),
            Self::Off => write!(f, "off"),
        }
    }
}

impl Sandbox {
    /// Keeps the calling thread, and those that it starts from now on, to paths; it cannot be taken back. They also make no TCP
    /// port to be reached at, send no signal to others, and reach no abstract socket. With [`Sandbox::Log`] nothing is kept:
    /// landlock cannot look on.
    ///
    /// # Errors
    /// [`Error::Host`] where the kernel has landlock and refuses the rules. An older kernel, or one without, is no error: see
    /// [`Confined`].
    pub fn confine_files(self, reach: &Reach) -> Result<Confined, Error> {
        if self != Self::On {
            return Ok(Confined::Off);
        }
        enforce(reach).map_err(|error| {
            host("keep the process to the files of its machine (--sandbox off does without)")(io::Error::other(error))
        })
    }
}

fn enforce(reach: &Reach) -> Result<Confined, RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        // Connections stay possible: disks on servers can be added, and are connected to again.
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?;
    for (path, access) in &reach.rules {
        rules = add(rules, path, *access)?;
    }
    let status = rules.restrict_self()?;
    Ok(match (status.ruleset, status.landlock) {
        (RulesetStatus::FullyEnforced, _) => Confined::Whole,
        (RulesetStatus::PartiallyEnforced, LandlockStatus::Available { effective_abi, .. }) => Confined::Partly {
            abi: effective_abi as i32,
        },
        _ => Confined::Not,
    })
}

/// A path that is not there needs no rule.
fn add(rules: RulesetCreated, path: &Path, access: Access) -> Result<RulesetCreated, RulesetError> {
    let Ok(file) = PathFd::new(path) else {
        return Ok(rules);
    };
    let rights = match path.is_dir() {
        true => access.rights(),
        false => access.rights() & AccessFs::from_file(KNOWN),
    };
    rules.add_rule(PathBeneath::new(file, rights))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_beside_those_of_a_machine_are_told_by_where_they_really_are() {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name);
        for directory in ["disks/below", "elsewhere"] {
            std::fs::create_dir_all(path(directory)).unwrap();
        }
        for file in ["disks/a", "disks/below/b", "elsewhere/c"] {
            std::fs::write(path(file), "").unwrap();
        }
        std::os::unix::fs::symlink(path("elsewhere/c"), path("disks/link")).unwrap();
        let mut reach = Reach::default();
        reach.allow(path("disks"), Access::Change);
        reach.allow(path("elsewhere"), Access::Read);
        for (file, may) in [
            ("disks/a", true),
            ("disks/new", true),
            ("disks/below/b", true),
            ("disks/../elsewhere/c", false),
            ("disks/link", false),
            ("elsewhere/c", false),
            ("missing/d", false),
        ] {
            assert_eq!(reach.may_change_beside(&path(file)), may, "{file}");
        }
    }

    #[test]
    fn nobody_is_given_programs_or_devices_with_a_directory() {
        let never = make_bitflags!(AccessFs::{Execute | MakeChar | MakeBlock});
        for access in [Access::Read, Access::Use, Access::Arrange, Access::Meet, Access::Change] {
            assert!((access.rights() & never).is_empty(), "{access:?}");
        }
        assert!(!Access::Change.rights().contains(AccessFs::IoctlDev));
        assert!(!Access::Read.rights().intersects(AccessFs::from_write(KNOWN)));
    }
}
