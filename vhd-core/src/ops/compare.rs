//! Comparing the content of two disks, whatever the formats they are stored in.

use std::ops::ControlFlow;
use std::thread;

use super::data_ranges::StoredExtents;
use super::{OpsError, Progress};
use crate::device::{ByteRange, DeviceError, Disk};
use crate::units::{u64_from, usize_from};

/// Bytes that a thread compares at once.
const CHUNK: u64 = 2 << 20;

/// Threads that compare.
const THREADS: u64 = 2;

/// The granularity in which differing ranges are told.
const SECTOR: usize = 512;

/// What a comparison found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Comparison {
    /// No byte differs; where one disk is longer, the rest of it reads zero.
    pub identical: bool,
    /// The first byte that differs.
    pub first_difference: Option<u64>,
    /// Bytes in sectors that differ.
    pub different_bytes: u64,
    /// Bytes of the disks that were looked at: the rest reads zero in both or is known to be the same.
    pub compared_bytes: u64,
}

/// The ranges that may differ, ascending.
pub(super) trait Candidates {
    /// The first range at or behind `position`, or the rest of the one it is in.
    fn next(&mut self, position: u64) -> Result<Option<ByteRange>, OpsError>;
}

/// Compares two disks and hands the ranges that differ, in sectors, ascending and coalesced, to `visitor`, until
/// it breaks off. A disk reads zero behind its end.
pub fn compare(
    a: &Disk,
    b: &Disk,
    progress: &dyn Progress,
    visitor: &mut dyn FnMut(ByteRange) -> ControlFlow<()>,
) -> Result<Comparison, OpsError> {
    compare_candidates(a, b, &mut Stored::new(a, b), progress, visitor)
}

/// Compares what two disks have in some ranges; outside them they are the same.
pub(super) fn compare_candidates(
    a: &Disk,
    b: &Disk,
    candidates: &mut dyn Candidates,
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
    let mut position = 0;
    while let Some(range) = candidates.next(position)? {
        let end = range.end().min(range.start + THREADS * CHUNK);
        found.comparison.compared_bytes += end - range.start;
        let stop = found.add(&compare_window(a, b, range.start, end)?).is_break();
        progress.advance(end - position);
        if stop {
            return Ok(found.finish());
        }
        position = end;
    }
    progress.advance(size - position);
    Ok(found.finish())
}

/// Both disks from where either stores something.
struct Stored<'a> {
    size: u64,
    data: [NextData<'a>; 2],
}

impl<'a> Stored<'a> {
    fn new(a: &'a Disk, b: &'a Disk) -> Self {
        Self {
            size: a.size().max(b.size()),
            data: [NextData::new(a), NextData::new(b)],
        }
    }
}

impl Candidates for Stored<'_> {
    fn next(&mut self, position: u64) -> Result<Option<ByteRange>, OpsError> {
        let mut next = self.size;
        for data in &mut self.data {
            next = next.min(
                data.at_or_behind(position)
                    .map_err(OpsError::Source)?
                    .unwrap_or(self.size),
            );
        }
        if next >= self.size {
            return Ok(None);
        }
        let start = (next - next % CHUNK).max(position);
        Ok(Some(ByteRange::new(start, self.size - start)))
    }
}

/// What differs in a chunk, and where the first differing byte is.
#[derive(Default)]
struct Differences {
    first: Option<u64>,
    ranges: Vec<ByteRange>,
}

fn compare_window(a: &Disk, b: &Disk, start: u64, end: u64) -> Result<Vec<Differences>, OpsError> {
    if end - start <= CHUNK {
        // A thread would cost more than it does.
        return Ok(vec![compare_chunk(a, b, start, end).map_err(OpsError::Source)?]);
    }
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
    if inside == 0 {
        return Ok(());
    }
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

/// Where the stored part of a disk goes on.
struct NextData<'a> {
    extents: StoredExtents<'a>,
}

impl<'a> NextData<'a> {
    fn new(disk: &'a Disk) -> Self {
        Self {
            extents: StoredExtents::new(disk),
        }
    }

    fn at_or_behind(&mut self, position: u64) -> Result<Option<u64>, DeviceError> {
        let next = self.extents.first_from(position)?;
        Ok(next.map(|extent| extent.range.start))
    }
}
