//! A disk whose leaf can be replaced by a child of it while the disk is in use.

use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use vhd_block::switch::{Held, InUse};
use vhd_block::{
    BlockDevice, ByteRange, DeviceError, DeviceInfo, ErrorKind, ExtentVisitor, Switch, ZeroOptions, scatter,
};

use super::LayeredDevice;
use super::views::Companions;
use crate::image::Image;

/// Bytes of zeroes, or of a discard, during which a switch has to wait. Longer ones are done in parts.
const LONGEST_PART: u64 = 64 << 20;

/// A chain that is written to, behind a [`Switch`]: [`switch`](Self::switch) makes a child of the leaf the new leaf. The
/// former leaf is frozen: the same open file, read from then on. Requests wait for that moment and none fails.
pub struct LiveDevice {
    pub(super) present: Switch<Arc<LayeredDevice>>,
    info: DeviceInfo,
    /// Bytes of the disk; changes while requests are held.
    pub(super) size: AtomicU64,
    /// What is read beside it in its open files.
    pub(super) companions: Companions,
    /// Why no request can be served any more.
    lost: OnceLock<(ErrorKind, String)>,
}

/// What became of the exchange of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeafExchange {
    Done,
    NotReady,
    /// The disk has gone on in another file meanwhile.
    OtherLeaf,
}

/// A disk that is ready to take the place of another: the same chain with an empty child on it.
pub struct Successor {
    device: Arc<LayeredDevice>,
}

impl fmt::Debug for LiveDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LiveDevice({:?})", self.present())
    }
}

impl LiveDevice {
    /// A device that is switched from `device`. It keeps that one's identity and properties for good.
    #[must_use]
    pub fn new(device: Arc<LayeredDevice>) -> Self {
        Self {
            info: device.info().clone(),
            size: AtomicU64::new(device.size_bytes()),
            companions: Companions::default(),
            lost: OnceLock::new(),
            present: Switch::new(device),
        }
    }

    /// The chain as it is now. Who keeps it reads what the disk read at some moment of that time; it is not to be written
    /// to.
    #[must_use]
    pub fn present(&self) -> Arc<LayeredDevice> {
        self.present.get()
    }

    /// Prepares a switch to `child`, an empty child of the present leaf that is open for writing. All that takes time is
    /// done here.
    #[must_use]
    pub fn prepare(&self, child: Image) -> Successor {
        Successor {
            device: Arc::new(self.present().with_child(child)),
        }
    }

    /// Freezes the leaves of disks and makes their prepared children the new ones, all at one instant: no request to any of
    /// them runs in that moment. Returns how long requests had to wait at most, or nothing if a leaf has been replaced
    /// since its successor was prepared: then nothing changes.
    ///
    /// The former leaves are not flushed: that is done by the next flush, and by `LayeredDevice::settle`.
    pub fn switch(disks: Vec<(&Self, Successor)>) -> Option<Duration> {
        let mut disks = disks;
        // In one order, whoever switches them.
        disks.sort_by_key(|(disk, _)| std::ptr::from_ref(*disk).addr());
        let start = Instant::now();
        // INV-50: no request runs while leaves change.
        let mut held: Vec<Held<'_, _>> = disks.iter().map(|(disk, _)| disk.present.hold()).collect();
        let fits = |(held, (_, next)): (&Held<'_, Arc<LayeredDevice>>, &(&Self, Successor))| {
            next.device.is_over(held.value().leaf_image())
        };
        let mut former = Vec::with_capacity(disks.len());
        if !held.iter().zip(&disks).all(fits) {
            return None;
        }
        for (held, (_, next)) in held.iter_mut().zip(&disks) {
            held.value().leaf().freeze();
            former.push(Arc::clone(held.value()));
            held.replace(&next.device);
        }
        drop(held);
        // What the former devices alone had in memory goes when nobody waits for it any more.
        let paused = start.elapsed();
        drop(former);
        Some(paused)
    }

    /// From now on every request fails.
    pub(super) fn lose(&self, why: &DeviceError) {
        let _ = self.lost.set((why.kind(), why.to_string()));
    }

    /// The device, for one request.
    fn pass(&self) -> Result<InUse<'_, Arc<LayeredDevice>>, DeviceError> {
        match self.lost.get() {
            None => Ok(self.present.pass()),
            Some((kind, message)) => Err(DeviceError::Gone {
                kind: *kind,
                message: message.clone(),
            }),
        }
    }

    /// Puts another device over the same leaf in the present one's place; `false` if the disk has another leaf by now.
    pub(super) fn exchange(&self, leaf: &Arc<Image>, next: &Arc<LayeredDevice>) -> bool {
        let mut held = self.present.hold();
        let is_leaf = Arc::ptr_eq(held.value().leaf_image(), leaf);
        if is_leaf {
            held.replace(next);
        }
        is_leaf
    }

    /// Puts the device of another leaf in the place of the one over `leaf`, which is frozen, if that is `ready` while no
    /// request runs.
    pub(super) fn exchange_leaf(
        &self,
        leaf: &Arc<Image>,
        next: &Arc<LayeredDevice>,
        ready: impl FnOnce() -> bool,
    ) -> LeafExchange {
        // INV-50: no request runs while leaves change.
        let mut held = self.present.hold();
        if !Arc::ptr_eq(held.value().leaf_image(), leaf) {
            return LeafExchange::OtherLeaf;
        }
        if !ready() {
            return LeafExchange::NotReady;
        }
        leaf.freeze();
        // What it holds is in the other one.
        leaf.abandon();
        held.replace(next);
        LeafExchange::Done
    }

    /// Flushes and closes the disk, as [`LayeredDevice::close`] does. While somebody keeps the present chain it is only
    /// flushed.
    ///
    /// # Errors
    /// What could not be written.
    pub fn close(self) -> Result<(), DeviceError> {
        let device = self.present();
        drop(self.present);
        match Arc::try_unwrap(device) {
            Ok(device) => device.close(),
            Err(shared) => shared.flush(),
        }
    }

    /// Does something with the present device in parts of the range, between which the device may be switched.
    fn in_parts(
        &self,
        range: ByteRange,
        act: impl Fn(&LayeredDevice, ByteRange) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let mut at = range.start;
        loop {
            let part = ByteRange::new(at, (range.end() - at).min(LONGEST_PART));
            let device = self.pass()?;
            let done = act(&device, part);
            device.written(part);
            drop(device);
            done?;
            at = part.end();
            if at >= range.end() {
                return Ok(());
            }
        }
    }

    fn flush_if(&self, fua: bool) -> Result<(), DeviceError> {
        if fua { self.flush() } else { Ok(()) }
    }
}

impl Successor {
    /// The disk that it will be.
    #[must_use]
    pub fn device(&self) -> &Arc<LayeredDevice> {
        &self.device
    }
}

impl BlockDevice for LiveDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn size_bytes(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DeviceError> {
        self.pass()?.read_at(buf, offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), DeviceError> {
        self.pass()?.read_vectored_at(bufs, offset)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64, fua: bool) -> Result<(), DeviceError> {
        let device = self.pass()?;
        let written = device.write_vectored_at(bufs, offset, false);
        if device.is_followed() {
            let len = scatter::total_len(bufs.iter().map(|buf| &**buf));
            device.written(ByteRange::new(offset, len));
        }
        drop(device);
        written?;
        self.flush_if(fua)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        // A switch does not wait for a sync: what is to be flushed is in the device that is present now, and stays there.
        let device = self.pass()?.clone();
        device.flush()
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<(), DeviceError> {
        let fua = options.fua;
        let options = ZeroOptions { fua: false, ..options };
        self.in_parts(range, |device, part| device.write_zeroes(part, options))?;
        self.flush_if(fua)
    }

    fn discard(&self, range: ByteRange) -> Result<(), DeviceError> {
        self.in_parts(range, |device, part| device.discard(part))
    }

    fn extents(&self, range: ByteRange, visitor: ExtentVisitor<'_>) -> Result<(), DeviceError> {
        // Not passed: the visitor may use the disk.
        let device = self.pass()?.clone();
        device.extents(range, visitor)
    }

    fn resize(&self, _size: u64) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported("be resized"))
    }
}
