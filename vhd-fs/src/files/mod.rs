//! The files of the file systems inside a disk, read-only.
//!
//! ```text
//!   Files        an open file system, for any number of threads: panics, endless loops and reads without bound end there
//!    |
//!   FileSystem   list, metadata, read_at, read_link: one implementation per format
//!    |             ext.rs   fat.rs   exfat.rs        by the crate ferrosys (ferro.rs: what they share)
//!    |             ntfs/                             structures by ntfs-core; directories and streams here
//!    |             xfs/                              structures by xfs-core; extents and directories here
//!   Region       the partition's bytes, and nothing else of the disk
//! ```
//!
//! What a disk contains is never trusted: each operation has a budget of bytes and of time, and runs on a thread of its
//! file system. Symbolic links are followed inside the file system alone ([`Files::resolve`]). Which crates read which
//! format, and why, is a decision record: `docs/adr`.

mod entry;
mod error;
mod exfat;
mod ext;
mod fat;
mod ferro;
mod guard;
mod listed;
mod ntfs;
mod numbered;
mod open;
mod path;
mod region;
mod xfs;

pub use entry::{Entry, FileType, Metadata, Node, Time};
pub use error::{FileError, FileErrorKind};
pub use guard::Files;
pub use open::OpenFiles;
pub use region::SharedDisk;

/// One open file system. Implementations may panic or loop on hostile content: only [`Files`] calls them.
trait FileSystem: Send {
    /// The format, as people call it: `ext4`, `NTFS`.
    fn format(&self) -> &'static str;

    /// The volume's label, if it has one.
    fn label(&mut self) -> Option<String>;

    /// What a reader should know: a journal that was not replayed, damage that was passed over.
    fn notes(&self) -> Vec<String>;

    /// The root directory.
    fn root(&self) -> Node;

    /// Whether names that differ in case alone are the same.
    fn ignores_case(&self) -> bool {
        false
    }

    /// The names in a directory, in the order of the disk. [`Files`] looks at them: odd ones, `.` and `..` may be there.
    fn list(&mut self, directory: Node) -> Result<Vec<Entry>, FileError>;

    /// What is known of a node.
    fn metadata(&mut self, node: Node) -> Result<Metadata, FileError>;

    /// Reads a regular file from byte `offset`. Fewer bytes than the buffer has mean the end of the file.
    fn read_at(&mut self, node: Node, buf: &mut [u8], offset: u64) -> Result<usize, FileError>;

    /// The path that a symbolic link holds.
    fn read_link(&mut self, node: Node) -> Result<Vec<u8>, FileError>;
}
