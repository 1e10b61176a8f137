//! The snapshots of a disk: a tree of differencing images, with the semantics of Hyper-V 2008 R2.
//!
//! ```text
//!   vm.vhd            the base                       <- snapshot "clean"
//!     vm_<GUID>.avhd                                 <- snapshot "updated"
//!       vm_<GUID>.avhd                               <- Now: the active leaf, what a guest writes to
//!     vm_<GUID>.avhd                                 <- snapshot "other way"
//!   vm.vhd.snapshots  the manifest: names, times, which file is which, the operation in progress
//! ```
//!
//! A snapshot refers to a frozen image: what that reads is what was kept. Taking one freezes the active leaf and
//! makes a child of it the new one.
//!
//! ```text
//!   manifest.rs  names, tree, pending operation       place.rs    where manifest and images are
//!   tree.rs      SnapshotTree: one command at a time  recover.rs  what an interrupted one left
//!   create.rs  live.rs  apply.rs  delete.rs  merge.rs rescan.rs   a manifest from the images alone
//!   survey.rs    what each file holds                 locate.rs   DISK@NAME
//!   transfer.rs  whole trees in other directories     membership.rs  what a manifest says of one file
//! ```
//!
//! What makes a crash harmless is one order for all operations: the manifest says what is about to be done
//! (INV-25), new files are durable before it refers to them (INV-24), and files go after it does not refer to them
//! any more (INV-23). `docs/snapshots.md` states them.

mod apply;
mod create;
mod delete;
mod error;
mod live;
mod live_delete;
mod locate;
mod manifest;
pub(crate) mod membership;
mod merge;
mod place;
mod recover;
mod recovered;
mod rescan;
mod survey;
mod transfer;
mod tree;

pub use apply::{Applied, Unsaved};
pub use create::Created;
pub use delete::{Settled, Waiting};
pub use error::SnapshotError;
pub use live::{CreatedInUse, WantedSnapshot, create_together};
pub use locate::{ActiveDisk, FrozenBase, SnapshotFile, base_of, frozen_base, resolve, snapshots_beside, snapshots_of};
pub use manifest::{Active, ImageFile, MAX_NAME, Manifest, NOW, Node, Pending, Snapshot, check_name};
pub use recovered::Recovered;
pub use rescan::{Rescanned, rescan};
pub use survey::{Layer, Survey, survey};
pub use transfer::{Transferred, export, import};
pub use tree::{SnapshotTree, Steps, Work};
