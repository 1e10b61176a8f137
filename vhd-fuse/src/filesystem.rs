//! Requests of the kernel, answered.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use fuser::{
    BackingId, BsdFileFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use vhd_block::units::u64_from;

use crate::content::DiskPart;
use crate::inodes::{Inodes, ROOT};
use crate::mount::Shown;
use crate::reply::{attributes, directory_entry_type, entry_type, errno};
use crate::{Content, Directory, Kind, Node, NodeError};

/// How long the kernel believes names and attributes: what is shown may change.
const TTL: Duration = Duration::from_secs(1);
/// Bytes in one write of the kernel, and so in one read.
const MAX_WRITE: u32 = 1 << 20;
/// Requests that the kernel sends ahead.
const MAX_BACKGROUND: u16 = 64;
/// Prefix of extended attributes.
const USER: &[u8] = b"user.vhd.";
/// Bytes of a name.
const NAME_MAX: u32 = 255;

thread_local! {
    /// What a read fills: allocating and clearing it for each would take as long as the read.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The mounted tree.
pub(crate) struct Tree {
    inodes: Inodes,
    shown: Shown,
    passthrough: bool,
    backing: Mutex<Backing>,
    handles: AtomicU64,
}

/// Files that the kernel reads by itself: one registration for all handles of a node.
#[derive(Default)]
struct Backing {
    by_handle: HashMap<u64, Arc<BackingId>>,
    by_node: HashMap<u64, Weak<BackingId>>,
}

impl Tree {
    pub(crate) fn new(root: Arc<dyn Directory>, shown: Shown) -> Self {
        let root = Node::of_mount(Kind::Directory(root), SystemTime::now());
        Self {
            inodes: Inodes::new(root),
            shown,
            passthrough: false,
            backing: Mutex::default(),
            handles: AtomicU64::new(0),
        }
    }

    fn node(&self, number: INodeNo) -> Result<Node, Errno> {
        self.inodes.get(number.0).ok_or(Errno::ENOENT)
    }

    fn directory(&self, number: INodeNo) -> Result<Arc<dyn Directory>, Errno> {
        match self.node(number)?.kind {
            Kind::Directory(directory) => Ok(directory),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// The bytes of a file, for each request: nothing else of its node is copied.
    fn content(&self, number: INodeNo) -> Result<Content, Errno> {
        let content = self.inodes.with(number.0, |node| match &node.kind {
            Kind::File(content) => Ok(content.clone()),
            Kind::Directory(_) => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        });
        content.unwrap_or(Err(Errno::ENOENT))
    }

    /// Runs `change` on the disk behind a file that can be written.
    fn write(&self, number: INodeNo, change: impl FnOnce(&DiskPart) -> Result<(), NodeError>) -> Result<(), Errno> {
        let content = self.content(number)?;
        content.writable().and_then(change).map_err(|error| refuse(&error))
    }

    fn attributes(&self, number: INodeNo) -> Result<FileAttr, Errno> {
        Ok(attributes(number.0, &self.node(number)?, &self.shown))
    }

    /// Gives a file that the kernel can read by itself to it; `false` where it does not take it.
    fn open_passthrough(&self, number: u64, part: &DiskPart, reply: ReplyOpen) -> Result<(), ReplyOpen> {
        let Some(file) = part.passthrough.as_ref().filter(|_| self.passthrough) else {
            return Err(reply);
        };
        let mut backing = self.backing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = backing.by_node.get(&number).and_then(Weak::upgrade);
        let id = match known.map_or_else(|| reply.open_backing(file).map(Arc::new), Ok) {
            Ok(id) => id,
            Err(error) => {
                tracing::debug!(%error, "no passthrough");
                return Err(reply);
            }
        };
        let handle = self.handles.fetch_add(1, Ordering::Relaxed) + 1;
        backing.by_node.insert(number, Arc::downgrade(&id));
        backing.by_handle.insert(handle, Arc::clone(&id));
        drop(backing);
        reply.opened_passthrough(FileHandle(handle), FopenFlags::empty(), &id);
        Ok(())
    }
}

/// The error for the kernel; what the disk itself says is only in the log.
fn refuse(error: &NodeError) -> Errno {
    if matches!(error, NodeError::Unreadable(_) | NodeError::Disk(_)) {
        tracing::warn!(%error, "request failed");
    }
    errno(error)
}

/// Answers with `$answer`, or with the error.
macro_rules! answer {
    ($result:expr, $reply:expr, |$value:pat_param| $answer:expr) => {
        match $result {
            Ok($value) => $answer,
            Err(error) => $reply.error(error),
        }
    };
}

impl Filesystem for Tree {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each of them is an advantage where the kernel has it, and no loss where not.
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let wanted = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_SPLICE_MOVE,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // Without it the kernel asks for `security.capability` before each write, which takes as long as the write.
            // What is to be done for it, taking set-user-ID bits away, is done: no file that can be written has them.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        for flag in wanted {
            let _ = config.add_capabilities(flag);
        }
        let passthrough = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
        self.passthrough = passthrough && config.set_max_stack_depth(1).is_ok();
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.directory(parent);
        let found = found.and_then(|directory| directory.node(name).map_err(|error| refuse(&error)));
        answer!(found, reply, |node| {
            let number = self.inodes.look_up(parent.0, name, &node);
            reply.entry(&TTL, &attributes(number, &node, &self.shown), Generation(0));
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.inodes.forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        answer!(self.attributes(ino), reply, |attr| reply.attr(&TTL, &attr));
    }

    /// The size of a disk is not set by its file, nor are owner and mode; times are taken and forgotten.
    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let attr = self.attributes(ino);
        answer!(attr, reply, |attr| {
            let other_size = size.is_some_and(|size| size != attr.size);
            if mode.is_some() || uid.is_some() || gid.is_some() || other_size {
                reply.error(Errno::EPERM);
            } else {
                reply.attr(&TTL, &attr);
            }
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.node(ino).map(|node| node.kind) {
            Ok(Kind::Symlink(target)) => reply.data(&target),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let content = match self.content(ino) {
            Ok(content) => content,
            Err(error) => return reply.error(error),
        };
        if flags.acc_mode() != OpenAccMode::O_RDONLY && content.writable().is_err() {
            return reply.error(Errno::EROFS);
        }
        let mut reply = reply;
        let mut changes = false;
        if let Content::Disk(part) = &content {
            reply = match self.open_passthrough(ino.0, part, reply) {
                Ok(()) => return,
                Err(reply) => reply,
            };
            changes = part.changes;
        }
        // The kernel's pages stay right as long as all changes go through this one file.
        let cached = if changes {
            FopenFlags::FOPEN_DIRECT_IO
        } else {
            FopenFlags::FOPEN_KEEP_CACHE
        };
        reply.opened(FileHandle(0), cached);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let content = match self.content(ino) {
            Ok(content) => content,
            Err(error) => return reply.error(error),
        };
        BUFFER.with_borrow_mut(|buffer| {
            match content.read_at(buffer, offset, vhd_block::units::usize_from(u64::from(size))) {
                Ok(()) => reply.data(buffer),
                Err(error) => reply.error(refuse(&error)),
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let len = u64_from(data.len());
        let written = self.write(ino, |part| match offset.checked_add(len) {
            Some(end) if end <= part.len() => part.write_at(data, offset),
            // As on a block device that is full.
            _ => Err(NodeError::Disk(vhd_block::DeviceError::ImageFull { offset })),
        });
        answer!(written, reply, |()| reply
            .written(u32::try_from(len).unwrap_or(u32::MAX)));
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        // Closing a file promises nothing.
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if fh.0 != 0 {
            let mut backing = self.backing.lock().unwrap_or_else(PoisonError::into_inner);
            backing.by_handle.remove(&fh.0);
            backing.by_node.retain(|_, id| id.strong_count() > 0);
        }
        reply.ok();
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        match self.content(ino) {
            Ok(content) if content.writable().is_err() => reply.ok(),
            Ok(_) => answer!(self.write(ino, DiskPart::flush), reply, |()| reply.ok()),
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let names = match self
            .directory(ino)
            .and_then(|it| it.names().map_err(|error| refuse(&error)))
        {
            Ok(names) => names,
            Err(error) => return reply.error(error),
        };
        let dots = [(ino.0, "."), (self.inodes.parent(ino.0), "..")];
        let directory = directory_entry_type(&Kind::Directory(Arc::new(crate::Fixed::new())));
        let dots = dots.map(|(number, name)| (number, directory, OsStr::new(name)));
        // The numbers of entries are only known once they are looked up; any other than zero will do here.
        let entries = names.iter().map(|name| (ROOT, name.file_type, name.name.as_os_str()));
        let all = dots.into_iter().chain(entries).zip(1u64..);
        for ((number, file_type, name), next) in all.skip(vhd_block::units::usize_from(offset)) {
            if reply.add(INodeNo(number), next, entry_type(file_type), name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        const UNIT: u32 = 4096;
        let blocks = self.shown.size / u64::from(UNIT);
        reply.statfs(blocks, 0, 0, 0, 0, UNIT, NAME_MAX, UNIT);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let node = match self.node(ino) {
            Ok(node) => node,
            Err(error) => return reply.error(error),
        };
        let wanted = name.as_bytes().strip_prefix(USER);
        let found = node.attributes.iter().find(|(name, _)| wanted == Some(name.as_bytes()));
        match found {
            Some((_, value)) => sized(value.as_bytes(), size, reply),
            None => reply.error(Errno::ENODATA),
        }
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let node = match self.node(ino) {
            Ok(node) => node,
            Err(error) => return reply.error(error),
        };
        let names = node
            .attributes
            .iter()
            .flat_map(|(name, _)| [USER, name.as_bytes(), b"\0"].concat());
        sized(&names.collect::<Vec<u8>>(), size, reply);
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        // FALLOC_FL_KEEP_SIZE, _PUNCH_HOLE and _ZERO_RANGE of linux/falloc.h.
        const KEEP_SIZE: i32 = 0x1;
        const PUNCH_HOLE: i32 = 0x2;
        const ZERO_RANGE: i32 = 0x10;
        let may_unmap = match mode & !KEEP_SIZE {
            PUNCH_HOLE => true,
            ZERO_RANGE => false,
            // Space cannot be promised.
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        let changed = self.write(ino, |part| {
            let end = offset.saturating_add(length).min(part.len());
            match end.checked_sub(offset) {
                None | Some(0) => Ok(()),
                Some(len) => part.zero(offset, len, may_unmap),
            }
        });
        answer!(changed, reply, |()| reply.ok());
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        // SEEK_DATA and SEEK_HOLE of linux/fs.h; the kernel answers the others itself.
        const DATA: i32 = 3;
        const HOLE: i32 = 4;
        let content = match self.content(ino) {
            Ok(content) => content,
            Err(error) => return reply.error(error),
        };
        let Some(start) = u64::try_from(offset).ok().filter(|&start| start < content.size()) else {
            return reply.error(Errno::ENXIO);
        };
        let found = match (&content, whence) {
            (Content::Disk(part), DATA | HOLE) => part.seek(start, whence == DATA).map_err(|error| refuse(&error)),
            (_, DATA) => Ok(Some(start)),
            (_, HOLE) => Ok(None),
            _ => Err(Errno::EINVAL),
        };
        answer!(found, reply, |found| match (found, whence) {
            (Some(at), _) => reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
            // The end of a file is a hole.
            (None, HOLE) => reply.offset(i64::try_from(content.size()).unwrap_or(i64::MAX)),
            (None, _) => reply.error(Errno::ENXIO),
        });
    }
}

/// Answers with a value, or with its size where that is what was asked for.
fn sized(value: &[u8], size: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}
