//! `files/`: the file systems in the partitions of a disk, read-only.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use vhd_core::device::Disk;
use vhd_fs::files::{Entry, FileError, FileErrorKind, FileType, Files, Metadata, OpenFiles, SharedDisk, Time};
use vhd_fuse::{Content, Directory, Kind, Name, Node, NodeError, ReadFile, Stat};

use super::partitions::{Partitions, name};
use crate::inside::shared;
use crate::output;

/// `DT_DIR`.
const DIRECTORY: u8 = 4;

/// The file systems of a disk, each a directory.
pub(super) struct Volumes {
    disk: SharedDisk,
    partitions: Arc<Partitions>,
    replay: bool,
    time: SystemTime,
    /// Opened when the directory is looked at first: a mount of many snapshots is ready at once.
    opened: OnceLock<Vec<(String, Arc<Files>)>>,
}

impl Volumes {
    pub(super) fn new(disk: &Disk, partitions: Arc<Partitions>, replay: bool, time: SystemTime) -> Self {
        Self {
            disk: shared(disk),
            partitions,
            replay,
            time,
            opened: OnceLock::new(),
        }
    }

    fn opened(&self) -> &[(String, Arc<Files>)] {
        self.opened.get_or_init(|| {
            let whole = (!self.partitions.has_table).then_some((name(None), 0, u64::MAX));
            let partitions = self
                .partitions
                .partitions
                .iter()
                .map(|it| (name(Some(it)), it.start, it.len));
            let opened = whole.into_iter().chain(partitions).filter_map(|(name, start, len)| {
                match OpenFiles::new().replay(self.replay).open(&self.disk, start, len) {
                    Ok(files) => {
                        files
                            .notes()
                            .iter()
                            .for_each(|note| output::warning(format_args!("{name}: {note}")));
                        Some((name, Arc::new(files)))
                    }
                    Err(error) => {
                        output::warning(format_args!("the files of {name} are not shown: {error}"));
                        None
                    }
                }
            });
            opened.collect()
        })
    }
}

impl Directory for Volumes {
    fn names(&self) -> Result<Vec<Name>, NodeError> {
        let names = self.opened().iter().map(|(name, _)| Name {
            name: name.into(),
            file_type: DIRECTORY,
        });
        Ok(names.collect())
    }

    fn node(&self, wanted: &OsStr) -> Result<Node, NodeError> {
        let found = self.opened().iter().find(|(name, _)| wanted == OsStr::new(name));
        let (_, files) = found.ok_or(NodeError::NotFound)?;
        let mut root = node(files, files.root(), self.time)?;
        root.attributes.push(("file-system", files.format().to_owned()));
        root.attributes
            .extend(files.label().map(|label| ("label", label.to_owned())));
        Ok(root)
    }
}

/// A directory of a file system. Its names are read once: nothing changes them.
struct Folder {
    files: Arc<Files>,
    node: vhd_fs::files::Node,
    time: SystemTime,
    entries: OnceLock<HashMap<Vec<u8>, Entry>>,
}

impl Folder {
    fn entries(&self) -> Result<&HashMap<Vec<u8>, Entry>, NodeError> {
        if let Some(entries) = self.entries.get() {
            return Ok(entries);
        }
        let entries = self.files.list(self.node).map_err(failed)?;
        let entries = entries.into_iter().map(|entry| (entry.name.clone(), entry));
        Ok(self.entries.get_or_init(|| entries.collect()))
    }
}

impl Directory for Folder {
    fn names(&self) -> Result<Vec<Name>, NodeError> {
        let mut names: Vec<Name> = self
            .entries()?
            .values()
            .map(|entry| Name {
                name: OsString::from_vec(entry.name.clone()),
                file_type: entry.kind.map_or(0, directory_type),
            })
            .collect();
        names.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(names)
    }

    fn node(&self, wanted: &OsStr) -> Result<Node, NodeError> {
        let entry = self.entries()?.get(wanted.as_bytes()).ok_or(NodeError::NotFound)?;
        node(&self.files, entry.node, self.time)
    }
}

/// A file, read through its file system.
struct FileContent {
    files: Arc<Files>,
    node: vhd_fs::files::Node,
    size: u64,
}

impl ReadFile for FileContent {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>, NodeError> {
        self.files.read_at(self.node, offset, len).map_err(failed)
    }
}

fn node(files: &Arc<Files>, node: vhd_fs::files::Node, time: SystemTime) -> Result<Node, NodeError> {
    let meta = files.metadata(node).map_err(failed)?;
    let kind = match meta.kind {
        FileType::Directory => Kind::Directory(Arc::new(Folder {
            files: Arc::clone(files),
            node,
            time,
            entries: OnceLock::new(),
        })),
        FileType::Regular => Kind::File(Content::Other(Arc::new(FileContent {
            files: Arc::clone(files),
            node,
            size: meta.size,
        }))),
        FileType::Symlink => Kind::Symlink(files.read_link(node).map_err(failed)?),
        other => Kind::Special {
            file_type: u32::from(directory_type(other)) << 12,
            device: meta.device.unwrap_or_default(),
        },
    };
    Ok(Node {
        kind,
        stat: stat(&meta),
        attributes: Vec::new(),
        instance: 0,
    })
}

fn stat(meta: &Metadata) -> Stat {
    Stat {
        mode: u16::try_from(meta.mode & 0o7777).unwrap_or(0),
        owner: Some((meta.uid, meta.gid)),
        links: meta.links,
        accessed: system_time(meta.accessed),
        modified: system_time(meta.modified),
        changed: system_time(meta.changed),
    }
}

/// Times that the host cannot hold become 1970.
fn system_time(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let at = match time.seconds < 0 {
        true => SystemTime::UNIX_EPOCH.checked_sub(whole),
        false => SystemTime::UNIX_EPOCH.checked_add(whole),
    };
    at.and_then(|at| at.checked_add(Duration::from_nanos(time.nanos.into())))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// `DT_REG` and the like.
fn directory_type(kind: FileType) -> u8 {
    match kind {
        FileType::Fifo => 1,
        FileType::CharDevice => 2,
        FileType::Directory => DIRECTORY,
        FileType::BlockDevice => 6,
        FileType::Regular => super::partitions::REGULAR,
        FileType::Symlink => 10,
        FileType::Socket => 12,
    }
}

fn failed(error: FileError) -> NodeError {
    match error.kind() {
        FileErrorKind::NotFound => NodeError::NotFound,
        FileErrorKind::Unsupported => NodeError::Unsupported(error.to_string()),
        _ => NodeError::Unreadable(error.to_string()),
    }
}
