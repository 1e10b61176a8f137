//! Merging: what an image holds, or a whole range of a chain, is written into the image below it.
//!
//! ```text
//!   plan.rs        which layers go, into what, whose children follow         reads only
//!   dependants.rs  who else is based on them: what chain::dependants finds, sorted
//!   groups.rs      which pieces of a layer are read and written at once
//!   copy.rs        each sector that the range holds, once, from its topmost layer
//!   carry.rs       children of other layers take over what would read otherwise
//!   groups.rs      which pieces are read and written at once; zero_run.rs: zeroes that take no space
//!   journal.rs     how far it is: the record beside the child
//!   execute.rs     carry, copy, flush, record, ... ; then finish.rs: point children, remove files, remove the record
//!   holder.rs      who has the files: the merge alone, or a disk in use; rest.rs leaves time to who uses it
//!   switch.rs      the leaf of a disk in use is merged; leaf.rs: what snapshots do in the same way
//!   new_image.rs   the same into a new image, which changes nothing
//! ```
//!
//! While a merge is unfinished the target alone is neither old nor new, and nobody reads it alone: each sector that
//! was changed in it is held by a layer above. The leaf reads the same at every moment. docs/merge.md has the order
//! of the writes and its reasons (INV-20 to INV-22).

mod carry;
mod child_file;
mod copy;
mod dependants;
mod error;
mod execute;
mod finish;
mod groups;
mod holder;
mod journal;
mod known;
mod leaf;
mod new_image;
mod plan;
mod rest;
mod switch;
mod zero_run;

use std::path::{Path, PathBuf};

pub use copy::{CopiedBytes, CopyMode, LayerCopy, MergeOptions};
pub use error::{Dependant, MergeError};
pub(crate) use execute::merge_for;
pub use execute::{merge, merge_in_use};
pub(crate) use holder::Holder;
pub(crate) use leaf::{LeafTarget, announce_leaf, close_leaf, not_committed};
pub use new_image::{NewImagePlan, merge_to_new, plan_to_new};
pub(crate) use plan::{Owner, plan_for};
pub use plan::{plan, plan_in_use};

use crate::chain::OpenOptions;
use journal::Phase;
use known::Known;

/// What is to be merged into what.
#[derive(Clone)]
pub struct MergeRequest {
    /// The image that goes.
    pub child: PathBuf,
    /// The ancestor into which everything above it goes; `None` for the child's parent.
    pub into: Option<PathBuf>,
    /// Children of `child`, or with `carry` of another layer, in places that are not looked at.
    pub extra_children: Vec<PathBuf>,
    /// Children of the target and of the layers between are carried along: they take over, before anything changes,
    /// what they would read otherwise. Without it they are an obstacle.
    pub carry: bool,
    /// How the chain is opened.
    pub open: OpenOptions,
}

impl MergeRequest {
    /// A merge of the image at `child` into its parent.
    #[must_use]
    pub fn new(child: &Path) -> Self {
        Self {
            child: child.to_owned(),
            into: None,
            extra_children: Vec::new(),
            carry: false,
            open: OpenOptions::new(),
        }
    }
}

/// Whether a merge of the image at `child` has begun and is unfinished.
///
/// # Errors
/// [`MergeError::Record`] when there is a record and it can't be read.
pub fn is_unfinished(child: &Path) -> Result<bool, MergeError> {
    Ok(journal::Journal::read(child)?.is_some())
}

/// What a merge is going to do, as data.
#[derive(Clone)]
pub struct MergePlan {
    request: MergeRequest,
    /// What goes, the child first, and then the target.
    layers: Vec<Known>,
    children: Vec<PathBuf>,
    carried: Vec<CarriedChild>,
    summary: MergeSummary,
    warnings: Vec<String>,
    /// How far an unfinished merge is that this goes on with.
    resumed: Option<Phase>,
    /// All is in the target: what is left is told by the record alone.
    complete: bool,
    /// The child is gone.
    child_gone: bool,
}

/// A child of the target, or of a layer between it and the image that is merged, which goes on reading what it reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarriedChild {
    /// The child.
    pub path: PathBuf,
    /// The layer that is its parent.
    pub parent: PathBuf,
    /// Bytes that it takes over at most: what is the same in the merged image need not be taken over.
    pub bytes: u64,
    /// Bytes by which its file grows at most, without the few bytes that describe them.
    pub new_bytes: u64,
}

/// The figures of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MergeSummary {
    /// Bytes of the disk.
    pub disk_bytes: u64,
    /// Bytes that the range holds, each sector counted once: the most that is read and written.
    pub held_bytes: u64,
    /// Bytes that are left of them: less than `held_bytes` if an unfinished merge goes on.
    pub remaining_bytes: u64,
    /// Bytes by which the target's file grows at most.
    pub new_bytes: u64,
}

impl MergePlan {
    /// What is merged.
    #[must_use]
    pub fn child(&self) -> &Path {
        &self.layers[0].path
    }

    /// What it is merged into.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target_known().path
    }

    /// The record: while it is there, the merge has begun and is not finished.
    #[must_use]
    pub fn record_path(&self) -> PathBuf {
        journal::Journal::path(self.child())
    }

    /// The files that go, the child first.
    pub fn removed(&self) -> impl Iterator<Item = &Path> {
        self.sources().iter().map(|layer| layer.path.as_path())
    }

    /// The children that are pointed to the target.
    #[must_use]
    pub fn children(&self) -> &[PathBuf] {
        &self.children
    }

    /// The children of other layers that are carried along.
    #[must_use]
    pub fn carried(&self) -> &[CarriedChild] {
        &self.carried
    }

    /// The figures.
    #[must_use]
    pub fn summary(&self) -> MergeSummary {
        self.summary
    }

    /// What is odd about the images.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The byte of the disk from which an unfinished merge goes on, the disk's size if all is copied; `None` for one
    /// that begins.
    #[must_use]
    pub fn resumes_at(&self) -> Option<u64> {
        self.resumed.map(|phase| match phase {
            Phase::Carrying => 0,
            Phase::Copying(done) => done,
            Phase::Finishing | Phase::Switched => self.summary.disk_bytes,
        })
    }

    fn sources(&self) -> &[Known] {
        &self.layers[..self.layers.len() - 1]
    }

    fn target_known(&self) -> &Known {
        &self.layers[self.layers.len() - 1]
    }
}

/// What a merge did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MergeReport {
    /// What was written.
    pub target: PathBuf,
    /// Bytes read from the layers.
    pub read_bytes: u64,
    /// Bytes written to the target.
    pub copied_bytes: u64,
    /// Bytes that are zero and were made so without writing them, or were already.
    pub zeroed_bytes: u64,
    /// Bytes that children of other layers took over.
    pub carried_bytes: u64,
    /// The children that were pointed to the target.
    pub repointed: Vec<PathBuf>,
    /// The files that were removed.
    pub removed: Vec<PathBuf>,
    /// It went on with an unfinished merge.
    pub resumed: bool,
    /// It ended early because it was told to: the same request goes on.
    pub cancelled: bool,
}
