//! `vhd vm run`: a guest from its first instruction to its end.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum, ValueHint};
use hypervisor::{Error, MAX_CPUS, Machine, MachineConfig, MachineType, Reach, Sandbox};
use vhd_core::error::with_causes;

use super::attend::Attended;
use super::boot::Started;
use super::disk_spec::DiskSpec;
use super::disks::{self, OpenDisks};
use super::processors::{CpuArg, warn_of_less};
use super::reach;
use super::save::state_failed;
use super::worker::{Event, Facts, MachineName};
use crate::children::ChildrenArgs;
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::ChainArgs;
use crate::size::parse_bytes;

const EXAMPLES: &str = "\
Examples:
  vhd vm run disk.avhd                              with the kernel that the disk itself would start
  vhd vm run disk.avhd --kernel vmlinux --append 'root=/dev/vda rw'
  vhd vm run --kernel vmlinux --initrd initramfs.cpio --disk system.vhd,snapshot --disk data.vhd,ro,id=data
  vhd vm run --kernel vmlinux --disk nbd+unix:///?socket=server.sock
  vhd vm run disk.vhd@monday --kernel vmlinux       a snapshot, for reading only
  vhd vm run raw:disk.img --kernel vmlinux          for writing, what is not a VHD needs its format said

The guest has its disks as /dev/vda, /dev/vdb, ... over virtio-pci, in a machine that ACPI tables describe (vhd-1): kernels of \
distributions find them. An ELF kernel that knows no ACPI gets them over virtio-mmio instead, announced on its command line \
(mmio; docs/vm.md). There is no network device yet.

Without --kernel, kernel, initramfs and command line are those that the first disk would start: by the entries of its boot \
loader, or else the newest kernel in its file systems. What was chosen is said.

Its command line ends with `console=ttyS0 reboot=k panic=-1`; --append is added behind and overrides that. On a terminal, \
Ctrl-A x ends the machine, as SIGTERM and SIGINT do: what the guest has flushed stays.

Exit codes: 0 when the guest powers off (or halts its processors for good), 9 when it asks for a reset, 10 when its kernel \
panics; others are failures of ours.";

/// Arguments of `vhd vm run`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RunArgs {
    /// The image of the first disk, or DISK@NAME for a snapshot, which is read-only
    #[arg(value_hint = ValueHint::FilePath)]
    pub(super) image: Option<String>,
    /// A disk: an image, DISK@NAME for a snapshot, raw:FILE for a raw file or block device, or an NBD URI. ro for reading only; snapshot takes writes into a temporary layer (in TMPDIR) that is thrown away at the end;
    /// id is what the guest sees as its serial number. Up to 8 disks
    #[arg(long = "disk", value_name = "PATH[,ro][,snapshot][,id=NAME]")]
    pub(super) disks: Vec<DiskSpec>,
    /// An uncompressed ELF vmlinux, or a bzImage with a 64-bit entry point, instead of what the first disk would start
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) kernel: Option<PathBuf>,
    /// An initramfs; without --kernel, instead of the one on the first disk
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) initrd: Option<PathBuf>,
    /// What is added to the kernel's command line, behind everything else
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    append: String,
    /// What the guest finds, instead of what the kernel needs
    #[arg(long, value_enum, value_name = "TYPE")]
    machine: Option<TypeArg>,
    /// Processors
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_CPUS)))]
    cpus: u8,
    /// What the guest is told of them: all that this host has, or what hosts of a level have, so that others can run it too
    #[arg(long, value_enum, value_name = "MODEL", default_value = "host")]
    cpu: CpuArg,
    /// Memory of the guest, from 16M
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_bytes)]
    memory: u64,
    /// Give the guest random numbers of the host (virtio-rng); a machine of type vhd-1
    #[arg(long)]
    rng: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
    /// What the machine is called in `vhd vm list` and for the commands that control it; without it, vm- and the number of
    /// the process
    #[arg(long, value_name = "NAME")]
    name: Option<MachineName>,
    /// Append what happens to the machine to a file, as lines of JSON
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    events: Option<PathBuf>,
    #[command(flatten)]
    pub(super) children: ChildrenArgs,
    #[command(flatten)]
    pub(super) chain: ChainArgs,
}

/// How far the process of a machine is confined.
#[derive(Args, Debug)]
pub(crate) struct SandboxArgs {
    /// Confine the process of the machine to the system calls and files that it needs: on; log lets it go on, and the kernel logs
    /// what it should not do; off
    #[arg(long = "sandbox", value_enum, value_name = "MODE", default_value = "on")]
    mode: SandboxArg,
    /// A directory besides those of its disks in which the process may open and change files: disks that are added from there
    /// have snapshots, merges and resizes while they are in use
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    allow: Vec<PathBuf>,
}

impl SandboxArgs {
    pub(super) fn mode(&self) -> Sandbox {
        self.mode.into()
    }

    /// The directories that are named, which must be there.
    pub(super) fn reach(&self) -> Result<Reach, Failure> {
        let mut reach = Reach::default();
        for directory in &self.allow {
            let failed = |error: io::Error| Failure::io("find the directory", directory, &error);
            let real = directory.canonicalize().map_err(failed)?;
            if !real.is_dir() {
                return Err(failed(io::ErrorKind::NotADirectory.into()));
            }
            reach::allow_directory(&mut reach, &real);
        }
        Ok(reach)
    }
}

/// The value of `--sandbox`.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum SandboxArg {
    /// Whoever breaks a rule ends the machine
    #[default]
    On,
    /// Whoever breaks a rule is in the kernel's log
    Log,
    /// There are no rules
    Off,
}

impl From<SandboxArg> for Sandbox {
    fn from(arg: SandboxArg) -> Self {
        match arg {
            SandboxArg::On => Self::On,
            SandboxArg::Log => Self::Log,
            SandboxArg::Off => Self::Off,
        }
    }
}

/// The value of `--machine`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum TypeArg {
    /// Disks over virtio-pci, described by ACPI: for kernels of distributions
    #[value(name = "vhd-1")]
    Vhd1,
    /// Disks over virtio-mmio, on the kernel's command line: for small kernels without ACPI
    Mmio,
}

impl From<TypeArg> for MachineType {
    fn from(arg: TypeArg) -> Self {
        match arg {
            TypeArg::Vhd1 => Self::Vhd1,
            TypeArg::Mmio => Self::Mmio,
        }
    }
}

pub(crate) fn run(args: &RunArgs) -> Result<Exit, Failure> {
    args.chain
        .search
        .require_locks("a machine needs its disks for itself")?;
    disks::check(args)?;
    Attended::new(args.name.as_ref(), args.events.as_deref(), &args.sandbox)?.run(|attended| begin(args, attended))
}

fn begin(args: &RunArgs, attended: &Attended) -> Result<Machine, Failure> {
    warn_of_less(args.cpu)?;
    let named = Started::named(args)?;
    let disks = attended.disks.open(args)?;
    let started = started(args, named, &attended.disks)?;
    attended.confine()?;
    let machine_type = match args.machine {
        Some(named) => named.into(),
        None => MachineType::for_kernel(&started.kernel)
            .map_err(|error| Failure::io("read", Path::new(&started.name), &error))?,
    };
    attended.disks.place(machine_type.first_slot());
    attended.describe(Facts {
        name: attended.name().clone(),
        kernel: started.name.clone(),
        machine: machine_type.name(),
        cpus: args.cpus,
        memory: args.memory,
    });
    let config = MachineConfig {
        machine_type,
        cpus: args.cpus,
        cpu: args.cpu.into(),
        memory: args.memory,
        kernel: started.kernel,
        initrd: started.initrd,
        command_line: started.command_line,
        append: args.append.clone(),
        disks,
        rng: args.rng,
        console: Box::new(attended.console.clone()),
        sandbox: args.sandbox.mode(),
    };
    let machine = Machine::new(config).map_err(|error| failed(&started.name, error))?;
    attended.events.say(&Event::Started);
    Ok(machine)
}

fn started(args: &RunArgs, named: Option<Started>, disks: &OpenDisks) -> Result<Started, Failure> {
    match (named, disks.first()) {
        (Some(named), _) => Ok(named),
        (None, Some((image, disk))) => Started::found(args, &disk, &image),
        (None, None) => Err(Failure::usage(
            "name a disk that a kernel is on, or a kernel with --kernel",
        )),
    }
}

/// A failure of the library; with the name of the kernel, for people.
pub(super) fn failed(kernel: &str, error: Error) -> Failure {
    let error = match error {
        Error::State(error) => return state_failed(error),
        error => error,
    };
    let kind = match &error {
        Error::NoKvm { .. } => Kind::NoKvm,
        Error::NotAKernel { .. } => {
            return Failure::new(Kind::NotAKernel, error).about(kernel);
        }
        Error::MemorySize { .. } | Error::TooLittleMemory { .. } => Kind::GuestMemory,
        Error::Kvm { .. } => Kind::Kvm,
        Error::CommandLine { .. } | Error::CommandLineCharacter => Kind::KernelCommandLine,
        Error::Crashed { .. } => Kind::GuestCrashed,
        Error::Disk(error) => return Failure::library(error.kind(), error),
        Error::NoPowerButton | Error::NoHotPlug | Error::NoRng | Error::NoDisk { .. } | Error::Disks { .. } => {
            Kind::MachineCannot
        }
        _ => Kind::Machine,
    };
    Failure::new(kind, with_causes(&error))
}
