//! Fixed, dynamic and differencing VHD images.
#![forbid(unsafe_code)]

pub mod device;
pub mod error;
pub mod format;
pub mod storage;
pub mod units;

pub use error::ErrorKind;
