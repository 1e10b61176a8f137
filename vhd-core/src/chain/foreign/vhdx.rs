//! The chain of a VHDX: a child names its parent by paths, and knows it by its data write GUID, which changes when the
//! content of the parent does.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image_formats::ImageError;
use image_formats::vhdx::{self, DiskType as VhdxType, Image, LogState, Oddity, ParentKey, Uuid};

use super::super::examine::look_at;
use super::super::locate::{candidates_with, is_vhdx};
use super::super::{
    Candidate, ChainError, ChainWarning, ImageFormat, MAX_DEPTH, ParentGate, ParentOutcome, TriedParent,
};
use super::super::{OpenOptions, OpenedDisk};
use super::{ForeignDisk, ForeignFacts, ForeignLayer, ForeignParent, shared};
use crate::format::{DiskType, UniqueId};
use crate::image::{ParentPath, PathSource};
use crate::storage::{Access, FileIdentity, HostFile, Sharing, StorageError, StorageFile};
use crate::units::SECTOR_SIZE;

/// Opens the chain whose leaf is in `file`. `host` is the same file, if it is one of this host.
pub(super) fn open(
    options: &OpenOptions,
    path: &Path,
    file: Arc<dyn StorageFile>,
    host: Option<&HostFile>,
    found: &mut Vec<PathBuf>,
) -> Result<OpenedDisk, ChainError> {
    let mut walk = Walk {
        options,
        paths: found,
        identities: HashSet::new(),
        warnings: Vec::new(),
        table_bytes: 0,
    };
    if let Some(host) = host {
        walk.enter(path, path, host)?;
    }
    let mut layers = vec![walk.take(path, read_image(file, path)?)?];
    while let Some(parent) = layers[layers.len() - 1].facts.parent.clone() {
        if layers.len() >= MAX_DEPTH {
            let path = path.to_owned();
            return Err(ChainError::TooDeep { path, limit: MAX_DEPTH });
        }
        let child = walk.paths[layers.len() - 1].clone();
        let next = walk.find_parent(&child, &parent, &layers[layers.len() - 1])?;
        layers.push(next);
    }
    let (paths, warnings) = (walk.paths.clone(), walk.warnings);
    Ok(OpenedDisk::from_foreign(ForeignDisk::new(layers), paths, warnings))
}

/// The image in a file, alone.
pub(super) fn read(file: Arc<dyn StorageFile>, path: &Path) -> Result<ForeignLayer, ChainError> {
    read_image(file, path).map(|(layer, _)| layer)
}

fn read_image(file: Arc<dyn StorageFile>, path: &Path) -> Result<(ForeignLayer, Vec<Oddity>), ChainError> {
    let image = Image::open(shared(&file)).map_err(|source| foreign_error(path, source))?;
    let (facts, oddities) = (facts(&image), image.oddities().to_vec());
    let layer = Arc::new(image);
    Ok((ForeignLayer { file, layer, facts }, oddities))
}

fn foreign_error(path: &Path, source: ImageError) -> ChainError {
    ChainError::ForeignImage {
        path: path.to_owned(),
        source,
    }
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
        allocated_blocks: usage.allocated_blocks,
        logical_sector: metadata.logical_sector,
        physical_sector: metadata.physical_sector,
        replayed: match image.log() {
            LogState::Empty => 0,
            LogState::Replayed(entries) => entries,
        },
        parent: metadata.parent.as_ref().map(|parent| ForeignParent {
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

/// Whether the file at a candidate's path is the parent with one of these identities. No lock is taken for a look.
pub(in crate::chain) fn examine(
    child: &Path,
    candidate: &Candidate,
    parent: &ForeignParent,
    gate: &dyn ParentGate,
) -> Result<(), ParentOutcome> {
    let file = look_at(child, candidate, gate)?;
    identify(&file, parent)
}

/// Whether an open file is the parent. It is asked again once the file is locked.
fn identify(file: &HostFile, parent: &ForeignParent) -> Result<(), ParentOutcome> {
    match vhdx::read_header(&Borrowed(file)) {
        Ok(header) if parent.matches(id(header.data_write_guid)) => Ok(()),
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

/// Follows parents from a leaf down.
struct Walk<'a> {
    options: &'a OpenOptions,
    paths: &'a mut Vec<PathBuf>,
    identities: HashSet<FileIdentity>,
    warnings: Vec<ChainWarning>,
    table_bytes: u64,
}

impl Walk<'_> {
    /// Makes an image the next layer.
    fn take(&mut self, path: &Path, image: (ForeignLayer, Vec<Oddity>)) -> Result<ForeignLayer, ChainError> {
        let (layer, oddities) = image;
        self.table_bytes += layer.layer.table_memory();
        if self.table_bytes > self.options.max_table_bytes {
            return Err(ChainError::TablesTooLarge {
                path: path.to_owned(),
                bytes: self.table_bytes,
                maximum: self.options.max_table_bytes,
            });
        }
        let is_worth_it = |oddity: &Oddity| !matches!(oddity, Oddity::UnusedSpace(_) | Oddity::UnknownRegions(_));
        for oddity in oddities.into_iter().filter(is_worth_it) {
            let (path, oddity) = (path.to_owned(), oddity.to_string());
            self.warnings.push(ChainWarning::ForeignOddity { path, oddity });
        }
        let bytes = layer.facts.logical_sector;
        if self.paths.is_empty() && u64::from(bytes) != SECTOR_SIZE {
            let path = path.to_owned();
            self.warnings.push(ChainWarning::LogicalSectors { path, bytes });
        }
        self.paths.push(path.to_owned());
        Ok(layer)
    }

    /// Notes that a file is part of the chain; it must not be already.
    fn enter(&mut self, child: &Path, path: &Path, file: &HostFile) -> Result<(), ChainError> {
        let identity = file.identity().map_err(|source| ChainError::Read {
            path: path.to_owned(),
            source,
        })?;
        if self.identities.insert(identity) {
            return Ok(());
        }
        Err(ChainError::Cycle {
            child: child.to_owned(),
            path: path.to_owned(),
        })
    }

    fn find_parent(
        &mut self,
        child: &Path,
        parent: &ForeignParent,
        layer: &ForeignLayer,
    ) -> Result<ForeignLayer, ChainError> {
        let (explicit, dirs) = (&self.options.parents, &self.options.parent_dirs);
        let mut tried = Vec::new();
        for candidate in candidates_with(child, &parent.paths, explicit, dirs, is_vhdx) {
            let outcome = match examine(child, &candidate, parent, &*self.options.gate) {
                Ok(()) => match self.open_parent(child, &candidate.path, parent)? {
                    Ok(file) => return self.take_parent(child, layer, &candidate.path, file),
                    Err(outcome) => outcome,
                },
                Err(outcome) => outcome,
            };
            tried.push(TriedParent {
                path: candidate.path,
                reason: candidate.reason,
                outcome,
            });
        }
        let (child, wanted) = (child.to_owned(), parent.id);
        let others = tried
            .iter()
            .any(|tried| matches!(tried.outcome, ParentOutcome::OtherContent(_)));
        Err(match others {
            true => ChainError::ParentMismatch { child, wanted, tried },
            false => ChainError::ParentMissing { child, wanted, tried },
        })
    }

    /// Opens the file that was looked at, under the lock, and looks again.
    fn open_parent(
        &mut self,
        child: &Path,
        path: &Path,
        parent: &ForeignParent,
    ) -> Result<Result<Arc<HostFile>, ParentOutcome>, ChainError> {
        let sharing = self.options.sharing;
        let opened = HostFile::open(path, Access::ReadOnly, sharing);
        if let Err(StorageError::Locked { .. }) = &opened {
            self.enter(child, path, &HostFile::open(path, Access::ReadOnly, Sharing::Unlocked)?)?;
        }
        let file = Arc::new(opened?);
        // INV-34: the identity that counts is that of the file which is read from here on.
        if let Err(outcome) = identify(&file, parent) {
            return Ok(Err(outcome));
        }
        self.enter(child, path, &file)?;
        Ok(Ok(file))
    }

    fn take_parent(
        &mut self,
        child: &Path,
        child_layer: &ForeignLayer,
        path: &Path,
        file: Arc<HostFile>,
    ) -> Result<ForeignLayer, ChainError> {
        let parent = self.take(path, read_image(file, path)?)?;
        let (of_child, of_parent) = (child_layer.facts.logical_sector, parent.facts.logical_sector);
        if of_child != of_parent {
            return Err(foreign_error(
                child,
                ImageError::Unsupported {
                    feature: format!("logical sectors of {of_child} bytes over a parent with sectors of {of_parent}"),
                    offset: 0,
                },
            ));
        }
        Ok(parent)
    }
}
