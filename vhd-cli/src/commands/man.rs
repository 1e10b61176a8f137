//! `vhd man`: the manual pages.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use clap_mangen::Man;

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
    match &args.dir {
        Some(dir) => std::fs::create_dir_all(dir)
            .and_then(|()| clap_mangen::generate_to(Cli::definition(), dir))
            .map_err(|error| failed(dir, &error))?,
        None => print()?,
    }
    Ok(Exit::Ok)
}

fn failed(dir: &Path, error: &io::Error) -> Failure {
    Failure::io("write manual pages to", dir, error)
}

fn print() -> Result<(), Failure> {
    let mut page = Vec::new();
    let rendered = Man::new(Cli::definition()).render(&mut page);
    rendered.expect("a page is written to memory");
    let mut out = Output::stdout();
    out.write(&String::from_utf8_lossy(&page))?;
    out.finish()
}
