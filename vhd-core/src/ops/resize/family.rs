//! Which files a resize is about, each opened and locked once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::one::Resizing;
use super::{Request, ResizeError};
use crate::chain::forest::{Forest, Limits, Link};
use crate::chain::{OpenedDisk, children_beside};
use crate::device::{Disk, Layer, LayeredDevice};
use crate::format::{Footer, UniqueId};
use crate::image::{Footers, Image, OpenMode};
use crate::storage::{Access, FileIdentity, HostFile, Sharing, StorageFile};

/// A file of the family.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) path: PathBuf,
    /// Which member is the parent; parents come before their children.
    pub(super) parent: Option<usize>,
    pub(super) file: Arc<HostFile>,
    /// The same file, by which it is changed.
    pub(super) storage: Arc<dyn StorageFile>,
    pub(super) resizing: Resizing,
    /// When the file was modified before the resize.
    pub(super) modified: Option<SystemTime>,
}

/// An image, what it is based on, and, for a whole tree, everything that is based on those.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) members: Vec<Member>,
    /// The member that was asked for.
    pub(super) image: usize,
}

/// A file of the family that is not open yet.
pub(super) struct Kin {
    pub(super) path: PathBuf,
    pub(super) parent: Option<usize>,
}

impl Family {
    /// Opens the files of a chain or of its whole tree.
    pub(super) fn open(request: &Request<'_>, opened: OpenedDisk, write: bool) -> Result<Self, ResizeError> {
        let layers = opened
            .layers()
            .map(|layer| (layer.path.to_owned(), layer.layer.image().is_some()));
        let mut layers: Vec<_> = layers.collect();
        if let Some((path, _)) = layers.iter().find(|(_, is_vhd)| !is_vhd) {
            return Err(ResizeError::Raw { path: path.clone() });
        }
        drop(opened);
        layers.reverse();
        let chain = layers.into_iter().enumerate().map(|(index, (path, _))| Kin {
            path,
            parent: index.checked_sub(1),
        });
        let mut kin: Vec<Kin> = chain.collect();
        let image = kin.len() - 1;
        if request.tree {
            add_descendants(&mut kin)?;
        }
        let members = kin.into_iter().enumerate().map(|(index, kin)| {
            // Without --tree the parents are only read.
            let access = match write && (request.tree || index == image) {
                true => Access::ReadWrite,
                false => Access::ReadOnly,
            };
            Member::open(kin, access, request.size)
        });
        Ok(Self {
            members: members.collect::<Result<_, _>>()?,
            image,
        })
    }

    /// One image without parents, whose file is open for writing and locked. It is changed through `storage`.
    pub(super) fn of_one(
        path: &Path,
        file: &Arc<HostFile>,
        storage: Arc<dyn StorageFile>,
        size: u64,
    ) -> Result<Self, ResizeError> {
        let kin = Kin {
            path: path.to_owned(),
            parent: None,
        };
        Ok(Self {
            members: vec![Member::of_file(kin, Arc::clone(file), storage, size)?],
            image: 0,
        })
    }

    /// The disk of a member, for reading, or for writing it.
    pub(super) fn device(&self, member: usize, mode: &OpenMode) -> Result<LayeredDevice, ResizeError> {
        let open = |index: usize, mode: &OpenMode| {
            let member = &self.members[index];
            let image = Image::open(member.storage(), mode);
            image.map_err(|error| ResizeError::from(error).about(&member.path))
        };
        let leaf = open(member, mode)?;
        let mut ancestors = Vec::new();
        let mut next = self.members[member].parent;
        while let Some(index) = next {
            ancestors.push(Layer::Vhd(Arc::new(open(index, &OpenMode::ancestor())?)));
            next = self.members[index].parent;
        }
        Ok(LayeredDevice::new(leaf, ancestors))
    }

    /// The disk of a member, for reading.
    pub(super) fn disk(&self, member: usize) -> Result<Disk, ResizeError> {
        Ok(Disk::new(Arc::new(self.device(member, &OpenMode::read_only())?)))
    }

    /// Whether a member has children in the family.
    pub(super) fn is_parent(&self, member: usize) -> bool {
        self.members.iter().any(|other| other.parent == Some(member))
    }

    /// What ties the image to others. A parent does so only if the size `changes`; children see every change.
    pub(super) fn tie(&self, changes: bool) -> Option<String> {
        let image = &self.members[self.image];
        if let Some(parent) = image.parent.filter(|_| changes) {
            return Some(format!("it is based on {}", self.members[parent].path.display()));
        }
        let footer = image.resizing.footer();
        match children_beside(&image.path, footer.unique_id).first() {
            Some(child) => Some(format!("{} is based on it", child.display())),
            None if footer.hidden != 0 => Some("it is marked as a parent (hidden)".to_owned()),
            None => None,
        }
    }
}

impl Member {
    pub(super) fn storage(&self) -> Arc<dyn StorageFile> {
        Arc::clone(&self.storage)
    }

    fn open(kin: Kin, access: Access, size: u64) -> Result<Self, ResizeError> {
        let file = Arc::new(HostFile::open(&kin.path, access, Sharing::Exclusive)?);
        let storage = Arc::clone(&file) as _;
        Self::of_file(kin, file, storage, size)
    }

    fn of_file(kin: Kin, file: Arc<HostFile>, storage: Arc<dyn StorageFile>, size: u64) -> Result<Self, ResizeError> {
        let footers = Footers::read(&*file).map_err(|error| ResizeError::from(error).about(&kin.path))?;
        Ok(Self {
            modified: file.modified().ok(),
            file,
            storage,
            resizing: Resizing::new(footers.footer, footers.raw, size),
            path: kin.path,
            parent: kin.parent,
        })
    }

    /// The footer before the resize.
    pub(super) fn footer(&self) -> &Footer {
        self.resizing.footer()
    }
}

/// Adds everything that is based on the files, as far as their directories show.
fn add_descendants(kin: &mut Vec<Kin>) -> Result<(), ResizeError> {
    let mut known = Known::default();
    for kin in &*kin {
        known.note(&kin.path)?;
    }
    loop {
        let before = kin.len();
        let mut dirs: Vec<PathBuf> = kin.iter().map(|kin| directory_of(&kin.path)).collect();
        dirs.sort();
        dirs.dedup();
        for dir in dirs {
            let limits = Limits {
                depth: 0,
                ..Limits::default()
            };
            let forest = Forest::scan(&dir, limits)?;
            while add_children(&forest, &mut known, kin)? {}
        }
        if kin.len() == before {
            return Ok(());
        }
    }
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The files of the family so far, in its order.
#[derive(Default)]
struct Known {
    identities: Vec<FileIdentity>,
    ids: Vec<UniqueId>,
}

impl Known {
    fn note(&mut self, path: &Path) -> Result<(), ResizeError> {
        let file = HostFile::open(path, Access::ReadOnly, Sharing::Unlocked)?;
        let footers = Footers::read(&file).map_err(|error| ResizeError::from(error).about(path))?;
        self.identities.extend(file.identity().ok());
        self.ids.push(footers.footer.unique_id);
        Ok(())
    }

    fn position(&self, path: &Path) -> Option<usize> {
        let identity = FileIdentity::of_path(path).ok()?;
        self.identities.iter().position(|known| *known == identity)
    }
}

/// Adds the children of what is known; whether there were any.
fn add_children(forest: &Forest, known: &mut Known, kin: &mut Vec<Kin>) -> Result<bool, ResizeError> {
    let before = kin.len();
    for (index, member) in forest.members().iter().enumerate() {
        if known.position(&member.path).is_some() {
            continue;
        }
        match forest.link(index) {
            Link::Found { parent, .. } => {
                let Some(parent) = known.position(&forest.members()[*parent].path) else {
                    continue;
                };
                known.note(&member.path)?;
                kin.push(Kin {
                    path: member.path.clone(),
                    parent: Some(parent),
                });
            }
            Link::Broken { wanted, .. } if known.ids.contains(wanted) => {
                return Err(ResizeError::Stray {
                    path: member.path.clone(),
                });
            }
            _ => {}
        }
    }
    Ok(kin.len() > before)
}
