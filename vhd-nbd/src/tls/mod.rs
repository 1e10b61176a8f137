//! TLS with X.509 certificates.

mod state;
mod server_config;

pub(crate) use state::TlsState;
pub use server_config::{TlsError, TlsServer};
