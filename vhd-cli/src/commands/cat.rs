//! `vhd cat`: the content of a file inside a disk.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::Args;
use vhd_core::units::u64_from;
use vhd_fs::files::FileError;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::inside::{Inside, InsideArgs, Located, PathText, Place};
use crate::output;

pub(crate) const NAME: &str = "cat";

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

const EXAMPLES: &str = "\
Examples:
  vhd cat disk.vhd:/etc/fstab
  vhd cat disk.vhd@monday:/var/log/syslog | less
  vhd cat --partition 2 disk.vhd:/Windows/win.ini

Symbolic links are followed inside the file system, and never out of it.";

/// Arguments of `vhd cat`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CatArgs {
    /// A file in a disk: IMAGE[@NAME]:/PATH, where IMAGE may be an NBD URI
    #[arg(value_name = "IMAGE:/PATH")]
    place: PathBuf,
    #[command(flatten)]
    inside: InsideArgs,
}

pub(crate) fn run(args: &CatArgs) -> Result<Exit, Failure> {
    let place = Place::parse(&args.place);
    let Some(path) = &place.path else {
        return Err(Failure::usage("name a file inside the disk: IMAGE:/PATH"));
    };
    let inside = args.inside.open(&place.image)?;
    copy(&inside, path)
}

fn copy(inside: &Inside, path: &[u8]) -> Result<Exit, Failure> {
    let about = |error: Failure| error.about(format_args!("{}:{}", inside.name, PathText(path)));
    let (files, path) = match inside.locate(path)? {
        Located::In(files, path) => (files, path),
        Located::Volumes => return Err(about(FileError::IsDirectory.into())),
    };
    let node = files.resolve(&path, true).map_err(|error| about(error.into()))?;
    let mut out = io::stdout().lock();
    let mut done = 0;
    loop {
        let piece = files.read_at(node, done, PIECE).map_err(|error| about(error.into()))?;
        match out.write_all(&piece) {
            // The reader has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Exit::Ok),
            Err(error) => return Err(output::write_failed(&error)),
            Ok(()) => {}
        }
        done += u64_from(piece.len());
        if piece.len() < PIECE {
            out.flush().map_err(|error| output::write_failed(&error))?;
            return Ok(Exit::Ok);
        }
    }
}
