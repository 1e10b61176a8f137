//! Which files a resize is about, each opened and locked once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::one::Resizing;
use super::{Request, ResizeError};
use crate::chain::dependants::{Child, Search};
use crate::chain::{ChainError, OpenedDisk};
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
    /// The file that was looked at under this name, if there was a look.
    pub(super) file: Option<FileIdentity>,
    /// The identity of the disk in it; nil if it is not known.
    pub(super) id: UniqueId,
}

impl Kin {
    /// A file that is opened without a look at it before.
    pub(super) fn new(path: PathBuf, parent: Option<usize>) -> Self {
        Self {
            path,
            parent,
            file: None,
            id: UniqueId::NIL,
        }
    }
}

impl Family {
    /// Opens the files of a chain or of its whole tree.
    pub(super) fn open(request: &Request<'_>, opened: OpenedDisk, write: bool) -> Result<Self, ResizeError> {
        let (kin, image) = find_kin(request, opened)?;
        Self::hold(request, kin, image, write)
    }

    /// Opens and locks what was found. INV-46: all are held then, so a child that came after the first look is seen, and none
    /// comes after the second one.
    fn hold(request: &Request<'_>, kin: Vec<Kin>, image: usize, write: bool) -> Result<Self, ResizeError> {
        let members = kin.into_iter().enumerate().map(|(index, kin)| {
            // Without --tree the parents are only read.
            let access = match write && (request.tree || index == image) {
                true => Access::ReadWrite,
                false => Access::ReadOnly,
            };
            Member::open(kin, access, request.size)
        });
        let family = Self {
            members: members.collect::<Result<_, _>>()?,
            image,
        };
        if request.tree {
            family.refuse_newcomers()?;
        }
        Ok(family)
    }

    /// One image without parents, whose file is open for writing and locked. It is changed through `storage`.
    pub(super) fn of_one(
        path: &Path,
        file: &Arc<HostFile>,
        storage: Arc<dyn StorageFile>,
        size: u64,
    ) -> Result<Self, ResizeError> {
        let kin = Kin::new(path.to_owned(), None);
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

    /// What ties the image to others, beside those that rely on it. A parent does so only if the size `changes`.
    pub(super) fn tie(&self, changes: bool) -> Option<String> {
        let image = &self.members[self.image];
        if let Some(parent) = image.parent.filter(|_| changes) {
            return Some(format!("it is based on {}", self.members[parent].path.display()));
        }
        let is_hidden = image.resizing.footer().hidden != 0;
        is_hidden.then(|| "it is marked as a parent (hidden)".to_owned())
    }

    /// Refuses if others rely on the image, which is to be resized by itself.
    pub(super) fn refuse_dependants(&self) -> Result<(), ResizeError> {
        let image = &self.members[self.image];
        let others = self.members.iter().map(|member| member.path.clone());
        let search = Search::new().image(&image.path, image.footer().unique_id);
        let found = search.beside(others.filter(|path| *path != image.path)).run();
        Ok(found.refuse()?)
    }

    /// Refuses if others than the members rely on one of them.
    pub(super) fn refuse_newcomers(&self) -> Result<(), ResizeError> {
        let members = || self.members.iter();
        let search = members().fold(Search::new(), |search, member| {
            search.image(&member.path, member.footer().unique_id)
        });
        let held = members().filter_map(|member| member.file.identity().ok()).collect();
        Ok(search.run().refuse_others(&held)?)
    }
}

impl Member {
    pub(super) fn storage(&self) -> Arc<dyn StorageFile> {
        Arc::clone(&self.storage)
    }

    pub(super) fn open(kin: Kin, access: Access, size: u64) -> Result<Self, ResizeError> {
        let file = Arc::new(HostFile::open(&kin.path, access, Sharing::Exclusive)?);
        // INV-34: it was looked at without its lock, or let go since.
        if kin.file.is_some() && file.identity().ok() != kin.file {
            return Err(ChainError::Replaced { path: kin.path }.into());
        }
        let storage = Arc::clone(&file) as _;
        Self::of_file(kin, file, storage, size)
    }

    pub(super) fn of_file(
        kin: Kin,
        file: Arc<HostFile>,
        storage: Arc<dyn StorageFile>,
        size: u64,
    ) -> Result<Self, ResizeError> {
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

/// A chain, the leaf first, in the order of a family.
pub(super) fn in_line(mut kin: Vec<Kin>) -> Vec<Kin> {
    kin.reverse();
    for (index, kin) in kin.iter_mut().enumerate() {
        kin.parent = index.checked_sub(1);
    }
    kin
}

/// The files of a chain or of its whole tree, parents before their children, and the place of the image among them. They are
/// looked at and let go.
fn find_kin(request: &Request<'_>, opened: OpenedDisk) -> Result<(Vec<Kin>, usize), ResizeError> {
    if let Some(raw) = opened.layers().find(|layer| layer.layer.image().is_none()) {
        return Err(ResizeError::Raw {
            path: raw.path.to_owned(),
        });
    }
    let layers = (0..).zip(opened.layers()).map(|(depth, layer)| Kin {
        path: layer.path.to_owned(),
        parent: None,
        file: opened.identity_at_depth(depth),
        id: layer.layer.unique_id(),
    });
    let mut kin = in_line(layers.collect());
    drop(opened);
    let image = kin.len() - 1;
    if request.tree {
        add_descendants(&mut kin, request.options.ignores_children())?;
    }
    Ok((kin, image))
}

/// Adds everything that is based on the files. Each that is added may have children of its own, and a directory of its own.
pub(super) fn add_descendants(kin: &mut Vec<Kin>, ignore_unknown: bool) -> Result<(), ResizeError> {
    loop {
        let mut search = Search::new();
        for kin in &*kin {
            search = search.image(&kin.path, kin.id);
        }
        let found = search.run();
        let before = kin.len();
        for child in found.children() {
            add_child(child, kin)?;
        }
        if kin.len() == before {
            if !ignore_unknown {
                found.refuse_unknown()?;
            }
            return Ok(());
        }
    }
}

fn add_child(child: &Child, kin: &mut Vec<Kin>) -> Result<(), ResizeError> {
    let file = HostFile::open(&child.path, Access::ReadOnly, Sharing::Unlocked)?;
    let identity = file.identity().ok();
    if kin.iter().any(|known| known.file == identity) {
        return Ok(());
    }
    if !child.leads_there {
        return Err(ResizeError::Stray {
            path: child.path.clone(),
        });
    }
    let footers = Footers::read(&file).map_err(|error| ResizeError::from(error).about(&child.path))?;
    kin.push(Kin {
        path: child.path.clone(),
        parent: Some(child.image),
        file: identity,
        id: footers.footer.unique_id,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::ErrorKind;
    use crate::chain::{OpenOptions, create_child};
    use crate::image::{Preallocate, create_fixed};

    #[test]
    fn inv_46_who_comes_to_rely_on_a_tree_before_it_is_held_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let [base, child, grandchild] = ["base.vhd", "child.avhd", "grandchild.avhd"].map(|name| dir.path().join(name));
        let file = HostFile::from_file(fs::File::create_new(&base).unwrap()).unwrap();
        create_fixed(&file, 1 << 20, Preallocate::Off).unwrap();
        drop(file);
        let options = OpenOptions::new();
        let make = |name: &str, parent: &Path| {
            let path = dir.path().join(name);
            create_child(&path, parent, None, &options).unwrap();
        };
        make("child.avhd", &base);
        make("grandchild.avhd", &child);
        let request = Request {
            image: &child,
            size: 2 << 20,
            shrink: false,
            tree: true,
            fix_gpt: false,
            options: &options,
            cancel: &AtomicBool::new(false),
        };
        let find = || find_kin(&request, options.open(&child).unwrap()).unwrap();
        for (number, parent) in [&base, &child, &grandchild].into_iter().enumerate() {
            let (kin, image) = find();
            let name = format!("new{number}.avhd");
            make(&name, parent);
            let error = Family::hold(&request, kin, image, true).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::HasChildren, "{error}");
            let text = error.to_string();
            assert!(text.contains(&name), "{text}");
        }
        let (kin, image) = find();
        assert_eq!(Family::hold(&request, kin, image, true).unwrap().members.len(), 6);
    }
}
