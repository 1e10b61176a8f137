//! Disks get another size: one image by itself, or all images of a tree, all or nothing.
//!
//! ```text
//!   family.rs    which files, each opened and locked once
//!   proof.rs     what is cut off is not in use                        reads only
//!   layout.rs    where everything goes when an image grows            pure
//!   one.rs       one image; sparse.rs without a journal, fixed.rs under the record
//!   journal.rs   the record of what is being done, and going on with it
//!   work.rs      all images in their order, and back again if one fails; spare.rs the space for that
//!   gpt.rs       the backup of the partition table follows the end of the disk
//!   online.rs    a disk in use: the gate before its device; subject.rs what is behind it, raw.rs a raw file
//!   in_use.rs    a disk whose snapshots come and go while it is in use; tree_in_use.rs with all images of its tree
//! ```
//!
//! docs/resize.md has the order of the writes and its reasons (INV-26 to INV-28), and what holds for a disk in use (INV-31,
//! INV-32).

mod error;
mod family;
mod fixed;
mod gpt;
mod in_use;
mod journal;
mod layout;
mod one;
mod online;
mod plan;
mod proof;
mod raw;
mod spare;
mod sparse;
mod subject;
mod tree_in_use;
mod work;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

pub use error::ResizeError;
pub use in_use::{plan_in_use, resize_in_use};
pub use one::resize_file;
pub use online::{Opening, ResizableDisk};
pub use plan::{FilePlan, ResizePlan};
pub use proof::TailUse;

use super::Progress;
use crate::chain::OpenOptions;
use crate::image::check_size;
use crate::storage::{HostFile, StorageFile};
use family::Family;

/// What is asked for.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The image.
    pub image: &'a Path,
    /// Bytes that its disk is to have.
    pub size: u64,
    /// The disk may become smaller.
    pub shrink: bool,
    /// All images are resized that the image is based on, and all that are based on any of those.
    pub tree: bool,
    /// The backup of a GPT is moved to the end of the disk.
    pub fix_gpt: bool,
    /// How the image's parents are found. Locks are taken whatever it says.
    pub options: &'a OpenOptions,
    /// Set by another thread: the resize ends before it has changed anything.
    pub cancel: &'a AtomicBool,
}

/// What a resize did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResizeReport {
    /// What was planned.
    pub plan: ResizePlan,
    /// The backup of the partition table was moved.
    pub gpt_moved: bool,
}

/// A resize that has been looked into: everything that can be checked beforehand is, and the files are locked.
#[derive(Debug)]
pub struct Resize {
    family: Family,
    plan: ResizePlan,
    /// Where the record is, if one is needed.
    record: PathBuf,
    fix_gpt: bool,
}

impl Resize {
    /// Finds, locks and checks all files. With `write` unset they are opened for reading, and [`run`](Self::run) fails.
    /// Nothing is changed.
    ///
    /// # Errors
    /// [`ResizeError`] names what stands against it.
    pub fn prepare(request: &Request<'_>, write: bool) -> Result<Self, ResizeError> {
        check_size(request.size)?;
        let (family, record, resumed) = journal::find(request, write)?;
        let plan = plan::plan(request, &family, resumed)?;
        journal::require_no_other(&family, &record, &plan)?;
        Ok(Self {
            family,
            plan,
            record,
            fix_gpt: request.fix_gpt,
        })
    }

    /// The same for files that their user holds open and locked, below a record that is not there yet.
    fn prepare_family(request: &Request<'_>, family: Family) -> Result<Self, ResizeError> {
        check_size(request.size)?;
        let record = journal::place_for(&family.members[0].path)?;
        let plan = plan::plan(request, &family, false)?;
        journal::require_no_other(&family, &record, &plan)?;
        Ok(Self {
            plan,
            family,
            record,
            fix_gpt: request.fix_gpt,
        })
    }

    /// The same for one image without parents that its user holds open and locked. It is changed through `storage`, and
    /// nothing else may use it until that is done.
    fn prepare_held(
        request: &Request<'_>,
        file: &Arc<HostFile>,
        storage: Arc<dyn StorageFile>,
    ) -> Result<Self, ResizeError> {
        journal::place_for(request.image)?;
        let family = Family::of_one(request.image, file, storage, request.size)?;
        Self::prepare_family(request, family)
    }

    /// What is going to be done.
    #[must_use]
    pub fn plan(&self) -> &ResizePlan {
        &self.plan
    }

    /// Does it, telling `progress` of each file that is done. At every moment a crash leaves images that the same
    /// resize goes on with.
    ///
    /// # Errors
    /// [`ResizeError`]; every image then has the size that it had, except after [`ResizeError::Stuck`].
    pub fn run(self, progress: &dyn Progress) -> Result<ResizeReport, ResizeError> {
        let (image, size) = (&self.family.members[self.family.image], self.plan.size);
        let shrinks = size < image.footer().current_size;
        let mut gpt_moved = false;
        if self.fix_gpt && shrinks {
            gpt_moved = gpt::move_backup(&self.family, size)?;
        }
        work::run(&self.family, &self.record, &self.plan, progress)?;
        if self.fix_gpt && !shrinks {
            gpt_moved = gpt::move_backup(&self.family, size)?;
        }
        Ok(ResizeReport {
            plan: self.plan,
            gpt_moved,
        })
    }
}
