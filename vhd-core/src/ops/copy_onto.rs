//! A disk copied onto one that is there: a block device, or an export of a server.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};

use super::workers::{STEP, in_windows};
use super::zeroes::for_each_data_run;
use super::{ConvertReport, OpsError, Progress};
use crate::chain::OpenedDisk;
use crate::device::{ByteRange, DeviceError, Disk, Extent, ExtentKind, ZeroOptions};
use crate::units::{u64_from, usize_from};

/// Zeroes that need no space.
const ZEROES: ZeroOptions = ZeroOptions {
    may_unmap: true,
    fast_only: false,
    fua: false,
};

/// Makes `target` read what `source` reads, and zeroes behind its end; durable when it returns. What the target held is lost from
/// the first moment on, also if this fails: there is no name to give away at the end.
///
/// # Errors
/// The target is smaller than the source ([`OpsError::TargetTooSmall`]): then nothing was written. The source can't be read, or
/// the target not be written.
pub fn copy_onto(
    source: &OpenedDisk,
    target: &OpenedDisk,
    threads: usize,
    progress: &dyn Progress,
) -> Result<ConvertReport, OpsError> {
    let (from, to) = (source.disk(), target.disk());
    let path = &target.paths()[0];
    if to.size() < from.size() {
        return Err(OpsError::TargetTooSmall {
            path: path.clone(),
            size: to.size(),
            needed: from.size(),
        });
    }
    progress.begin(to.size());
    let copier = Copier {
        from: &from,
        to: &to,
        failed_target: &|source| OpsError::Destination {
            path: path.clone(),
            source,
        },
        copied: AtomicU64::new(0),
    };
    in_windows(threads, to.size(), progress, |window, buffer| {
        copier.copy_window(window, buffer)
    })?;
    to.flush().map_err(copier.failed_target)?;
    let copied_bytes = copier.copied.load(Ordering::Relaxed);
    Ok(ConvertReport {
        disk_bytes: from.size(),
        copied_bytes,
        shared_bytes: 0,
        zero_bytes: from.size() - copied_bytes,
    })
}

struct Copier<'a> {
    from: &'a Disk,
    to: &'a Disk,
    failed_target: &'a (dyn Fn(DeviceError) -> OpsError + Sync),
    copied: AtomicU64,
}

impl Copier<'_> {
    fn copy_window(&self, window: ByteRange, buffer: &mut [u8]) -> Result<(), OpsError> {
        let end = window.end().min(self.from.size());
        let mut extents: Vec<Extent> = Vec::new();
        if end > window.start {
            let range = ByteRange::new(window.start, end - window.start);
            let walked = self.from.extents(range, &mut |extent| {
                extents.push(extent);
                ControlFlow::Continue(())
            });
            walked.map_err(OpsError::Source)?;
        }
        for extent in extents {
            match extent.kind {
                ExtentKind::Data => self.copy(extent.range, buffer)?,
                ExtentKind::Zero | ExtentKind::Hole => self.zero(extent.range.start, extent.range.end())?,
            }
        }
        self.zero(end.max(window.start), window.end())
    }

    /// Copies what is stored; zeroes at both ends of a step are not written out.
    fn copy(&self, range: ByteRange, buffer: &mut [u8]) -> Result<(), OpsError> {
        let mut at = range.start;
        while at < range.end() {
            let bytes = &mut buffer[..usize_from(STEP.min(range.end() - at))];
            self.from.read_at(bytes, at).map_err(OpsError::Source)?;
            let (mut first, mut last) = (bytes.len(), bytes.len());
            let runs: Result<(), ()> = for_each_data_run(bytes, |run| {
                first = first.min(run.start);
                last = run.end;
                Ok(())
            });
            runs.unwrap_or_default();
            self.zero(at, at + u64_from(first))?;
            if first < last {
                let written = self.to.write_at(&bytes[first..last], at + u64_from(first));
                written.map_err(self.failed_target)?;
                self.copied.fetch_add(u64_from(last - first), Ordering::Relaxed);
            }
            self.zero(at + u64_from(last), at + u64_from(bytes.len()))?;
            at += u64_from(bytes.len());
        }
        Ok(())
    }

    fn zero(&self, start: u64, end: u64) -> Result<(), OpsError> {
        if start >= end {
            return Ok(());
        }
        let zeroed = self.to.write_zeroes(ByteRange::new(start, end - start), ZEROES);
        zeroed.map_err(self.failed_target)
    }
}
