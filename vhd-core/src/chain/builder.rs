//! A leaf, and its parents one after the other.

use std::collections::{HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::descriptors;
use super::detect::image_error;
use super::disagree::{Actual, Recorded, disagreements};
use super::error::{ChainError, ChainWarning, ParentOutcome, TriedParent};
use super::examine::{Examined, examine, identify, identify_content};
use super::locate::{Candidate, candidates};
use super::open::{MAX_DEPTH, OpenOptions};
use super::opened::OpenedDisk;
use crate::device::{Layer, LayeredDevice};
use crate::format::{Timestamp, UniqueId};
use crate::image::{FooterSource, Footers, Image, OpenMode};
use crate::storage::{Access, FileIdentity, HostFile, Sharing, StorageError, StorageFile};

/// Follows parents from a leaf down.
pub(super) struct ChainBuilder<'a> {
    options: &'a OpenOptions,
    /// The descriptors of the parents, if they were opened elsewhere: none is looked for then.
    given: Option<VecDeque<OwnedFd>>,
    paths: &'a mut Vec<PathBuf>,
    identities: HashSet<FileIdentity>,
    warnings: Vec<ChainWarning>,
    /// What the block tables of the images opened so far take in memory.
    table_bytes: u64,
}

/// An ancestor that was found.
struct Found {
    path: PathBuf,
    file: Arc<HostFile>,
    layer: Layer,
}

impl<'a> ChainBuilder<'a> {
    pub(super) fn new(options: &'a OpenOptions, paths: &'a mut Vec<PathBuf>) -> Self {
        Self {
            options,
            given: None,
            paths,
            identities: HashSet::new(),
            warnings: Vec::new(),
            table_bytes: 0,
        }
    }

    /// With these files as parents, and no others.
    pub(super) fn given(self, parents: VecDeque<OwnedFd>) -> Self {
        Self {
            given: Some(parents),
            ..self
        }
    }

    /// Opens the leaf in `file` and its ancestors. `host` is the same file, if it is one of this host.
    pub(super) fn build(
        mut self,
        path: &Path,
        file: Arc<dyn StorageFile>,
        host: Option<&HostFile>,
    ) -> Result<OpenedDisk, ChainError> {
        if let Some(host) = host {
            self.enter(path, path, host)?;
        }
        // For a look first: to open it for writing may change it.
        let leaf = if self.options.is_writing() {
            Arc::new(self.open_image(path, Arc::clone(&file), &OpenMode::read_only())?)
        } else {
            self.open_shared(path, Arc::clone(&file), &OpenMode::read_only())?
        };
        self.paths.push(path.to_owned());
        let ancestors = self.ancestors(path, &leaf)?;
        if self.given.as_ref().is_some_and(|left| !left.is_empty()) {
            return Err(descriptors::left_over(self.paths.len()));
        }
        let leaf = if self.options.is_writing() {
            // INV-35: under the lock, and before anything in the file changes.
            let warning = self
                .options
                .refuse_dependants(path, leaf.unique_id(), &self.paths[1..])?;
            self.warnings.extend(warning);
            drop(leaf);
            Arc::new(image_at(path, file, &self.options.leaf_mode())?)
        } else {
            leaf
        };
        let device = LayeredDevice::over(leaf, ancestors);
        Ok(OpenedDisk::of_chain(device, self.paths.clone(), self.warnings))
    }

    /// Follows the parents of a leaf.
    fn ancestors(&mut self, path: &Path, leaf: &Image) -> Result<Vec<Layer>, ChainError> {
        let mut ancestors: Vec<Layer> = Vec::new();
        loop {
            let child = ancestors.last().map_or(Some(leaf), Layer::image);
            let Some(child) = child.filter(|image| image.is_differencing()) else {
                return Ok(ancestors);
            };
            if self.paths.len() >= MAX_DEPTH {
                let path = path.to_owned();
                return Err(ChainError::TooDeep { path, limit: MAX_DEPTH });
            }
            let child_path = self.paths[self.paths.len() - 1].clone();
            let found = self.find_parent(&child_path, child)?;
            self.compare(&child_path, child, &found, ancestors.is_empty())?;
            self.paths.push(found.path);
            ancestors.push(found.layer);
        }
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

    /// Opens an image for reading, or takes the one that is open in the same file.
    fn open_shared(
        &mut self,
        path: &Path,
        file: Arc<dyn StorageFile>,
        mode: &OpenMode,
    ) -> Result<Arc<Image>, ChainError> {
        let Some(shared) = self.options.shared.clone() else {
            return self.open_image(path, file, mode).map(Arc::new);
        };
        if let Some(image) = shared.get(&*file) {
            self.count(path, &image)?;
            return Ok(image);
        }
        let image = Arc::new(self.open_image(path, file, mode)?);
        shared.add(&image);
        Ok(image)
    }

    fn open_image(&mut self, path: &Path, file: Arc<dyn StorageFile>, mode: &OpenMode) -> Result<Image, ChainError> {
        let image = image_at(path, file, mode)?;
        self.count(path, &image)?;
        Ok(image)
    }

    /// Takes notice of an image of the chain.
    fn count(&mut self, path: &Path, image: &Image) -> Result<(), ChainError> {
        self.warnings.extend(footer_warnings(path, image.footers()));
        self.table_bytes += image.table_memory();
        if self.table_bytes > self.options.max_table_bytes {
            return Err(ChainError::TablesTooLarge {
                path: path.to_owned(),
                bytes: self.table_bytes,
                maximum: self.options.max_table_bytes,
            });
        }
        Ok(())
    }

    fn find_parent(&mut self, child_path: &Path, child: &Image) -> Result<Found, ChainError> {
        let wanted = child.header().map_or(UniqueId::NIL, |header| header.parent_id);
        if let Some(given) = &mut self.given {
            let next = given.pop_front();
            return self.take_given(child_path, wanted, next);
        }
        let named = child.parent_paths().map_err(|source| ChainError::Image {
            path: child_path.to_owned(),
            source,
        })?;
        let mut tried = Vec::new();
        for candidate in candidates(child_path, &named, &self.options.parents, &self.options.parent_dirs) {
            let candidate = Candidate {
                as_raw: self.options.raw_parents.contains(&candidate.path),
                ..candidate
            };
            let outcome = match examine(child_path, &candidate, wanted, &*self.options.gate) {
                Ok(_) => match self.take(child_path, &candidate, wanted)? {
                    Ok(found) => return Ok(found),
                    Err(outcome) => outcome,
                },
                Err(outcome) => outcome,
            };
            tried.push(candidate.tried(outcome));
        }
        Err(no_parent(child_path, wanted, tried))
    }

    /// Opens the file that was looked at, under the lock, and looks again: another file may be there by now.
    fn take(
        &mut self,
        child: &Path,
        candidate: &Candidate,
        wanted: UniqueId,
    ) -> Result<Result<Found, ParentOutcome>, ChainError> {
        let file = self.open_parent(child, &candidate.path)?;
        // INV-34: the identity that counts is that of the file which is read from here on.
        let examined = identify(candidate, &file, wanted);
        let layer = match examined.map(|examined| self.layer_in(&candidate.path, &file, &examined)) {
            Ok(layer) => layer?,
            Err(outcome) => return Ok(Err(outcome)),
        };
        self.enter(child, &candidate.path, &file)?;
        let path = candidate.path.clone();
        Ok(Ok(Found { path, file, layer }))
    }

    /// Takes the next descriptor as the parent. It is the only one that can be.
    fn take_given(&mut self, child: &Path, wanted: UniqueId, next: Option<OwnedFd>) -> Result<Found, ChainError> {
        let path = descriptors::name(self.paths.len());
        let Some(descriptor) = next else {
            let (child, missing) = (child.to_owned(), path);
            return Err(ChainError::DescriptorMissing { child, wanted, missing });
        };
        let file = HostFile::of_descriptor(descriptor, &path, Access::ReadOnly)?;
        // Before it is locked: a file that is in the chain already is kept away by its own lock.
        self.enter(child, &path, &file)?;
        let file = Arc::new(file.locked(&path, Access::ReadOnly, self.options.sharing)?);
        let candidate = Candidate::given(path.clone());
        match identify_content(&candidate, &file, wanted) {
            Ok(examined) => {
                let layer = self.layer_in(&path, &file, &examined)?;
                Ok(Found { path, file, layer })
            }
            Err(outcome) => Err(no_parent(child, wanted, vec![candidate.tried(outcome)])),
        }
    }

    /// Opens the parent in a file that was found to be it.
    fn layer_in(&mut self, path: &Path, file: &Arc<HostFile>, examined: &Examined) -> Result<Layer, ChainError> {
        let file = Arc::clone(file) as Arc<dyn StorageFile>;
        match examined {
            Examined::Vhd => {
                let mode = OpenMode::ancestor().at_depth(self.paths.len());
                Ok(Layer::Vhd(self.open_shared(path, file, &mode)?))
            }
            Examined::Raw => Layer::raw(file).map_err(|source| ChainError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    fn open_parent(&mut self, child: &Path, path: &Path) -> Result<Arc<HostFile>, ChainError> {
        let opened = HostFile::open(path, Access::ReadOnly, self.options.sharing);
        if let Err(StorageError::Locked { .. }) = &opened {
            // A writable leaf that is its own ancestor is kept away by its own lock: that is a circle.
            self.enter(child, path, &HostFile::open(path, Access::ReadOnly, Sharing::Unlocked)?)?;
        }
        Ok(Arc::new(opened?))
    }

    /// Compares what a child recorded of its parent with the parent found.
    fn compare(&mut self, child_path: &Path, child: &Image, parent: &Found, is_leaf: bool) -> Result<(), ChainError> {
        let (child_size, parent_size) = (child.disk_size(), parent.layer.disk_size());
        // Guests and other software disagree about such a child: it is shown, but not written.
        if child_size != parent_size && is_leaf && self.options.is_writing() {
            return Err(ChainError::SizeMismatch {
                child: child_path.to_owned(),
                child_size,
                parent: parent.path.clone(),
                parent_size,
            });
        }
        let recorded = Recorded {
            path: child_path,
            disk_size: child_size,
            parent_timestamp: child.header().map(|header| header.parent_timestamp),
        };
        let actual = Actual {
            path: &parent.path,
            disk_size: parent_size,
            modified: parent.file.modified().ok().map(Timestamp::from_system_time),
            in_footer: parent.layer.image().map(|image| image.footer().timestamp),
        };
        self.warnings.extend(disagreements(&recorded, &actual));
        Ok(())
    }
}

/// Nothing that was tried is the parent.
fn no_parent(child: &Path, wanted: UniqueId, tried: Vec<TriedParent>) -> ChainError {
    let child = child.to_owned();
    let others = tried
        .iter()
        .any(|tried| matches!(tried.outcome, ParentOutcome::OtherDisk(_)));
    match others {
        true => ChainError::ParentMismatch { child, wanted, tried },
        false => ChainError::ParentMissing { child, wanted, tried },
    }
}

fn image_at(path: &Path, file: Arc<dyn StorageFile>, mode: &OpenMode) -> Result<Image, ChainError> {
    Image::open(Arc::clone(&file), mode).map_err(|source| image_error(&*file, path, source))
}

fn footer_warnings(path: &Path, footers: &Footers) -> Option<ChainWarning> {
    let path = path.to_owned();
    match (footers.source, &footers.tail_error, &footers.copy) {
        (FooterSource::Copy, Some(reason), _) => Some(ChainWarning::FooterRecovered {
            path,
            reason: reason.clone(),
        }),
        (_, _, Some(Err(reason))) => Some(ChainWarning::FooterCopyDamaged {
            path,
            reason: reason.clone(),
        }),
        _ if !footers.agree() => Some(ChainWarning::FootersDiffer { path }),
        _ => None,
    }
}
