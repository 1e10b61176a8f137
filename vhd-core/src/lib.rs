//! Fixed, dynamic and differencing VHD images.
#![forbid(unsafe_code)]

pub mod chain;
pub mod device;
pub mod error;
pub mod format;
pub mod image;
pub mod ops;
pub mod partition;
pub mod storage;
mod sync;
pub mod units;

pub use error::ErrorKind;
pub use image::check;
