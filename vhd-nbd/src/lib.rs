//! Network Block Device: the protocol, and a server for the disks of `vhd-core`.
//!
//! ```text
//!   server     Server, ExportSet: who connects, what is served, the threads
//!   tls        TlsServer: certificates, encrypted bytes
//!   transport  Transport: bytes in, whole messages out
//!   protocol   messages <-> bytes, no I/O; shared with clients
//! ```
#![forbid(unsafe_code)]

pub mod protocol;
pub mod server;
pub mod tls;
pub mod transport;
