//! The chain of a VHDX: a child names its parent by paths, and knows it by its data write GUID, which changes when the
//! content of the parent does.

use std::path::Path;
use std::sync::Arc;

use image_formats::ImageError;
use image_formats::vhdx::{self, DiskType as VhdxType, Image, LogState, Oddity, ParentKey, Uuid};

use super::super::{ChainError, ImageFormat, ParentOutcome};
use super::chain::Read;
use super::{ForeignFacts, ForeignLayer, ForeignParent, foreign_error, shared};
use crate::format::{DiskType, UniqueId};
use crate::image::{ParentPath, PathSource};
use crate::storage::{HostFile, StorageFile};

/// The image in a file.
pub(super) fn read(file: Arc<dyn StorageFile>, path: &Path) -> Result<Read, ChainError> {
    let image = Image::open(shared(&file)).map_err(|source| foreign_error(path, source))?;
    let is_worth_it = |oddity: &&Oddity| !matches!(oddity, Oddity::UnusedSpace(_) | Oddity::UnknownRegions(_));
    let oddities = image
        .oddities()
        .iter()
        .filter(is_worth_it)
        .map(ToString::to_string)
        .collect();
    let facts = facts(&image);
    let layer = Arc::new(image);
    Ok((ForeignLayer { file, layer, facts }, oddities))
}

/// A GUID as text has it.
fn id(guid: Uuid) -> UniqueId {
    UniqueId(guid.into_bytes())
}

fn facts(image: &Image) -> ForeignFacts {
    let (metadata, usage) = (image.metadata(), image.usage());
    ForeignFacts {
        format: ImageFormat::Vhdx,
        disk_type: match metadata.disk_type {
            VhdxType::Fixed => DiskType::Fixed,
            VhdxType::Dynamic => DiskType::Dynamic,
            VhdxType::Differencing => DiskType::Differencing,
        },
        id: id(image.header().data_write_guid),
        disk_id: Some(id(metadata.disk_id)),
        creator: Some(image.creator().to_owned()).filter(|creator| !creator.is_empty()),
        disk_size: metadata.disk_size,
        block_size: u64::from(metadata.block_size),
        blocks: usage.blocks,
        allocated_blocks: Some(usage.allocated_blocks),
        logical_sector: metadata.logical_sector,
        physical_sector: metadata.physical_sector,
        replayed: match image.log() {
            LogState::Empty => 0,
            LogState::Replayed(entries) => entries,
        },
        parent: metadata.parent.as_ref().map(|parent| ForeignParent {
            format: ImageFormat::Vhdx,
            id: id(parent.linkage),
            second_id: parent.linkage2.map(id),
            paths: parent.paths.iter().map(|(key, path)| parent_path(*key, path)).collect(),
        }),
    }
}

/// A path without what only Windows understands: the prefix of long paths, and the name of a volume.
fn parent_path(key: ParentKey, path: &str) -> ParentPath {
    let rest = path.strip_prefix(r"\\?\").unwrap_or(path);
    let in_volume = rest.strip_prefix("Volume{").and_then(|rest| rest.split_once('}'));
    ParentPath {
        source: PathSource::Key(key.name()),
        path: in_volume.map_or(rest, |(_, path)| path).to_owned(),
    }
}

/// Whether an open file is the parent. It is asked again once the file is locked.
pub(super) fn identify(file: &HostFile, parent: &ForeignParent) -> Result<ImageFormat, ParentOutcome> {
    match vhdx::read_header(&Borrowed(file)) {
        Ok(header) if parent.matches(id(header.data_write_guid)) => Ok(ImageFormat::Vhdx),
        Ok(header) => Err(ParentOutcome::OtherContent(id(header.data_write_guid))),
        Err(ImageError::Broken(rule)) if rule.rule == image_formats::Rule::Identifier => Err(ParentOutcome::NotVhdx),
        Err(error) => Err(ParentOutcome::Unreadable(crate::error::with_causes(&error))),
    }
}

/// A file for a look.
struct Borrowed<'a>(&'a HostFile);

impl image_formats::ImageFile for Borrowed<'_> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }
}
