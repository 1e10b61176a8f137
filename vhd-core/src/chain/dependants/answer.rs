//! What a search came to.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{DependantsError, Frozen};
use crate::snapshot::SnapshotError;
use crate::snapshot::membership::Member;
use crate::storage::FileIdentity;

/// Who relies on the images that a search was about: nobody, these, or that can't be known.
#[derive(Debug)]
pub struct Dependants {
    pub(super) images: Vec<PathBuf>,
    pub(super) children: Vec<Child>,
    pub(super) listed: Vec<Listed>,
    pub(super) doubts: Vec<Doubt>,
    pub(super) cut_short: Option<Doubt>,
}

/// A differencing image that names one of the images as its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Child {
    /// Where it was found.
    pub path: PathBuf,
    /// Which image it relies on: the place of that in the order in which the search was given them.
    pub image: usize,
    /// The places that it names lead to the image.
    pub leads_there: bool,
    /// It is damaged, and can't be opened as it is.
    pub damaged: bool,
}

/// A manifest of snapshots that lists one of the images.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listed {
    /// Which image, as in [`Child`].
    pub image: usize,
    /// The manifest.
    pub manifest: PathBuf,
    /// What the image is there.
    pub(super) member: Member,
}

impl Listed {
    /// The image is frozen: what it reads was kept. Otherwise it is the one that is written to.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        !self.member.is_active
    }

    /// The snapshot that it is, unless that was deleted.
    #[must_use]
    pub fn snapshot(&self) -> Option<&str> {
        self.member.snapshot.as_deref()
    }

    /// The file that is written to.
    #[must_use]
    pub fn active(&self) -> &Path {
        &self.member.active
    }
}

/// Why there may be dependants that were not found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    what: String,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Doubt {
    fn new(what: String) -> Self {
        Self { what }
    }

    pub(super) fn unreadable(path: &Path, error: &io::Error) -> Self {
        Self::new(format!("{} cannot be read ({error})", path.display()))
    }

    pub(super) fn damaged(path: &Path) -> Self {
        let path = path.display();
        Self::new(format!(
            "{path} is a damaged differencing image, and which image is its parent cannot be read from it"
        ))
    }

    pub(super) fn manifest(path: &Path, error: &SnapshotError) -> Self {
        let (path, error) = (path.display(), crate::error::with_causes(error));
        Self::new(format!("the snapshots in {path} cannot be read ({error})"))
    }

    pub(super) fn names(path: &Path, names: u64, seen: u64) -> Self {
        let path = path.display();
        Self::new(format!(
            "{path} has {names} names (hard links), and {seen} of them were found"
        ))
    }

    pub(super) fn files(dir: &Path, limit: usize) -> Self {
        let dir = dir.display();
        Self::new(format!(
            "there are more than {limit} files; the search stopped in {dir}"
        ))
    }

    pub(super) fn depth(dir: &Path, limit: usize) -> Self {
        let dir = dir.display();
        Self::new(format!(
            "{dir} is more than {limit} directories deep and was not searched"
        ))
    }

    pub(super) fn time(dir: &Path, limit: Duration) -> Self {
        let (dir, limit) = (dir.display(), limit.as_secs_f64());
        Self::new(format!("the search took {limit} seconds and stopped in {dir}"))
    }
}

impl Dependants {
    /// The children that were found, by path.
    #[must_use]
    pub fn children(&self) -> &[Child] {
        &self.children
    }

    /// The paths of the children.
    #[must_use]
    pub fn child_paths(&self) -> Vec<PathBuf> {
        self.children.iter().map(|child| child.path.clone()).collect()
    }

    /// The manifests that list one of the images.
    #[must_use]
    pub fn listed(&self) -> &[Listed] {
        &self.listed
    }

    /// Why there may be others.
    #[must_use]
    pub fn doubts(&self) -> &[Doubt] {
        &self.doubts
    }

    /// The limit at which the search around the directories of the images ended, which refuses nothing.
    #[must_use]
    pub fn cut_short(&self) -> Option<&Doubt> {
        self.cut_short.as_ref()
    }

    /// Refuses if anything relies on the images, or that can't be known.
    ///
    /// # Errors
    /// [`DependantsError`], which names all of them.
    pub fn refuse(&self) -> Result<(), DependantsError> {
        self.refuse_frozen()?;
        self.refuse_children()?;
        self.refuse_unknown()
    }

    /// Refuses if one of the images is frozen by a snapshot.
    ///
    /// # Errors
    /// [`DependantsError::Frozen`].
    pub fn refuse_frozen(&self) -> Result<(), DependantsError> {
        match self.listed.iter().find(|listed| listed.is_frozen()) {
            None => Ok(()),
            Some(listed) => Err(DependantsError::Frozen(Box::new(Frozen {
                image: self.images[listed.image].clone(),
                snapshot: listed.snapshot().map(str::to_owned),
                manifest: listed.manifest.clone(),
                active: listed.active().to_owned(),
            }))),
        }
    }

    /// Refuses if a manifest of snapshots refers to one of the images by its identity: frozen, or the present state.
    ///
    /// # Errors
    /// [`DependantsError::Frozen`], [`DependantsError::Listed`].
    pub fn refuse_listed(&self) -> Result<(), DependantsError> {
        self.refuse_frozen()?;
        match self.listed.first() {
            None => Ok(()),
            Some(listed) => Err(DependantsError::Listed {
                image: self.images[listed.image].clone(),
                manifest: listed.manifest.clone(),
            }),
        }
    }

    /// Refuses if one of the children is damaged: nobody can make it follow.
    ///
    /// # Errors
    /// [`DependantsError::Damaged`].
    pub fn refuse_damaged(&self) -> Result<(), DependantsError> {
        match self.children.iter().find(|child| child.damaged) {
            None => Ok(()),
            Some(child) => Err(DependantsError::Damaged {
                image: self.images[child.image].clone(),
                child: child.path.clone(),
            }),
        }
    }

    /// Refuses if other images are known to be based on one of the images.
    ///
    /// # Errors
    /// [`DependantsError::Children`].
    pub fn refuse_children(&self) -> Result<(), DependantsError> {
        match self.children.first() {
            None => Ok(()),
            Some(first) => Err(DependantsError::Children {
                image: self.images[first.image].clone(),
                children: self.child_paths(),
            }),
        }
    }

    /// Refuses if other images than those in the files `known` are based on one of the images.
    ///
    /// # Errors
    /// [`DependantsError::Children`], which names those.
    pub fn refuse_others(mut self, known: &HashSet<FileIdentity>) -> Result<(), DependantsError> {
        let is_known = |child: &Child| FileIdentity::of_path(&child.path).is_ok_and(|file| known.contains(&file));
        self.children.retain(|child| !is_known(child));
        self.refuse_children()
    }

    /// Refuses if there may be others.
    ///
    /// # Errors
    /// [`DependantsError::Unknown`].
    pub fn refuse_unknown(&self) -> Result<(), DependantsError> {
        if self.doubts.is_empty() {
            return Ok(());
        }
        Err(DependantsError::Unknown {
            image: self.images.first().cloned().unwrap_or_default(),
            doubts: self.doubts.clone(),
        })
    }
}
