//! The `vhd` command: create, inspect, check, convert, compare and compact VHD images.
//!
//! ```text
//!   cli.rs        the one definition of the grammar        commands/   one file per command
//!   input.rs      opening a source, standard input too     output.rs   what goes to standard output
//!   progress.rs   what goes to standard error meanwhile    failure.rs  why a command stopped
//!   inside/       files inside a disk                       throw_away.rs a layer for writes that are not kept
//!   space.rs      free space of file systems               interrupt.rs  ending in order
//!   control/      asking the server that has a disk      limits.rs    open files
//!   codes.rs      kind of failure -> stable code, exit     exit.rs     the exit codes
//!   human.rs      numbers and times for people            summed.rs   long lists in short
//!   running/      processes that are found by name          volume/     cluster volumes
//!   habits/       what words of other programs are called here
//!   diagnosis/    what is wrong with the images below a directory, and the commands that put it right
//! ```
#![forbid(unsafe_code)]

mod background;
mod children;
mod cli;
mod codes;
mod commands;
mod control;
mod diagnosis;
mod exit;
mod failure;
mod format_arg;
mod habits;
mod human;
mod in_use;
mod input;
mod inside;
mod interrupt;
mod limits;
mod output;
mod progress;
mod rate;
mod running;
mod size;
mod space;
mod summed;
mod throw_away;
mod volume;

use std::process::ExitCode;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    let cli = cli::parse();
    start_log();
    limits::raise_open_files();
    interrupt::handle_signals();
    commands::run(&cli.command).into()
}

/// The library's own remarks go to standard error, errors alone unless `VHD_LOG` asks for more.
fn start_log() {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::ERROR.into())
        .with_env_var("VHD_LOG")
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}
