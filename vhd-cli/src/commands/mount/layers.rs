//! `layers/`: what each image of a chain stores by itself, for examination.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use vhd_core::chain::OpenedDisk;
use vhd_core::device::{Disk, Layer, LayeredDevice};
use vhd_core::error::with_causes;
use vhd_core::image::{Image, OpenMode};
use vhd_core::storage::{Access, HostFile, MemoryFile, Sharing, StorageFile as _};
use vhd_fuse::{Content, Directory, Kind, Name, Node, NodeError};

use super::partitions::{RAW, REGULAR};

/// The images of a chain, leaf first.
pub(super) struct Layers {
    paths: Vec<PathBuf>,
    time: SystemTime,
}

impl Layers {
    pub(super) fn new(opened: &OpenedDisk) -> Self {
        Self {
            paths: opened.paths().to_vec(),
            time: SystemTime::now(),
        }
    }
}

impl Directory for Layers {
    fn names(&self) -> Result<Vec<Name>, NodeError> {
        let names = (0..self.paths.len()).map(|depth| Name {
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
        let path = depth
            .and_then(|depth| self.paths.get(depth))
            .ok_or(NodeError::NotFound)?;
        let disk = alone(path).map_err(|error| NodeError::Unreadable(format!("{}: {error}", path.display())))?;
        let mut node = Node::of_mount(Kind::File(Content::disk(disk)), self.time);
        node.attributes.push(("path", path.display().to_string()));
        Ok(node)
    }
}

/// An image without its parents: what it does not have reads zero.
fn alone(path: &Path) -> Result<Disk, String> {
    let file = HostFile::open(path, Access::ReadOnly, Sharing::Exclusive).map_err(|error| with_causes(&error))?;
    let file = Arc::new(file);
    let image = match Image::open(Arc::clone(&file) as _, &OpenMode::ancestor()) {
        Ok(image) => image,
        // The base of a chain may be raw.
        Err(_) => {
            let raw = vhd_core::device::RawDevice::new(file, false).map_err(|error| error.to_string())?;
            return Ok(Disk::new(Arc::new(raw)));
        }
    };
    let ancestors = match image.is_differencing() {
        true => {
            let nothing = MemoryFile::new();
            nothing.set_len(image.disk_size()).map_err(|error| error.to_string())?;
            vec![Layer::raw(Arc::new(nothing)).map_err(|error| error.to_string())?]
        }
        false => Vec::new(),
    };
    Ok(Disk::new(Arc::new(LayeredDevice::new(image, ancestors))))
}
