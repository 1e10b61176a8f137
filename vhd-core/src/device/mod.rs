//! What a frontend sees of a disk: the contract of `vhd-block`, and the devices that fulfil it here.
//!
//! [`LayeredDevice`] is the one loop that moves the bytes of VHD images, whatever their type and however
//! deep their chain; [`RawDevice`] is a plain file. A frontend holds a [`Disk`] over either.

mod layer;
mod layered;
mod live;
mod merging;
mod owed;
mod places;
mod raw;
mod rework;
mod spans;
mod stretches;
mod views;

pub use layer::Layer;
pub use layered::LayeredDevice;
pub use live::{LiveDevice, NotSwitched, Successor};
pub use merging::{LeafCopied, LeafMerge, LeafMergeEnd, LeafMerged};
pub use owed::Commit;
pub(crate) use places::{Held, held};
pub use raw::RawDevice;
pub(crate) use rework::Reworked;
pub use vhd_block::{
    BlockDevice, ByteRange, Capabilities, Coalescer, DeviceError, DeviceInfo, Disk, DiskStats, Extent, ExtentKind,
    ExtentVisitor, LOGICAL_BLOCK, MAXIMUM_TRANSFER, PHYSICAL_BLOCK, ReadSpan, ReadTarget, SpanFile, WriteSource,
    WriteSpan, ZeroOptions, check_range, check_request, scatter,
};
pub use views::LayerMark;
pub(crate) use views::{PATIENCE, soon, wait_until_closed};
