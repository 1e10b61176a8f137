//! Converting a disk: sparse in, sparse out, by several threads, by sharing extents where the file system can.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use image_formats::qcow2;

use super::data_ranges::{DataRanges, Job};
use super::workers::{in_parallel, useful_threads};
use super::zeroes::{ZERO_UNIT, for_each_data_run};
use super::{OpsError, Progress};
use crate::chain::OpenedDisk;
use crate::device::{ByteRange, DeviceError, Disk};
use crate::image::{Image, IoContext, OpenMode, Preallocate, create_dynamic, create_fixed};
use crate::storage::{StagedFile, StorageFile, UnsyncedFile, is_zero, write_out_holes};
use crate::units::{FileOffset, VirtualOffset, u64_from, usize_from};

/// Bytes that a thread takes on at once when it copies.
const COPY_UNIT: u64 = 2 << 20;

/// Bytes that a thread takes on at once when it shares extents.
const SHARE_UNIT: u64 = 256 << 20;

/// Bytes read, looked through and written at once: they stay in the processor's cache meanwhile.
const COPY_STEP: usize = 512 << 10;

/// Bytes; the longest bitmap of a block, of one of 256 MiB. No block is as short.
const MAX_BITMAP: u64 = 64 << 10;

/// The grid on which file systems share extents.
const SHARE_ALIGNMENT: u64 = 4096;

/// What ends an attempt to share where the file system can't.
const CANNOT_SHARE: DeviceError = DeviceError::Unsupported("share extents with its source");

/// What a disk is converted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The bytes of the disk.
    Raw,
    /// A fixed VHD.
    Fixed {
        /// How the space of zeroes is allocated.
        preallocate: Preallocate,
    },
    /// A qcow2 image of version 3, in clusters of 64 KiB.
    Qcow2,
    /// A dynamic VHD.
    Dynamic {
        /// Bytes in a block.
        block_size: u64,
        /// How the space of zeroes is allocated in the blocks that hold data, and between them. The others have none.
        preallocate: Preallocate,
    },
}

/// How a disk is converted.
#[derive(Clone, Copy, Debug)]
pub struct ConvertOptions {
    /// What it becomes.
    pub target: Target,
    /// A file that has the destination's name is replaced, not an error.
    pub replace: bool,
    /// The destination is on the disk, name and all, before the call returns. Otherwise it is like any
    /// freshly copied file: safe from the death of this process, not from a power failure in the next seconds.
    pub durable: bool,
    /// Threads that copy; 0 for as many as are useful.
    pub threads: usize,
}

/// What a conversion did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConvertReport {
    /// Bytes on the disk.
    pub disk_bytes: u64,
    /// Bytes written.
    pub copied_bytes: u64,
    /// Bytes that the destination shares with the source's files.
    pub shared_bytes: u64,
    /// Bytes that read zero and take no space.
    pub zero_bytes: u64,
}

/// Writes the content of `source` to `destination`, which appears under its name complete or not at all.
pub fn convert(
    source: &OpenedDisk,
    destination: &Path,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<ConvertReport, OpsError> {
    let staged = StagedFile::create_beside(destination)?;
    let size = source.disk().size();
    let report = fill(source, staged.storage(), destination, size, options, progress)?;
    staged.publish(options.replace, options.durable)?;
    Ok(report)
}

/// Writes the content of `source` into `file`, which is to become `destination`, as a disk of `size` bytes: that of
/// the source or more, which read zero.
pub(super) fn fill(
    source: &OpenedDisk,
    file: Arc<dyn StorageFile>,
    destination: &Path,
    size: u64,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<ConvertReport, OpsError> {
    let disk = source.disk();
    progress.begin(disk.size());
    let sink = Sink::create(Arc::clone(&file), destination, &options.target, size)?;
    let is_local = sink.takes_back() && source.file_at_depth(0).is_some();
    let copier = Copier {
        source,
        disk: &disk,
        sink: &sink,
        destination,
        ranges: DataRanges::new(&disk),
        is_local,
        can_share: AtomicBool::new(is_local),
        reserved_to: Mutex::new(0),
        copied: AtomicU64::new(0),
        shared: AtomicU64::new(0),
        progress,
    };
    in_parallel(useful_threads(options.threads), || copier.work())?;
    progress.advance(copier.ranges.remaining());
    let (copied_bytes, shared_bytes) = (copier.copied.into_inner(), copier.shared.into_inner());
    let finished = sink.finish().and_then(|()| match options.target {
        Target::Dynamic { preallocate, .. } => fill_holes(&*file, preallocate),
        Target::Raw | Target::Qcow2 | Target::Fixed { .. } => Ok(()), // done when the file was made
    });
    finished.map_err(|source| OpsError::Destination {
        path: destination.to_owned(),
        source,
    })?;
    Ok(ConvertReport {
        disk_bytes: size,
        copied_bytes,
        shared_bytes,
        zero_bytes: size - copied_bytes - shared_bytes,
    })
}

/// Allocates the holes of a finished file.
fn fill_holes(file: &dyn StorageFile, preallocate: Preallocate) -> Result<(), DeviceError> {
    match preallocate {
        Preallocate::Off => Ok(()),
        Preallocate::Falloc => {
            let len = file.len().io_context("find the length", 0)?;
            file.allocate(0, len).io_context("reserve space", 0)
        }
        Preallocate::Full => write_out_holes(file).io_context("write zeroes", 0),
    }
}

/// Bytes from an offset in the destination's file to the next multiple of a step. Writes that end there let
/// the page cache take large pages; data of a block starts anywhere on the 4 KiB grid.
fn up_to_boundary(offset: u64) -> u64 {
    let step = u64_from(COPY_STEP);
    step - offset % step
}

/// What is written: a flat file, or an image of blocks or clusters.
enum Sink {
    Flat(Arc<dyn StorageFile>),
    Blocks(Box<Image>),
    Qcow2(Arc<dyn StorageFile>, Box<qcow2::Writer>),
}

impl Sink {
    fn create(file: Arc<dyn StorageFile>, path: &Path, target: &Target, size: u64) -> Result<Self, OpsError> {
        let create_failed = |source| OpsError::Create {
            path: path.to_owned(),
            source,
        };
        match *target {
            Target::Raw => {
                let sized = file.set_len(size).io_context("set the length", size);
                sized.map_err(|source| OpsError::Destination {
                    path: path.to_owned(),
                    source,
                })?;
                Ok(Self::Flat(file))
            }
            Target::Fixed { preallocate } => {
                create_fixed(&*file, size, preallocate).map_err(create_failed)?;
                Ok(Self::Flat(file))
            }
            Target::Qcow2 => Ok(Self::Qcow2(file, Box::new(qcow2::Writer::new(size)))),
            Target::Dynamic { block_size, .. } => {
                // No one sees the file before it is complete: the order of its writes does not matter.
                let file: Arc<dyn StorageFile> = Arc::new(UnsyncedFile(file));
                create_dynamic(&*file, size, block_size).map_err(create_failed)?;
                let image = Image::open(file, &OpenMode::read_write());
                image
                    .map(|image| Self::Blocks(Box::new(image)))
                    .map_err(|source| OpsError::Open {
                        path: path.to_owned(),
                        source,
                    })
            }
        }
    }

    /// Whether extents can be shared with the source, and space be set aside before it is known what is zero: clusters that
    /// were given out are not taken back.
    fn takes_back(&self) -> bool {
        !matches!(self, Self::Qcow2(..))
    }

    /// Bytes that a thread takes on at once when it copies: a block at most, as one that begins with data gets its
    /// place at once.
    fn copy_unit(&self) -> u64 {
        match self {
            Self::Flat(_) | Self::Qcow2(..) => COPY_UNIT,
            Self::Blocks(image) => image
                .header()
                .map_or(COPY_UNIT, |header| COPY_UNIT.min(header.layout.block_size())),
        }
    }

    /// Bytes between two ranges of the file that are written as well: the bitmap between two blocks.
    fn gap(&self, end: u64, start: u64) -> u64 {
        match self {
            Self::Flat(_) | Self::Qcow2(..) => 0,
            Self::Blocks(_) => start.checked_sub(end).filter(|gap| *gap <= MAX_BITMAP).unwrap_or(0),
        }
    }

    /// Calls `put` for each place in the file that a part of the range goes to: the file, where in it, and which
    /// part of the range.
    fn place(
        &self,
        offset: u64,
        len: u64,
        mut put: impl FnMut(&dyn StorageFile, u64, Range<u64>) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let image = match self {
            Self::Flat(file) => return put(&**file, offset, 0..len),
            Self::Qcow2(file, writer) => {
                let mut done = 0;
                while done < len {
                    let (at, part) = writer.place(offset + done, len - done);
                    put(&**file, at, done..done + part)?;
                    done += part;
                }
                return Ok(());
            }
            Self::Blocks(image) => image,
        };
        let mut done = 0;
        while done < len {
            let span = image.resolve_write(VirtualOffset(offset + done), len - done)?;
            let FileOffset(at) = span.file_offset();
            put(span.file(), at, done..done + span.len())?;
            done += span.len();
            span.complete()?;
        }
        Ok(())
    }

    fn finish(self) -> Result<(), DeviceError> {
        match self {
            Self::Flat(_) => Ok(()),
            Self::Qcow2(file, writer) => {
                let end = writer.finish(|bytes, at| file.write_all_at(bytes, at));
                let end = end.io_context("write the tables", 0)?;
                file.set_len(end).io_context("set the length", end)
            }
            Self::Blocks(image) => image.close(),
        }
    }
}

struct Copier<'a> {
    source: &'a OpenedDisk,
    disk: &'a Disk,
    sink: &'a Sink,
    destination: &'a Path,
    ranges: DataRanges<'a>,
    /// The source is files of this machine, and not a server.
    is_local: bool,
    can_share: AtomicBool,
    /// Up to where space in the destination's file was reserved last.
    reserved_to: Mutex<u64>,
    copied: AtomicU64,
    shared: AtomicU64,
    progress: &'a dyn Progress,
}

impl Copier<'_> {
    fn work(&self) -> Result<(), OpsError> {
        let mut buffer = vec![0; COPY_STEP];
        let result = self.work_with(&mut buffer);
        if result.is_err() {
            self.ranges.stop();
        }
        result
    }

    fn work_with(&self, buffer: &mut [u8]) -> Result<(), OpsError> {
        while let Some((job, reserved)) = self.next()? {
            if !self.share(&job)? {
                self.copy(&job, reserved, buffer)?;
            }
            self.progress.advance(job.advance);
        }
        Ok(())
    }

    /// The next job, and whether its space in the destination is reserved.
    fn next(&self) -> Result<Option<(Job, bool)>, OpsError> {
        // Space is reserved in the order of the jobs, so that the file system has it in one piece.
        let mut reserved_to = self.reserved_to.lock().unwrap_or_else(PoisonError::into_inner);
        let can_share = self.can_share.load(Ordering::Relaxed);
        // Until something was shared it is not known whether that is possible: what is not has to be copied.
        let unit = match can_share && self.shared.load(Ordering::Relaxed) > 0 {
            true => SHARE_UNIT,
            false => self.sink.copy_unit(),
        };
        let Some(job) = self.ranges.next(unit).map_err(OpsError::Source)? else {
            return Ok(None);
        };
        // To look at the data of a server first would take all threads a round trip.
        let reserved = self.is_local && !can_share && self.reserve(job.extent.range, &mut reserved_to)?;
        Ok(Some((job, reserved)))
    }

    /// Reserves the space of a range, if it seems to be data; whether that was done.
    fn reserve(&self, range: ByteRange, reserved_to: &mut u64) -> Result<bool, OpsError> {
        let mut start = [0; ZERO_UNIT];
        let start = &mut start[..usize_from(range.len.min(u64_from(ZERO_UNIT)))];
        self.disk.read_at(start, range.start).map_err(OpsError::Source)?;
        if is_zero(start) {
            return Ok(false);
        }
        let mut reserved = false;
        let placed = self.sink.place(range.start, range.len, |file, at, part| {
            let gap = self.sink.gap(*reserved_to, at);
            *reserved_to = at + part.end - part.start;
            reserved = file
                .expect_writes(at - gap, *reserved_to - (at - gap))
                .io_context("reserve space", at)?;
            Ok(())
        });
        placed.map_err(|error| self.destination_error(error))?;
        Ok(reserved)
    }

    /// Shares the job's extent with the destination; `false` if that can't be done.
    fn share(&self, job: &Job) -> Result<bool, OpsError> {
        let (Some(file_offset), range) = (job.extent.file_offset, job.extent.range) else {
            return Ok(false);
        };
        if !self.can_share.load(Ordering::Relaxed) || (file_offset | range.start | range.len) % SHARE_ALIGNMENT != 0 {
            return Ok(false);
        }
        let Some(file) = self.source.file_at_depth(job.extent.depth) else {
            return Ok(false);
        };
        let shared = self.sink.place(range.start, range.len, |destination, at, part| {
            let from = file_offset + part.start;
            match destination.share_range_from(file, from, at, part.end - part.start) {
                // Ends the walk: a place that is not completed goes back, and no block is left for zeroes.
                Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Err(CANNOT_SHARE),
                other => other.io_context("share an extent", at),
            }
        });
        match shared {
            Ok(()) => {
                self.shared.fetch_add(range.len, Ordering::Relaxed);
                Ok(true)
            }
            Err(DeviceError::Unsupported(_)) => {
                self.can_share.store(false, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(self.destination_error(error)),
        }
    }

    /// Copies what is not zero of the job's extent, and gives back what was `reserved` for zeroes.
    fn copy(&self, job: &Job, reserved: bool, buffer: &mut [u8]) -> Result<(), OpsError> {
        let range = job.extent.range;
        let mut at = range.start;
        // Where in the file the bytes go, less where on the disk they are; known after the first write.
        let mut shift = 0;
        while at < range.end() {
            let len = up_to_boundary(at.wrapping_add(shift)).min(range.end() - at);
            let bytes = &mut buffer[..usize_from(len)];
            self.disk.read_at(bytes, at).map_err(OpsError::Source)?;
            let mut written = 0;
            let copied = for_each_data_run(bytes, |run| {
                let offset = at + u64_from(run.start);
                self.give_back(at, written..run.start, reserved)?;
                written = run.end;
                shift = self.write(&bytes[run], offset)?.wrapping_sub(offset);
                Ok(())
            });
            copied
                .and_then(|()| self.give_back(at, written..bytes.len(), reserved))
                .map_err(|error| self.destination_error(error))?;
            at += len;
        }
        Ok(())
    }

    /// Makes a hole again of a part, of zeroes, of what was reserved.
    fn give_back(&self, at: u64, part: Range<usize>, reserved: bool) -> Result<(), DeviceError> {
        if !reserved || part.is_empty() {
            return Ok(());
        }
        let (start, len) = (at + u64_from(part.start), u64_from(part.len()));
        self.sink.place(start, len, |file, at, part| {
            file.punch_hole(at, part.end - part.start)
                .io_context("punch a hole", at)
        })
    }

    /// Writes bytes of the disk; returns where in the file the first of them are.
    fn write(&self, bytes: &[u8], offset: u64) -> Result<u64, DeviceError> {
        let len = u64_from(bytes.len());
        let mut first = None;
        self.copied.fetch_add(len, Ordering::Relaxed);
        self.sink.place(offset, len, |file, at, part| {
            first.get_or_insert(at);
            file.write_all_at(&bytes[usize_from(part.start)..usize_from(part.end)], at)
                .io_context("write", at)
        })?;
        Ok(first.unwrap_or(offset))
    }

    fn destination_error(&self, source: DeviceError) -> OpsError {
        OpsError::Destination {
            path: self.destination.to_owned(),
            source,
        }
    }
}
