//! Why an image is not changed: others rely on it.

use std::fmt;
use std::path::PathBuf;

use super::answer::Doubt;
use crate::ErrorKind;

/// Names that a message lists.
const SHOWN: usize = 16;

/// Others rely on an image, or that can't be known. All are of the kind [`ErrorKind::HasChildren`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DependantsError {
    /// Differencing images name it as their parent.
    #[error("other images are based on {}, and would read something else: {}", image.display(), Paths(children))]
    Children {
        /// The image.
        image: PathBuf,
        /// Its children.
        children: Vec<PathBuf>,
    },
    /// A snapshot keeps what it reads.
    #[error("{0}")]
    Frozen(Box<Frozen>),
    /// A manifest of snapshots refers to it as the present state of a disk, by its identity.
    #[error(
        "{} is the present state of a disk with snapshots, and {} refers to it by its identity",
        image.display(), manifest.display()
    )]
    Listed {
        /// The image.
        image: PathBuf,
        /// The manifest.
        manifest: PathBuf,
    },
    /// A child of it is damaged, and can't be made to follow what changes.
    #[error("{} is based on {} and is damaged: repair it first", child.display(), image.display())]
    Damaged {
        /// The image.
        image: PathBuf,
        /// The child.
        child: PathBuf,
    },
    /// Not everything could be looked at.
    #[error("whether other images are based on {} cannot be known: {}", image.display(), Doubts(doubts))]
    Unknown {
        /// The image.
        image: PathBuf,
        /// Why not.
        doubts: Vec<Doubt>,
    },
}

impl DependantsError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::HasChildren
    }
}

/// An image that a snapshot keeps as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Frozen {
    /// The image.
    pub image: PathBuf,
    /// The snapshot's name; `None` for one that was deleted and whose file others need.
    pub snapshot: Option<String>,
    /// The manifest that says so.
    pub manifest: PathBuf,
    /// The file that is written to.
    pub active: PathBuf,
}

impl fmt::Display for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is frozen by ", self.image.display())?;
        match &self.snapshot {
            Some(name) => write!(f, "snapshot \"{name}\"")?,
            None => f.write_str("a deleted snapshot that others need")?,
        }
        let (manifest, active) = (self.manifest.display(), self.active.display());
        write!(f, " ({manifest}); the present state of the disk is {active}")
    }
}

struct Paths<'a>(&'a [PathBuf]);

impl fmt::Display for Paths<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        listed(f, ", ", self.0.iter().map(|path| path.display()), self.0.len())
    }
}

struct Doubts<'a>(&'a [Doubt]);

impl fmt::Display for Doubts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        listed(f, "; ", self.0.iter(), self.0.len())
    }
}

/// The first ones, and how many there are besides.
fn listed(
    f: &mut fmt::Formatter<'_>,
    separator: &str,
    items: impl Iterator<Item = impl fmt::Display>,
    count: usize,
) -> fmt::Result {
    for (index, item) in items.take(SHOWN).enumerate() {
        let before = if index == 0 { "" } else { separator };
        write!(f, "{before}{item}")?;
    }
    match count.checked_sub(SHOWN) {
        None | Some(0) => Ok(()),
        Some(more) => write!(f, "{separator}and {more} more"),
    }
}
