//! A disk that gets another size while it is in use.
//!
//! Requests pass a gate, any number at once. A resize closes it: it waits for the requests that passed, flushes and
//! closes the device, does what `vhd resize` does to the file, opens the device again and lets the requests on that came
//! meanwhile. The file stays open and locked throughout. A disk that is not opened for this has no gate.

use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::mem;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use vhd_block::gate::{Closed, Gate, Passed};

use super::subject::{Failed, HeldFile, Subject};
use super::{Request, Resize, ResizeError, journal};
use crate::ErrorKind;
use crate::chain::{ChainWarning, OpenOptions, OpenedDisk};
use crate::device::{BlockDevice, ByteRange, DeviceError, DeviceInfo, ExtentVisitor, ReadSpan, WriteSpan, ZeroOptions};
use crate::error::with_causes;
use crate::storage::{Access, HostFile, Sharing};

/// Extents that are taken from the device before the gate is passed again: at first, for a visitor that wants few, and at
/// most.
const BATCH: (usize, usize) = (8, 1024);

/// How long a resize waits for spans that somebody holds, with all requests held too.
const PATIENCE: Duration = Duration::from_secs(2);

/// What opening a disk that is to be resized came to.
pub enum Opening {
    /// It can be resized.
    Resizable(Arc<ResizableDisk>),
    /// It can't, and is open for writing all the same.
    Plain {
        /// The disk.
        disk: OpenedDisk,
        /// What stands against resizing it.
        reason: ResizeError,
    },
}

/// A disk, open for reading and writing, that can be resized while it is in use: one image without parent and children,
/// or a raw file.
///
/// It becomes smaller only if what is cut off holds no partition and reads zero. When a resize fails the disk goes on
/// with the size that it had. If a sync failed it is closed to changes, as after a failed flush; if it can't be opened
/// again every request fails.
pub struct ResizableDisk {
    gate: Gate<Gated>,
    /// Bytes of the disk; changes while the gate is closed.
    size: AtomicU64,
    info: DeviceInfo,
    warnings: Vec<ChainWarning>,
}

/// What is behind the gate.
struct Gated {
    state: State,
    /// `None` when the disk was closed, which gives its file up.
    subject: Option<Box<dyn Subject>>,
}

enum State {
    Open(OpenedDisk),
    /// For reading only, as a sync failed in a resize.
    Poisoned(OpenedDisk),
    Gone {
        kind: ErrorKind,
        message: String,
    },
}

impl State {
    /// In the middle of a resize. It is seen only if that never ends.
    fn resizing() -> Self {
        Self::Gone {
            kind: ErrorKind::Io,
            message: "a resize of it did not come to an end".to_owned(),
        }
    }

    fn opened(&self) -> Result<&OpenedDisk, DeviceError> {
        match self {
            Self::Open(opened) | Self::Poisoned(opened) => Ok(opened),
            Self::Gone { kind, message } => Err(DeviceError::Gone {
                kind: (*kind).into(),
                message: message.clone(),
            }),
        }
    }

    /// The disk, if it can be changed.
    fn writable(&self) -> Result<&OpenedDisk, DeviceError> {
        match self {
            Self::Poisoned(_) => Err(DeviceError::Poisoned),
            Self::Open(_) | Self::Gone { .. } => self.opened(),
        }
    }
}

impl fmt::Debug for ResizableDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ResizableDisk({} bytes)", self.size_bytes())
    }
}

impl ResizableDisk {
    /// Opens the disk at `path`, for writing and under its lock, whatever `options` say about that. A resize of it that
    /// was interrupted is finished first.
    ///
    /// # Errors
    /// It can't be opened or locked, or an interrupted resize can't be finished. That the disk can't be resized is none:
    /// then [`Opening::Plain`] has it.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Opening, ResizeError> {
        let options = options.clone().write(true).force_share(false);
        finish(path, &options)?;
        let file = Arc::new(HostFile::open(path, Access::ReadWrite, Sharing::Exclusive)?);
        let disk = options.open_held(path, Arc::clone(&file))?;
        let held = HeldFile::new(path, file, &options, &disk);
        Ok(match held.check(&disk) {
            Ok(()) => Opening::Resizable(Arc::new(Self::new(Box::new(held), disk))),
            Err(reason) => Opening::Plain { disk, reason },
        })
    }

    fn new(subject: Box<dyn Subject>, opened: OpenedDisk) -> Self {
        let mut info = opened.device().info().clone();
        info.capabilities.resize = true;
        Self {
            info,
            size: AtomicU64::new(opened.device().size_bytes()),
            warnings: opened.warnings().to_vec(),
            gate: Gate::new(Gated {
                state: State::Open(opened),
                subject: Some(subject),
            }),
        }
    }

    /// What was odd about the file when it was opened.
    #[must_use]
    pub fn warnings(&self) -> &[ChainWarning] {
        &self.warnings
    }

    /// Flushes and closes the disk, gives its file up, and says whether that worked. Later requests fail.
    ///
    /// # Errors
    /// What could not be written; or the disk had gone before.
    pub fn close(&self) -> Result<(), DeviceError> {
        let closed = State::Gone {
            kind: ErrorKind::Io,
            message: "it was closed".to_owned(),
        };
        let mut gated = self.exclusive();
        let poisoned = gated.state.writable().map(drop);
        let state = mem::replace(&mut gated.state, closed);
        let closed = match state {
            State::Open(opened) | State::Poisoned(opened) => opened.close().map(drop),
            State::Gone { .. } => Ok(()),
        };
        gated.subject = None;
        poisoned.and(closed)
    }

    /// Passes the gate. A resize that panics leaves a state that says so.
    fn shared(&self) -> Passed<'_, Gated> {
        self.gate.pass()
    }

    /// Closes the gate, and waits for the requests that have passed it.
    fn exclusive(&self) -> Closed<'_, Gated> {
        self.gate.close()
    }

    /// Resizes the disk behind the closed gate.
    fn run(&self, gated: &mut Gated, size: u64) -> Result<(), DeviceError> {
        let Gated { state, subject } = gated;
        let opened = state.writable()?;
        let Some(subject) = subject else {
            // Closed, which the state has said.
            return Ok(());
        };
        if opened.device().size_bytes() == size {
            return Ok(());
        }
        opened.device().flush()?;
        let job = subject.prepare(size).map_err(|error| not_resized(&error))?;
        let ran = match mem::replace(state, State::resizing()) {
            // All was flushed: if this fails nothing is lost but the end of the file, which is not needed.
            State::Open(opened) => opened.close().map_err(|error| Failed {
                error: error.into(),
                sync_failed: false,
            }),
            other => {
                *state = other;
                return state.writable().map(drop);
            }
        };
        let ran = ran.and_then(|_| job());
        *state = reopened(&**subject, ran.as_ref().err());
        if let Ok(opened) = state.opened() {
            self.size.store(opened.device().size_bytes(), Ordering::Release);
        }
        ran.map_err(|failed| not_resized(&failed.error))?;
        state.opened().map(drop)
    }
}

/// Opens the disk after a resize. INV-32: after a failed sync for reading only.
fn reopened(subject: &dyn Subject, failed: Option<&Failed>) -> State {
    let poisoned = failed.is_some_and(|failed| failed.sync_failed);
    match subject.open(!poisoned) {
        Ok(opened) if poisoned => State::Poisoned(opened),
        Ok(opened) => State::Open(opened),
        Err(error) => {
            tracing::error!(%error, "a disk can't be opened again after a resize");
            State::Gone {
                kind: error.kind(),
                message: format!("it could not be opened again after a resize: {}", with_causes(&error)),
            }
        }
    }
}

/// Brings a resize of the image by itself to its end that a killed process has left.
fn finish(path: &Path, options: &OpenOptions) -> Result<(), ResizeError> {
    let Some(size) = journal::interrupted(path)? else {
        return Ok(());
    };
    let request = Request {
        image: path,
        size,
        shrink: true,
        tree: false,
        fix_gpt: false,
        options,
        cancel: &AtomicBool::new(false),
    };
    Resize::prepare(&request, true)?.run(&()).map(drop)
}

fn not_resized(error: &ResizeError) -> DeviceError {
    DeviceError::NotResized {
        kind: error.kind().into(),
        message: with_causes(error),
    }
}

impl BlockDevice for ResizableDisk {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn size_bytes(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DeviceError> {
        self.shared().state.opened()?.device().read_at(buf, offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), DeviceError> {
        self.shared().state.opened()?.device().read_vectored_at(bufs, offset)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64, fua: bool) -> Result<(), DeviceError> {
        self.shared()
            .state
            .writable()?
            .device()
            .write_vectored_at(bufs, offset, fua)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.shared().state.writable()?.device().flush()
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<(), DeviceError> {
        self.shared().state.writable()?.device().write_zeroes(range, options)
    }

    fn discard(&self, range: ByteRange) -> Result<(), DeviceError> {
        self.shared().state.writable()?.device().discard(range)
    }

    fn extents(&self, range: ByteRange, visitor: ExtentVisitor<'_>) -> Result<(), DeviceError> {
        let mut batch = Vec::new();
        let mut limit = BATCH.0;
        let mut rest = range;
        loop {
            batch.clear();
            self.shared().state.opened()?.device().extents(rest, &mut |extent| {
                batch.push(extent);
                match batch.len() < limit {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            })?;
            // Behind the gate again: the visitor may use the disk, and must not wait for a resize that waits for it.
            for extent in &batch {
                if visitor(*extent).is_break() {
                    return Ok(());
                }
            }
            match batch.last() {
                Some(last) if batch.len() == limit => {
                    let at = last.range.end();
                    rest = ByteRange::new(at, range.end() - at);
                    limit = BATCH.1.min(2 * limit);
                }
                _ => return Ok(()),
            }
        }
    }

    fn resolve_read(&self, range: ByteRange) -> Result<ReadSpan, DeviceError> {
        let passed = self.shared();
        let span = passed.state.opened()?.device().resolve_read(range)?;
        Ok(span.under(|| passed.lease()))
    }

    fn resolve_write(&self, range: ByteRange) -> Result<WriteSpan, DeviceError> {
        let passed = self.shared();
        let span = passed.state.writable()?.device().resolve_write(range)?;
        Ok(span.under(passed.lease()))
    }

    fn resize(&self, size: u64) -> Result<(), DeviceError> {
        // INV-31: no request runs while the size changes.
        let mut gated = self.exclusive();
        // INV-82: nor has anybody a span, for blocks move.
        if !gated.wait_for_leases(PATIENCE) {
            return Err(DeviceError::PlaceHeld("the resize"));
        }
        let resized = self.run(&mut gated, size);
        match &resized {
            Ok(()) => tracing::info!(size, "a disk in use was resized"),
            Err(error) => tracing::warn!(size, %error, "a disk in use was not resized"),
        }
        resized
    }
}

#[cfg(test)]
#[path = "online_tests.rs"]
mod tests;
