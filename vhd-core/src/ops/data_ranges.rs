//! The stored ranges of a disk: found in long strides, and handed out in order to any number of threads.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};

use crate::device::{ByteRange, DeviceError, Disk, Extent, ExtentKind};

/// Extents that are looked up at once: each time the holes of the files are asked for anew.
const STRIDE: usize = 256;

/// The stored extents of a disk, for one who goes through it once.
pub(super) struct StoredExtents<'a> {
    disk: &'a Disk,
    ahead: VecDeque<Extent>,
    /// Up to where the disk was looked at.
    seen: u64,
}

impl<'a> StoredExtents<'a> {
    pub(super) fn new(disk: &'a Disk) -> Self {
        Self {
            disk,
            ahead: VecDeque::new(),
            seen: 0,
        }
    }

    /// The first stored extent at or behind `position`, or what of one lies behind it. Positions don't go back.
    pub(super) fn first_from(&mut self, position: u64) -> Result<Option<Extent>, DeviceError> {
        loop {
            while let Some(first) = self.ahead.front() {
                if first.range.end() > position {
                    return Ok(Some(behind(first, position)));
                }
                self.ahead.pop_front();
            }
            let start = self.seen.max(position);
            if start >= self.disk.size() {
                return Ok(None);
            }
            self.look_on(start)?;
        }
    }

    fn look_on(&mut self, start: u64) -> Result<(), DeviceError> {
        let ahead = &mut self.ahead;
        self.seen = self.disk.size();
        self.disk
            .extents(ByteRange::new(start, self.disk.size() - start), &mut |extent| {
                if extent.kind == ExtentKind::Data {
                    ahead.push_back(extent);
                }
                if ahead.len() < STRIDE {
                    return ControlFlow::Continue(());
                }
                self.seen = extent.range.end();
                ControlFlow::Break(())
            })
    }
}

/// The part of an extent from `position` on.
fn behind(extent: &Extent, position: u64) -> Extent {
    let skipped = position.saturating_sub(extent.range.start);
    Extent {
        range: ByteRange::new(extent.range.start + skipped, extent.range.len - skipped),
        file_offset: extent.file_offset.map(|offset| offset + skipped),
        ..*extent
    }
}

/// Walks over what a disk stores, for many threads.
pub(super) struct DataRanges<'a> {
    state: Mutex<State<'a>>,
}

struct State<'a> {
    extents: StoredExtents<'a>,
    /// Up to where everything was handed out or is known to read zero.
    position: u64,
    stopped: bool,
}

/// A stored range to work on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) extent: Extent,
    /// Bytes of the disk from the end of the job before to the end of this one.
    pub(super) advance: u64,
}

impl<'a> DataRanges<'a> {
    pub(super) fn new(disk: &'a Disk) -> Self {
        Self {
            state: Mutex::new(State {
                extents: StoredExtents::new(disk),
                position: 0,
                stopped: false,
            }),
        }
    }

    /// The next stored range, cut at multiples of `unit`; `None` at the end or after [`stop`](Self::stop).
    pub(super) fn next(&self, unit: u64) -> Result<Option<Job>, DeviceError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.stopped {
            return Ok(None);
        }
        let position = state.position;
        let Some(mut extent) = state.extents.first_from(position)? else {
            return Ok(None);
        };
        extent.range.len = extent.range.len.min(unit - extent.range.start % unit);
        state.position = extent.range.end();
        let advance = state.position - position;
        Ok(Some(Job { extent, advance }))
    }

    /// Hands nothing out any more.
    pub(super) fn stop(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stopped = true;
    }

    /// Bytes of the disk behind the last range handed out.
    pub(super) fn remaining(&self) -> u64 {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.extents.disk.size() - state.position
    }
}
