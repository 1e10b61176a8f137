//! Trees of snapshots in other directories.

use std::fmt;

use serde::Serialize;
use vhd_core::snapshot::{self, Transferred};
use vhd_core::units::u64_from;

use super::{ExportArgs, ImportArgs};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::{self, path_text};

pub(super) const EXPORT: &str = "snapshot export";
pub(super) const IMPORT: &str = "snapshot import";

#[derive(Serialize)]
struct TransferredReport {
    disk: String,
    active: String,
    snapshots: u64,
    copied_bytes: u64,
}

pub(super) fn export(args: &ExportArgs) -> Result<Exit, Failure> {
    let reporter = args.disk.progress.reporter("copying");
    let done = snapshot::export(&args.disk.disk, &args.snapshot, &args.dir, &reporter)?;
    drop(reporter);
    output::report(args.disk.report, EXPORT, &TransferredReport::of(&done))?;
    Ok(Exit::Ok)
}

pub(super) fn import(args: &ImportArgs) -> Result<Exit, Failure> {
    let reporter = args.progress.reporter("copying");
    let done = snapshot::import(&args.dir, &args.dest, &reporter)?;
    drop(reporter);
    output::report(args.report, IMPORT, &TransferredReport::of(&done))?;
    Ok(Exit::Ok)
}

impl TransferredReport {
    fn of(done: &Transferred) -> Self {
        Self {
            disk: path_text(&done.disk),
            active: path_text(&done.active),
            snapshots: u64_from(done.snapshots),
            copied_bytes: done.copied_bytes,
        }
    }
}

impl fmt::Display for TransferredReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, bytes) = (
            human::count(self.snapshots, "snapshot"),
            human::bytes(self.copied_bytes),
        );
        writeln!(f, "{}: {count}, copied {bytes} and compared", self.disk)?;
        writeln!(f, "Write to {} there", self.active)
    }
}
