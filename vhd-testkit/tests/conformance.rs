//! The conformance suite passes on the model and catches devices that break the contract.

use std::io::{IoSlice, IoSliceMut};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vhd_core::device::{
    BlockDevice, ByteRange, DeviceError, DeviceInfo, Extent, ExtentKind, ExtentVisitor, ZeroOptions,
};
use vhd_testkit::conformance::{Conformance, conformance};
use vhd_testkit::model::ModelDisk;

#[test]
fn the_model_passes() {
    conformance(&|_, content| Arc::new(ModelDisk::from_bytes(content.to_vec())));
}

#[test]
fn the_model_passes_with_large_blocks_and_read_only() {
    for block in [1, 4096] {
        small().run(&|_, content| Arc::new(ModelDisk::from_bytes(content.to_vec()).with_block_size(block)));
    }
    let read_only = Conformance {
        size: small().size,
        ..Conformance::read_only()
    };
    read_only.run(&|_, content| Arc::new(ModelDisk::from_bytes(content.to_vec()).read_only()));
}

fn small() -> Conformance {
    Conformance {
        size: 512 << 10,
        steps: 60,
        ..Conformance::default()
    }
}

/// One way to break the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// Not broken: the suite must pass, discards may be ignored.
    IgnoresDiscards,
    /// Not broken: fast zeroes are not possible.
    NeverFast,
    /// Not broken: a part of fast zeroes may be done before the rest is refused.
    FastZeroesHalfWay,
    FastZeroesLie,
    LosesAWrite,
    WritesOnlyTheFirstBuffer,
    SwallowsRangeErrors,
    WrapsAround,
    AcceptsMisaligned,
    DiscardLeavesGarbage,
    ZeroesTooMuch,
    ExtentGap,
    ExtentsNotCoalesced,
    ExtentsBeyondTheRange,
    DataCalledHole,
    IgnoresBreak,
    TearsSectors,
    ReadOnlyInNameOnly,
    ResizeWithoutCapability,
}

/// A model disk with a bug.
struct Broken {
    disk: ModelDisk,
    info: DeviceInfo,
    bug: Bug,
    calls: AtomicU64,
}

impl Broken {
    fn new(content: &[u8], bug: Bug) -> Self {
        let disk = ModelDisk::from_bytes(content.to_vec());
        let mut info = disk.info().clone();
        info.capabilities.write = bug != Bug::ReadOnlyInNameOnly;
        info.capabilities.discard &= info.capabilities.write;
        info.capabilities.fast_zero &= info.capabilities.write;
        info.capabilities.resize = bug != Bug::ResizeWithoutCapability;
        Self {
            disk,
            info,
            bug,
            calls: AtomicU64::new(0),
        }
    }

    fn nth(&self, n: u64) -> bool {
        self.calls.fetch_add(1, Ordering::Relaxed) % n == n - 1
    }
}

fn swallow(result: Result<(), DeviceError>, offset: u64) -> Result<(), DeviceError> {
    match result {
        Err(DeviceError::OutOfRange { .. }) => Ok(()),
        Err(DeviceError::Misaligned { len, block, .. }) => Err(DeviceError::Misaligned { offset, len, block }),
        other => other,
    }
}

impl BlockDevice for Broken {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), DeviceError> {
        match self.bug {
            Bug::SwallowsRangeErrors => swallow(self.disk.read_vectored_at(bufs, offset), offset),
            Bug::WrapsAround => self.disk.read_vectored_at(bufs, offset % self.size_bytes()),
            Bug::AcceptsMisaligned => match self.disk.read_vectored_at(bufs, offset) {
                Err(DeviceError::Misaligned { .. }) => Ok(()),
                other => other,
            },
            _ => self.disk.read_vectored_at(bufs, offset),
        }
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64, fua: bool) -> Result<(), DeviceError> {
        match self.bug {
            Bug::LosesAWrite if self.nth(40) => Ok(()),
            Bug::WritesOnlyTheFirstBuffer
                if bufs.first().is_some_and(|buf| !buf.is_empty() && buf.len() % 512 == 0) =>
            {
                self.disk.write_vectored_at(&bufs[..1], offset, fua)
            }
            Bug::TearsSectors => {
                let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.to_vec()).collect();
                let mut mixed = bytes.clone();
                for sector in mixed.chunks_mut(512).filter(|sector| sector.len() == 512) {
                    sector[256..].fill(0x11);
                }
                self.disk.write_vectored_at(&[IoSlice::new(&mixed)], offset, fua)?;
                std::thread::yield_now();
                self.disk.write_vectored_at(&[IoSlice::new(&bytes)], offset, fua)
            }
            _ => self.disk.write_vectored_at(bufs, offset, fua),
        }
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.disk.flush()
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<(), DeviceError> {
        match self.bug {
            Bug::ZeroesTooMuch if range.end() < self.size_bytes() && range.len > 0 => self
                .disk
                .write_zeroes(ByteRange::new(range.start, range.len + 512), options),
            Bug::NeverFast if options.fast_only => {
                // A request that is wrong anyway is refused for that first.
                self.disk.extents(range, &mut |_| ControlFlow::Break(()))?;
                if range.len > 0 {
                    Err(DeviceError::NotFast)
                } else {
                    Ok(())
                }
            }
            Bug::FastZeroesLie if options.fast_only => self.disk.extents(range, &mut |_| ControlFlow::Break(())),
            Bug::FastZeroesHalfWay if options.fast_only && range.len >= 1024 => {
                self.disk.write_zeroes(ByteRange::new(range.start, 512), options)?;
                Err(DeviceError::NotFast)
            }
            _ => self.disk.write_zeroes(range, options),
        }
    }

    fn discard(&self, range: ByteRange) -> Result<(), DeviceError> {
        match self.bug {
            Bug::IgnoresDiscards => self.disk.extents(range, &mut |_| ControlFlow::Break(())),
            Bug::DiscardLeavesGarbage if range.len > 0 => {
                self.disk.discard(range)?;
                self.disk
                    .write_vectored_at(&[IoSlice::new(&[0xDD; 512])], range.start, false)
            }
            _ => self.disk.discard(range),
        }
    }

    fn extents(&self, range: ByteRange, visitor: ExtentVisitor<'_>) -> Result<(), DeviceError> {
        let mut found: Vec<Extent> = Vec::new();
        self.disk.extents(range, &mut |extent| {
            found.push(extent);
            ControlFlow::Continue(())
        })?;
        match self.bug {
            Bug::ExtentGap => drop((found.len() > 2).then(|| found.remove(1))),
            Bug::ExtentsNotCoalesced => found = found.into_iter().flat_map(halves).collect(),
            Bug::ExtentsBeyondTheRange => found.iter_mut().for_each(|extent| extent.range.len += 512),
            Bug::DataCalledHole => found.iter_mut().for_each(|extent| {
                (extent.kind, extent.file_offset) = (ExtentKind::Hole, None);
            }),
            _ => {}
        }
        for extent in found {
            if visitor(extent) == ControlFlow::Break(()) && self.bug != Bug::IgnoresBreak {
                break;
            }
        }
        Ok(())
    }

    fn resize(&self, size: u64) -> Result<(), DeviceError> {
        self.disk.resize(size)
    }
}

fn halves(extent: Extent) -> Vec<Extent> {
    let half = extent.range.len / 1024 * 512;
    if half == 0 {
        return vec![extent];
    }
    let ByteRange { start, len } = extent.range;
    let second = extent.file_offset.map(|offset| offset + half);
    vec![
        Extent {
            range: ByteRange::new(start, half),
            ..extent
        },
        Extent {
            range: ByteRange::new(start + half, len - half),
            file_offset: second,
            ..extent
        },
    ]
}

fn passes(bug: Bug) -> bool {
    let mut options = small();
    options.read_only = bug == Bug::ReadOnlyInNameOnly;
    let run = || options.run(&|_, content| Arc::new(Broken::new(content, bug)));
    catch_unwind(AssertUnwindSafe(run)).is_ok()
}

#[test]
fn freedoms_of_the_contract_pass() {
    for bug in [Bug::IgnoresDiscards, Bug::NeverFast, Bug::FastZeroesHalfWay] {
        assert!(passes(bug), "{bug:?} is allowed");
    }
}

#[test]
fn broken_devices_are_caught() {
    let bugs = [
        Bug::LosesAWrite,
        Bug::WritesOnlyTheFirstBuffer,
        Bug::SwallowsRangeErrors,
        Bug::WrapsAround,
        Bug::AcceptsMisaligned,
        Bug::DiscardLeavesGarbage,
        Bug::ZeroesTooMuch,
        Bug::FastZeroesLie,
        Bug::ExtentGap,
        Bug::ExtentsNotCoalesced,
        Bug::ExtentsBeyondTheRange,
        Bug::DataCalledHole,
        Bug::IgnoresBreak,
        Bug::TearsSectors,
        Bug::ReadOnlyInNameOnly,
        Bug::ResizeWithoutCapability,
    ];
    for bug in bugs {
        assert!(!passes(bug), "{bug:?} was not caught");
    }
}
