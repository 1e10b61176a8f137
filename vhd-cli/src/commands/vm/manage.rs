//! `vhd vm list`, `info`, `pause`, `resume`, `stop`, `console`: machines that run in other processes.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::console::{LEAVE_HINT, RawTerminal, pass_keys};
use super::worker::{Client, Job, MachineInfo, MachineName, living};
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::{self, ReportArgs};

/// Arguments of `vhd vm list`.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(super) report: ReportArgs,
}

/// A machine by its name.
#[derive(Args, Debug)]
pub(crate) struct NamedArgs {
    /// The name of the machine
    #[arg(value_name = "NAME")]
    pub(super) name: MachineName,
}

/// Arguments of `vhd vm info`.
#[derive(Args, Debug)]
pub(crate) struct InfoArgs {
    #[command(flatten)]
    named: NamedArgs,
    #[command(flatten)]
    pub(super) report: ReportArgs,
}

/// Arguments of `vhd vm stop`.
#[derive(Args, Debug)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    named: NamedArgs,
    /// End the machine as if its power was cut, instead of pressing its power button: what the guest has flushed stays
    #[arg(long)]
    force: bool,
    /// How long the guest is given to power off
    #[arg(long, value_name = "SECONDS", default_value_t = 90)]
    timeout: u64,
}

#[derive(Serialize)]
struct List {
    machines: Vec<MachineInfo>,
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.machines.is_empty() {
            return writeln!(f, "no machines");
        }
        writeln!(
            f,
            "{:20} {:8} {:>4} {:>10} {:>8}  started",
            "name", "state", "cpus", "memory", "process"
        )?;
        self.machines.iter().try_for_each(|machine| {
            let (memory, started) = (human::binary(machine.memory), &machine.started);
            let MachineInfo {
                name, state, cpus, pid, ..
            } = machine;
            writeln!(f, "{name:20} {state:8} {cpus:>4} {memory:>10} {pid:>8}  {started}")
        })
    }
}

pub(super) fn list(args: &ListArgs) -> Result<Exit, Failure> {
    let mut machines = Vec::new();
    for name in living()? {
        match Client::find(&name).and_then(|client| client.info()) {
            Ok(info) => machines.push(info),
            // It has ended since, or is just being made.
            Err(failure) if failure.kind() == Some(Kind::NoSuchMachine) => {}
            Err(failure) => output::warning(failure.message()),
        }
    }
    output::report(args.report, "vm list", &List { machines })?;
    Ok(Exit::Ok)
}

#[derive(Serialize)]
struct Info {
    #[serde(flatten)]
    machine: MachineInfo,
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        writeln!(f, "name:     {}", machine.name)?;
        writeln!(f, "state:    {}", machine.state)?;
        writeln!(f, "process:  {}", machine.pid)?;
        writeln!(f, "started:  {}", machine.started)?;
        writeln!(f, "machine:  {}", machine.machine)?;
        writeln!(f, "kernel:   {}", machine.kernel)?;
        writeln!(f, "cpus:     {}", machine.cpus)?;
        writeln!(f, "memory:   {}", human::bytes(machine.memory))?;
        writeln!(f, "files:    {}", machine.files)?;
        machine.disks.iter().try_for_each(|disk| {
            let read_only = if disk.read_only { ", read-only" } else { "" };
            writeln!(
                f,
                "disk:     {} ({}, {}{read_only})",
                disk.id,
                disk.image,
                human::binary(disk.size)
            )
        })
    }
}

pub(super) fn info(args: &InfoArgs) -> Result<Exit, Failure> {
    let machine = Client::find(&args.named.name)?.info()?;
    output::report(args.report, "vm info", &Info { machine })?;
    Ok(Exit::Ok)
}

pub(super) fn pause(args: &NamedArgs) -> Result<Exit, Failure> {
    Client::find(&args.name)?.ask(Job::Pause)?;
    Ok(Exit::Ok)
}

pub(super) fn resume(args: &NamedArgs) -> Result<Exit, Failure> {
    Client::find(&args.name)?.ask(Job::Resume)?;
    Ok(Exit::Ok)
}

pub(super) fn stop(args: &StopArgs) -> Result<Exit, Failure> {
    let client = Client::find(&args.named.name)?;
    client.ask(Job::Stop { force: args.force })?;
    if client.wait_for_end(Duration::from_secs(args.timeout)) {
        return Ok(Exit::Ok);
    }
    let message = format!(
        "the machine {} was asked to stop and still runs after {} s; --timeout waits longer, --force cuts its power",
        args.named.name, args.timeout
    );
    Err(Failure::new(Kind::GuestKeepsRunning, message))
}

pub(super) fn console(args: &NamedArgs) -> Result<Exit, Failure> {
    let broken = |error: &io::Error| Failure::new(Kind::MachineControl, format!("the console is lost: {error}"));
    let mut console = Client::find(&args.name)?.console()?;
    let terminal = RawTerminal::enter().map_err(|error| broken(&error))?;
    if terminal.is_terminal() {
        output::eprint(LEAVE_HINT);
    }
    let keys = console.try_clone().map_err(|error| broken(&error))?;
    let typed = keys.try_clone().map_err(|error| broken(&error))?;
    pass_keys(
        terminal.is_terminal(),
        // A machine that has ended takes no keys.
        move |bytes| drop((&typed).write_all(bytes)),
        move |is_wanted| drop(keys.shutdown(if is_wanted { Shutdown::Both } else { Shutdown::Write })),
    );
    let mut buffer = [0; 4096];
    loop {
        match console.read(&mut buffer) {
            Ok(0) => return Ok(Exit::Ok),
            Ok(len) => {
                let mut out = io::stdout();
                if out.write_all(&buffer[..len]).and_then(|()| out.flush()).is_err() {
                    return Ok(Exit::Ok);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The process ended with input that it had not read.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Exit::Ok),
            Err(error) => return Err(broken(&error)),
        }
    }
}
