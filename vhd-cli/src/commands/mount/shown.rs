//! The tree of a mounted disk.

use std::sync::Arc;
use std::time::SystemTime;

use vhd_core::chain::{ImageFormat, OpenedDisk};
use vhd_core::device::Disk;
use vhd_core::storage::StorageFile;
use vhd_fuse::{Content, Directory, DiskPart, Fixed, Kind, Node};

use super::MountArgs;
use super::files::Volumes;
use super::layers::Layers;
use super::on_demand::OpenDisks;
use super::partitions::Partitions;
use super::snapshots::Snapshots;
use crate::commands::info;
use crate::failure::Failure;
use crate::input::Source;

/// What is shown of the files of a disk, as they were when it was opened.
pub(super) struct Opened {
    info: Arc<[u8]>,
    layers: Layers,
    /// The bytes of the disk, if it is a raw file.
    raw: Option<DiskPart>,
}

impl Opened {
    pub(super) fn of(source: &Source, opened: &OpenedDisk, writable: bool) -> Result<Self, Failure> {
        let raw = opened.file_at_depth(0).filter(|_| opened.format() == ImageFormat::Raw);
        Ok(Self {
            info: info::json(source, opened)?.into_bytes().into(),
            layers: Layers::new(opened, writable),
            raw: raw.map(|file| with_passthrough(opened.disk(), file)),
        })
    }

    /// The root directory.
    pub(super) fn root(
        self,
        args: &MountArgs,
        source: &Source,
        shown: &Disk,
        snapshots: Arc<OpenDisks>,
    ) -> Result<Arc<dyn Directory>, Failure> {
        let now = SystemTime::now();
        let root = disk(shown, args, args.rw, now)?
            .with("info.json", Node::of_mount(Kind::File(Content::Bytes(self.info)), now))
            .with("layers", directory(Arc::new(self.layers), now))
            .with(
                "snapshots",
                directory(Arc::new(Snapshots::new(&source.path, snapshots, args, now)), now),
            );
        Ok(Arc::new(match self.raw.filter(|_| !args.rw) {
            Some(raw) => root.with("disk.raw", file_node(raw, now)),
            None => root,
        }))
    }
}

/// A read-only disk that is all of a raw file. The kernel reads it by itself, where the file has exactly the disk's bytes.
pub(super) fn with_passthrough(disk: Disk, file: &dyn StorageFile) -> DiskPart {
    let part = DiskPart::whole(disk);
    let host = file.host_file().and_then(|host| host.try_clone().ok());
    match host.filter(|host| {
        host.metadata()
            .is_ok_and(|meta| meta.is_file() && meta.len() == part.len())
    }) {
        Some(host) => part.passthrough(host),
        None => part,
    }
}

fn file_node(part: DiskPart, time: SystemTime) -> Node {
    Node::of_mount(Kind::File(Content::Disk(Arc::new(part))), time)
}

/// What is shown of one state of a disk: `disk.raw`, `partitions`, `files`.
pub(super) fn disk(disk: &Disk, args: &MountArgs, writable: bool, now: SystemTime) -> Result<Fixed, Failure> {
    let partitions = Arc::new(Partitions::read(disk, writable)?);
    let part = DiskPart::whole(disk.clone());
    let part = if writable { part.writable() } else { part };
    let raw = file_node(part, now);
    let raw = if writable { raw.writable() } else { raw };
    let shown = Fixed::new().with("disk.raw", raw);
    // Beside a kernel that changes a file system, a second reader of it sees neither the old nor the new state.
    let shown = if writable {
        shown
    } else {
        let volumes = Volumes::new(disk, Arc::clone(&partitions), args.replay, now);
        shown.with("files", directory(Arc::new(volumes), now))
    };
    Ok(shown.with("partitions", directory(partitions, now)))
}

fn directory(directory: Arc<dyn Directory>, time: SystemTime) -> Node {
    Node::of_mount(Kind::Directory(directory), time)
}
