//! What some layers hold, written into the disk below them: each sector once, from the first layer that has it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::MergeError;
use super::groups::{cut, group_len, held_bytes, is_dense, part, span};
use super::zero_run::next_run;
use crate::device::{ByteRange, DeviceError, Disk, ExtentKind, Held, Layer, ZeroOptions, held};
use crate::image::IoContext;
use crate::ops::Progress;
use crate::ops::workers::{in_parallel, useful_threads};
use crate::units::{SECTOR_SIZE, u64_from, usize_from};

/// Bytes of the disk that a thread takes on at once.
pub(super) const WINDOW: u64 = 8 << 20;

/// Progress is made durable at least this often.
const BATCH_TIME: Duration = Duration::from_secs(20);

/// What is done about sectors that the target has already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyMode {
    /// Everything is written.
    Write,
    /// Only what the target does not read already.
    Compare,
    /// The target must read everything already: a difference is [`MergeError::Changed`].
    Verify,
}

/// How the copying is done.
#[derive(Clone, Copy)]
pub struct MergeOptions<'a> {
    /// Set by another thread: the merge ends in order, and what it did stays done.
    pub cancel: &'a AtomicBool,
    /// Threads that copy; 0 for as many as are useful: one beside a disk in use, which leaves the other processors to
    /// those who use it.
    pub threads: usize,
    /// Bytes that are copied before progress is made durable.
    pub batch_bytes: u64,
}

impl MergeOptions<'_> {
    /// Bytes that are copied before progress is made durable, unless asked otherwise.
    pub const DEFAULT_BATCH: u64 = 256 << 20;

    /// A batch is never smaller than what a thread takes on.
    fn window(&self) -> u64 {
        WINDOW
            .min(self.batch_bytes.next_multiple_of(SECTOR_SIZE))
            .max(SECTOR_SIZE)
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopiedBytes {
    /// Bytes read from the layers.
    pub read: u64,
    /// Bytes of the layers that were written to the target.
    pub written: u64,
    /// Bytes that are zero and were made so without writing them, or were already.
    pub zeroed: u64,
}

/// Copies what some layers hold into the disk below them, or into what is to be in its place.
#[derive(Clone, Copy)]
pub struct LayerCopy<'a> {
    /// The layers, the topmost first.
    pub sources: &'a [Layer],
    /// Their files.
    pub paths: &'a [PathBuf],
    /// The disk that is written, of the size of the layers.
    pub target: &'a Disk,
    /// Its file.
    pub target_path: &'a Path,
    /// What is done about sectors that it has.
    pub mode: CopyMode,
    /// How it is done.
    pub options: &'a MergeOptions<'a>,
    /// Told of each byte that the layers hold.
    pub progress: &'a dyn Progress,
}

impl LayerCopy<'_> {
    /// Copies from byte `start` of the disk on. Between batches the target is flushed, and `checkpoint` is told up to
    /// where everything is in it durably. Returns up to where everything is in it: its size, or less if it was told
    /// to stop. What was copied last is not flushed.
    ///
    /// # Errors
    /// [`MergeError`] of reading, of writing, or of the checkpoint.
    pub fn run(
        &self,
        start: u64,
        checkpoint: &mut dyn FnMut(u64) -> Result<(), MergeError>,
    ) -> Result<(u64, CopiedBytes), MergeError> {
        let copier = Copier {
            job: self,
            counts: Counts::default(),
        };
        let end = thread::scope(|scope| -> Result<u64, MergeError> {
            let mut at = start;
            let mut flushing: Option<(u64, Flushing<'_>)> = None;
            loop {
                let copied = match at < self.target.size() && !self.options.is_cancelled() {
                    true => Some(copier.batch(at)),
                    false => None,
                };
                // The next batch is copied while the one before is synced. A failure to sync is the cause of any other.
                if let Some((done, thread)) = flushing.take() {
                    let flushed = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                    flushed.map_err(|source| copier.target_error(source))?;
                    // INV-20: what the checkpoint says is durable in the target.
                    checkpoint(done)?;
                }
                let Some(copied) = copied else { return Ok(at) };
                at = copied?;
                if self.mode != CopyMode::Verify && at < self.target.size() {
                    flushing = Some((at, scope.spawn(|| self.target.flush())));
                }
            }
        })?;
        Ok((end, copier.counts.get()))
    }
}

type Flushing<'scope> = thread::ScopedJoinHandle<'scope, Result<(), DeviceError>>;

/// The work of the threads.
struct Copier<'a> {
    job: &'a LayerCopy<'a>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    read: AtomicU64,
    written: AtomicU64,
    zeroed: AtomicU64,
}

impl Counts {
    fn get(&self) -> CopiedBytes {
        CopiedBytes {
            read: self.read.load(Ordering::Relaxed),
            written: self.written.load(Ordering::Relaxed),
            zeroed: self.zeroed.load(Ordering::Relaxed),
        }
    }
}

/// Windows that are handed out until a batch is full.
struct Batch {
    next: AtomicU64,
    /// Bytes of the disk that are handed out at once.
    window: u64,
    bytes: AtomicU64,
    stopped: AtomicBool,
    started: Instant,
}

impl Copier<'_> {
    /// Copies from byte `start` of the disk on, until a batch is full, everything is done, or it is told to stop.
    /// Returns up to where all is in the target; the caller makes that durable.
    fn batch(&self, start: u64) -> Result<u64, MergeError> {
        let batch = Batch {
            next: AtomicU64::new(start),
            window: self.job.options.window(),
            bytes: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            started: Instant::now(),
        };
        in_parallel(useful_threads(self.job.options.threads), || self.work(&batch))?;
        // Each window that was taken is finished.
        Ok(batch.next.into_inner().min(self.job.target.size()))
    }

    fn work(&self, batch: &Batch) -> Result<(), MergeError> {
        let mut buffers = Buffers::default();
        while self.goes_on(batch) {
            let start = batch.next.fetch_add(batch.window, Ordering::Relaxed);
            if start >= self.job.target.size() {
                break;
            }
            let window = ByteRange::new(start, batch.window.min(self.job.target.size() - start));
            match self.window(window, &mut buffers) {
                Ok(bytes) => batch.bytes.fetch_add(bytes, Ordering::Relaxed),
                Err(error) => {
                    batch.stopped.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            };
        }
        Ok(())
    }

    fn goes_on(&self, batch: &Batch) -> bool {
        !self.job.options.is_cancelled()
            && !batch.stopped.load(Ordering::Relaxed)
            && batch.bytes.load(Ordering::Relaxed) < self.job.options.batch_bytes
            && batch.started.elapsed() < BATCH_TIME
    }

    /// Copies a window; returns how many bytes the sources hold of it.
    fn window(&self, window: ByteRange, buffers: &mut Buffers) -> Result<u64, MergeError> {
        let found = held(self.job.sources, window).map_err(|source| self.source_error(0, source))?;
        let pieces = cut(&found);
        let mut rest = &pieces[..];
        let mut bytes = 0;
        while let Some(first) = rest.first() {
            let (group, behind) = rest.split_at(group_len(rest));
            self.copy(first.layer, first.file_offset.0, group, buffers)?;
            let held = held_bytes(group);
            self.job.progress.advance(held);
            bytes += held;
            rest = behind;
        }
        Ok(bytes)
    }

    /// Reads neighbouring pieces of one layer at once, and writes them at once too, or each.
    fn copy(&self, layer: usize, offset: u64, group: &[Held], buffers: &mut Buffers) -> Result<(), MergeError> {
        let whole = span(group);
        let len = usize_from(whole.len);
        buffers.source.resize(len.max(buffers.source.len()), 0);
        let Buffers { source, target } = buffers;
        let bytes = &mut source[..len];
        self.job.sources[layer]
            .file()
            .read_exact_at(bytes, offset)
            .io_context("read", offset)
            .map_err(|error| self.source_error(layer, error))?;
        self.counts.read.fetch_add(u64_from(len), Ordering::Relaxed);
        if self.write_with_gaps(bytes, group, target)? {
            return Ok(());
        }
        for piece in group {
            let bytes = part(bytes, piece, whole);
            match self.job.mode {
                CopyMode::Write => self.put(bytes, piece.range.start)?,
                CopyMode::Compare | CopyMode::Verify => self.put_differing(bytes, piece.range.start, target)?,
            }
        }
        Ok(())
    }

    /// Writes pieces that lie close together in one go, with what the target has between them already. `false` if
    /// they are not like that.
    ///
    /// INV-22: what lies between is stored in the target's own file, and the same bytes are written to the same place,
    /// by the only one who writes there: neither the disk nor the image's structures change. Where the target
    /// has nothing of its own, nothing is filled in.
    fn write_with_gaps(&self, bytes: &[u8], group: &[Held], buffer: &mut Vec<u8>) -> Result<bool, MergeError> {
        let whole = span(group);
        let takes_space = |piece: &Held| next_run(part(bytes, piece, whole)) == (false, usize_from(piece.range.len));
        if self.job.mode != CopyMode::Write
            || !is_dense(group)
            || !group.iter().all(takes_space)
            || !self.target_has(whole)?
        {
            return Ok(false);
        }
        buffer.resize(bytes.len().max(buffer.len()), 0);
        let filled = &mut buffer[..bytes.len()];
        // What is between is read with the rest: many short reads would cost as much as many short writes.
        let read = self.job.target.read_at(filled, whole.start);
        read.map_err(|source| self.target_error(source))?;
        for piece in group {
            let within = usize_from(piece.range.start - whole.start);
            filled[within..within + usize_from(piece.range.len)].copy_from_slice(part(bytes, piece, whole));
        }
        let written = self.job.target.write_at(filled, whole.start);
        written.map_err(|source| self.target_error(source))?;
        self.counts.written.fetch_add(held_bytes(group), Ordering::Relaxed);
        Ok(true)
    }

    /// Whether the target itself stores the whole range, in one piece.
    fn target_has(&self, range: ByteRange) -> Result<bool, MergeError> {
        let mut has = false;
        let visited = self.job.target.extents(range, &mut |extent| {
            has = extent.kind == ExtentKind::Data
                && extent.depth == 0
                && extent.range.start <= range.start
                && extent.range.end() >= range.end();
            ControlFlow::Break(())
        });
        visited.map_err(|source| self.target_error(source))?;
        Ok(has)
    }

    /// Writes what the target does not read already.
    fn put_differing(&self, bytes: &[u8], at: u64, buffer: &mut Vec<u8>) -> Result<(), MergeError> {
        buffer.resize(bytes.len().max(buffer.len()), 0);
        let present = &mut buffer[..bytes.len()];
        let read = self.job.target.read_at(present, at);
        read.map_err(|source| self.target_error(source))?;
        let sector = usize_from(SECTOR_SIZE);
        let mut done = 0;
        while done < bytes.len() {
            let differs = |from: usize| bytes[from..from + sector] != present[from..from + sector];
            let first = differs(done);
            let mut end = done + sector;
            while end < bytes.len() && differs(end) == first {
                end += sector;
            }
            if first {
                self.write(&bytes[done..end], at + u64_from(done))?;
            }
            done = end;
        }
        Ok(())
    }

    /// Writes bytes of which long zeroes take no space.
    fn put(&self, bytes: &[u8], at: u64) -> Result<(), MergeError> {
        let mut done = 0;
        while done < bytes.len() {
            let (zero, len) = next_run(&bytes[done..]);
            let offset = at + u64_from(done);
            match zero {
                true => self.zero(ByteRange::new(offset, u64_from(len)))?,
                false => self.write(&bytes[done..done + len], offset)?,
            }
            done += len;
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<(), MergeError> {
        self.must_not_differ(at)?;
        let written = self.job.target.write_at(bytes, at);
        written.map_err(|source| self.target_error(source))?;
        self.counts.written.fetch_add(u64_from(bytes.len()), Ordering::Relaxed);
        Ok(())
    }

    /// INV-08: a sector that reads zero in the sources reads zero in the target, whatever is below it.
    fn zero(&self, range: ByteRange) -> Result<(), MergeError> {
        let options = ZeroOptions {
            may_unmap: true,
            ..ZeroOptions::default()
        };
        let zeroed = self.job.target.write_zeroes(range, options);
        zeroed.map_err(|source| self.target_error(source))?;
        self.counts.zeroed.fetch_add(range.len, Ordering::Relaxed);
        Ok(())
    }

    fn must_not_differ(&self, at: u64) -> Result<(), MergeError> {
        if self.job.mode != CopyMode::Verify {
            return Ok(());
        }
        Err(MergeError::Changed {
            path: self.job.paths[0].clone(),
            what: format!(
                "it was written to since its children were pointed to {}: byte {at:#x} of the disk differs",
                self.job.target_path.display()
            ),
        })
    }

    fn source_error(&self, layer: usize, source: DeviceError) -> MergeError {
        MergeError::Device {
            path: self.job.paths[layer].clone(),
            source,
        }
    }

    fn target_error(&self, source: DeviceError) -> MergeError {
        MergeError::Device {
            path: self.job.target_path.to_owned(),
            source,
        }
    }
}

/// What a thread reads into.
#[derive(Default)]
struct Buffers {
    source: Vec<u8>,
    target: Vec<u8>,
}
