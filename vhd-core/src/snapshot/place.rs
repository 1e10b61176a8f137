//! Where the manifest and the images of a disk are.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::SnapshotError;
use super::manifest::{ImageFile, KIND, Manifest};
use crate::chain::dependants::{Dependants, Search};
use crate::format::UniqueId;
use crate::image::Footers;
use crate::storage::{Access, HostFile, Sharing, StorageError, TreeLock};

/// What the manifest's name has behind that of the base.
pub(super) const SUFFIX: &str = ".snapshots";
/// The extension of the leaves, as Hyper-V names them.
const LEAF_EXTENSION: &str = "avhd";

/// The base of a disk, and with it the place of all its files.
#[derive(Clone, Debug)]
pub(super) struct Place {
    dir: PathBuf,
    /// The name of the base's file.
    base: String,
}

impl Place {
    /// The place of the disk that `disk` is the base or another file of, and its manifest if it has one.
    pub(super) fn find(disk: &Path) -> Result<(Self, Option<Manifest>), SnapshotError> {
        let own = Self::with_base(disk)?;
        if let Some(manifest) = own.read()? {
            return Ok((own, Some(manifest)));
        }
        let mut unreadable = None;
        for base in own.neighbours()? {
            let place = Self { base, ..own.clone() };
            match place.read() {
                Ok(Some(manifest)) if manifest.mentions(&own.base) => return Ok((place, Some(manifest))),
                Ok(_) => {}
                Err(error) => unreadable = Some(error),
            }
        }
        match unreadable {
            // It may be the one that this leaf belongs to.
            Some(error) if own.base_is_leaf() => Err(error),
            _ => Ok((own, None)),
        }
    }

    /// The place of the disk with this base.
    pub(super) fn with_base(base: &Path) -> Result<Self, SnapshotError> {
        let at = |source| StorageError::at(base, "find", source);
        // The files are beside the base itself, wherever links to it are.
        let is_link = base.symlink_metadata().map_err(at)?.is_symlink();
        let real = if is_link {
            fs::canonicalize(base).map_err(at)?
        } else {
            base.to_owned()
        };
        let name = real.file_name().and_then(OsStr::to_str);
        let name = name.ok_or_else(|| SnapshotError::Name {
            name: real.display().to_string(),
            reason: "the name of its file is not Unicode",
        })?;
        let dir = real.parent().map(Path::to_owned).unwrap_or_default();
        Ok(Self {
            dir,
            base: name.to_owned(),
        })
    }

    /// The place of the one disk with snapshots in a directory.
    pub(super) fn only_one_in(dir: &Path) -> Result<Self, SnapshotError> {
        let any = Self::in_directory(dir, "");
        match any.neighbours()?.as_slice() {
            [base] => Ok(Self::in_directory(dir, base)),
            _ => Err(SnapshotError::NoTree { dir: dir.to_owned() }),
        }
    }

    /// The place of a disk whose base has, or gets, a name in a directory.
    pub(super) fn in_directory(dir: &Path, base: &str) -> Self {
        Self {
            dir: dir.to_owned(),
            base: base.to_owned(),
        }
    }

    /// The bases of the other manifests in the directory.
    fn neighbours(&self) -> Result<Vec<String>, SnapshotError> {
        let dir = self.directory();
        let entries = fs::read_dir(dir).map_err(|source| StorageError::at(dir, "read", source))?;
        let names = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok());
        let mut bases: Vec<String> = names
            .filter_map(|name| name.strip_suffix(SUFFIX).map(str::to_owned))
            .filter(|base| !base.is_empty() && *base != self.base)
            .collect();
        bases.sort();
        Ok(bases)
    }

    /// The directory of all files.
    pub(super) fn directory(&self) -> &Path {
        if self.dir.as_os_str().is_empty() {
            Path::new(".")
        } else {
            &self.dir
        }
    }

    /// A file of the disk.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The base's name.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// The base.
    pub(super) fn disk(&self) -> PathBuf {
        self.path(&self.base)
    }

    /// The base is itself named like a leaf that a snapshot made.
    pub(super) fn base_is_leaf(&self) -> bool {
        is_leaf_name(&self.base)
    }

    /// The manifest.
    pub(super) fn manifest(&self) -> PathBuf {
        self.path(&format!("{}{SUFFIX}", self.base))
    }

    /// Reads the manifest, and refuses one that can't be true.
    pub(super) fn read(&self) -> Result<Option<Manifest>, SnapshotError> {
        Ok(KIND.read::<Manifest>(&self.manifest())?)
    }

    /// Keeps other commands away from the tree until it is dropped. Readers and writers of the images are not
    /// concerned: they have locks of their own.
    pub(super) fn lock(&self) -> Result<TreeLock, SnapshotError> {
        Ok(TreeLock::acquire(&self.disk())?)
    }

    /// A name for a new leaf, as Hyper-V makes it.
    pub(super) fn new_leaf_name(&self) -> String {
        let stem = Path::new(&self.base).file_stem().and_then(OsStr::to_str);
        let id = UniqueId::random().to_string().to_uppercase();
        format!("{}_{id}.{LEAF_EXTENSION}", stem.unwrap_or(&self.base))
    }

    /// The identity of the image in a file; `None` if there is no such file.
    pub(super) fn identity(&self, name: &str) -> Result<Option<UniqueId>, SnapshotError> {
        let path = self.path(name);
        let file = match HostFile::open(&path, Access::ReadOnly, Sharing::Unlocked) {
            Ok(file) => file,
            Err(StorageError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match Footers::read(&file) {
            Ok(footers) => Ok(Some(footers.footer.unique_id)),
            Err(source) => Err(SnapshotError::Image { path, source }),
        }
    }

    /// Takes the lock of an image, which keeps everybody else away.
    pub(super) fn hold(&self, name: &str) -> Result<HostFile, SnapshotError> {
        Ok(HostFile::open(&self.path(name), Access::ReadWrite, Sharing::Exclusive)?)
    }

    /// Who relies on a file.
    pub(super) fn dependants(&self, file: &ImageFile) -> Dependants {
        Search::new().image(&self.path(&file.name), file.id).run()
    }

    /// Refuses if an image is based on a file, or that can't be known.
    pub(super) fn refuse_children(&self, file: &ImageFile) -> Result<(), SnapshotError> {
        let found = self.dependants(file);
        found.refuse_children()?;
        Ok(found.refuse_unknown()?)
    }
}

/// Whether a file has the name of a leaf that a snapshot made.
pub(super) fn is_leaf_name(name: &str) -> bool {
    let extension = Path::new(name).extension();
    extension.is_some_and(|extension| extension.eq_ignore_ascii_case(LEAF_EXTENSION))
}
