//! `vhd man`: the manual pages.

mod page;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command};

use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  vhd man | man -l -
  vhd man /usr/local/share/man/man1";

/// Arguments of `vhd man`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ManArgs {
    /// Directory to write vhd.1, vhd-create.1 and so on to; without it vhd.1 goes to standard output
    dir: Option<PathBuf>,
}

pub(crate) fn run(args: &ManArgs) -> Result<Exit, Failure> {
    let mut definition = Cli::definition();
    // Names of pages and usages are those of the commands as they are typed.
    definition.build();
    match &args.dir {
        Some(dir) => fs::create_dir_all(dir)
            .and_then(|()| write_all(dir, &definition))
            .map_err(|error| failed(dir, &error))?,
        None => {
            let mut out = Output::stdout();
            out.write(&String::from_utf8_lossy(&page::page(&definition)))?;
            out.finish()?;
        }
    }
    Ok(Exit::Ok)
}

/// Writes the page of a command, and those of all below it.
fn write_all(dir: &Path, command: &Command) -> io::Result<()> {
    fs::write(dir.join(format!("{}.1", page::name(command))), page::page(command))?;
    page::below(command).try_for_each(|below| write_all(dir, below))
}

fn failed(dir: &Path, error: &io::Error) -> Failure {
    Failure::io("write manual pages to", dir, error)
}
