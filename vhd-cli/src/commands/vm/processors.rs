//! `vhd vm cpu`: what processors say about themselves, and whether a guest of one host can go on at another.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use hypervisor::{CpuDescription, CpuLeaf, CpuModel, MAX_CPU_LEAVES, StateFile};
use serde::{Deserialize, Serialize};

use super::run::failed;
use super::save::state_failed;
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{self, Output, ReportArgs};

const DESCRIBE: &str = "vm cpu describe";
const COMPARE: &str = "vm cpu compare";

/// Bytes of a description at most: each leaf takes less than 256.
const LONGEST: u64 = 1 << 20;
/// Changes when a field of a description changes its meaning.
const VERSION: u32 = 1;

const EXAMPLES: &str = "\
Examples:
  vhd vm cpu describe >this-host.json
  vhd vm cpu compare web.saved this-host.json
  vhd vm cpu compare old-host.json new-host.json && scp web.saved new-host:";

/// Arguments of `vhd vm cpu`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CpuArgs {
    #[command(subcommand)]
    job: CpuJob,
}

#[derive(Debug, Subcommand)]
enum CpuJob {
    /// Print what guests on this host are told of its processors, as JSON
    Describe(DescribeArgs),
    /// Tell whether B can run what A started: exit code 0, or 5 with what B lacks
    Compare(CompareArgs),
}

#[derive(Args, Debug)]
struct DescribeArgs {
    /// As `vhd vm run --cpu` would tell it
    #[arg(long, value_enum, value_name = "MODEL", default_value = "host")]
    cpu: CpuArg,
}

#[derive(Args, Debug)]
struct CompareArgs {
    /// Where the guest was started: what `describe` printed, or a machine that was saved
    #[arg(value_name = "A", value_hint = ValueHint::FilePath)]
    guest: PathBuf,
    /// Where it is to go on, likewise
    #[arg(value_name = "B", value_hint = ValueHint::FilePath)]
    host: PathBuf,
    #[command(flatten)]
    report: ReportArgs,
}

/// The value of `--cpu`.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum CpuArg {
    /// All that this host has
    #[default]
    Host,
    /// The level x86-64-v2, and protections
    #[value(name = "x86-64-v2")]
    V2,
    /// The level x86-64-v3, and protections
    #[value(name = "x86-64-v3")]
    V3,
}

impl From<CpuArg> for CpuModel {
    fn from(arg: CpuArg) -> Self {
        match arg {
            CpuArg::Host => Self::Host,
            CpuArg::V2 => Self::V2,
            CpuArg::V3 => Self::V3,
        }
    }
}

/// A description as JSON.
#[derive(Deserialize, Serialize)]
struct Described {
    cpu_description: u32,
    vendor: String,
    /// For people: the leaves say the same.
    features: Vec<String>,
    leaves: Vec<Leaf>,
}

/// A leaf of CPUID, with its numbers as people look them up.
#[derive(Deserialize, Serialize)]
struct Leaf {
    leaf: Hex,
    index: u32,
    flags: u32,
    eax: Hex,
    ebx: Hex,
    ecx: Hex,
    edx: Hex,
}

/// A number in hexadecimal digits.
#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
struct Hex(u32);

impl From<Hex> for String {
    fn from(number: Hex) -> Self {
        format!("{:#010x}", number.0)
    }
}

impl TryFrom<String> for Hex {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.strip_prefix("0x").filter(|digits| (1..=8).contains(&digits.len()));
        let number = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        number
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no number like 0x0000000d"))
    }
}

/// The name of the command, and whether a failure of it is told as JSON.
pub(super) fn identity(args: &CpuArgs) -> (&'static str, bool) {
    match &args.job {
        CpuJob::Describe(_) => (DESCRIBE, false),
        CpuJob::Compare(args) => (COMPARE, args.report.json),
    }
}

pub(super) fn run(args: &CpuArgs) -> Result<Exit, Failure> {
    match &args.job {
        CpuJob::Describe(args) => describe(args),
        CpuJob::Compare(args) => compare(args),
    }
}

/// Says what this host lacks of a model. The guest is told less then, and can go on at all hosts of the model.
pub(super) fn warn_of_less(cpu: CpuArg) -> Result<(), Failure> {
    let model = CpuModel::from(cpu);
    if model == CpuModel::Host {
        return Ok(());
    }
    let host = CpuDescription::of_host(CpuModel::Host).map_err(|error| failed("", error))?;
    let lacking = host.lacking(model);
    if !lacking.is_empty() {
        output::warning(format_args!(
            "this host's processors, as KVM has them, lack what {} has, and the guest is not told of it: {}",
            model.name(),
            lacking.join(", ")
        ));
    }
    Ok(())
}

fn describe(args: &DescribeArgs) -> Result<Exit, Failure> {
    warn_of_less(args.cpu)?;
    let described = CpuDescription::of_host(args.cpu.into()).map_err(|error| failed("", error))?;
    let leaves = described.leaves().into_iter().map(|leaf| {
        let [eax, ebx, ecx, edx] = leaf.registers.map(Hex);
        Leaf {
            leaf: Hex(leaf.leaf),
            index: leaf.index,
            flags: leaf.flags,
            eax,
            ebx,
            ecx,
            edx,
        }
    });
    let described = Described {
        cpu_description: VERSION,
        vendor: described.vendor(),
        features: described.features().into_iter().map(str::to_owned).collect(),
        leaves: leaves.collect(),
    };
    let mut out = Output::stdout();
    out.write(&output::json(DESCRIBE, &described))?;
    out.finish()?;
    Ok(Exit::Ok)
}

/// What a comparison found.
#[derive(Serialize)]
struct Compared {
    can_run: bool,
    /// What A has and B lacks.
    lost: Vec<String>,
    /// What B has and A lacks: a guest of A does not see it.
    more: Vec<String>,
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.can_run {
            true => writeln!(f, "B can run what A started")?,
            false => writeln!(f, "B cannot run what A started; it lacks:")?,
        }
        self.lost.iter().try_for_each(|lost| writeln!(f, "  {lost}"))?;
        if !self.more.is_empty() {
            writeln!(f, "only B has: {}", self.more.join(", "))?;
        }
        Ok(())
    }
}

fn compare(args: &CompareArgs) -> Result<Exit, Failure> {
    let (guest, host) = (read(&args.guest)?, read(&args.host)?);
    let lost = guest.lost_on(&host);
    let compared = Compared {
        can_run: lost.is_empty(),
        lost,
        more: host.lost_on(&guest),
    };
    output::report(args.report, COMPARE, &compared)?;
    Ok(if compared.can_run { Exit::Ok } else { Exit::Differ })
}

/// A description, or that in a saved machine.
fn read(path: &Path) -> Result<CpuDescription, Failure> {
    let failed = |error| Failure::io("read", path, &error);
    let file = File::open(path).map_err(failed)?;
    let mut text = Vec::new();
    (&file).take(LONGEST).read_to_end(&mut text).map_err(failed)?;
    let wrong = |reason: &dyn fmt::Display| {
        let message = format!(
            "{} is neither what `vhd vm cpu describe` printed nor a saved machine: {reason}",
            path.display()
        );
        Failure::new(Kind::CpuDescription, message)
    };
    if text.first() != Some(&b'{') {
        let saved = StateFile::open(file).and_then(|saved| saved.processor());
        return saved.map_err(|error| match error {
            hypervisor::StateError::NotAState => wrong(&error),
            error => state_failed(error).about(path.display()),
        });
    }
    let described: Described = serde_json::from_slice(&text).map_err(|error| wrong(&error))?;
    if described.cpu_description != VERSION {
        return Err(wrong(&format_args!(
            "it has version {}, and this program reads version {VERSION}",
            described.cpu_description
        )));
    }
    let leaves: Vec<CpuLeaf> = described
        .leaves
        .iter()
        .map(|leaf| CpuLeaf {
            leaf: leaf.leaf.0,
            index: leaf.index,
            flags: leaf.flags,
            registers: [leaf.eax.0, leaf.ebx.0, leaf.ecx.0, leaf.edx.0],
        })
        .collect();
    CpuDescription::from_leaves(&leaves)
        .filter(|_| !leaves.is_empty())
        .ok_or_else(|| {
            wrong(&format_args!(
                "it has {} leaves, expected 1 to {MAX_CPU_LEAVES}",
                leaves.len()
            ))
        })
}
