//! Network Block Device: the protocol.
#![forbid(unsafe_code)]

pub mod protocol;
