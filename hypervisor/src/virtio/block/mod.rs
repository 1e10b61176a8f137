//! virtio-blk: a disk of `vhd-block` as a block device of the guest (virtio 1.2, section 5.2).
//!
//! ```text
//!   request.rs   descriptor chain -> Request, or what is wrong with it; touches no disk
//!   execute.rs   Request -> calls of a Disk, and the status
//!   serve.rs     a chain answered: parse, execute, status
//!   config.rs    features and configuration space
//!   device.rs    the device with its thread
//! ```

mod config;
mod device;
mod execute;
mod request;
mod serve;
#[cfg(test)]
mod tests;

pub(crate) use device::{Block, VIRTIO_ID_BLOCK};
