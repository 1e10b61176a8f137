//! Comparing the content of two disks, whatever the formats they are stored in.

use std::ops::ControlFlow;
use std::thread;

use super::data_ranges::first_data;
use super::{OpsError, Progress};
use crate::device::{ByteRange, DeviceError, Disk, LOGICAL_BLOCK};
use crate::units::{u64_from, usize_from};

/// Bytes that a thread compares at once.
const CHUNK: u64 = 2 << 20;

/// Threads that compare.
const THREADS: u64 = 2;

/// The granularity in which differing ranges are told.
const SECTOR: usize = 512;

/// What a comparison found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// No byte differs; where one disk is longer, the rest of it reads zero.
    pub identical: bool,
    /// The first byte that differs.
    pub first_difference: Option<u64>,
    /// Bytes in sectors that differ.
    pub different_bytes: u64,
}

/// Compares two disks and hands the ranges that differ, in sectors, ascending and coalesced, to `visitor`, until
/// it breaks off. A disk reads zero behind its end.
pub fn compare(
    a: &Disk,
    b: &Disk,
    progress: &dyn Progress,
    visitor: &mut dyn FnMut(ByteRange) -> ControlFlow<()>,
) -> Result<Comparison, OpsError> {
    let size = a.size().max(b.size());
    progress.begin(size);
    let mut found = Found {
        comparison: Comparison::default(),
        last: None,
        visitor,
    };
    let mut stored = [NextData::new(a), NextData::new(b)];
    let mut position = 0;
    while position < size {
        let mut next = size;
        for data in &mut stored {
            next = next.min(data.at_or_behind(position).map_err(OpsError::Source)?.unwrap_or(size));
        }
        let start = if next == size {
            size
        } else {
            (next - next % CHUNK).max(position)
        };
        progress.advance(start - position);
        let end = size.min(start + THREADS * CHUNK);
        let stop = next < size && found.add(&compare_window(a, b, start, end)?).is_break();
        progress.advance(end - start);
        if stop {
            break;
        }
        position = end;
    }
    Ok(found.finish())
}

/// What differs in a chunk, and where the first differing byte is.
#[derive(Default)]
struct Differences {
    first: Option<u64>,
    ranges: Vec<ByteRange>,
}

fn compare_window(a: &Disk, b: &Disk, start: u64, end: u64) -> Result<Vec<Differences>, OpsError> {
    let results: Result<Vec<Differences>, DeviceError> = thread::scope(|scope| {
        let chunks = (start..end).step_by(usize_from(CHUNK));
        let workers: Vec<_> = chunks
            .map(|at| scope.spawn(move || compare_chunk(a, b, at, end.min(at + CHUNK))))
            .collect();
        let joined = workers.into_iter().map(|worker| match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.collect()
    });
    results.map_err(OpsError::Source)
}

fn compare_chunk(a: &Disk, b: &Disk, start: u64, end: u64) -> Result<Differences, DeviceError> {
    let len = usize_from(end - start);
    let (mut left, mut right) = (vec![0; len], vec![0; len]);
    read_padded(a, &mut left, start)?;
    read_padded(b, &mut right, start)?;
    let mut differences = Differences::default();
    if left == right {
        return Ok(differences);
    }
    for (index, (x, y)) in left.chunks(SECTOR).zip(right.chunks(SECTOR)).enumerate() {
        if x != y {
            let at = start + u64_from(index * SECTOR);
            let byte = x.iter().zip(y).position(|(p, q)| p != q).unwrap_or(0);
            differences.first.get_or_insert(at + u64_from(byte));
            differences.ranges.push(ByteRange::new(at, u64_from(x.len())));
        }
    }
    Ok(differences)
}

/// Reads a range of which a part may lie behind the disk's end.
fn read_padded(disk: &Disk, buffer: &mut [u8], offset: u64) -> Result<(), DeviceError> {
    let inside = usize_from(disk.size().saturating_sub(offset)).min(buffer.len());
    disk.read_at(&mut buffer[..inside], offset)
}

struct Found<'a> {
    comparison: Comparison,
    last: Option<ByteRange>,
    visitor: &'a mut dyn FnMut(ByteRange) -> ControlFlow<()>,
}

impl Found<'_> {
    fn add(&mut self, window: &[Differences]) -> ControlFlow<()> {
        for differences in window {
            self.comparison.first_difference = self.comparison.first_difference.or(differences.first);
            for range in &differences.ranges {
                self.comparison.different_bytes += range.len;
                match &mut self.last {
                    Some(last) if last.end() == range.start => last.len += range.len,
                    last => {
                        if let Some(complete) = last.replace(*range) {
                            (self.visitor)(complete)?;
                        }
                    }
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn finish(mut self) -> Comparison {
        if let Some(last) = self.last.take() {
            let _ = (self.visitor)(last);
        }
        self.comparison.identical = self.comparison.first_difference.is_none();
        self.comparison
    }
}

/// Where the stored part of a disk goes on, looked up once for as long as it is ahead.
struct NextData<'a> {
    disk: &'a Disk,
    /// The stored extent found last, and that there is none behind it if `None`.
    known: Option<ByteRange>,
    exhausted: bool,
}

impl<'a> NextData<'a> {
    fn new(disk: &'a Disk) -> Self {
        Self {
            disk,
            known: None,
            exhausted: false,
        }
    }

    fn at_or_behind(&mut self, position: u64) -> Result<Option<u64>, DeviceError> {
        if self.exhausted || position >= self.disk.size() {
            return Ok(None);
        }
        if self.known.is_none_or(|known| known.end() <= position) {
            let aligned = position - position % u64::from(LOGICAL_BLOCK);
            self.known = first_data(self.disk, aligned)?.map(|extent| extent.range);
            self.exhausted = self.known.is_none();
        }
        Ok(self.known.map(|known| known.start.max(position)))
    }
}
