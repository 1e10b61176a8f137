//! `layers/`: what each image of a chain stores by itself, for examination.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use vhd_core::chain::{OpenedDisk, foreign};
use vhd_core::device::{Disk, Layer, LayeredDevice, RawDevice};
use vhd_core::error::with_causes;
use vhd_core::image::{Image, OpenMode};
use vhd_core::storage::{Access, HostFile, MemoryFile, Sharing};
use vhd_fuse::{Content, Directory, DiskPart, Kind, Name, Node, NodeError};

use super::partitions::{RAW, REGULAR};
use super::shown::with_passthrough;

/// The images of a chain, leaf first.
pub(super) struct Layers {
    layers: Vec<File>,
    time: SystemTime,
}

/// The file of an image.
struct File {
    path: PathBuf,
    kind: LayerKind,
    /// This process may write to the disk: it has the locks of its files, and a look at one is not to stand in the way of what
    /// is done with them.
    in_use: bool,
}

/// How an image is shown by itself.
#[derive(Clone, Copy)]
enum LayerKind {
    /// Its bytes are the disk's, and there are no others.
    Raw,
    Vhd,
    /// An image of another program.
    Foreign,
}

impl Layers {
    /// Those of a disk that this process may write to, or not.
    pub(super) fn new(opened: &OpenedDisk, writable: bool) -> Self {
        let vhds = opened.layers().map(|layer| match layer.layer.image() {
            Some(_) => LayerKind::Vhd,
            None => LayerKind::Raw,
        });
        let kinds: Vec<LayerKind> = vhds
            .chain(opened.foreign_layers().map(|_| LayerKind::Foreign))
            .collect();
        let files = opened.paths().iter().enumerate();
        // A disk without layers is one raw file.
        let layers = files.map(|(depth, path)| File {
            path: path.clone(),
            kind: kinds.get(depth).copied().unwrap_or(LayerKind::Raw),
            in_use: writable,
        });
        Self {
            layers: layers.collect(),
            time: SystemTime::now(),
        }
    }
}

impl Directory for Layers {
    fn names(&self) -> Result<Vec<Name>, NodeError> {
        let names = (0..self.layers.len()).map(|depth| Name {
            name: format!("{depth}{RAW}").into(),
            file_type: REGULAR,
        });
        Ok(names.collect())
    }

    /// The image is opened when it is looked at, and closed when the kernel forgets it: chains can be long.
    fn node(&self, wanted: &OsStr) -> Result<Node, NodeError> {
        let depth = wanted
            .to_str()
            .and_then(|name| name.strip_suffix(RAW)?.parse::<usize>().ok());
        let layer = depth
            .and_then(|depth| self.layers.get(depth))
            .ok_or(NodeError::NotFound)?;
        let shown = match layer.kind {
            LayerKind::Raw => raw(layer),
            LayerKind::Vhd => alone(layer).map(DiskPart::whole),
            LayerKind::Foreign => foreign_alone(layer).map(DiskPart::whole),
        };
        let shown = shown.map_err(|error| NodeError::Unreadable(format!("{}: {error}", layer.path.display())))?;
        let mut node = Node::of_mount(Kind::File(Content::Disk(Arc::new(shown))), self.time);
        node.attributes.push(("path", layer.path.display().to_string()));
        Ok(node)
    }
}

fn open(file: &File) -> Result<HostFile, String> {
    let opened = HostFile::open(&file.path, Access::ReadOnly, Sharing::Exclusive);
    let opened = match (opened, file.in_use) {
        // Nobody writes to it now.
        (Ok(_), true) => HostFile::open(&file.path, Access::ReadOnly, Sharing::Unlocked),
        (opened, _) => opened,
    };
    opened.map_err(|error| with_causes(&error))
}

/// A raw base.
fn raw(file: &File) -> Result<DiskPart, String> {
    let file = Arc::new(open(file)?);
    let device = RawDevice::new(Arc::clone(&file) as _, false).map_err(|error| error.to_string())?;
    Ok(with_passthrough(Disk::new(Arc::new(device)), &*file))
}

/// An image of another program without its parents.
fn foreign_alone(file: &File) -> Result<Disk, String> {
    let layer = foreign::read_alone(Arc::new(open(file)?), &file.path).map_err(|error| with_causes(&error))?;
    Ok(layer.alone())
}

/// An image without its parents: what it does not have reads zero.
fn alone(file: &File) -> Result<Disk, String> {
    let image = Image::open(Arc::new(open(file)?), &OpenMode::ancestor()).map_err(|error| with_causes(&error))?;
    let ancestors = match image.is_differencing() {
        true => {
            // Behind the end of a parent a disk reads zero, and an empty file is nothing else.
            vec![Layer::raw(Arc::new(MemoryFile::new())).map_err(|error| error.to_string())?]
        }
        false => Vec::new(),
    };
    Ok(Disk::new(Arc::new(LayeredDevice::new(image, ancestors))))
}
