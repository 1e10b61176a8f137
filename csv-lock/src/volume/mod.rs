//! The shared directory: what the protocol asks of its file system, and where things lie in it.

mod format;
mod host;
mod layout;
mod probe;

use std::io;

pub use format::{VolumeFormat, init_volume, read_format};
pub use host::HostVolume;
pub(crate) use layout::{EPOCHS, ROOT, epoch_file, epoch_of, parent_of, stage_dir, stage_dirs, trash};
pub use layout::{check_disk_path, incoming};

/// The file system of a volume. Every node has its own way to the same one. Paths are relative, with `/`.
///
/// What the protocol relies on, and nothing else:
/// - `create_new` succeeds for one of all nodes;
/// - what `write_at` wrote is seen by every later `read_at` of any node;
/// - a name that `create_new` or `rename` made is seen by every later `exists`, `list` and `open` of any node;
/// - `rename` is atomic, and fails with `NotFound` when the directory of its target was removed, even if that happened after
///   the request began.
pub trait VolumeIo: Send + Sync {
    /// An open file.
    type File: VolumeFile;

    /// Creates a file that must not exist, for reading and writing.
    ///
    /// # Errors
    /// `AlreadyExists` if it does; what the system says.
    fn create_new(&self, path: &str) -> io::Result<Self::File>;

    /// Opens a regular file for reading and writing.
    ///
    /// # Errors
    /// `NotFound`; what the system says.
    fn open(&self, path: &str) -> io::Result<Self::File>;

    /// Whether there is something of that name.
    ///
    /// # Errors
    /// What the system says: an error is never "no".
    fn exists(&self, path: &str) -> io::Result<bool>;

    /// The names in a directory, in no order.
    ///
    /// # Errors
    /// `NotFound`; what the system says.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;

    /// Creates a directory whose parent exists.
    ///
    /// # Errors
    /// `AlreadyExists`; what the system says.
    fn make_dir(&self, dir: &str) -> io::Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `NotFound`, `DirectoryNotEmpty`; what the system says.
    fn remove_dir(&self, dir: &str) -> io::Result<()>;

    /// Renames a file. With `replace` a file that has the name is gone, without it that is an error.
    ///
    /// # Errors
    /// `NotFound` if the source or the directory of the target is not there, `AlreadyExists`; what the system says.
    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// `NotFound`; what the system says.
    fn remove_file(&self, path: &str) -> io::Result<()>;

    /// Makes a file empty that nobody needs any more.
    ///
    /// # Errors
    /// `NotFound`; what the system says.
    fn clear(&self, path: &str) -> io::Result<()>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// What the system says.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
}

/// An open file of a volume. It stays the same file when the name goes to another one.
pub trait VolumeFile: Send {
    /// Its length in bytes.
    ///
    /// # Errors
    /// What the system says.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes.
    ///
    /// # Errors
    /// What the system says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads `buffer.len()` bytes.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before; what the system says.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// What the system says.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes the file at least `end` bytes long; new bytes read zero and have their space. Never makes it shorter, even when
    /// the request takes effect long after it was made.
    ///
    /// # Errors
    /// `StorageFull`; what the system says.
    fn extend_to(&self, end: u64) -> io::Result<()>;

    /// Makes content and length durable.
    ///
    /// # Errors
    /// What the system says.
    fn sync(&self) -> io::Result<()>;
}
