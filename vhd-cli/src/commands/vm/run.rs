//! `vhd vm run`: a guest from its first instruction to its end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use clap::{Args, ValueEnum, ValueHint};
use hypervisor::{End, Error, MAX_CPUS, Machine, MachineConfig, MachineDisk, MachineType};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vhd_core::error::with_causes;

use super::boot::Started;
use super::console::{HINT, RawTerminal, pass_input};
use super::disks::{self, DiskSpec, OpenDisks};
use super::worker::{Claim, Console, Event, Events, Facts, MachineName, Server, Worker};
use crate::children::ChildrenArgs;
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::ChainArgs;
use crate::interrupt;
use crate::output;
use crate::size::parse_bytes;

/// What ends a machine.
const SIGNALS: &[i32] = &[SIGTERM, SIGINT, SIGHUP];

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
    /// Memory of the guest, from 16M
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_bytes)]
    memory: u64,
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
    let claim = claim(args.name.as_ref())?;
    let name = claim
        .as_ref()
        .map_or_else(MachineName::of_this_process, |claim| claim.name().clone());
    let events = Arc::new(Events::open(&name, args.events.as_deref())?);
    let ended = run_named(args, name, claim.as_ref(), &events);
    events.say(&match &ended {
        Ok(end) => Event::ended(*end),
        Err(failure) => Event::failed(failure),
    });
    // The name is free again once the disks are.
    drop(claim);
    exit(ended?)
}

/// The right to the machine's name. Without it a machine runs that was given none, and nobody finds it.
fn claim(name: Option<&MachineName>) -> Result<Option<Claim>, Failure> {
    match name {
        Some(name) => Claim::take(name.clone()).map(Some),
        None => Ok(Claim::take(MachineName::of_this_process())
            .inspect_err(|failure| {
                output::warning(format_args!("`vhd vm list` will not find it: {}", failure.message()))
            })
            .ok()),
    }
}

fn run_named(args: &RunArgs, name: MachineName, claim: Option<&Claim>, events: &Arc<Events>) -> Result<End, Failure> {
    let named = Started::named(args)?;
    let (opened, of_machine) = OpenDisks::open(args)?;
    let opened = Arc::new(opened);
    let ended = started(args, named, &opened)
        .and_then(|started| run_machine(args, started, of_machine, (name, claim), &opened, events));
    // Whatever happened to the machine, the images are closed in order.
    let closed = opened.close();
    let end = ended?;
    closed?;
    Ok(end)
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

fn run_machine(
    args: &RunArgs,
    started: Started,
    disks: Vec<MachineDisk>,
    (name, claim): (MachineName, Option<&Claim>),
    opened: &Arc<OpenDisks>,
    events: &Arc<Events>,
) -> Result<End, Failure> {
    let machine_type = match args.machine {
        Some(named) => named.into(),
        None => MachineType::for_kernel(&started.kernel)
            .map_err(|error| Failure::io("read", Path::new(&started.name), &error))?,
    };
    let console = Console::default();
    let config = MachineConfig {
        machine_type,
        cpus: args.cpus,
        memory: args.memory,
        kernel: started.kernel,
        initrd: started.initrd,
        command_line: started.command_line,
        append: args.append.clone(),
        disks,
        console: Box::new(console.clone()),
    };
    let facts = Facts {
        name,
        kernel: started.name,
        machine: machine_type.name(),
        cpus: args.cpus,
        memory: args.memory,
    };
    let machine = Machine::new(config).map_err(|error| failed(&facts.kernel, error))?;
    let kernel = facts.kernel.clone();
    let worker = Worker::new(facts, machine.handle(), Arc::clone(opened), console, Arc::clone(events));
    let _server = claim.map(|claim| Server::listen(claim, Arc::new(worker))).transpose()?;
    events.say(&Event::Started);
    run_attended(machine).map_err(|error| failed(&kernel, error))
}

fn exit(end: End) -> Result<Exit, Failure> {
    match end {
        End::PowerOff => Ok(Exit::Ok),
        End::Reset => Ok(Exit::GuestReset),
        End::Panic => Ok(Exit::GuestPanic),
        End::Stopped => {
            let message =
                "the machine was ended before the guest powered off; what the guest has flushed is on its disks";
            Err(Failure::new(Kind::GuestStopped, message))
        }
    }
}

/// A failure of the library; with the name of the kernel, for people.
pub(super) fn failed(kernel: &str, error: Error) -> Failure {
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
        Error::NoPowerButton | Error::NoHotPlug | Error::NoDisk { .. } | Error::Disks { .. } => Kind::MachineCannot,
        _ => Kind::Machine,
    };
    Failure::new(kind, with_causes(&error))
}

/// Runs a machine whose console is ours.
fn run_attended(machine: Machine) -> Result<End, Error> {
    let terminal_failed = |source| Error::Host {
        operation: "prepare the terminal",
        source,
    };
    let signals = Signals::new(SIGNALS).map_err(|source| Error::Host {
        operation: "handle signals",
        source,
    })?;
    interrupt::is_handled_elsewhere(SIGNALS);
    stop_on_signals(signals, &machine);
    let terminal = RawTerminal::enter().map_err(terminal_failed)?;
    if terminal.is_terminal() {
        output::eprint(HINT);
    }
    pass_input(machine.handle(), terminal.is_terminal());
    machine.run()
}

fn stop_on_signals(mut signals: Signals, machine: &Machine) {
    let handle = machine.handle();
    thread::spawn(move || signals.forever().for_each(|_| handle.stop()));
}
