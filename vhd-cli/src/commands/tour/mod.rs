//! `vhd tour`: a walk through the main jobs that checks itself.

mod guest;
mod jobs;
mod stage;
mod walk;

use std::path::{Path, PathBuf};

use clap::Args;
use vhd_core::storage::StorageError;

use crate::exit::Exit;
use crate::failure::Failure;
use stage::Stage;

const EXAMPLES: &str = "\
Examples:
  vhd tour
  vhd tour /tmp/vhd-tour      keep the images to look at

Each step is shown as the command you would type, with what it says; the tour verifies every result and stops with a \
non-zero exit code at the first one that is wrong.";

/// Arguments of `vhd tour`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TourArgs {
    /// An empty or new directory to work in, which is kept; otherwise a temporary one is used and removed
    dir: Option<PathBuf>,
}

pub(crate) fn run(args: &TourArgs) -> Result<Exit, Failure> {
    match &args.dir {
        Some(dir) => {
            prepare(dir)?;
            walk(dir)?;
        }
        None => {
            let failed = |error| Failure::io("create a directory in", &std::env::temp_dir(), &error);
            let dir = tempfile::tempdir().map_err(failed)?;
            walk(dir.path())?;
        }
    }
    Ok(Exit::Ok)
}

/// Makes sure that nothing in the directory can come to harm.
fn prepare(dir: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(dir).map_err(|error| Failure::io("create", dir, &error))?;
    let mut entries = dir.read_dir().map_err(|error| Failure::io("read", dir, &error))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(Failure::from(StorageError::Exists { path: dir.to_owned() })
            .about("the tour needs an empty directory or a new one")),
    }
}

fn walk(dir: &Path) -> Result<(), Failure> {
    let mut stage = Stage::new(dir)?;
    walk::walk(&mut stage)?;
    stage.finish()
}
