//! TLS in a build without the feature `tls`: the same names, and nothing that can be made of them.

use std::convert::Infallible;
use std::io;
use std::path::Path;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The feature `tls` of the crate is off.
    #[error("this build has no TLS")]
    NotBuilt,
}

/// Certificates of a server, of which there are none.
#[derive(Clone, Debug)]
pub struct TlsServer(Infallible);

#[cfg(feature = "server")]
impl TlsServer {
    pub(crate) fn connection(&self) -> io::Result<Connection> {
        match self.0 {}
    }
}

/// Whom a client believes: nobody.
#[derive(Clone, Debug)]
pub struct TlsClient(Infallible);

impl TlsClient {
    /// Fails.
    ///
    /// # Errors
    /// Always [`TlsError::NotBuilt`].
    pub fn new(_directory: Option<&Path>, _server_name: &str) -> Result<Self, TlsError> {
        Err(TlsError::NotBuilt)
    }

    #[cfg(feature = "client")]
    pub(crate) fn connection(&self) -> io::Result<Connection> {
        match self.0 {}
    }
}

/// The state of a connection, which none has.
#[derive(Debug)]
pub struct Connection(Infallible);

#[derive(Debug)]
pub(crate) struct TlsState(Infallible);

impl TlsState {
    pub(crate) fn new(connection: Connection) -> Self {
        match connection.0 {}
    }

    pub(crate) fn negotiate(
        &mut self,
        _receive: impl FnMut(&mut [u8]) -> io::Result<usize>,
        _send: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        match self.0 {}
    }

    pub(crate) fn receive(
        &self,
        _buf: &mut [u8],
        _receive: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        match self.0 {}
    }

    pub(crate) fn send(&self, _parts: &[&[u8]], _send: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match self.0 {}
    }

    pub(crate) fn close(&self, _send: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match self.0 {}
    }
}
