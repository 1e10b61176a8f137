//! A child takes over what would read differently over another parent, and then names that one.

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::runs::differing_runs;
use super::wanted::{MissingBlocks, Wanted, files_below};
use super::{ReparentError, check_differencing, check_jobs, check_no_circle, check_same_size, relink};
use crate::chain::dependants::Search;
use crate::chain::{OpenOptions, OpenedDisk, Relation, parent_link};
use crate::device::{ByteRange, DeviceError, Disk, LayeredDevice};
use crate::format::UniqueId;
use crate::image::{Image, ParentLink};
use crate::ops::diff::{Layers, files_of};
use crate::ops::workers::{in_parallel, useful_threads};
use crate::ops::zeroes::for_each_data_run;
use crate::ops::{OpsError, Progress};
use crate::storage::FileIdentity;
use crate::units::{u64_from, usize_from};

/// How a rebase is done.
#[derive(Clone, Copy)]
pub struct RebaseOptions<'a> {
    /// Set by another thread: the rebase ends at the next step, and what the child took over stays.
    pub cancel: &'a AtomicBool,
    /// Threads that compare and copy; 0 for as many as are useful.
    pub threads: usize,
    /// Bytes that are taken over between two flushes: what a crash can cost.
    pub flush_bytes: u64,
}

impl RebaseOptions<'_> {
    /// Bytes that are taken over between two flushes unless asked otherwise.
    pub const DEFAULT_FLUSH: u64 = 256 << 20;
}

/// What a rebase did, or would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RebaseReport {
    /// Bytes that were read from both parents: elsewhere the child has its own, or both read from one place.
    pub compared_bytes: u64,
    /// Bytes that the child takes over.
    pub taken_bytes: u64,
    /// Bytes of these that are stored as zeroes, since the new parent does not read zero there.
    pub zero_bytes: u64,
    /// Blocks that the child gets for it.
    pub new_blocks: u64,
    /// Bytes on the disk that a block is for; what the file grows by at most is this for each new block and a
    /// little more.
    pub block_size: u64,
    /// It ended early because it was told to; the child still has its former parent.
    pub cancelled: bool,
}

/// A child that can be read over its present parents, and the file that is to be its parent.
pub struct Rebase {
    child: PathBuf,
    parent: PathBuf,
    options: OpenOptions,
    /// The parent with its own parents, under their locks.
    opened: OpenedDisk,
    relation: Relation,
    /// The child's file when it was looked at.
    file: Option<FileIdentity>,
}

impl Rebase {
    /// Looks at the child over its present parents, and at the new one over its own; `child_options` and
    /// `parent_options` open them. Nothing is changed.
    ///
    /// # Errors
    /// [`ReparentError`] when one of them can't be opened, the child is no differencing image, the sizes differ, or
    /// the parent is based on the child.
    pub fn examine(
        child: &Path,
        parent: &Path,
        child_options: &OpenOptions,
        parent_options: &OpenOptions,
    ) -> Result<Self, ReparentError> {
        let opened = parent_options.clone().write(false).open(parent)?;
        check_no_circle(child, &opened)?;
        check_jobs(child, parent)?;
        let present = child_options.clone().write(false).open(child)?;
        let relation = check(child, &present, parent, &opened)?;
        Ok(Self {
            file: present.identity_at_depth(0),
            child: child.to_owned(),
            parent: parent.to_owned(),
            options: child_options.clone(),
            opened,
            relation,
        })
    }

    /// Where what the child recorded and what the parent is agree; for people to see, nothing depends on it.
    #[must_use]
    pub fn relation(&self) -> &Relation {
        &self.relation
    }

    /// The new parent.
    #[must_use]
    pub fn parent(&self) -> &OpenedDisk {
        &self.opened
    }

    /// What [`run`](Self::run) would do. Nothing is changed.
    ///
    /// # Errors
    /// [`ReparentError`] when something can't be read.
    pub fn plan(&self, options: &RebaseOptions<'_>, progress: &dyn Progress) -> Result<RebaseReport, ReparentError> {
        let device = self.open(false)?;
        let taking = Taking::new(Arc::new(device), &self.opened, options, progress)?;
        taking.run(false)
    }

    /// Makes the child read over the new parent what it reads now. At every moment a crash leaves a child that
    /// reads the same over the parent that it names; doing it again goes on.
    ///
    /// # Errors
    /// [`ReparentError`]; what the child took over stays.
    pub fn run(self, options: &RebaseOptions<'_>, progress: &dyn Progress) -> Result<RebaseReport, ReparentError> {
        let device = self.open(true)?;
        let link = parent_link(&self.child, &self.parent, &self.opened)?;
        rebase(device, &self.opened, &link, options, progress)
    }

    /// The child over its present parents. Nobody had it locked since the look.
    fn open(&self, write: bool) -> Result<LayeredDevice, ReparentError> {
        // What the child reads stays, so its children are not asked for; a manifest would not be true any more.
        let options = self.options.clone().write(write).ignore_children(true);
        let present = options.open(&self.child)?;
        present.require_leaf(self.file)?;
        check_jobs(&self.child, &self.parent)?;
        check(&self.child, &present, &self.parent, &self.opened)?;
        if write && !self.options.ignores_children() {
            let id = present
                .layers()
                .next()
                .map_or(UniqueId::NIL, |leaf| leaf.layer.unique_id());
            Search::new().image(&self.child, id).run().refuse_frozen()?;
        }
        present.into_device().ok_or_else(|| not_differencing(&self.child))
    }
}

/// Whether the child may be rebased at all, and how it and the parent are related.
fn check(child: &Path, present: &OpenedDisk, parent: &Path, opened: &OpenedDisk) -> Result<Relation, ReparentError> {
    let device = present.chain().ok_or_else(|| not_differencing(child))?;
    check_differencing(child, device.leaf())?;
    check_same_size(child, device.leaf().disk_size(), parent, opened)?;
    Ok(Relation::of(child, device.leaf(), parent, opened)?)
}

fn not_differencing(path: &Path) -> ReparentError {
    ReparentError::NotDifferencing {
        path: path.to_owned(),
        disk_type: "raw".to_owned(),
    }
}

/// Makes the leaf of `child` read over `parent`, which has the same size and is not based on it, what it reads now,
/// and `link` its parent. The disk is consumed: nobody else reads or writes meanwhile.
///
/// # Errors
/// [`ReparentError`]; what the child took over stays.
pub fn rebase(
    child: LayeredDevice,
    parent: &OpenedDisk,
    link: &ParentLink,
    options: &RebaseOptions<'_>,
    progress: &dyn Progress,
) -> Result<RebaseReport, ReparentError> {
    let (child, report) = take_over(child, parent, options, progress)?;
    if report.cancelled {
        child.close().map_err(ReparentError::Child)?;
        return Ok(report);
    }
    relink(child, link)?;
    Ok(report)
}

/// Makes the leaf of `child` hold itself, durably, what it reads and `parent`, which has the same size, does not. What
/// it reads stays the same at every moment. The leaf comes back without its parents and stays open.
///
/// # Errors
/// [`ReparentError`]; what the child took over stays.
pub(crate) fn take_over(
    child: LayeredDevice,
    parent: &OpenedDisk,
    options: &RebaseOptions<'_>,
    progress: &dyn Progress,
) -> Result<(Image, RebaseReport), ReparentError> {
    let child = Arc::new(child);
    let report = Taking::new(Arc::clone(&child), parent, options, progress)?.run(true)?;
    let child = Arc::into_inner(child).ok_or(ReparentError::Child(DeviceError::Unsupported("be shared")))?;
    let leaf = Arc::into_inner(child.into_leaf()).expect("no other disk has the child");
    // INV-29: what the child took over is durable before anything relies on that.
    leaf.flush().map_err(ReparentError::Child)?;
    Ok((leaf, report))
}

/// What [`take_over`] does at most, as far as this can be told without reading data.
///
/// # Errors
/// [`ReparentError`] when it can't be told which layer has what.
pub(crate) fn taken_at_most(child: &Arc<LayeredDevice>, parent: &OpenedDisk) -> Result<RebaseReport, ReparentError> {
    let layers = Layers::of(&files_below(child), &files_of(parent));
    let missing = MissingBlocks::of(child.leaf()).map_err(ReparentError::Child)?;
    let (child, parent) = (Disk::new(Arc::clone(child) as _), parent.disk());
    let mut wanted = Wanted::new(&child, &parent, &layers);
    let mut new_blocks = HashSet::new();
    let mut report = RebaseReport {
        block_size: missing.block_size,
        ..RebaseReport::default()
    };
    while let Some(range) = wanted.next(&()).map_err(only_read)? {
        report.taken_bytes += range.len;
        new_blocks.extend(missing.in_range(range));
    }
    report.new_blocks = u64_from(new_blocks.len());
    Ok(report)
}

fn only_read(error: OpsError) -> ReparentError {
    match error {
        OpsError::Source(error) => ReparentError::Child(error),
        _ => unreachable!("looking for ranges only reads"),
    }
}

/// What all threads share.
struct Taking<'a> {
    device: Arc<LayeredDevice>,
    child: Disk,
    parent: Disk,
    layers: Layers,
    missing: MissingBlocks,
    options: &'a RebaseOptions<'a>,
    progress: &'a dyn Progress,
    failed: AtomicBool,
    unflushed: AtomicU64,
    done: Mutex<Done>,
}

#[derive(Default)]
struct Done {
    report: RebaseReport,
    new_blocks: HashSet<u64>,
}

impl<'a> Taking<'a> {
    fn new(
        device: Arc<LayeredDevice>,
        parent: &OpenedDisk,
        options: &'a RebaseOptions<'a>,
        progress: &'a dyn Progress,
    ) -> Result<Self, ReparentError> {
        Ok(Self {
            layers: Layers::of(&files_below(&device), &files_of(parent)),
            missing: MissingBlocks::of(device.leaf()).map_err(ReparentError::Child)?,
            child: Disk::new(Arc::clone(&device) as _),
            device,
            parent: parent.disk(),
            options,
            progress,
            failed: AtomicBool::new(false),
            unflushed: AtomicU64::new(0),
            done: Mutex::default(),
        })
    }

    fn run(self, write: bool) -> Result<RebaseReport, ReparentError> {
        self.progress.begin(self.child.size());
        let wanted = Mutex::new(Wanted::new(&self.child, &self.parent, &self.layers));
        in_parallel(useful_threads(self.options.threads), || self.work(&wanted, write))?;
        drop(wanted);
        let done = self.done.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(RebaseReport {
            new_blocks: u64_from(done.new_blocks.len()),
            block_size: self.missing.block_size,
            cancelled: self.options.cancel.load(Ordering::Relaxed),
            ..done.report
        })
    }

    fn work(&self, wanted: &Mutex<Wanted<'_>>, write: bool) -> Result<(), ReparentError> {
        let mut buffers = Buffers::default();
        while !self.options.cancel.load(Ordering::Relaxed) && !self.failed.load(Ordering::Relaxed) {
            let next = wanted
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .next(self.progress);
            let taken = match next {
                Ok(None) => break,
                Ok(Some(range)) => self.take_range(range, &mut buffers, write),
                Err(error) => Err(only_read(error)),
            };
            if taken.is_err() {
                self.failed.store(true, Ordering::Relaxed);
            }
            taken?;
        }
        Ok(())
    }

    /// Takes over what the range reads and the parent does not.
    fn take_range(&self, range: ByteRange, buffers: &mut Buffers, write: bool) -> Result<(), ReparentError> {
        let (old, new) = buffers.of(usize_from(range.len));
        self.child.read_at(old, range.start).map_err(ReparentError::Child)?;
        self.parent.read_at(new, range.start).map_err(ReparentError::Parent)?;
        let mut part = RebaseReport {
            compared_bytes: range.len,
            ..RebaseReport::default()
        };
        let mut blocks = HashSet::new();
        for run in differing_runs(old, new) {
            let at = range.start + u64_from(run.start);
            let bytes = &old[run];
            blocks.extend(self.missing.in_range(ByteRange::new(at, u64_from(bytes.len()))));
            part.taken_bytes += u64_from(bytes.len());
            part.zero_bytes += self.hold(bytes, at, write).map_err(ReparentError::Child)?;
        }
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.report.compared_bytes += part.compared_bytes;
        done.report.taken_bytes += part.taken_bytes;
        done.report.zero_bytes += part.zero_bytes;
        done.new_blocks.extend(blocks);
        drop(done);
        match write {
            true => self.flush_after(part.taken_bytes).map_err(ReparentError::Child),
            false => Ok(()),
        }
    }

    /// Stores the bytes in the child itself, zeroes too: INV-08 would leave them out where the *present* parents
    /// read zero, and the new one does not. Answers how many are zeroes that take no space.
    fn hold(&self, bytes: &[u8], at: u64, write: bool) -> Result<u64, DeviceError> {
        let mut zeroes = 0;
        let mut hold_zeroes = |gap: Range<usize>| {
            zeroes += u64_from(gap.len());
            match write && !gap.is_empty() {
                true => {
                    let range = ByteRange::new(at + u64_from(gap.start), u64_from(gap.len()));
                    self.device.hold_zeroes(range)
                }
                false => Ok(()),
            }
        };
        let mut done = 0;
        for_each_data_run(bytes, |run| {
            hold_zeroes(done..run.start)?;
            done = run.end;
            match write {
                true => self.child.write_at(&bytes[run.clone()], at + u64_from(run.start)),
                false => Ok(()),
            }
        })?;
        hold_zeroes(done..bytes.len())?;
        Ok(zeroes)
    }

    /// Flushes from time to time: what was flushed need not be done again after a crash.
    fn flush_after(&self, bytes: u64) -> Result<(), DeviceError> {
        let unflushed = self.unflushed.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if unflushed < self.options.flush_bytes {
            return Ok(());
        }
        self.unflushed.store(0, Ordering::Relaxed);
        self.child.flush()
    }
}

/// What a thread reads into.
#[derive(Default)]
struct Buffers {
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Buffers {
    fn of(&mut self, len: usize) -> (&mut [u8], &mut [u8]) {
        for buffer in [&mut self.old, &mut self.new] {
            buffer.resize(buffer.len().max(len), 0);
        }
        (&mut self.old[..len], &mut self.new[..len])
    }
}
