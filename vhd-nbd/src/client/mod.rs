//! A client: an export of any NBD server as a disk.
//!
//! ```text
//!   NbdDevice    BlockDevice: cuts requests to what the server takes     device.rs, extents.rs, durability.rs
//!   Pool         which connection a request takes; sends it again        pool.rs
//!   Line         a connection that comes back                            line.rs, broken.rs
//!   Link         a connection: many threads, replies by cookie           link.rs, call.rs, inbox.rs
//!   Handshake    greeting to export                                      handshake.rs, agreement.rs, expected.rs
//!   NbdUri       where it is                                             uri.rs, uri_error.rs, address.rs
//! ```
//!
//! A server may be hostile: lengths are checked before memory is taken for them, bytes are accepted only where they
//! were asked for and once, and every wait has an end.

mod address;
mod agreement;
mod broken;
mod call;
mod device;
mod durability;
mod error;
mod expected;
mod extents;
mod handshake;
mod inbox;
mod line;
mod link;
mod options;
mod pool;
mod text;
mod uri;
mod uri_error;

pub use address::Address;
pub use device::NbdDevice;
pub use error::ClientError;
pub use options::ClientOptions;
pub use uri::{DEFAULT_PORT, NbdUri, UriTls};
pub use uri_error::UriError;
