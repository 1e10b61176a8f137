//! `vhd ls`: the names in a directory inside a disk.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use vhd_fs::files::{Entry, FileError, FileType, Files, Metadata, Node, Time};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::inside::{Inside, InsideArgs, Located, PathText, Place, Volume};
use crate::output::{self, ReportArgs};

pub(crate) const NAME: &str = "ls";

const EXAMPLES: &str = "\
Examples:
  vhd ls disk.vhd                     the root directory, or the file systems if there are several
  vhd ls -l disk.vhd:/etc
  vhd ls disk.vhd@monday:/p2/home     partition 2 of a disk with several file systems
  vhd ls --json disk.vhd:/ | jq -r '.entries[].name'

Reads ext2/3/4, NTFS, FAT, exFAT and XFS. Nothing is mounted, and nothing is written.";

/// Arguments of `vhd ls`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct LsArgs {
    /// A disk, or a directory or file in it: IMAGE[@NAME][:/PATH], where IMAGE may be an NBD URI
    #[arg(value_name = "IMAGE[:/PATH]")]
    place: PathBuf,
    /// Show types, modes, owners, sizes, times and the targets of links
    #[arg(short, long)]
    long: bool,
    #[command(flatten)]
    inside: InsideArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Serialize)]
struct LsReport {
    image: String,
    path: String,
    /// On a disk with several file systems, where no path is given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    volumes: Vec<VolumeLine>,
    entries: Vec<EntryLine>,
    #[serde(skip)]
    long: bool,
}

#[derive(Serialize)]
struct VolumeLine {
    name: String,
    partition: Option<u32>,
    start: u64,
    length: u64,
    file_system: Option<&'static str>,
    label: Option<String>,
    /// Why its files cannot be read.
    reason: Option<String>,
}

#[derive(Serialize)]
struct EntryLine {
    name: String,
    /// The bytes of a name that is no UTF-8, in hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    name_hex: Option<String>,
    #[serde(rename = "type")]
    kind: Option<&'static str>,
    #[serde(flatten)]
    facts: Option<Facts>,
    /// Why nothing more is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct Facts {
    size: u64,
    mode: String,
    uid: u32,
    gid: u32,
    links: u32,
    modified: Option<String>,
    created: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

pub(crate) fn run(args: &LsArgs) -> Result<Exit, Failure> {
    let place = Place::parse(&args.place);
    let inside = args.inside.open(&place.image)?;
    let path = place.path.unwrap_or_else(|| b"/".to_vec());
    let mut report = LsReport {
        image: inside.name.clone(),
        path: PathText(&path).to_string(),
        volumes: Vec::new(),
        entries: Vec::new(),
        long: args.long,
    };
    match inside.locate(&path)? {
        Located::Volumes => report.volumes = inside.volumes.iter().map(VolumeLine::new).collect(),
        Located::In(files, inner) => {
            let details = args.long || args.report.json;
            report.entries = entries(files, &inner, details).map_err(|error| about(error, &inside, &path))?;
        }
    }
    output::report(args.report, NAME, &report)?;
    Ok(Exit::Ok)
}

fn about(error: FileError, inside: &Inside, path: &[u8]) -> Failure {
    Failure::from(error).about(format_args!("{}:{}", inside.name, PathText(path)))
}

/// The entries of a directory by name, or the one file that the path names.
fn entries(files: &Files, path: &[u8], details: bool) -> Result<Vec<EntryLine>, FileError> {
    let node = files.resolve(path, true)?;
    let meta = files.metadata(node)?;
    if meta.kind != FileType::Directory {
        let name = path.rsplit(|&byte| byte == b'/').find(|part| !part.is_empty());
        let entry = Entry {
            name: name.unwrap_or_default().to_vec(),
            node,
            kind: Some(meta.kind),
        };
        return Ok(vec![EntryLine::new(files, &entry, details)]);
    }
    let mut entries = files.list(node)?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries
        .iter()
        .map(|entry| EntryLine::new(files, entry, details))
        .collect())
}

impl EntryLine {
    /// What cannot be read of one entry is said in its place.
    fn new(files: &Files, entry: &Entry, details: bool) -> Self {
        let facts = (details || entry.kind.is_none()).then(|| files.metadata(entry.node));
        let (meta, error) = match facts {
            Some(Ok(meta)) => (Some(meta), None),
            Some(Err(error)) => (None, Some(error.to_string())),
            None => (None, None),
        };
        let kind = meta.as_ref().map(|meta| meta.kind).or(entry.kind);
        let text = std::str::from_utf8(&entry.name);
        Self {
            name: String::from_utf8_lossy(&entry.name).into_owned(),
            name_hex: text
                .is_err()
                .then(|| entry.name.iter().map(|byte| format!("{byte:02x}")).collect()),
            kind: kind.map(FileType::name),
            facts: meta
                .filter(|_| details)
                .map(|meta| Facts::new(files, entry.node, &meta)),
            error,
        }
    }
}

impl Facts {
    fn new(files: &Files, node: Node, meta: &Metadata) -> Self {
        let target = (meta.kind == FileType::Symlink)
            .then(|| files.read_link(node).ok())
            .flatten();
        Self {
            size: meta.size,
            mode: format!("{:04o}", meta.mode),
            uid: meta.uid,
            gid: meta.gid,
            links: meta.links,
            modified: iso(meta.modified),
            created: meta.created.and_then(iso),
            target: target.map(|target| String::from_utf8_lossy(&target).into_owned()),
        }
    }
}

fn iso(time: Time) -> Option<String> {
    human::unix_utc(time.seconds)
}

impl VolumeLine {
    fn new(volume: &Volume) -> Self {
        let files = volume.files.as_ref();
        Self {
            name: volume.name(),
            partition: volume.number,
            start: volume.start,
            length: volume.len,
            file_system: files.ok().map(Files::format),
            label: files.ok().and_then(Files::label).map(str::to_owned),
            reason: files.err().map(ToString::to_string),
        }
    }
}

impl fmt::Display for LsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for volume in &self.volumes {
            let what = match (&volume.file_system, &volume.reason) {
                (Some(format), _) => format!(
                    "{format}{}",
                    volume
                        .label
                        .iter()
                        .map(|label| format!(" \"{label}\""))
                        .collect::<String>()
                ),
                (None, reason) => format!("not readable: {}", reason.as_deref().unwrap_or_default()),
            };
            writeln!(f, "{}/  {}  {what}", volume.name, human::binary(volume.length))?;
        }
        for entry in &self.entries {
            entry.write(f, self.long)?;
        }
        Ok(())
    }
}

impl EntryLine {
    fn write(&self, f: &mut fmt::Formatter<'_>, long: bool) -> fmt::Result {
        let mark = if self.kind == Some(FileType::Directory.name()) {
            "/"
        } else {
            ""
        };
        // A name with a line end is one line all the same.
        let name = self.name.replace('\n', "\u{FFFD}");
        let reason = self
            .error
            .iter()
            .map(|error| format!("  ({error})"))
            .collect::<String>();
        match &self.facts {
            Some(facts) if long => {
                let target = facts
                    .target
                    .iter()
                    .map(|target| format!(" -> {target}"))
                    .collect::<String>();
                writeln!(
                    f,
                    "{:12} {} {:>5} {:>5} {:>14} {:20} {name}{mark}{target}{reason}",
                    self.kind.unwrap_or("?"),
                    facts.mode,
                    facts.uid,
                    facts.gid,
                    facts.size,
                    facts.modified.as_deref().unwrap_or("-"),
                )
            }
            _ => writeln!(f, "{name}{mark}{reason}"),
        }
    }
}
