//! The chain of an image of another program: parents are looked for in the places that a child names, and each format
//! says what a parent is known by.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image_formats::ImageError;

use super::super::examine::look_at;
use super::super::locate::{candidates_with, is_vhdx};
use super::super::{
    Candidate, ChainError, ChainWarning, ImageFormat, MAX_DEPTH, ParentGate, ParentOutcome, TriedParent,
};
use super::super::{OpenOptions, OpenedDisk};
use super::{ForeignDisk, ForeignLayer, ForeignParent, foreign_error, qcow2, vhdx, vmdk};
use crate::storage::{Access, FileIdentity, HostFile, Sharing, StorageError, StorageFile};
use crate::units::SECTOR_SIZE;

/// An image, and what of it is worth a warning.
pub(super) type Read = (ForeignLayer, Vec<String>);

/// The image in a file of this format.
pub(super) fn read_image(format: ImageFormat, file: Arc<dyn StorageFile>, path: &Path) -> Result<Read, ChainError> {
    match format {
        ImageFormat::Qcow2 => qcow2::read(file, path),
        ImageFormat::Vmdk => vmdk::read(file, path),
        ImageFormat::Raw => qcow2::raw(file, path),
        _ => vhdx::read(file, path),
    }
}

/// Whether the file at a candidate's path is the parent. No lock is taken for a look.
pub(in crate::chain) fn examine(
    child: &Path,
    candidate: &Candidate,
    parent: &ForeignParent,
    gate: &dyn ParentGate,
) -> Result<(), ParentOutcome> {
    let file = look_at(child, candidate, gate)?;
    identify(&file, candidate, parent).map(drop)
}

/// The format of an open file, if it is the parent. It is asked again once the file is locked.
fn identify(file: &HostFile, candidate: &Candidate, parent: &ForeignParent) -> Result<ImageFormat, ParentOutcome> {
    match parent.format {
        ImageFormat::Qcow2 => qcow2::identify(file, candidate, parent),
        _ => vhdx::identify(file, parent),
    }
}

/// Which of the files in a directory that the user named are looked at.
fn is_looked_at(format: ImageFormat) -> fn(&Path) -> bool {
    match format {
        ImageFormat::Vhdx => is_vhdx,
        // Without an identity only a name tells which it is.
        _ => |_| false,
    }
}

/// Opens the chain whose leaf is in `file`. `host` is the same file, if it is one of this host.
pub(super) fn open(
    options: &OpenOptions,
    format: ImageFormat,
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
    let mut layers = vec![walk.take(path, read_image(format, file, path)?)?];
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
    fn take(&mut self, path: &Path, image: Read) -> Result<ForeignLayer, ChainError> {
        let (layer, oddities) = image;
        self.table_bytes += layer.layer.table_memory();
        if self.table_bytes > self.options.max_table_bytes {
            return Err(ChainError::TablesTooLarge {
                path: path.to_owned(),
                bytes: self.table_bytes,
                maximum: self.options.max_table_bytes,
            });
        }
        self.warnings.extend(oddities.into_iter().map(|oddity| {
            let path = path.to_owned();
            ChainWarning::ForeignOddity { path, oddity }
        }));
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
        for candidate in candidates_with(child, &parent.paths, explicit, dirs, is_looked_at(parent.format)) {
            let outcome = match examine(child, &candidate, parent, &*self.options.gate) {
                Ok(()) => match self.open_parent(child, &candidate, parent)? {
                    Ok((file, format)) => return self.take_parent(child, layer, &candidate.path, file, format),
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
        candidate: &Candidate,
        parent: &ForeignParent,
    ) -> Result<Result<(Arc<HostFile>, ImageFormat), ParentOutcome>, ChainError> {
        let path = &candidate.path;
        let sharing = self.options.sharing;
        let opened = HostFile::open(path, Access::ReadOnly, sharing);
        if let Err(StorageError::Locked { .. }) = &opened {
            self.enter(child, path, &HostFile::open(path, Access::ReadOnly, Sharing::Unlocked)?)?;
        }
        let file = Arc::new(opened?);
        // INV-34: the identity that counts is that of the file which is read from here on.
        let format = match identify(&file, candidate, parent) {
            Ok(format) => format,
            Err(outcome) => return Ok(Err(outcome)),
        };
        self.enter(child, path, &file)?;
        Ok(Ok((file, format)))
    }

    fn take_parent(
        &mut self,
        child: &Path,
        child_layer: &ForeignLayer,
        path: &Path,
        file: Arc<HostFile>,
        format: ImageFormat,
    ) -> Result<ForeignLayer, ChainError> {
        let parent = self.take(path, read_image(format, file, path)?)?;
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
