//! `vhd vm save` and `vhd vm restore`: a machine in a file.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueHint};
use hypervisor::{StateError, StateFile};
use vhd_core::error::with_causes;

use super::attend::Attended;
use super::manage::NamedArgs;
use super::record::Record;
use super::run::SandboxArgs;
use super::worker::{Client, Event, MachineName};
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output;

/// How long the process of a machine that was saved may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Arguments of `vhd vm save`.
#[derive(Args, Debug)]
pub(crate) struct SaveArgs {
    #[command(flatten)]
    named: NamedArgs,
    /// The file to write: it must not exist
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: PathBuf,
}

/// Arguments of `vhd vm restore`.
#[derive(Args, Debug)]
pub(crate) struct RestoreArgs {
    /// What `vhd vm save` wrote; it is not changed
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// What the machine is called, instead of its name when it was saved
    #[arg(long, value_name = "NAME")]
    name: Option<MachineName>,
    /// Append what happens to the machine to a file, as lines of JSON
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    events: Option<PathBuf>,
    #[command(flatten)]
    sandbox: SandboxArgs,
    /// Go on although the disks' files were written since, or copied without their times: a guest whose disk was really
    /// changed destroys it
    #[arg(long)]
    trust_disks: bool,
}

pub(super) fn save(args: &SaveArgs) -> Result<Exit, Failure> {
    let client = Client::find(&args.named.name)?;
    let file = std::path::absolute(&args.file).map_err(|error| Failure::io("find", &args.file, &error))?;
    client.save(&file)?;
    // The file is complete; the name is free a moment later.
    if !client.wait_for_end(PATIENCE) {
        output::warning(format_args!(
            "the process of the machine {} has not ended yet",
            args.named.name
        ));
    }
    Ok(Exit::Ok)
}

pub(super) fn restore(args: &RestoreArgs) -> Result<Exit, Failure> {
    let about = |failure: Failure| failure.about(args.file.display());
    let file = File::open(&args.file).map_err(|error| Failure::io("open", &args.file, &error))?;
    let saved = StateFile::open(file).map_err(|error| about(state_failed(error)))?;
    let record = saved
        .owner()
        .map_err(state_failed)
        .and_then(Record::parse)
        .map_err(about)?;
    let name = args.name.clone().unwrap_or_else(|| record.name.clone());
    let attended = Attended::new(Some(&name), args.events.as_deref(), &args.sandbox)?;
    attended.run(|attended| {
        let machine = attended.restore(&saved, &record, &|_| args.trust_disks);
        let machine = machine.map_err(about)?;
        attended.events.say(&Event::Restored);
        Ok(machine)
    })
}

/// Why a machine cannot be saved or restored.
pub(super) fn state_failed(error: StateError) -> Failure {
    let kind = match &error {
        StateError::Version { .. } | StateError::Requirement { .. } | StateError::Features { .. } => Kind::SavedVersion,
        StateError::Processor { .. } => Kind::SavedProcessor,
        StateError::Disks { .. } => Kind::SavedDisk,
        StateError::Io { source, .. } => Kind::Library(vhd_core::storage::io_kind(source)),
        _ => Kind::SavedDamaged,
    };
    Failure::new(kind, with_causes(&error))
}
