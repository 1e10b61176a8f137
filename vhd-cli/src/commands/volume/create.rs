//! `vhd volume init` and `add`: a directory becomes a volume; a volume becomes known.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use csv_lock::{
    ClusterId, CsvError, EngineAccess, HostVolume, KnownVolume, NodeId, Refusal, VolumeFormat, VolumeId, init_volume,
    read_format,
};
use serde::Serialize;
use uuid::Uuid;

use super::engine::EngineArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{self, ReportArgs};
use crate::running::Name;
use crate::volume::{EngineName, Machine, peers_of, try_engine};

pub(super) const INIT: &str = "volume init";
pub(super) const ADD: &str = "volume add";

/// Arguments of `vhd volume init`.
#[derive(Args, Debug)]
pub(super) struct InitArgs {
    /// The directory, on the file system that all nodes share; it must exist
    dir: PathBuf,
    /// What the volume is called: disks are V:/PATH
    #[arg(long, value_name = "V")]
    name: Name,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    pub(super) report: ReportArgs,
}

/// Arguments of `vhd volume add`.
#[derive(Args, Debug)]
pub(super) struct AddArgs {
    /// The directory of the volume
    dir: PathBuf,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    pub(super) report: ReportArgs,
}

#[derive(Serialize)]
struct VolumeReport {
    #[serde(skip)]
    done: &'static str,
    name: String,
    dir: String,
    id: String,
    cluster: String,
    engine: String,
}

impl fmt::Display for VolumeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            done, name, dir, id, ..
        } = self;
        writeln!(f, "{done} volume {name} in {dir}, id {id}")
    }
}

pub(super) fn init(args: &InitArgs) -> Result<Exit, Failure> {
    let engine = args.engine.engine.clone().unwrap_or(EngineName::Local);
    let dir = directory(&args.dir)?;
    let machine = Machine::open()?;
    let name = args.name.to_string();
    if machine.registry().volume(&name)?.is_some() {
        return Err(CsvError::NameTaken { name }.into());
    }
    let access = args.engine.access(machine.registry().access()?)?;
    // Before that works the machine belongs to none.
    let cluster = machine.registry().known_cluster()?.unwrap_or(ClusterId(Uuid::new_v4()));
    try_engine(&engine, &access, cluster)?;
    let cluster = machine.registry().cluster(cluster)?;
    let format = VolumeFormat::new(VolumeId(Uuid::new_v4()), cluster, &name).with_engine(&engine.to_string());
    init_volume(&HostVolume::new(&dir), &format).map_err(|error| explain(error, &dir))?;
    know(&machine, &access, volume(&format, dir, &engine))?;
    report(INIT, "Made", &format, &engine, &args.dir, args.report)
}

/// With the directory; a volume that this machine does not know is added.
fn explain(error: CsvError, dir: &Path) -> Failure {
    let path = dir.display().to_string();
    match error {
        CsvError::VolumeExists { volume, .. } => Failure::from(CsvError::VolumeExists { path, volume })
            .with_advice("`vhd volume add DIR` makes it known on this machine"),
        CsvError::NotAVolume { .. } => CsvError::NotAVolume { path }.into(),
        error => Failure::from(error).about(path),
    }
}

pub(super) fn add(args: &AddArgs) -> Result<Exit, Failure> {
    let dir = directory(&args.dir)?;
    let format = read_format(&HostVolume::new(&dir)).map_err(|error| explain(error, &dir))?;
    let name: Name = format.name.parse().map_err(|error: String| {
        let reason = format!("the volume's name {:?}: {error}", format.name);
        Failure::from(CsvError::FormatDamaged { reason }).about(dir.display())
    })?;
    debug_assert_eq!(name.as_str(), format.name);
    let machine = Machine::open()?;
    let cluster = machine.registry().known_cluster()?.unwrap_or(format.cluster);
    if cluster != format.cluster {
        let refusal = Refusal::ForeignCluster {
            expected: cluster,
            found: format.cluster,
        };
        return Err(Failure::from(CsvError::from(refusal)).about(dir.display()));
    }
    let said = format.engine.parse().map_err(|error: String| {
        let reason = format!("the engine {:?}: {error}", format.engine);
        Failure::from(CsvError::FormatDamaged { reason }).about(dir.display())
    })?;
    let engine = args.engine.engine.clone().unwrap_or(said);
    let access = args.engine.access(machine.registry().access()?)?;
    try_engine(&engine, &access, cluster)?;
    machine.registry().cluster(cluster)?;
    know(&machine, &access, volume(&format, dir, &engine))?;
    report(ADD, "Added", &format, &engine, &args.dir, args.report)
}

/// A volume as this machine knows it.
fn volume(format: &VolumeFormat, dir: PathBuf, engine: &EngineName) -> KnownVolume {
    KnownVolume {
        name: format.name.clone(),
        id: format.volume,
        dir,
        engine: engine.to_string(),
    }
}

/// Notes a volume, and how its engine is reached.
fn know(machine: &Machine, access: &EngineAccess, volume: KnownVolume) -> Result<(), Failure> {
    machine.registry().add_volume(&volume)?;
    machine.registry().set_access(access)?;
    let text = format!("in {}", volume.dir.display());
    peers_of(machine, &volume)?.note(&NodeId(String::new()), "known", &text)?;
    Ok(())
}

fn report(
    command: &str,
    done: &'static str,
    format: &VolumeFormat,
    engine: &EngineName,
    dir: &Path,
    report: ReportArgs,
) -> Result<Exit, Failure> {
    let made = VolumeReport {
        done,
        name: format.name.clone(),
        dir: output::path_text(&directory(dir)?),
        id: format.volume.to_string(),
        cluster: format.cluster.to_string(),
        engine: engine.to_string(),
    };
    output::report(report, command, &made)?;
    Ok(Exit::Ok)
}

fn directory(given: &Path) -> Result<PathBuf, Failure> {
    let failed = |error| Failure::io("open", given, &error);
    let dir = fs::canonicalize(given).map_err(failed)?;
    match dir.is_dir() {
        true => Ok(dir),
        false => Err(failed(std::io::ErrorKind::NotADirectory.into())),
    }
}
