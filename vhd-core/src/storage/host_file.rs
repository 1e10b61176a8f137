//! A regular file or block device of the host.

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, IoSlice, IoSliceMut};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use reflink_copy::ReflinkBlockBuilder;
use rustix::fs::{FallocateFlags, FsWord, OFlags, SeekFrom, fallocate, fcntl_getfl, fstatfs, fstatvfs, seek};
use rustix::io::Errno;

use super::existing::{is_file, open_existing};
use super::on_volume::refuse_on_volume;
use super::{ImageLock, Segment, SetAside, StorageError, StorageFile, io_kind, transfer};
use crate::ErrorKind;

/// What the system calls ext4, and ext2 and ext3, which can't reserve.
const EXT4_MAGIC: FsWord = 0xef53;
const XFS_MAGIC: FsWord = 0x5846_5342;
/// btrfs, bcachefs, ZFS and NILFS: they write everything to a new place.
const COPY_ON_WRITE_MAGICS: [FsWord; 4] = [0x9123_683e, 0xca45_1a4e, 0x2fc1_2fc1, 0x3434];

/// Bytes; for fewer a call that reserves them costs what it gains.
const MIN_EXPECTED: u64 = 64 << 10;

/// Bytes of free space below which none is reserved.
const SCARCE_BYTES: u64 = 256 << 20;

/// How often an image that is replaced while it is being opened is opened anew.
const OPEN_ATTEMPTS: usize = 8;

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// Whether the other users of an image are respected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Under an [`ImageLock`]: one writer alone, or any number of readers.
    Exclusive,
    /// Take no lock and respect none. What is read may be torn when somebody writes.
    Unlocked,
}

/// Which file this is, whatever names it has. Stable while the file is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    /// The device of the file system that it is on.
    pub(crate) fn device(self) -> u64 {
        self.device
    }

    /// Which file a path leads to now.
    ///
    /// # Errors
    ///
    /// The system's error when it can't tell.
    pub fn of_path(path: &Path) -> io::Result<Self> {
        Ok(Self::of(&path.metadata()?))
    }

    /// Which file of this host an open one is, by its descriptor; `None` if it is none, or the system can't tell. No other file
    /// is given the number while one is open.
    pub(crate) fn of_open(file: &dyn StorageFile) -> Option<Self> {
        Some(Self::of(&file.host_file()?.metadata().ok()?))
    }

    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

impl fmt::Display for FileIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.device, self.inode)
    }
}

/// An open file of the host. With [`Sharing::Exclusive`] it holds the image's lock until dropped.
#[derive(Debug)]
pub struct HostFile {
    file: Arc<File>,
    path: Option<PathBuf>,
    is_block_device: bool,
    system: OnceLock<FsWord>,
    lock: Option<ImageLock>,
}

impl HostFile {
    /// Opens the existing file or block device at `path`.
    ///
    /// # Errors
    ///
    /// `NotFound`; `NotAFile`; `Locked` when others use the image; `ReadOnly` when it can't be written;
    /// `LocksUnsupported` for writing on a file system without locks; `OnVolume` for writing what a cluster volume has; `Io`.
    pub fn open(path: &Path, access: Access, sharing: Sharing) -> Result<Self, StorageError> {
        if access == Access::ReadWrite {
            refuse_on_volume(path)?;
        }
        Self::open_anywhere(path, access, sharing)
    }

    /// Opens for writing, with the image's lock, a file that may be on a cluster volume: for one who has the volume's right
    /// to write it.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub fn open_on_volume(path: &Path) -> Result<Self, StorageError> {
        Self::open_anywhere(path, Access::ReadWrite, Sharing::Exclusive)
    }

    fn open_anywhere(path: &Path, access: Access, sharing: Sharing) -> Result<Self, StorageError> {
        for _ in 0..OPEN_ATTEMPTS {
            let file = Arc::new(open_existing(path, access)?);
            let metadata = file
                .metadata()
                .map_err(|source| StorageError::at(path, "query", source))?;
            let lock = match sharing {
                Sharing::Unlocked => None,
                Sharing::Exclusive => match lock_current(&file, path, access)? {
                    Some(lock) => Some(lock),
                    None => continue,
                },
            };
            let is_block_device = metadata.file_type().is_block_device();
            return Ok(Self {
                file,
                path: Some(path.to_path_buf()),
                is_block_device,
                system: OnceLock::new(),
                lock,
            });
        }
        Err(StorageError::Replaced {
            path: path.to_path_buf(),
        })
    }

    /// Opens for writing, with the image's lock, a file that this process has open for reading as `reader`.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open); `Locked` when others read the file.
    pub(crate) fn open_beside(path: &Path, reader: &File) -> Result<Self, StorageError> {
        refuse_on_volume(path)?;
        let query = |source| StorageError::at(path, "query", source);
        let file = Arc::new(open_existing(path, Access::ReadWrite)?);
        let metadata = file.metadata().map_err(query)?;
        if FileIdentity::of(&metadata) != FileIdentity::of(&reader.metadata().map_err(query)?) {
            return Err(StorageError::Replaced {
                path: path.to_path_buf(),
            });
        }
        let lock = ImageLock::acquire_beside(Arc::clone(&file), path, reader)?;
        Ok(Self {
            file,
            path: Some(path.to_path_buf()),
            is_block_device: metadata.file_type().is_block_device(),
            system: OnceLock::new(),
            lock: Some(lock),
        })
    }

    /// Wraps a file that is open already. No lock is taken.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for anything but a regular file or block device; the system's error when it can't tell.
    pub fn from_file(file: File) -> io::Result<Self> {
        let kind = file.metadata()?.file_type();
        if !is_file(kind) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "neither a regular file nor a block device",
            ));
        }
        Ok(Self {
            file: Arc::new(file),
            path: None,
            is_block_device: kind.is_block_device(),
            system: OnceLock::new(),
            lock: None,
        })
    }

    /// Takes a file that was opened elsewhere and is called `name` here, if it is open as `access` needs it. No lock is taken.
    ///
    /// # Errors
    ///
    /// `NotAFile`; `Descriptor` for one that is open in another way; `Io`.
    pub(crate) fn of_descriptor(descriptor: OwnedFd, name: &Path, access: Access) -> Result<Self, StorageError> {
        let file = File::from(descriptor);
        let failed = |source| StorageError::at(name, "query", source);
        let flags = fcntl_getfl(&file).map_err(|errno| failed(errno.into()))?;
        if let Some(reason) = unfit(flags, access) {
            let path = name.to_path_buf();
            return Err(StorageError::Descriptor { path, reason });
        }
        let kind = file.metadata().map_err(failed)?.file_type();
        if !is_file(kind) {
            let path = name.to_path_buf();
            return Err(StorageError::NotAFile { path });
        }
        Self::from_file(file).map_err(failed)
    }

    /// The same file under the image's lock; `name` is for messages.
    ///
    /// # Errors
    ///
    /// Those of [`ImageLock::acquire`].
    pub(crate) fn locked(self, name: &Path, access: Access, sharing: Sharing) -> Result<Self, StorageError> {
        let lock = match sharing {
            Sharing::Unlocked => None,
            Sharing::Exclusive => Some(ImageLock::acquire(Arc::clone(&self.file), name, access)?),
        };
        Ok(Self { lock, ..self })
    }

    /// Wraps a new regular file that has, or will get, the name `path`.
    pub(super) fn new_at(file: File, path: &Path) -> Self {
        Self {
            file: Arc::new(file),
            path: Some(path.to_path_buf()),
            is_block_device: false,
            system: OnceLock::new(),
            lock: None,
        }
    }

    /// The path it was opened by, as given. For a staged file: the name that it will get.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Whether it is a block device: its length is not for us to change.
    pub(crate) fn is_block_device(&self) -> bool {
        self.is_block_device
    }

    /// Which file this is: equal for two handles of one file.
    ///
    /// # Errors
    ///
    /// The system's error when it can't tell.
    pub fn identity(&self) -> io::Result<FileIdentity> {
        Ok(FileIdentity::of(&self.file.metadata()?))
    }

    /// When the content last changed.
    ///
    /// # Errors
    ///
    /// The system's error when it can't tell.
    pub fn modified(&self) -> io::Result<SystemTime> {
        self.file.metadata()?.modified()
    }

    /// ext4 keeps account of each page that is to get its space later: that takes longer than copying the bytes into
    /// it. Others do that by extents, and tmpfs would clear the pages first (docs/benchmarks.md).
    fn gains_by_reserving(&self) -> bool {
        self.system() == EXT4_MAGIC
    }

    /// What is reserved for zeroes, until it is given back, could be what other data lacks.
    fn space_is_scarce(&self) -> bool {
        fstatvfs(&*self.file).is_ok_and(|system| system.f_bavail.saturating_mul(system.f_frsize) < SCARCE_BYTES)
    }

    /// The kind of the file system; 0 for a block device.
    fn system(&self) -> FsWord {
        *self.system.get_or_init(|| match fstatfs(&*self.file) {
            Ok(system) if !self.is_block_device => system.f_type,
            _ => 0,
        })
    }

    /// Allocates what is a hole of the range, as long as the system keeps its word about it.
    fn fill_holes(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let (segment, stop) = self.segment_at(at)?;
            let stop = stop.clamp(at + 1, end);
            if segment == Segment::Hole {
                self.fallocate(FallocateFlags::KEEP_SIZE, at, stop - at)?;
            }
            at = stop;
        }
        Ok(())
    }

    fn fallocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(()); // the system calls that invalid
        }
        loop {
            match fallocate(&*self.file, mode, offset, len) {
                Err(Errno::INTR) => {}
                // EINVAL: a block device asks for aligned ranges, ENODEV: one that can't do this at all.
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => return Err(unsupported()),
                result => return Ok(result?),
            }
        }
    }
}

impl StorageFile for HostFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        transfer::read_exact(buf, offset, |buf, at| self.file.read_at(buf, at))
    }

    fn read_exact_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        // The plain call is cheaper in the kernel, and a single buffer is the common case.
        if let [buf] = bufs {
            return self.read_exact_at(buf, offset);
        }
        // More slices than the system takes at once are cut off by rustix: a short transfer.
        transfer::read_exact_vectored(bufs, offset, |bufs, at| Ok(rustix::io::preadv(&*self.file, bufs, at)?))
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        transfer::write_all(buf, offset, |buf, at| self.file.write_at(buf, at))
    }

    fn write_all_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        if let [buf] = bufs {
            return self.write_all_at(buf, offset);
        }
        transfer::write_all_vectored(bufs, offset, |bufs, at| Ok(rustix::io::pwritev(&*self.file, bufs, at)?))
    }

    fn len(&self) -> io::Result<u64> {
        if self.is_block_device {
            return Ok(seek(&*self.file, SeekFrom::End(0))?); // stat says 0
        }
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.is_block_device {
            return if self.len()? == len { Ok(()) } else { Err(unsupported()) };
        }
        self.file.set_len(len) // repeats itself when interrupted
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data() // repeats itself when interrupted
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.fallocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.fallocate(FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.fallocate(FallocateFlags::empty(), offset, len)
    }

    fn expect_writes(&self, offset: u64, len: u64) -> io::Result<bool> {
        if len < MIN_EXPECTED || !self.gains_by_reserving() || self.space_is_scarce() {
            return Ok(false);
        }
        match self.fallocate(FallocateFlags::KEEP_SIZE, offset, len) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(false),
            // The data may fit all the same: part of it may be zeroes. A part may have been reserved.
            Err(error) if io_kind(&error) == ErrorKind::NoSpace => Ok(true),
            result => result.map(|()| true),
        }
    }

    fn keep_writable(&self, offset: u64, len: u64) -> io::Result<()> {
        let kept = match self.system() {
            // What a copy of the file shares with it is written elsewhere; holes are filled by the same call.
            XFS_MAGIC => self.fallocate(FallocateFlags::UNSHARE_RANGE | FallocateFlags::KEEP_SIZE, offset, len),
            _ if self.overwrites_take_space() => Ok(()), // nothing helps there
            _ => self.fill_holes(offset, len),
        };
        match kept {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other,
        }
    }

    fn overwrites_take_space(&self) -> bool {
        COPY_ON_WRITE_MAGICS.contains(&self.system())
    }

    fn set_aside(&self) -> Option<SetAside> {
        let path = self.path.as_deref().filter(|_| !self.is_block_device)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        SetAside::in_directory(parent.unwrap_or(Path::new(".")))
    }

    fn segment_at(&self, offset: u64) -> io::Result<(Segment, u64)> {
        loop {
            match seek(&*self.file, SeekFrom::Data(offset)) {
                Ok(data) if data > offset => return Ok((Segment::Hole, data)),
                Ok(_) => {}
                Err(Errno::NXIO) => return Ok((Segment::Hole, self.len()?.max(offset))), // no data from here on
                Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                    let len = self.len()?; // a file system without hole information, or a block device
                    return Ok(if offset < len {
                        (Segment::Data, len)
                    } else {
                        (Segment::Hole, offset)
                    });
                }
                Err(errno) => return Err(errno.into()),
            }
            match seek(&*self.file, SeekFrom::Hole(offset)) {
                Ok(hole) if hole > offset => return Ok((Segment::Data, hole)),
                Ok(_) => {} // somebody punched it in between: ask again
                Err(Errno::NXIO) => return Ok((Segment::Hole, offset)), // somebody cut the file off here
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn share_range_from(&self, source: &dyn StorageFile, source_offset: u64, offset: u64, len: u64) -> io::Result<()> {
        let Some(source) = source.host_file() else {
            return Err(unsupported());
        };
        let Some(len) = NonZeroU64::new(len) else {
            return Ok(()); // to the system, 0 is everything up to the source's end
        };
        // FICLONERANGE through the crate reflink-copy: rustix offers only the whole-file FICLONE, nix only
        // macros that need unsafe code, and copy_file_range silently copies where it can't share.
        let share = || {
            ReflinkBlockBuilder::new(source, &self.file, len)
                .from_offset(source_offset)
                .to_offset(offset)
        };
        transfer::retry(|| share().reflink_block()).map_err(|error| {
            match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => unsupported(),
                _ => error,
            }
        })
    }

    fn keep_locked(&self) {
        if let Some(lock) = &self.lock {
            lock.keep();
        }
    }

    fn host_file(&self) -> Option<&File> {
        Some(&self.file)
    }
}

/// Why a descriptor with these flags can't be used.
fn unfit(flags: OFlags, access: Access) -> Option<&'static str> {
    let mode = flags & OFlags::RWMODE;
    if flags.contains(OFlags::PATH) {
        return Some("it is open for its path alone (O_PATH)");
    }
    if flags.contains(OFlags::DIRECT) {
        return Some("it is open past the page cache (O_DIRECT), which asks for aligned memory");
    }
    match access {
        Access::ReadOnly if mode == OFlags::WRONLY => Some("it is not open for reading"),
        Access::ReadWrite if mode != OFlags::RDWR => Some("it is not open for reading and writing"),
        Access::ReadWrite if flags.contains(OFlags::APPEND) => {
            Some("it is open for appending (O_APPEND): every write would go to its end")
        }
        _ => None,
    }
}

/// Locks a file that was opened by `path`; `None` when that path leads to another file by now.
///
/// Whoever held the lock before may have put another file in this one's place and then given it up
/// (compaction does). The file that was opened is a dead one then, and what is written to it is lost.
fn lock_current(file: &Arc<File>, path: &Path, access: Access) -> Result<Option<ImageLock>, StorageError> {
    let lock = ImageLock::acquire(Arc::clone(file), path, access)?;
    let query = |source| StorageError::at(path, "query", source);
    let opened = FileIdentity::of(&file.metadata().map_err(query)?);
    let current = FileIdentity::of(&fs::metadata(path).map_err(query)?);
    Ok((opened == current).then_some(lock))
}

fn unsupported() -> io::Error {
    io::ErrorKind::Unsupported.into()
}

#[cfg(test)]
#[path = "host_file_tests.rs"]
mod tests;
