//! TLS with X.509 certificates.

mod server_config;
mod state;

pub use server_config::{TlsError, TlsServer};
pub(crate) use state::TlsState;
