//! The one table from kinds of failure to what scripts see: a stable code, a stable name, an exit code.

use vhd_core::ErrorKind;
use vhd_fs::files::FileErrorKind;
use vhd_nbd::kinds;

use crate::exit::Exit;

/// What went wrong, for a program to branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A library said so.
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
    /// A detached signature could not be made.
    Signature,
    /// A server can't listen.
    Listen,
    /// The server that has a disk in use does not answer as it should.
    Control,
    /// Another server listens there.
    AddressInUse,
    /// A certificate or key can't be used.
    Certificate,
    /// An NBD URI that is none, or stands where only a file can.
    Uri,
    /// A file system inside a disk, or a file in it, cannot be read.
    Files(FileErrorKind),
    /// A path inside a disk does not say which partition it is in.
    WhichPartition,
    /// A disk can't be mounted or unmounted.
    Mount,
    /// A mount is in use.
    MountBusy,
    /// Nothing of ours is mounted there.
    NotMounted,
    /// There is no usable KVM.
    NoKvm,
    /// A file is no kernel that can be started.
    NotAKernel,
    /// A machine cannot have that much memory, or a kernel needs more.
    GuestMemory,
    /// A request to KVM failed.
    Kvm,
    /// The kernel's command line cannot be passed on.
    KernelCommandLine,
    /// KVM cannot run the guest any further.
    GuestCrashed,
    /// The machine was ended from outside.
    GuestStopped,
    /// The host cannot carry a machine.
    Machine,
    /// A disk has no kernel that its boot loader would start.
    NoBootFiles,
    /// Another machine has the name.
    MachineNameInUse,
    /// No machine of this user has the name.
    NoSuchMachine,
    /// The process of a machine does not answer as it should.
    MachineControl,
    /// The guest was asked to power off and did not.
    GuestKeepsRunning,
    /// A machine of this kind, or in this state, cannot do what it is asked for.
    MachineCannot,
    /// The file of a saved machine is none, cut off or altered.
    SavedDamaged,
    /// The file of a saved machine is of another version.
    SavedVersion,
    /// The processors of this host are not those that a saved guest knows.
    SavedProcessor,
    /// The guest has not let go of a disk.
    DiskNotReleased,
    /// A disk of a saved machine is another one, or was changed since.
    SavedDisk,
    /// A snapshot of a machine lacks what a disk had of it.
    MachineSnapshotBroken,
    /// A file says nothing of processors, or nothing that can be.
    CpuDescription,
    /// The process of a machine is confined to other files.
    OutsideSandbox,
    /// A cluster volume or its coordinator said so, with this code.
    Cluster(&'static str),
    /// This machine has no certificate for other machines.
    NoCertificate,
    /// No volume of this name is known on this machine.
    NoSuchVolume,
    /// No agent of a node runs on this machine.
    NoAgent,
    /// The agent of a node runs already.
    AgentNameInUse,
    /// A node takes no part in a volume.
    NotAMember,
    /// The coordinator did not move in time.
    MoveFailed,
    /// A node has disks open on the volume that it shall leave.
    NodeHasDisks,
    /// A disk on a volume cannot be used for this.
    VolumeCannot,
    /// This build has no such engine, or no messages between machines.
    VolumeEngine,
}

/// What scripts see of a kind of failure. Codes and names never change their meaning; new ones are added.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Code {
    pub(crate) kind: Kind,
    /// `VHD-E` and four digits: 01 the image, 02 the chain, 03 the host's files, 04 requests, 05 the command, 06 NBD,
    /// 07 files inside a disk and mounts, 08 machines, 09 cluster volumes.
    pub(crate) code: &'static str,
    pub(crate) name: &'static str,
    pub(crate) exit: Exit,
}

const fn library(kind: ErrorKind, code: &'static str, exit: Exit) -> Code {
    own(Kind::Library(kind), code, kind.name(), exit)
}

/// A kind that a device outside the library has.
const fn foreign(kind: vhd_block::ErrorKind, code: &'static str, exit: Exit) -> Code {
    library(ErrorKind::Foreign(kind.name()), code, exit)
}

const fn own(kind: Kind, code: &'static str, name: &'static str, exit: Exit) -> Code {
    Code { kind, code, name, exit }
}

#[rustfmt::skip]
const TABLE: &[Code] = &[
    library(ErrorKind::FooterMissing,   "VHD-E0101", Exit::Corrupt),
    library(ErrorKind::FooterChecksum,  "VHD-E0102", Exit::Corrupt),
    library(ErrorKind::DiskType,        "VHD-E0104", Exit::Corrupt),
    library(ErrorKind::DiskSize,        "VHD-E0105", Exit::Corrupt),
    library(ErrorKind::HeaderLocation,  "VHD-E0106", Exit::Corrupt),
    library(ErrorKind::HeaderMissing,   "VHD-E0107", Exit::Corrupt),
    library(ErrorKind::HeaderChecksum,  "VHD-E0108", Exit::Corrupt),
    library(ErrorKind::HeaderVersion,   "VHD-E0109", Exit::Corrupt),
    library(ErrorKind::BlockSize,       "VHD-E0110", Exit::Corrupt),
    library(ErrorKind::TableTooShort,   "VHD-E0111", Exit::Corrupt),
    library(ErrorKind::TableLocation,   "VHD-E0112", Exit::Corrupt),
    library(ErrorKind::BlockInMetadata, "VHD-E0113", Exit::Corrupt),
    library(ErrorKind::BlockPastEnd,    "VHD-E0114", Exit::Corrupt),
    library(ErrorKind::BlockOverlap,    "VHD-E0115", Exit::Corrupt),
    library(ErrorKind::FileTooShort,    "VHD-E0116", Exit::Corrupt),
    library(ErrorKind::JournalPending,  "VHD-E0117", Exit::Corrupt),
    library(ErrorKind::Ambiguous,       "VHD-E0118", Exit::Refused),
    library(ErrorKind::PartitionTable,  "VHD-E0119", Exit::Refused),
    library(ErrorKind::DigestMissing,   "VHD-E0120", Exit::Refused),
    library(ErrorKind::SavedState,      "VHD-E0121", Exit::Refused),
    library(ErrorKind::ForeignMetadata, "VHD-E0122", Exit::Refused),
    library(ErrorKind::DigestDamaged,   "VHD-E0123", Exit::Corrupt),
    library(ErrorKind::DigestOtherDisk, "VHD-E0124", Exit::Refused),
    library(ErrorKind::NotRepairable,   "VHD-E0125", Exit::Corrupt),
    library(ErrorKind::UndoMismatch,    "VHD-E0126", Exit::Refused),
    library(ErrorKind::RecordDamaged,   "VHD-E0127", Exit::Corrupt),
    library(ErrorKind::RecordUnknown,   "VHD-E0128", Exit::Corrupt),
    library(ErrorKind::ResizeUnfinished, "VHD-E0129", Exit::Refused),
    library(ErrorKind::ForeignFormat,   "VHD-E0130", Exit::Refused),
    library(ErrorKind::FooterLost,      "VHD-E0131", Exit::Refused),
    library(ErrorKind::TooSmall,        "VHD-E0132", Exit::Refused),
    library(ErrorKind::RawWrite,        "VHD-E0133", Exit::Refused),
    library(ErrorKind::NotVhd,          "VHD-E0134", Exit::Refused),
    library(ErrorKind::FactsContradict, "VHD-E0135", Exit::Refused),
    library(ErrorKind::ReadOnlyFormat,  "VHD-E0140", Exit::Refused),
    library(ErrorKind::ImageDamaged,    "VHD-E0141", Exit::Corrupt),
    library(ErrorKind::ImageFeature,    "VHD-E0142", Exit::Refused),

    library(ErrorKind::ParentMissing,   "VHD-E0201", Exit::Parent),
    library(ErrorKind::ParentMismatch,  "VHD-E0202", Exit::Parent),
    library(ErrorKind::ChainCycle,      "VHD-E0203", Exit::Parent),
    library(ErrorKind::ChainTooDeep,    "VHD-E0204", Exit::Parent),
    library(ErrorKind::SizeMismatch,    "VHD-E0205", Exit::Refused),
    library(ErrorKind::DigestMismatch,  "VHD-E0206", Exit::Refused),
    library(ErrorKind::HasChildren,     "VHD-E0207", Exit::Refused),

    library(ErrorKind::Io,              "VHD-E0301", Exit::Failed),
    library(ErrorKind::NotFound,        "VHD-E0302", Exit::Failed),
    library(ErrorKind::NoSpace,         "VHD-E0303", Exit::Failed),
    library(ErrorKind::Locked,          "VHD-E0304", Exit::Locked),
    library(ErrorKind::Exists,          "VHD-E0305", Exit::Refused),
    library(ErrorKind::JobPending,      "VHD-E0307", Exit::Refused),
    library(ErrorKind::Changed,         "VHD-E0308", Exit::Refused),
    library(ErrorKind::SnapshotMissing, "VHD-E0309", Exit::Refused),
    library(ErrorKind::SnapshotExists,  "VHD-E0310", Exit::Refused),
    library(ErrorKind::SnapshotsUnsaved,"VHD-E0311", Exit::Refused),
    library(ErrorKind::ManifestStale,   "VHD-E0312", Exit::Refused),
    library(ErrorKind::TailInUse,       "VHD-E0313", Exit::Refused),
    library(ErrorKind::TiedSizes,       "VHD-E0314", Exit::Refused),
    library(ErrorKind::TablesTooLarge,  "VHD-E0320", Exit::Refused),
    own(Kind::Control,                  "VHD-E0325", "control",           Exit::Failed),
    library(ErrorKind::InUse,           "VHD-E0326", Exit::Locked),
    library(ErrorKind::Descriptor,      "VHD-E0329", Exit::Refused),
    own(Kind::Signature,                "VHD-E0330", "signature",         Exit::Failed),

    library(ErrorKind::OutOfRange,      "VHD-E0401", Exit::Failed),
    library(ErrorKind::Misaligned,      "VHD-E0402", Exit::Failed),
    library(ErrorKind::ReadOnly,        "VHD-E0403", Exit::Failed),
    library(ErrorKind::Unsupported,     "VHD-E0404", Exit::Failed),
    library(ErrorKind::NotFast,         "VHD-E0405", Exit::Failed),
    library(ErrorKind::ImageFull,       "VHD-E0406", Exit::Failed),
    library(ErrorKind::Poisoned,        "VHD-E0407", Exit::Failed),
    library(ErrorKind::FenceLost,       "VHD-E0408", Exit::Failed),
    library(ErrorKind::InvalidArgument, "VHD-E0409", Exit::Refused),
    library(ErrorKind::Verification,    "VHD-E0410", Exit::Failed),
    library(ErrorKind::NoBlocks,        "VHD-E0411", Exit::Refused),
    library(ErrorKind::Cancelled,       "VHD-E0412", Exit::Failed),
    library(ErrorKind::ContentChanged,  "VHD-E0413", Exit::Differ),
    library(ErrorKind::FactsMissing,    "VHD-E0414", Exit::Refused),
    library(ErrorKind::NotRelated,      "VHD-E0415", Exit::Refused),

    own(Kind::SameFile,                 "VHD-E0501", "same-file",         Exit::Refused),
    own(Kind::Terminal,                 "VHD-E0502", "terminal",          Exit::Refused),
    own(Kind::NotReplaceable,           "VHD-E0503", "not-replaceable",   Exit::Refused),
    own(Kind::Output,                   "VHD-E0504", "output",            Exit::Failed),
    own(Kind::Input,                    "VHD-E0505", "input",             Exit::Failed),
    own(Kind::Tour,                     "VHD-E0506", "tour",              Exit::Failed),

    own(Kind::Listen,                   "VHD-E0601", "listen",            Exit::Failed),
    own(Kind::AddressInUse,             "VHD-E0602", "address-in-use",    Exit::Failed),
    own(Kind::Certificate,              "VHD-E0603", "certificate",       Exit::Failed),
    foreign(kinds::UNREACHABLE, "VHD-E0605", Exit::Failed),
    foreign(kinds::SERVER_REFUSED, "VHD-E0606", Exit::Failed),
    foreign(kinds::SERVER_PROTOCOL, "VHD-E0607", Exit::Failed),
    foreign(kinds::WRITES_LOST, "VHD-E0608", Exit::Failed),
    foreign(kinds::SERVER_TRUST, "VHD-E0609", Exit::Failed),
    own(Kind::Uri,                      "VHD-E0610", "nbd-uri",           Exit::Refused),
    foreign(kinds::RESIZE_REFUSED, "VHD-E0611", Exit::Refused),
    library(ErrorKind::ExportHoldsVhd,  "VHD-E0613", Exit::Refused),

    own(Kind::Files(FileErrorKind::Unsupported),  "VHD-E0701", "files-unsupported", Exit::Refused),
    own(Kind::Files(FileErrorKind::Damaged),      "VHD-E0702", "files-damaged",     Exit::Corrupt),
    own(Kind::Files(FileErrorKind::NotFound),     "VHD-E0703", "files-not-found",   Exit::Failed),
    own(Kind::Files(FileErrorKind::WrongType),    "VHD-E0704", "files-wrong-type",  Exit::Failed),
    own(Kind::Files(FileErrorKind::TooManyLinks), "VHD-E0705", "files-link-loop",   Exit::Failed),
    own(Kind::Files(FileErrorKind::Io),           "VHD-E0706", "files-io",          Exit::Failed),
    own(Kind::WhichPartition,                     "VHD-E0707", "which-partition",   Exit::Refused),
    own(Kind::Mount,                              "VHD-E0708", "mount",             Exit::Failed),
    own(Kind::MountBusy,                          "VHD-E0709", "mount-busy",        Exit::Locked),
    own(Kind::NotMounted,                         "VHD-E0710", "not-mounted",       Exit::Failed),

    own(Kind::NoKvm,                    "VHD-E0801", "no-kvm",            Exit::Failed),
    own(Kind::NotAKernel,               "VHD-E0802", "not-a-kernel",      Exit::Refused),
    own(Kind::GuestMemory,              "VHD-E0803", "guest-memory",      Exit::Refused),
    own(Kind::Kvm,                      "VHD-E0804", "kvm",               Exit::Failed),
    own(Kind::KernelCommandLine,        "VHD-E0805", "kernel-command-line", Exit::Refused),
    own(Kind::GuestCrashed,             "VHD-E0806", "guest-crashed",     Exit::Failed),
    own(Kind::GuestStopped,             "VHD-E0807", "guest-stopped",     Exit::Failed),
    own(Kind::Machine,                  "VHD-E0808", "machine",           Exit::Failed),
    own(Kind::NoBootFiles,              "VHD-E0809", "no-boot-files",     Exit::Refused),
    own(Kind::MachineNameInUse,         "VHD-E0810", "machine-name-in-use", Exit::Locked),
    own(Kind::NoSuchMachine,            "VHD-E0811", "no-such-machine",   Exit::Failed),
    own(Kind::MachineControl,           "VHD-E0812", "machine-control",   Exit::Failed),
    own(Kind::GuestKeepsRunning,        "VHD-E0813", "guest-keeps-running", Exit::Failed),
    own(Kind::MachineCannot,            "VHD-E0814", "machine-cannot",    Exit::Refused),
    own(Kind::SavedDamaged,             "VHD-E0815", "saved-damaged",     Exit::Corrupt),
    own(Kind::SavedVersion,             "VHD-E0816", "saved-version",     Exit::Refused),
    own(Kind::SavedProcessor,           "VHD-E0817", "saved-processor",   Exit::Refused),
    own(Kind::SavedDisk,                "VHD-E0818", "saved-disk",        Exit::Refused),
    own(Kind::DiskNotReleased,          "VHD-E0819", "disk-not-released", Exit::Failed),
    own(Kind::MachineSnapshotBroken,    "VHD-E0820", "machine-snapshot-broken", Exit::Refused),
    own(Kind::CpuDescription,           "VHD-E0821", "cpu-description",   Exit::Corrupt),
    own(Kind::OutsideSandbox,           "VHD-E0822", "outside-sandbox",   Exit::Refused),

    own(Kind::Cluster("VHD-E0901"),      "VHD-E0901", "journal-damaged", Exit::Corrupt),
    own(Kind::Cluster("VHD-E0902"),      "VHD-E0902", "journal-unknown", Exit::Refused),
    own(Kind::Cluster("VHD-E0903"),      "VHD-E0903", "no-seal", Exit::Corrupt),
    own(Kind::Cluster("VHD-E0904"),      "VHD-E0904", "not-a-volume", Exit::Refused),
    own(Kind::Cluster("VHD-E0905"),      "VHD-E0905", "volume-format", Exit::Corrupt),
    own(Kind::Cluster("VHD-E0906"),      "VHD-E0906", "volume-exists", Exit::Refused),
    own(Kind::Cluster("VHD-E0907"),      "VHD-E0907", "volume-file-system", Exit::Refused),
    own(Kind::Cluster("VHD-E0908"),      "VHD-E0908", "epoch-over", Exit::Failed),
    own(Kind::Cluster("VHD-E0909"),      "VHD-E0909", "volume-message", Exit::Failed),
    own(Kind::Cluster("VHD-E0910"),      "VHD-E0910", "no-coordinator", Exit::Failed),
    own(Kind::Cluster("VHD-E0911"),      "VHD-E0911", "volume-engine", Exit::Failed),
    own(Kind::Cluster("VHD-E0912"),      "VHD-E0912", "engine-version", Exit::Refused),
    own(Kind::Cluster("VHD-E0913"),      "VHD-E0913", "volume-io", Exit::Failed),
    own(Kind::Cluster("VHD-E0914"),      "VHD-E0914", "not-fenced", Exit::Failed),
    own(Kind::NoSuchVolume,              "VHD-E0915", "no-such-volume", Exit::Refused),
    own(Kind::Cluster("VHD-E0916"),      "VHD-E0916", "volume-name-taken", Exit::Refused),
    own(Kind::NoAgent,                   "VHD-E0917", "no-agent", Exit::Failed),
    own(Kind::AgentNameInUse,            "VHD-E0918", "agent-name-in-use", Exit::Locked),
    own(Kind::NotAMember,                "VHD-E0919", "not-a-member", Exit::Refused),
    own(Kind::Cluster("VHD-E0920"),      "VHD-E0920", "foreign-cluster", Exit::Refused),
    own(Kind::Cluster("VHD-E0921"),      "VHD-E0921", "wrong-volume", Exit::Refused),
    own(Kind::Cluster("VHD-E0922"),      "VHD-E0922", "stale-epoch", Exit::Failed),
    own(Kind::Cluster("VHD-E0923"),      "VHD-E0923", "coordinator-moved", Exit::Failed),
    own(Kind::Cluster("VHD-E0924"),      "VHD-E0924", "disk-has-writer", Exit::Locked),
    own(Kind::Cluster("VHD-E0925"),      "VHD-E0925", "stale-generation", Exit::Refused),
    own(Kind::Cluster("VHD-E0926"),      "VHD-E0926", "no-such-disk", Exit::Refused),
    own(Kind::Cluster("VHD-E0927"),      "VHD-E0927", "disk-exists", Exit::Refused),
    own(Kind::Cluster("VHD-E0928"),      "VHD-E0928", "not-prepared", Exit::Failed),
    own(Kind::Cluster("VHD-E0929"),      "VHD-E0929", "disk-path", Exit::Refused),
    own(Kind::Cluster("VHD-E0930"),      "VHD-E0930", "disk-block", Exit::Refused),
    own(Kind::Cluster("VHD-E0931"),      "VHD-E0931", "volume-full", Exit::Failed),
    own(Kind::Cluster("VHD-E0932"),      "VHD-E0932", "volume-request", Exit::Failed),
    own(Kind::Cluster("VHD-E0933"),      "VHD-E0933", "late-request", Exit::Failed),
    own(Kind::MoveFailed,                "VHD-E0934", "move-failed", Exit::Failed),
    own(Kind::NodeHasDisks,              "VHD-E0935", "node-has-disks", Exit::Locked),
    library(ErrorKind::OnVolume,        "VHD-E0936", Exit::Refused),
    own(Kind::VolumeCannot,              "VHD-E0937", "volume-cannot", Exit::Refused),
    own(Kind::VolumeEngine,              "VHD-E0938", "volume-engine-missing", Exit::Refused),
    own(Kind::Cluster("VHD-E0939"),      "VHD-E0939", "certificate-file", Exit::Refused),
    own(Kind::Cluster("VHD-E0940"),      "VHD-E0940", "certificate-stale", Exit::Refused),
    own(Kind::Cluster("VHD-E0941"),      "VHD-E0941", "certificate-foreign", Exit::Refused),
    own(Kind::Cluster("VHD-E0942"),      "VHD-E0942", "certificate-name", Exit::Refused),
    own(Kind::Cluster("VHD-E0943"),      "VHD-E0943", "foreign-node", Exit::Refused),
    own(Kind::Cluster("VHD-E0944"),      "VHD-E0944", "coordinator-unreachable", Exit::Failed),
    own(Kind::NoCertificate,             "VHD-E0945", "no-certificate", Exit::Refused),
];

/// What a kind that is newer than the table gets: the table's test fails then.
const UNLISTED: Code = own(Kind::Library(ErrorKind::Io), "VHD-E0999", "unlisted", Exit::Failed);

impl Kind {
    /// The kind with this code: that of a failure that another process had.
    pub(crate) fn of_code(code: &str) -> Self {
        let row = TABLE.iter().find(|row| row.code == code);
        row.unwrap_or(&UNLISTED).kind
    }

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
        for kind in vhd_block::ErrorKind::ALL.iter().chain(kinds::ALL) {
            let kind = ErrorKind::from(*kind);
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
