//! TLS with X.509 certificates.

mod client_config;
mod error;
mod pem;
mod server_config;
mod state;

pub use client_config::TlsClient;
pub use error::TlsError;
pub use server_config::TlsServer;
pub(crate) use state::TlsState;
