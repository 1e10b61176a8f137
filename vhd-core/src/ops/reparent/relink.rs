//! The header of a child names another file; nothing else changes.

use std::path::{Path, PathBuf};

use super::{ReparentError, check_differencing, check_jobs, check_no_circle, check_same_size};
use crate::chain::dependants::Search;
use crate::chain::{ChainError, OpenOptions, OpenedDisk, Relation, parent_link};
use crate::image::{Amendment, Image, ParentLink};
use crate::ops::alone::Alone;
use crate::storage::{Access, FileIdentity};

/// A child and the file that is to be its parent. The child's recorded parent need not be there.
#[derive(Debug)]
pub struct Relink {
    child: PathBuf,
    parent: PathBuf,
    /// The parent with its own parents, under their locks.
    opened: OpenedDisk,
    relation: Relation,
    /// The child's file when it was looked at.
    file: Option<FileIdentity>,
    ignore_children: bool,
}

impl Relink {
    /// Looks at the child alone and at the parent with its chain, which `options` opens. Nothing is changed.
    ///
    /// # Errors
    /// [`ReparentError`] when one of them can't be opened, the child is no differencing image, or the parent is
    /// based on it.
    pub fn examine(child: &Path, parent: &Path, options: &OpenOptions) -> Result<Self, ReparentError> {
        let opened = options.clone().write(false).open(parent)?;
        check_no_circle(child, &opened)?;
        check_jobs(child, parent)?;
        let Alone { file, image } = Alone::open(child, Access::ReadOnly)?;
        check_differencing(child, &image)?;
        Ok(Self {
            file: file.identity().ok(),
            ignore_children: options.ignores_children(),
            relation: Relation::of(child, &image, parent, &opened)?,
            child: child.to_owned(),
            parent: parent.to_owned(),
            opened,
        })
    }

    /// Where what the child recorded and what the parent is agree.
    #[must_use]
    pub fn relation(&self) -> &Relation {
        &self.relation
    }

    /// The new parent.
    #[must_use]
    pub fn parent(&self) -> &OpenedDisk {
        &self.opened
    }

    /// Whether nothing speaks against it: the parent is the disk that the child was made over, as far as its
    /// identity and its size tell. A path or a time stamp that disagrees is no obstacle: files are moved and copied.
    ///
    /// # Errors
    /// [`ReparentError::OtherDisk`], [`ReparentError::OtherSize`].
    pub fn check(&self) -> Result<(), ReparentError> {
        let id = self.relation.id;
        if !id.agrees {
            return Err(ReparentError::OtherDisk {
                child: self.child.clone(),
                wanted: id.recorded,
                parent: self.parent.clone(),
                found: id.found,
            });
        }
        check_same_size(
            &self.child,
            self.relation.disk_size.recorded,
            &self.parent,
            &self.opened,
        )
    }

    /// Makes the child name the parent, durably: a crash at any moment leaves the old link or the new one, whole.
    /// With `force` the caller states that the parent has the content that the child was made over, whatever
    /// [`check`](Self::check) says.
    ///
    /// # Errors
    /// [`ReparentError`]; the child is unchanged unless its header could not be written.
    pub fn run(mut self, force: bool) -> Result<(), ReparentError> {
        if !force {
            self.check()?;
        }
        let Alone { file, image } = Alone::open(&self.child, Access::ReadWrite)?;
        // INV-34: the file was not locked between the look and now.
        if self.file.is_some() && file.identity().ok() != self.file {
            return Err(ChainError::Replaced { path: self.child }.into());
        }
        check_jobs(&self.child, &self.parent)?;
        check_differencing(&self.child, &image)?;
        if force && !self.ignore_children {
            // Without force it reads what it read before.
            Search::new().image(&self.child, image.unique_id()).run().refuse()?;
        }
        self.relation = Relation::of(&self.child, &image, &self.parent, &self.opened)?;
        if !force {
            self.check()?;
        }
        relink(image, &parent_link(&self.child, &self.parent, &self.opened)?)
    }
}

/// Makes a differencing image name another parent, durably, and closes it. That this is the right one is for the
/// caller to know.
///
/// # Errors
/// [`ReparentError::Amend`]; the old or the new link counts then.
pub fn relink(child: Image, link: &ParentLink) -> Result<(), ReparentError> {
    let amendment = Amendment {
        parent: Some(link.clone()),
        ..child.amendment()
    };
    Ok(child.amend(&amendment)?)
}
