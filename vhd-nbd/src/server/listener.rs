//! Where clients come in.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Why a server can't listen.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {address}")]
pub struct ListenError {
    /// Where.
    pub address: String,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// A socket that clients connect to.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
    address: String,
}

#[derive(Debug)]
enum Kind {
    Unix(UnixListener, Option<SocketFile>),
    Tcp(TcpListener),
}

/// The name of a unix socket, removed with its listener.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have removed it, or put another in its place: neither is worth a word.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

impl Listener {
    /// Listens on a unix socket. One that a server left behind when it was killed is replaced.
    ///
    /// # Errors
    /// Another server listens there; the name is taken by something else; the directory can't be written.
    pub fn unix(path: &Path) -> Result<Self, ListenError> {
        let address = path.display().to_string();
        let bound = UnixListener::bind(path).or_else(|error| {
            if error.kind() == io::ErrorKind::AddrInUse && is_left_behind(path) {
                std::fs::remove_file(path)?;
                return UnixListener::bind(path);
            }
            Err(error)
        });
        let bound = bound.and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        match bound {
            Ok(listener) => Ok(Self {
                kind: Kind::Unix(listener, Some(SocketFile(path.to_owned()))),
                address,
            }),
            Err(source) => Err(ListenError { address, source }),
        }
    }

    /// Listens on a TCP address; port 0 is any free one.
    ///
    /// # Errors
    /// The port is in use; the address is not this machine's.
    pub fn tcp(address: SocketAddr) -> Result<Self, ListenError> {
        let bind = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?.to_string();
            let kind = Kind::Tcp(listener);
            Ok(Self { kind, address })
        };
        bind().map_err(|source| ListenError {
            address: address.to_string(),
            source,
        })
    }

    /// Takes a connection; `None` if there is none.
    pub(super) fn accept(&self) -> io::Result<Option<(OwnedFd, String)>> {
        let accepted = match &self.kind {
            Kind::Unix(listener, _) => listener
                .accept()
                .map(|(stream, _)| (stream.into(), format!("a client of {}", self.address))),
            Kind::Tcp(listener) => listener.accept().map(|(stream, peer)| {
                // Replies are sent in whole: there is nothing to wait for.
                let _ = stream.set_nodelay(true);
                (stream.into(), peer.to_string())
            }),
        };
        match accepted {
            Ok(accepted) => Ok(Some(accepted)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Unix(listener, _) => listener.as_fd(),
            Kind::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// Whether a path is a socket that nobody listens to.
fn is_left_behind(path: &Path) -> bool {
    let is_socket = path
        .symlink_metadata()
        .is_ok_and(|metadata| metadata.file_type().is_socket());
    let refused = || UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    is_socket && refused()
}
