//! Another parent for a differencing image.
//!
//! ```text
//!   relink.rs   the header names another file; what the child holds stays     the parent was moved or copied
//!   rebase.rs   first the child takes over what would read differently        the parent is another disk
//!   runs.rs     where two buffers differ
//!   wanted.rs   which ranges that may be                                      reads no data
//! ```
//!
//! docs/reparent.md has the order of the writes and its reasons (INV-29).

mod error;
mod rebase;
mod relink;
mod runs;
mod wanted;

use std::path::Path;

pub use error::ReparentError;
pub use rebase::{Rebase, RebaseOptions, RebaseReport, rebase};
pub(crate) use rebase::{take_over, taken_at_most};
pub use relink::{Relink, relink};

use crate::chain::{ChainError, OpenedDisk};
use crate::image::Image;
use crate::job::{require_no_job, require_steady};
use crate::storage::FileIdentity;

/// Only a differencing image has a parent.
fn check_differencing(path: &Path, image: &Image) -> Result<(), ReparentError> {
    if image.is_differencing() {
        return Ok(());
    }
    Err(ReparentError::NotDifferencing {
        path: path.to_owned(),
        disk_type: image.footer().disk_type.to_string(),
    })
}

/// INV-37: no other job has the child, and what it is to be based on does not change.
fn check_jobs(child: &Path, parent: &Path) -> Result<(), ReparentError> {
    require_no_job([child])?;
    Ok(require_steady(parent)?)
}

/// A file that the parent itself is read from can't be its child.
fn check_no_circle(child: &Path, parent: &OpenedDisk) -> Result<(), ReparentError> {
    let read = |path: &Path| {
        FileIdentity::of_path(path).map_err(|source| ChainError::Read {
            path: path.to_owned(),
            source,
        })
    };
    let own = read(child)?;
    for path in parent.paths() {
        if read(path)? == own {
            let (child, path) = (child.to_owned(), path.to_owned());
            return Err(ChainError::Cycle { child, path }.into());
        }
    }
    Ok(())
}

/// A child of another size than its parent can't be written.
fn check_same_size(child: &Path, child_size: u64, parent: &Path, opened: &OpenedDisk) -> Result<(), ReparentError> {
    let parent_size = opened.disk().size();
    if child_size == parent_size {
        return Ok(());
    }
    Err(ReparentError::OtherSize {
        child: child.to_owned(),
        child_size,
        parent: parent.to_owned(),
        parent_size,
    })
}
