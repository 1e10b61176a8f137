//! A file of a merge.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::format::UniqueId;

/// A file and the identity of the disk in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) path: PathBuf,
    pub(super) id: UniqueId,
}
