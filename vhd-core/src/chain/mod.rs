//! Chains: a leaf, its parents, and how they are found.
//!
//! An image with a parent says where the parent was when it was made, in up to eight locators and in a name,
//! and which identity it has. Places go stale; the identity decides. [`OpenOptions::open`] tries every
//! place in a fixed order, takes the first file with the right identity, and lists all it tried when there is
//! none: a differencing image is never opened without its parent.

mod builder;
mod create;
pub mod dependants;
mod descriptors;
mod detect;
mod device_file;
mod disagree;
mod error;
mod examine;
pub mod foreign;
pub mod forest;
mod locate;
mod open;
mod opened;
mod relation;
mod shared;
mod unfinished;

pub use create::{CreateChildError, create_child, create_child_in, parent_link};
pub(crate) use create::{create_child_of, create_over, link_to, link_to_disk, link_to_open};
pub(crate) use detect::image_error;
pub use detect::{ForeignClass, ForeignFormat, ImageFormat, require_vhd};
pub use error::{ChainError, ChainWarning, ParentOutcome, TriedParent};
use locate::Candidate;
pub use locate::{AllowAll, ExplicitOnly, ParentGate};
pub use open::{MAX_DEPTH, MAX_TABLE_BYTES, OpenOptions};
pub use opened::{ChainLayer, Closed, OpenedDisk};
pub use relation::{Fact, RecordedPath, Relation};
pub use shared::SharedImages;
pub(crate) use unfinished::{ResizeRecord, ResizedFile};
