//! Merging: every image that is left reads what it read, whatever the chain is, wherever power fails and whatever
//! the file system refuses. Test names cite the invariants of docs/merge.md.
//!
//! VHD_MERGE_CHAINS says on how many random chains the crash enumeration runs (default 150); a failure prints its
//! seed, VHD_TEST_SEED replaces the first one.

#[path = "../common/mod.rs"]
mod common;

#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "../mutation/mutations.rs"]
mod mutations;

mod carrying;
mod chains;
mod layers;
mod refusals;
mod resuming;
