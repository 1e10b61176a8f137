//! What some layers hold, written into the disk below them: each sector once, from the first layer that has it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::MergeError;
use crate::device::{ByteRange, DeviceError, Disk, Held, Layer, ZeroOptions, held};
use crate::image::IoContext;
use crate::ops::zeroes::ZERO_UNIT;
use crate::ops::{Progress, useful_threads};
use crate::storage::is_zero;
use crate::units::{FileOffset, SECTOR_SIZE, u64_from, usize_from};

/// Bytes of the disk that a thread takes on at once.
pub(super) const WINDOW: u64 = 8 << 20;

/// Bytes read at once.
const STEP: u64 = 1 << 20;

/// Bytes of a layer's file that are read although they are not wanted, to spare a read of its own for what is
/// behind them.
const READ_GAP: u64 = 8 << 10;

/// Bytes: zeroes inside what is copied become holes from this length on. What is zero as a whole always does.
const ZERO_MIN: usize = 64 << 10;

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
    /// Threads that copy; 0 for as many as are useful.
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
pub struct CopiedBytes {
    /// Bytes read from the layers.
    pub read: u64,
    /// Bytes written to the target.
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
        thread::scope(|scope| {
            let threads = useful_threads(self.job.options.threads);
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| self.work(&batch))).collect();
            // All are waited for; the first error is the one to tell.
            let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            results
                .into_iter()
                .try_for_each(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
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
            let held: u64 = group.iter().map(|piece| piece.range.len).sum();
            self.job.progress.advance(held);
            bytes += held;
            rest = behind;
        }
        Ok(bytes)
    }

    /// Reads neighbouring pieces of one layer at once, and writes each.
    fn copy(&self, layer: usize, offset: u64, group: &[Held], buffers: &mut Buffers) -> Result<(), MergeError> {
        let (first, last) = (group[0].range, group[group.len() - 1].range);
        let len = usize_from(last.end() - first.start);
        buffers.source.resize(len.max(buffers.source.len()), 0);
        let Buffers { source, target } = buffers;
        let bytes = &mut source[..len];
        self.job.sources[layer]
            .file()
            .read_exact_at(bytes, offset)
            .io_context("read", offset)
            .map_err(|error| self.source_error(layer, error))?;
        self.counts.read.fetch_add(u64_from(len), Ordering::Relaxed);
        for piece in group {
            let within = usize_from(piece.range.start - first.start);
            let bytes = &bytes[within..within + usize_from(piece.range.len)];
            match self.job.mode {
                CopyMode::Write => self.put(bytes, piece.range.start)?,
                CopyMode::Compare | CopyMode::Verify => self.put_differing(bytes, piece.range.start, target)?,
            }
        }
        Ok(())
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

/// What was found in pieces that are small enough to be read at once.
fn cut(found: &[Held]) -> Vec<Held> {
    let mut pieces = Vec::with_capacity(found.len());
    for whole in found {
        let mut done = 0;
        while done < whole.range.len {
            let len = STEP.min(whole.range.len - done);
            pieces.push(Held {
                range: ByteRange::new(whole.range.start + done, len),
                file_offset: FileOffset(whole.file_offset.0 + done),
                ..*whole
            });
            done += len;
        }
    }
    pieces
}

/// How many of the first pieces are read at once: they lie in one file like on the disk, and close together.
fn group_len(pieces: &[Held]) -> usize {
    let first = pieces[0];
    let mut end = first.range.end();
    let joins = pieces[1..].iter().take_while(|next| {
        let in_line = next.file_offset.0.wrapping_sub(first.file_offset.0) == next.range.start - first.range.start;
        let together = next.layer == first.layer
            && in_line
            && next.range.start - end <= READ_GAP
            && next.range.end() - first.range.start <= STEP;
        end = next.range.end();
        together
    });
    1 + joins.count()
}

/// Whether the first bytes are zeroes that take no space, and how many bytes agree with them.
fn next_run(bytes: &[u8]) -> (bool, usize) {
    if is_zero(bytes) {
        return (true, bytes.len());
    }
    let zeroes = leading_zeroes(bytes);
    if zeroes >= ZERO_MIN {
        return (true, zeroes);
    }
    let mut end = zeroes;
    while end < bytes.len() {
        let unit = ZERO_UNIT.min(bytes.len() - end);
        if is_zero(&bytes[end..end + unit]) {
            let zeroes = leading_zeroes(&bytes[end..]);
            if zeroes >= ZERO_MIN {
                break;
            }
            end += zeroes;
        } else {
            end += unit;
        }
    }
    (false, end)
}

/// How many bytes in whole units at the start are zero.
fn leading_zeroes(bytes: &[u8]) -> usize {
    let units = bytes.chunks(ZERO_UNIT).take_while(|unit| is_zero(unit));
    units.map(<[u8]>::len).sum()
}
