//! The file systems of a disk, and which of them a path is in.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use clap::Args;
use vhd_block::Disk;
use vhd_core::chain::OpenedDisk;
use vhd_core::partition::{DiskReader, read_table};
use vhd_fs::files::{FileError, FileErrorKind, Files, OpenFiles, SharedDisk};

use crate::codes::Kind;
use crate::failure::Failure;
use crate::input::{Source, SourceArgs};
use crate::output;

/// How the inside of a disk is read.
#[derive(Args, Clone, Debug)]
pub(crate) struct InsideArgs {
    /// Read this partition; paths then start at its root
    #[arg(long, value_name = "N")]
    pub(crate) partition: Option<u32>,
    /// Replay the journal of an ext3 or ext4 that was not unmounted, in memory; otherwise the state on the disk is read
    #[arg(long)]
    pub(crate) replay: bool,
    #[command(flatten)]
    source: SourceArgs,
}

/// A part of a disk that may have a file system.
pub(crate) struct Volume {
    /// The partition, or nothing for a disk without a partition table.
    pub(crate) number: Option<u32>,
    /// Its first byte on the disk.
    pub(crate) start: u64,
    /// Bytes.
    pub(crate) len: u64,
    /// Its files, or why there are none.
    pub(crate) files: Result<Files, FileError>,
}

impl Volume {
    /// Its name in paths.
    pub(crate) fn name(&self) -> String {
        format!("p{}", self.number.unwrap_or(0))
    }
}

/// An open disk and its file systems.
pub(crate) struct Inside {
    /// The image as the user named it.
    pub(crate) name: String,
    /// Every partition, or the one that was asked for.
    pub(crate) volumes: Vec<Volume>,
    // Keeps the images open and locked.
    _opened: OpenedDisk,
}

/// Where a path leads.
pub(crate) enum Located<'a> {
    /// Into a file system: the rest of the path is its own.
    In(&'a Files, Vec<u8>),
    /// To the list of the disk's file systems.
    Volumes,
}

/// A disk as readers of file systems take it.
pub(crate) fn shared(disk: &Disk) -> SharedDisk {
    Arc::new(DiskReader(disk.clone()))
}

impl InsideArgs {
    /// Opens a disk for reading and the file systems in it. Remarks go to standard error.
    pub(crate) fn open(&self, image: &Path) -> Result<Inside, Failure> {
        let source = Source::or_remote(image, None)?;
        let opened = self.source.open(&source)?;
        let disk = opened.disk();
        let volumes = volumes(&disk, self.partition, self.replay).map_err(|failure| failure.about(&source.name))?;
        for volume in &volumes {
            let notes = volume.files.as_ref().map(Files::notes).unwrap_or_default();
            for note in notes {
                output::warning(format_args!("{}: {}: {note}", source.name, volume.name()));
            }
        }
        Ok(Inside {
            name: source.name,
            volumes,
            _opened: opened,
        })
    }
}

/// The file systems of a disk: every partition, or one; with `replay` as they are after their journals.
pub(crate) fn volumes(disk: &Disk, partition: Option<u32>, replay: bool) -> Result<Vec<Volume>, Failure> {
    let shared = shared(disk);
    let open = |number, start, len| Volume {
        number,
        start,
        len,
        files: OpenFiles::new().replay(replay).open(&shared, start, len),
    };
    let table = read_table(disk)?;
    let mut volumes: Vec<Volume> = match (table, partition) {
        (None, None) => vec![open(None, 0, disk.size())],
        (None, Some(_)) => Vec::new(),
        (Some(table), wanted) => {
            let chosen = table
                .partitions
                .iter()
                .filter(|it| wanted.is_none_or(|number| number == it.number));
            chosen.map(|it| open(Some(it.number), it.start, it.len)).collect()
        }
    };
    volumes.sort_by_key(|volume| volume.number);
    match partition {
        Some(number) if volumes.is_empty() => {
            let message = format!("there is no partition {number}; `vhd ls` without a path lists them");
            Err(Failure::new(Kind::Files(FileErrorKind::NotFound), message))
        }
        _ => Ok(volumes),
    }
}

impl Inside {
    /// Finds the file system that a path is in. Paths on a disk with one file system start at its root; on a disk with
    /// several they start with the partition, `/p2/etc`.
    pub(crate) fn locate(&self, path: &[u8]) -> Result<Located<'_>, Failure> {
        let readable: Vec<(&Volume, &Files)> = self
            .volumes
            .iter()
            .filter_map(|volume| Some((volume, volume.files.as_ref().ok()?)))
            .collect();
        match readable.as_slice() {
            [] => Err(self.nothing_readable()),
            [(_, files)] => Ok(Located::In(files, path.to_vec())),
            several => {
                let mut parts = path.splitn(3, |&byte| byte == b'/').skip(1);
                let first = parts.next().unwrap_or_default();
                if first.is_empty() {
                    return Ok(Located::Volumes);
                }
                let found = several.iter().find(|(volume, _)| volume.name().as_bytes() == first);
                let Some((_, files)) = found else {
                    return Err(self.ambiguous(several));
                };
                let rest = [b"/", parts.next().unwrap_or_default()].concat();
                Ok(Located::In(files, rest))
            }
        }
    }

    fn nothing_readable(&self) -> Failure {
        let reasons = self.volumes.iter().filter_map(|volume| {
            let error = volume.files.as_ref().err()?;
            Some(format!("{}: {error}", volume.name()))
        });
        let reasons: Vec<String> = reasons.collect();
        let only = match self.volumes.as_slice() {
            [volume] => volume.files.as_ref().err(),
            _ => None,
        };
        let kind = only.map_or(FileErrorKind::Unsupported, FileError::kind);
        let message = format!("no file system to read ({})", reasons.join("; "));
        Failure::new(Kind::Files(kind), message).about(&self.name)
    }

    fn ambiguous(&self, several: &[(&Volume, &Files)]) -> Failure {
        let names: Vec<String> = several
            .iter()
            .map(|(volume, files)| format!("/{} ({})", volume.name(), files.format()))
            .collect();
        let message = format!(
            "the disk has several file systems, so a path starts with the partition: {}; or name one with --partition",
            names.join(", ")
        );
        Failure::new(Kind::WhichPartition, message).about(&self.name)
    }
}

/// A path inside a disk, for people.
pub(crate) struct PathText<'a>(pub(crate) &'a [u8]);

impl fmt::Display for PathText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.0))
    }
}
