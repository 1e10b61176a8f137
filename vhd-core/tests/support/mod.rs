//! What the tests of the image engine share: images written by hand, and disks over them.
#![allow(dead_code, reason = "each test uses its own part of this")]

pub(crate) mod crashing;
pub(crate) mod forge;
pub(crate) mod subject;
pub(crate) mod view;

use std::sync::Arc;

use vhd_core::device::{Layer, LayeredDevice};
use vhd_core::format::{Timestamp, UniqueId};
use vhd_core::image::{Image, OpenError, OpenMode, ParentLink};
use vhd_core::storage::StorageFile;

/// The disk of the image `leaf` over `parents`, nearest first; a file that is no VHD is a raw parent.
pub(crate) fn open(
    leaf: Arc<dyn StorageFile>,
    parents: &[Arc<dyn StorageFile>],
    mode: &OpenMode,
) -> Result<LayeredDevice, OpenError> {
    let layer = |file: &Arc<dyn StorageFile>| match Image::open(Arc::clone(file), &OpenMode::read_only()) {
        Ok(image) => Ok(Layer::Vhd(Arc::new(image))),
        Err(OpenError::NoFooter { .. }) => Ok(Layer::raw(Arc::clone(file)).expect("a file in memory has a length")),
        Err(error) => Err(error),
    };
    let ancestors = parents.iter().map(layer).collect::<Result<_, _>>()?;
    Ok(LayeredDevice::new(Image::open(leaf, mode)?, ancestors))
}

/// What a child says of a parent that no one looks for by name.
pub(crate) fn any_parent() -> ParentLink {
    ParentLink {
        id: UniqueId([7; 16]),
        modified: Timestamp::UNSET,
        name: "parent.vhd".to_owned(),
        relative_path: r".\parent.vhd".to_owned(),
        absolute_path: r"C:\parent.vhd".to_owned(),
    }
}
