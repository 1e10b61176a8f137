//! What is said over the socket of a machine: one request, one answer, each a line of JSON; behind the answer to
//! [`Job::Console`] follow the bytes of the console, both ways.

use serde::{Deserialize, Serialize};

use super::MachineName;
use crate::commands::vm::disk_spec::DiskSpec;
#[cfg(doc)]
use crate::commands::vm::passed::Passed;
use crate::commands::vm::snapshot::Taken;

/// Changes when a message changes its meaning.
pub(super) const VERSION: u32 = 1;

/// What a command asks for.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Request<J = Job> {
    pub(crate) version: u32,
    #[serde(flatten)]
    pub(crate) job: J,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub(crate) enum Job {
    /// Say what the machine is.
    Info,
    /// Hold the guest.
    Pause,
    /// Let it go on.
    Resume,
    /// Press the power button, or with `force` cut the power.
    Stop { force: bool },
    /// Write the machine to an empty file, whose descriptor follows, and end it. The machine says [`Answer::Written`], the client
    /// gives the file its name and says so ([`Named`]); the answer comes when the file is complete. `file` is for messages.
    SaveInto { file: String },
    /// Give the machine another disk, named from the root directory. It says [`Answer::Outside`] if it may not open it: then
    /// the client says what it passes ([`Passed`]), and the descriptors follow.
    DiskAdd { disk: DiskSpec },
    /// Ask the guest to let go of a disk, or whether it has.
    DiskRemove { id: String },
    /// Give a disk another size in bytes.
    DiskResize { id: String, size: u64, shrink: bool },
    /// Keep the state of the machine under a name.
    SnapshotCreate { name: String },
    /// Go on from a snapshot, after the present state was kept under the name `first`. The answer comes when the guest goes on.
    SnapshotApply { name: String, first: Option<String> },
    /// Delete a snapshot of the machine.
    SnapshotDelete { name: String },
    /// Pass the console on.
    Console,
}

/// Whether a file has its name now, after [`Answer::Written`].
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Named {
    /// Why not.
    pub(super) failed: Option<String>,
}

/// What the process of a machine answers.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    Info(MachineInfo),
    Done,
    /// A snapshot was taken.
    Taken(Taken),
    /// A snapshot was deleted; files of it that stay for now, with their reasons.
    Deleted(Vec<String>),
    /// Not yet: ask again.
    Waits,
    /// The machine is in its file, which needs a name.
    Written,
    /// The process is confined to other files: pass those of the disk.
    Outside,
    /// Why not, as a code of the command and a message for people.
    Failed {
        code: String,
        message: String,
    },
}

/// A machine.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct MachineInfo {
    pub(crate) name: MachineName,
    /// The process.
    pub(crate) pid: u32,
    /// `running` or `paused`.
    pub(crate) state: String,
    /// `vhd-1` or `mmio`.
    pub(crate) machine: String,
    pub(crate) cpus: u8,
    /// Bytes.
    pub(crate) memory: u64,
    /// When the process began to run the guest, in UTC.
    pub(crate) started: String,
    /// The file of the kernel.
    pub(crate) kernel: String,
    /// What keeps the process from opening files that are not the machine's, for people.
    #[serde(default)]
    pub(crate) files: String,
    pub(crate) disks: Vec<DiskInfo>,
}

/// A disk of a machine.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct DiskInfo {
    /// What the guest sees as its serial number.
    pub(crate) id: String,
    /// As it was named when it was given to the machine.
    pub(crate) image: String,
    pub(crate) read_only: bool,
    /// Bytes.
    pub(crate) size: u64,
}
