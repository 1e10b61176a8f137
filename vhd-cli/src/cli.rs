//! The grammar: help, completions and man pages come from this one definition.

use std::ffi::OsString;
use std::sync::OnceLock;

use clap::{CommandFactory as _, Parser, Subcommand};

#[cfg(target_arch = "x86_64")]
use crate::commands::vm;
use crate::commands::{
    azure, cat, check, compact, compare, completions, convert, cp, create, diff, doctor, export_delta, hash,
    import_delta, info, ls, man, map, measure, merge, mount, nbd, new_id, repair, reparent, report, resize, snapshot,
    tour, tree, verify, volume,
};
use crate::{exit, habits};

const ABOUT: &str = "Create, inspect, check, convert, compare and compact VHD images";

const LONG_ABOUT: &str = "\
Create, inspect, check, convert, compare and compact VHD images (.vhd, .avhd): fixed, dynamic and differencing ones, with \
chains of any depth.

The format of an image is detected; --from overrides it. The parents of a differencing \
image are found where the image says they are, and recognised by their identity; --parent and --parent-dir name \
others. An image whose parent is missing is refused by every command that reads it: it never reads as zeroes.";

const NOTES: &str = "\
Failures are one line on standard error, `vhd: error[VHD-E0201]: ...`, the code being stable. With --json standard \
output is one object: the report, or {\"version\": 1, \"command\": ..., \"error\": {\"code\", \"kind\", \"exit\", \
\"message\"}}. Wrong command lines (exit code 2) are told on standard error alone.";

/// The environment, for help and manual pages.
pub(crate) const ENVIRONMENT: &[(&str, &str)] = &[
    (
        "TMPDIR",
        "where standard input is kept when it is a pipe and there is no destination to keep it beside",
    ),
    (
        "VHD_LOG",
        "what the library logs to standard error: error (default), warn, info, debug, trace, off",
    ),
    (
        "VHD_NODE",
        "the node that a command belongs to, where several of this machine take part in a volume",
    ),
    (
        "VHD_STATE_DIR",
        "where this machine keeps what it knows of volumes [default: /var/lib/vhd, or ~/.local/state/vhd]",
    ),
];

fn environment() -> String {
    let lines = ENVIRONMENT
        .iter()
        .map(|(name, meaning)| format!("  {name:<13}  {meaning}"));
    format!("Environment:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

const EXAMPLES: &str = "\
Examples:
  vhd tour                                          see what it does, in a temporary directory
  vhd create disk.vhd --size 64G                    a dynamic image of 64 GiB
  vhd create snap.avhd --parent disk.vhd            a differencing image over it
  vhd info snap.avhd                                the whole chain, layer by layer
  vhd convert snap.avhd disk.raw --to raw           the chain's content as a flat file
  vhd check disk.vhd && echo fine";

/// The command line. Where `mount(8)` called this program as its helper, it is the `vhd mount` that does the same.
pub(crate) fn arguments() -> &'static [OsString] {
    static ARGUMENTS: OnceLock<Vec<OsString>> = OnceLock::new();
    ARGUMENTS.get_or_init(|| {
        let given: Vec<OsString> = std::env::args_os().collect();
        mount::helper_arguments(&given).unwrap_or(given)
    })
}

/// The command line as the grammar reads it; one that is wrong ends the process, with what other programs' words are
/// called here.
pub(crate) fn parse() -> Cli {
    Cli::try_parse_from(arguments()).unwrap_or_else(|mut error| {
        habits::explain(&mut error, arguments());
        error.exit()
    })
}

/// Create, inspect, check, convert, compare and compact VHD images
#[derive(Debug, Parser)]
#[command(
    name = "vhd",
    version,
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_help = format!("{}\n\n{EXAMPLES}", exit::help()),
    after_long_help = format!("{}\n\n{NOTES}\n\n{}\n\n{EXAMPLES}", exit::help(), environment()),
    max_term_width = 120,
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What `vhd` does.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create an empty image, or a differencing image over a parent
    Create(create::CreateArgs),
    /// Show an image and its chain: types, identities, sizes, and where they disagree
    Info(info::InfoArgs),
    /// Show which parts of a disk are stored, read zero, and where they lie
    Map(map::MapArgs),
    /// Check an image and its ancestors; changes nothing
    Check(check::CheckArgs),
    /// Print the SHA-256 of the disk's content
    Hash(hash::HashArgs),
    /// Convert a disk, or any leaf of a chain, to a raw, fixed or dynamic image
    Convert(convert::ConvertArgs),
    /// Compare the contents of two disks
    Compare(compare::CompareArgs),
    /// Show where two disks differ, reading only what their chains do not share
    Diff(diff::DiffArgs),
    /// Write what a disk has that an older one has not, as a differencing image over that
    ExportDelta(export_delta::ExportDeltaArgs),
    /// Write the disk that a delta makes of its base, and verify both
    ImportDelta(import_delta::ImportDeltaArgs),
    /// Show the images below a directory: which is whose child, and what is broken
    Tree(tree::TreeArgs),
    /// Check all images below a directory, and print the commands that put right what is wrong
    Doctor(doctor::DoctorArgs),
    /// Write what `doctor` finds, allocation maps and digests as one HTML file
    Report(report::HtmlArgs),
    /// Take, list, apply and delete snapshots of a disk
    Snapshot(snapshot::SnapshotArgs),
    /// List a directory inside a disk, without mounting it
    Ls(ls::LsArgs),
    /// Print a file inside a disk
    Cat(cat::CatArgs),
    /// Copy files and directories out of a disk
    Cp(cp::CpArgs),
    /// Prepare or check an image for Azure
    Azure(azure::AzureArgs),
    /// Make an image's file shorter in place; its content stays
    Compact(compact::CompactArgs),
    /// Say what compaction would gain, and why the rest stays; changes nothing
    Measure(measure::MeasureArgs),
    /// Write an image, or a range of a chain, into the image below it
    Merge(merge::MergeArgs),
    /// Serve disks over NBD, to virtual machines and backup programs
    Nbd(nbd::NbdArgs),
    /// Mount a disk: its content, snapshots, partitions and files as a directory
    Mount(mount::MountArgs),
    /// Unmount what `vhd mount` has mounted
    Umount(mount::UmountArgs),
    /// Run a Linux guest on KVM with its disks in images
    #[cfg(target_arch = "x86_64")]
    Vm(vm::VmArgs),
    /// Share a directory of disks between nodes: one coordinator, one writer per disk
    Volume(volume::VolumeArgs),
    /// Give a disk another size, alone or with all images of its tree
    Resize(resize::ResizeArgs),
    /// Give a differencing image another parent: a moved one, or with --rebase any disk
    Reparent(reparent::ReparentArgs),
    /// Give an image, such as a copy, an identity of its own
    NewId(new_id::NewIdArgs),
    /// Say whether an ancestor changed since its digests were recorded, and where
    Verify(verify::VerifyArgs),
    /// Show what is damaged in an image and what would repair it; with --yes, do it
    Repair(repair::RepairArgs),
    /// Walk through the main jobs in a temporary directory, checking each step
    Tour(tour::TourArgs),
    /// Print a script that completes the command line in a shell
    Completions(completions::CompletionsArgs),
    /// Print the manual page, or write one per command to a directory
    Man(man::ManArgs),
}

impl Cli {
    /// The definition, for completions and man pages.
    pub(crate) fn definition() -> clap::Command {
        Self::command()
    }
}

/// Arguments that are wrong together, told like those that are wrong alone.
pub(crate) fn usage_error(message: &str) -> String {
    let error = Cli::command().error(clap::error::ErrorKind::ArgumentConflict, message);
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.starts_with("Example"), "{}", command.get_name());
        }
    }
}
