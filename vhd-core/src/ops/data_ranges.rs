//! The stored ranges of a disk, handed out in order to any number of threads.

use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};

use crate::device::{ByteRange, DeviceError, Disk, Extent, ExtentKind};

/// Walks over what a disk stores.
pub(super) struct DataRanges<'a> {
    disk: &'a Disk,
    state: Mutex<State>,
}

struct State {
    /// Up to where everything was handed out or is known to read zero.
    position: u64,
    /// The part of a stored extent that was not handed out yet.
    rest: Option<Extent>,
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
            disk,
            state: Mutex::new(State {
                position: 0,
                rest: None,
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
        let extent = match state.rest.take() {
            Some(extent) => extent,
            None => match first_data(self.disk, state.position)? {
                Some(extent) => extent,
                None => return Ok(None),
            },
        };
        let len = extent.range.len.min(unit - extent.range.start % unit);
        let end = extent.range.start + len;
        if len < extent.range.len {
            state.rest = Some(Extent {
                range: ByteRange::new(end, extent.range.len - len),
                file_offset: extent.file_offset.map(|offset| offset + len),
                ..extent
            });
        }
        let advance = end - state.position;
        state.position = end;
        Ok(Some(Job {
            extent: Extent {
                range: ByteRange::new(extent.range.start, len),
                ..extent
            },
            advance,
        }))
    }

    /// Hands nothing out any more.
    pub(super) fn stop(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stopped = true;
    }

    /// Bytes of the disk behind the last range handed out.
    pub(super) fn remaining(&self) -> u64 {
        self.disk.size() - self.state.lock().unwrap_or_else(PoisonError::into_inner).position
    }
}

/// The first stored extent at or behind `offset`.
pub(super) fn first_data(disk: &Disk, offset: u64) -> Result<Option<Extent>, DeviceError> {
    let mut found = None;
    disk.extents(ByteRange::new(offset, disk.size() - offset), &mut |extent| {
        if extent.kind == ExtentKind::Data {
            found = Some(extent);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}
