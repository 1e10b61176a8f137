//! Reads disk images in the formats of other programs, without trust in what it reads. Nothing that exists is ever
//! written; [`qcow2::Writer`] makes new images.
//!
//! ```text
//!   LayeredImage    a chain as a `BlockDevice`, for reading                    device.rs
//!        |
//!   Layer           where the bytes of one image are: stored, zero, absent     layer.rs
//!        |
//!   vhdx::Image, qcow2::Image, vmdk::Image, RawLayer                          vhdx/, qcow2/, vmdk/, raw.rs
//!        |           one file each; parents are found by the caller
//!        |
//!   ImageFile       the bytes of the file, from whatever holds them            file.rs
//! ```
//!
//! An image that breaks a rule of its format is refused when it is opened, with the rule, the place, what was found and
//! what is right ([`ImageError`]). Every offset and length is checked against the file before it is used, and what is
//! kept in memory is bounded by [`limits`].
#![forbid(unsafe_code)]

mod bytes;
mod device;
mod error;
mod file;
mod inflate;
mod layer;
pub mod limits;
pub mod qcow2;
mod raw;
pub mod vhdx;
pub mod vmdk;

pub use device::LayeredImage;
pub use error::{BrokenRule, DAMAGED, FEATURE, ImageError, Rule};
pub use file::{ImageFile, Segment};
pub use layer::{Layer, Place};
pub use raw::RawLayer;
