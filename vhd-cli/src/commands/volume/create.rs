//! `vhd volume init` and `add`: a directory becomes a volume; a volume becomes known.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use csv_lock::{
    ClusterId, CsvError, HostVolume, KnownVolume, NodeId, Refusal, VolumeFormat, VolumeId, init_volume, read_format,
};
use serde::Serialize;
use uuid::Uuid;

use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{self, ReportArgs};
use crate::running::Name;
use crate::volume::Machine;

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
    /// Who elects the coordinator: local (the processes of one machine), or etcd://HOST:PORT[,HOST:PORT...]
    #[arg(long, value_name = "ENGINE", default_value = "local")]
    engine: EngineArg,
    /// The certificate for etcd, as a PEM file
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    tls_cert: Option<PathBuf>,
    /// The private key of the certificate, as a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The authority that etcd's certificates are of, as a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
    #[command(flatten)]
    pub(super) report: ReportArgs,
}

/// Arguments of `vhd volume add`.
#[derive(Args, Debug)]
pub(super) struct AddArgs {
    /// The directory of the volume
    dir: PathBuf,
    #[command(flatten)]
    pub(super) report: ReportArgs,
}

/// The value of `--engine`.
#[derive(Clone, Copy, Debug)]
enum EngineArg {
    Local,
    Etcd,
}

impl FromStr for EngineArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "local" => Ok(Self::Local),
            etcd if etcd.starts_with("etcd://") => Ok(Self::Etcd),
            _ => Err("it is local, or etcd://HOST:PORT[,HOST:PORT...]".into()),
        }
    }
}

impl EngineArg {
    /// What volumes remember of it.
    fn built(self) -> Result<String, Failure> {
        match self {
            Self::Local => Ok("local".into()),
            Self::Etcd => {
                let message = "`vhd volume` does not use etcd yet: --engine local serves the processes of one machine";
                Err(Failure::new(Kind::VolumeEngine, message))
            }
        }
    }
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
    let engine = args.engine.built()?;
    let dir = directory(&args.dir)?;
    let machine = Machine::open()?;
    let name = args.name.to_string();
    if machine.registry().volume(&name)?.is_some() {
        return Err(CsvError::NameTaken { name }.into());
    }
    let cluster = machine.registry().cluster(ClusterId(Uuid::new_v4()))?;
    let format = VolumeFormat::new(VolumeId(Uuid::new_v4()), cluster, &name);
    init_volume(&HostVolume::new(&dir), &format).map_err(|error| explain(error, &dir))?;
    know(&machine, "Made", format, dir, engine, args.report, INIT)
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
    let cluster = machine.registry().cluster(format.cluster)?;
    if cluster != format.cluster {
        let refusal = Refusal::ForeignCluster {
            expected: cluster,
            found: format.cluster,
        };
        return Err(Failure::from(CsvError::from(refusal)).about(dir.display()));
    }
    know(&machine, "Added", format, dir, "local".into(), args.report, ADD)
}

/// Notes a volume, and reports it.
fn know(
    machine: &Machine,
    done: &'static str,
    format: VolumeFormat,
    dir: PathBuf,
    engine: String,
    report: ReportArgs,
    command: &str,
) -> Result<Exit, Failure> {
    let volume = KnownVolume {
        name: format.name,
        id: format.volume,
        dir,
        engine,
    };
    machine.registry().add_volume(&volume)?;
    let text = format!("in {}", volume.dir.display());
    machine
        .registry()
        .note(volume.id, &NodeId(String::new()), "known", &text)?;
    let made = VolumeReport {
        done,
        name: volume.name,
        dir: output::path_text(&volume.dir),
        id: volume.id.to_string(),
        cluster: format.cluster.to_string(),
        engine: volume.engine,
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
