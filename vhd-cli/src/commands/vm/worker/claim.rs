//! The names of machines, and their directories.

use crate::codes::Kind;
use crate::failure::Failure;
use crate::running::Folder;
pub(crate) use crate::running::{Claim, Name as MachineName};

/// The directories of all machines of this user.
pub(super) fn machines() -> Folder {
    Folder::of("vm")
}

/// Takes a name, with what a dead machine of that name left.
pub(crate) fn take_name(name: MachineName) -> Result<Claim, Failure> {
    let taken = format!("a machine with the name {name} is running; `vhd vm list` shows all, --name gives another one");
    let claim = machines().claim(name)?;
    claim.ok_or_else(|| Failure::new(Kind::MachineNameInUse, taken))
}

/// Whether the process of a machine lives; if not, what it left is removed.
pub(crate) fn is_alive(name: &MachineName) -> bool {
    machines().is_alive(name)
}
