//! Disks, and what is in them, as files: a mount by FUSE.
//!
//! ```text
//!   mount.rs        a mount: options, threads, readahead, unmounting
//!   mount_table.rs  which mounts of ours the kernel has
//!   filesystem.rs   requests of the kernel, answered
//!   inodes.rs       which number is which node
//!   reply.rs        attributes, errors, as the kernel takes them
//!   node.rs         Node, Directory: what is shown; a caller puts the tree together
//!   content.rs      the bytes of a file: a part of a disk, bytes in memory, or whatever a caller reads
//! ```
//!
//! The crate knows disks ([`vhd_block::Disk`]) and no image format. What is shown is a tree of [`Node`]s behind the trait
//! [`Directory`]; it may change while it is mounted, and the kernel sees that within a second.
//!
//! # What a file of a disk can do
//!
//! Reads and writes of any alignment, `O_DIRECT`, `SEEK_DATA` and `SEEK_HOLE`, `st_blocks`, `fsync` (which is the disk's
//! flush), punching holes and zeroing ranges. Its size is the disk's and cannot be set. Writes go through at once: the
//! kernel keeps no dirty pages but those of a shared mapping.
#![forbid(unsafe_code)]

mod content;
mod filesystem;
mod inodes;
mod mount;
mod mount_table;
mod node;
mod reply;

pub use content::{Content, DiskPart, ReadFile};
pub use mount::{Mount, MountError, MountOptions, detach, unmount};
pub use node::{Directory, Fixed, Kind, Name, Node, NodeError, Stat};
