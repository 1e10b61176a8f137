//! A chain as a chain of qcow2 images: each holds what its layer holds, in whole clusters, over the one below it.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use image_formats::qcow2::{CLUSTER, Writer};

use super::workers::{STEP, in_windows};
use super::{ConvertReport, OpsError, Progress};
use crate::chain::OpenedDisk;
use crate::device::{ByteRange, DeviceError, Disk, ExtentKind};
use crate::image::IoContext as _;
use crate::storage::{StagedFile, StorageFile, is_zero};
use crate::units::{u64_from, usize_from};

// Windows and steps are whole clusters.
const _: () = assert!(STEP.is_multiple_of(CLUSTER));

/// A layer, and the image that it becomes.
pub struct LayerTarget<'a> {
    /// The chain from this layer to its base.
    pub source: &'a OpenedDisk,
    /// The image.
    pub destination: &'a Path,
    /// What the image calls the one below it; `None` for the base.
    pub backing: Option<&'a str>,
}

/// How a chain is converted.
#[derive(Clone, Copy, Debug)]
pub struct ChainOptions {
    /// Files that have the names of the destinations are replaced.
    pub replace: bool,
    /// The images are on the disk, names and all, before the call returns.
    pub durable: bool,
    /// Threads that copy; 0 for as many as are useful.
    pub threads: usize,
}

/// Writes each layer as a qcow2 image. `layers` begins with the leaf. All are complete before the first gets its name, and the
/// base gets its name first: whoever sees the leaf sees the whole chain.
///
/// # Errors
/// Of the first layer that can't be read or written: then no new file is left.
pub fn convert_chain(
    layers: &[LayerTarget<'_>],
    options: &ChainOptions,
    progress: &dyn Progress,
) -> Result<Vec<ConvertReport>, OpsError> {
    progress.begin(layers.iter().map(|layer| layer.source.disk().size()).sum());
    let mut staged = Vec::new();
    let mut reports = Vec::new();
    for layer in layers {
        let file = StagedFile::create_beside(layer.destination)?;
        reports.push(fill(layer, file.storage(), options.threads, progress)?);
        staged.push((layer.destination, file));
    }
    let mut published: Vec<&Path> = Vec::new();
    for (destination, file) in staged.into_iter().rev() {
        if let Err(error) = file.publish(options.replace, options.durable) {
            if !options.replace {
                // They are new: nobody else has them.
                published.into_iter().for_each(|path| drop(fs::remove_file(path)));
            }
            return Err(error.into());
        }
        published.push(destination);
    }
    Ok(reports)
}

/// Writes what one layer holds.
fn fill(
    layer: &LayerTarget<'_>,
    file: Arc<dyn StorageFile>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<ConvertReport, OpsError> {
    let disk = layer.source.disk();
    let size = disk.size();
    let writer = match layer.backing {
        Some(name) => Writer::over(size, name),
        None => Writer::new(size),
    };
    let copier = Copier {
        disk: &disk,
        writer: &writer,
        file: &*file,
        destination: layer.destination,
        has_backing: layer.backing.is_some(),
        copied: AtomicU64::new(0),
    };
    in_windows(threads, size, progress, |window, buffer| {
        copier.copy_window(window, buffer)
    })?;
    let copied_bytes = copier.copied.load(Ordering::Relaxed);
    let failed = |source| OpsError::Destination {
        path: layer.destination.to_owned(),
        source,
    };
    let end = writer.finish(|bytes, at| file.write_all_at(bytes, at));
    let end = end.io_context("write the tables", 0).map_err(failed)?;
    file.set_len(end).io_context("set the length", end).map_err(failed)?;
    Ok(ConvertReport {
        disk_bytes: size,
        copied_bytes,
        shared_bytes: 0,
        zero_bytes: size - copied_bytes,
    })
}

struct Copier<'a> {
    disk: &'a Disk,
    writer: &'a Writer,
    file: &'a dyn StorageFile,
    destination: &'a Path,
    has_backing: bool,
    copied: AtomicU64,
}

impl Copier<'_> {
    fn copy_window(&self, window: ByteRange, buffer: &mut [u8]) -> Result<(), OpsError> {
        let held = self.held(window)?;
        held.into_iter().try_for_each(|range| self.copy(range, buffer))
    }

    /// The clusters of a window of which the layer itself holds a part, as ranges that do not meet.
    fn held(&self, window: ByteRange) -> Result<Vec<ByteRange>, OpsError> {
        let mut held: Vec<ByteRange> = Vec::new();
        let walked = self.disk.extents(window, &mut |extent| {
            if extent.depth != 0 || extent.kind == ExtentKind::Hole {
                return ControlFlow::Continue(());
            }
            let start = extent.range.start / CLUSTER * CLUSTER;
            let end = extent.range.end().next_multiple_of(CLUSTER).min(window.end());
            match held.last_mut() {
                Some(last) if last.end() >= start => last.len = end.max(last.end()) - last.start,
                _ => held.push(ByteRange::new(start, end - start)),
            }
            ControlFlow::Continue(())
        });
        walked.map_err(OpsError::Source)?;
        Ok(held)
    }

    /// Copies clusters as the chain reads them: what the layer lacks of them comes from below.
    fn copy(&self, range: ByteRange, buffer: &mut [u8]) -> Result<(), OpsError> {
        let mut at = range.start;
        while at < range.end() {
            let bytes = &mut buffer[..usize_from(STEP.min(range.end() - at))];
            self.disk.read_at(bytes, at).map_err(OpsError::Source)?;
            self.put(bytes, at)?;
            at += u64_from(bytes.len());
        }
        Ok(())
    }

    /// Puts whole clusters into the image: zeroes take no space, and hide what is below.
    fn put(&self, bytes: &[u8], offset: u64) -> Result<(), OpsError> {
        let clusters: Vec<bool> = bytes.chunks(usize_from(CLUSTER)).map(is_zero).collect();
        let mut start = 0;
        for run in clusters.chunk_by(|a, b| a == b) {
            let end = bytes.len().min(start + run.len() * usize_from(CLUSTER));
            let at = offset + u64_from(start);
            match run[0] {
                false => self.write(&bytes[start..end], at)?,
                true if self.has_backing => (0..u64_from(run.len())).for_each(|n| self.writer.zero(at + n * CLUSTER)),
                true => {}
            }
            start = end;
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), OpsError> {
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            let (at, len) = self.writer.place(offset + u64_from(done), u64_from(rest.len()));
            let part = &rest[..usize_from(len)];
            let written: Result<(), DeviceError> = self.file.write_all_at(part, at).io_context("write", at);
            written.map_err(|source| OpsError::Destination {
                path: self.destination.to_owned(),
                source,
            })?;
            done += part.len();
        }
        self.copied.fetch_add(u64_from(bytes.len()), Ordering::Relaxed);
        Ok(())
    }
}
