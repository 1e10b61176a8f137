//! Network Block Device: the protocol, a server for any [`Disk`](vhd_block::Disk), and a client whose exports are such disks.
//!
//! ```text
//!   server     Server, ExportSet: who connects, what is served, the threads
//!   client     NbdUri, NbdDevice: an export of any server as a disk
//!   tls        TlsServer, TlsClient: certificates, encrypted bytes
//!   transport  Transport: bytes in, whole messages out
//!   protocol   messages <-> bytes, no I/O; shared with clients
//!   kinds      what fails because a disk is on another machine
//! ```
//!
//! Features, all on by default: `client`, `server`, `tls`. The protocol is always there.
#![forbid(unsafe_code)]

#[cfg(feature = "client")]
pub mod client;
#[cfg(any(feature = "client", feature = "server"))]
mod keepalive;
pub mod kinds;
pub mod protocol;
#[cfg(feature = "server")]
pub mod server;
mod spin;
pub mod tls;
pub mod transport;
