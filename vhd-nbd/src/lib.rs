//! Network Block Device: the protocol, a server for the disks of `vhd-core`, and a client that gives them such disks.
//!
//! ```text
//!   server     Server, ExportSet: who connects, what is served, the threads
//!   client     NbdUri, NbdDevice: an export of any server as a disk
//!   tls        TlsServer, TlsClient: certificates, encrypted bytes
//!   transport  Transport: bytes in, whole messages out
//!   protocol   messages <-> bytes, no I/O; shared with clients
//! ```
#![forbid(unsafe_code)]

pub mod client;
mod keepalive;
pub mod protocol;
pub mod server;
mod spin;
pub mod tls;
pub mod transport;
