//! TLS with X.509 certificates; without the feature `tls`, nothing but its names.

#[cfg(all(feature = "tls", feature = "client"))]
mod client_config;
#[cfg(feature = "tls")]
mod error;
#[cfg(all(feature = "tls", any(feature = "client", feature = "server")))]
mod pem;
#[cfg(all(feature = "tls", feature = "server"))]
mod server_config;
#[cfg(feature = "tls")]
mod state;
#[cfg(not(feature = "tls"))]
mod without;

#[cfg(all(feature = "tls", feature = "client"))]
pub use client_config::TlsClient;
#[cfg(feature = "tls")]
pub use error::TlsError;
#[cfg(feature = "tls")]
pub use rustls::Connection;
#[cfg(all(feature = "tls", feature = "server"))]
pub use server_config::TlsServer;
#[cfg(feature = "tls")]
pub(crate) use state::TlsState;
#[cfg(not(feature = "tls"))]
pub(crate) use without::TlsState;
#[cfg(not(feature = "tls"))]
pub use without::{Connection, TlsClient, TlsError, TlsServer};
