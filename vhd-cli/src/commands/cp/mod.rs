//! `vhd cp`: files and directories out of a disk.

mod content;
mod target;
mod walk;

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use vhd_core::ops::Progress as _;
use vhd_fs::files::{Entry, FileError, FileType, Files, Node};

use self::target::Directory;
use self::walk::Walk;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::inside::{Inside, InsideArgs, Located, PathText, Place};
use crate::interrupt::flag_on_interrupt;
use crate::output::{self, ReportArgs};
use crate::progress::ProgressArgs;

pub(crate) const NAME: &str = "cp";

const EXAMPLES: &str = "\
Examples:
  vhd cp disk.vhd:/etc/fstab .                    one file
  vhd cp disk.vhd:/home/anna backup/              a directory with everything in it
  vhd cp disk.vhd@monday:/p2/srv disk.vhd@monday:/p2/etc restored/
  vhd cp --partition 2 disk.vhd:/ whole/

Directories are copied with all that is in them, files with their modes and times and without space for zeroes, symbolic \
links as links. Nothing that exists is replaced without --force. A file that cannot be read is said and passed over; \
the exit code is then that of the worst.";

/// Arguments of `vhd cp`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CpArgs {
    /// Files or directories in a disk: IMAGE[@NAME]:/PATH, where IMAGE may be an NBD URI
    #[arg(value_name = "IMAGE:/PATH", required = true)]
    places: Vec<PathBuf>,
    /// A directory to copy into, or a new name for the one that is copied
    #[arg(value_name = "DEST")]
    destination: PathBuf,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
    /// Keep owners, and the bits that run programs as their owner (as root)
    #[arg(long)]
    owners: bool,
    #[command(flatten)]
    inside: InsideArgs,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

/// What was copied.
#[derive(Default, Serialize)]
struct CpReport {
    destination: String,
    files: u64,
    directories: u64,
    symlinks: u64,
    bytes: u64,
    /// Devices, pipes and sockets, which are not copied.
    special: u64,
    /// What could not be copied, and why.
    failed: Vec<FailedLine>,
}

#[derive(Serialize)]
struct FailedLine {
    path: String,
    code: &'static str,
    error: String,
}

impl fmt::Display for CpReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (files, directories) = (human::count(self.files, "file"), self.directories);
        let directories = match directories {
            1 => "1 directory".to_owned(),
            number => format!("{number} directories"),
        };
        write!(f, "Copied {files}, {directories}")?;
        if self.symlinks > 0 {
            write!(f, ", {}", human::count(self.symlinks, "symbolic link"))?;
        }
        writeln!(f, " to {}: {}", self.destination, human::bytes(self.bytes))?;
        if self.special > 0 {
            writeln!(
                f,
                "{} not copied: devices, pipes and sockets",
                human::count(self.special, "special file")
            )?;
        }
        if !self.failed.is_empty() {
            writeln!(
                f,
                "{} could not be copied",
                human::count(self.failed.len().try_into().unwrap_or(u64::MAX), "file")
            )?;
        }
        Ok(())
    }
}

/// One thing to copy: where it is, and its name at the destination.
struct Wanted<'a> {
    files: &'a Files,
    node: Node,
    kind: FileType,
    /// Where it is, for messages.
    shown: String,
    name: Vec<u8>,
}

pub(crate) fn run(args: &CpArgs) -> Result<Exit, Failure> {
    let (into, new_name) = destination(args)?;
    let mut disks: Vec<(PathBuf, Inside)> = Vec::new();
    let mut paths = Vec::new();
    for given in &args.places {
        let place = Place::parse(given);
        let Some(path) = place.path else {
            return Err(Failure::usage(format!(
                "{} names no file in a disk: IMAGE:/PATH",
                given.display()
            )));
        };
        let known = disks.iter().position(|(image, _)| *image == place.image);
        let disk = match known {
            Some(disk) => disk,
            None => {
                disks.push((place.image.clone(), args.inside.open(&place.image)?));
                disks.len() - 1
            }
        };
        paths.push((disk, path));
    }
    let mut wanted = Vec::new();
    for (disk, path) in &paths {
        wanted.extend(find(&disks[*disk].1, path, new_name.as_deref())?);
    }
    let reporter = args.progress.reporter("copying");
    let mut walk = Walk::new(args.force, args.owners, &reporter, flag_on_interrupt());
    reporter.begin(wanted.iter().map(|wanted| walk.measure(wanted)).sum());
    let target = Directory::open(&into)?;
    for wanted in &wanted {
        walk.copy(wanted, &target)?;
    }
    let (mut report, exit) = walk.finish();
    drop(reporter);
    report.destination = output::path_text(&args.destination);
    output::report(args.report, NAME, &report)?;
    Ok(exit)
}

/// The directory that is copied into, and the new name of the one thing that is copied, if it gets one.
fn destination(args: &CpArgs) -> Result<(PathBuf, Option<Vec<u8>>), Failure> {
    let given = &args.destination;
    if given.is_dir() {
        return Ok((given.clone(), None));
    }
    let name = given
        .file_name()
        .filter(|_| !given.as_os_str().as_bytes().ends_with(b"/"));
    match (name, args.places.as_slice()) {
        (Some(name), [_]) => {
            let parent = given.parent().filter(|parent| *parent != Path::new(""));
            let parent = parent.unwrap_or(Path::new("."));
            Ok((parent.to_owned(), Some(name.as_bytes().to_vec())))
        }
        _ => {
            let error = std::io::Error::from(std::io::ErrorKind::NotFound);
            Err(Failure::io("copy into the directory", given, &error))
        }
    }
}

/// What a path names. The root of a file system, or of a disk with several, is its content unless it gets a name.
fn find<'a>(inside: &'a Inside, path: &[u8], new_name: Option<&[u8]>) -> Result<Vec<Wanted<'a>>, Failure> {
    let shown = format!("{}:{}", inside.name, PathText(path));
    let about = |error: FileError| Failure::from(error).about(&shown);
    let last = path.rsplit(|&byte| byte == b'/').find(|part| !part.is_empty());
    let (files, inner) = match inside.locate(path)? {
        Located::In(files, inner) => (files, inner),
        Located::Volumes => return Err(about(FileError::IsDirectory)),
    };
    let node = files.resolve(&inner, false).map_err(about)?;
    let kind = files.metadata(node).map_err(about)?.kind;
    let name = new_name.or(last.filter(|_| node != files.root()));
    if let Some(name) = name.filter(|name| *name != b"." && *name != b"..") {
        let name = name.to_vec();
        return Ok(vec![Wanted {
            files,
            node,
            kind,
            shown,
            name,
        }]);
    }
    let root = Wanted {
        files,
        node,
        kind,
        shown,
        name: Vec::new(),
    };
    let entries = files
        .list(node)
        .map_err(|error| Failure::from(error).about(&root.shown))?;
    let content = entries.into_iter().map(|entry| root.below(entry));
    let content: Result<_, _> = content.collect();
    content.map_err(|(shown, error)| Failure::from(error).about(shown))
}

impl<'a> Wanted<'a> {
    /// An entry of this directory. With an error, where it is.
    fn below(&self, entry: Entry) -> Result<Self, (String, FileError)> {
        let shown = format!("{}/{}", self.shown.trim_end_matches('/'), PathText(&entry.name));
        let kind = match entry.kind {
            Some(kind) => Ok(kind),
            None => self.files.metadata(entry.node).map(|meta| meta.kind),
        };
        match kind {
            Ok(kind) => Ok(Self {
                files: self.files,
                node: entry.node,
                kind,
                shown,
                name: entry.name,
            }),
            Err(error) => Err((shown, error)),
        }
    }
}

/// A name as the host takes it.
fn os_name(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}
