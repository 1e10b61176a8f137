//! Where clients come in.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use listenfd::ListenFd;
use vsock::VsockListener;

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
    Unix {
        listener: UnixListener,
        /// Removed with the listener; `None` if somebody else made the socket.
        _file: Option<SocketFile>,
    },
    Tcp {
        listener: TcpListener,
        /// Who may come; everybody if empty.
        allowed: Vec<IpNet>,
    },
    Vsock(VsockListener),
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
        let bind = || {
            let listener = bind_unix(path)?;
            let file = SocketFile(path.to_owned());
            listener.set_nonblocking(true)?;
            Ok(Kind::Unix {
                listener,
                _file: Some(file),
            })
        };
        Self::new(address, bind)
    }

    /// Listens on a TCP address; port 0 is any free one. If `allowed` names networks, connections from elsewhere are
    /// closed at once.
    ///
    /// # Errors
    /// The port is in use; the address is not this machine's.
    pub fn tcp(address: SocketAddr, allowed: Vec<IpNet>) -> Result<Self, ListenError> {
        let mut listener = Self::new(address.to_string(), || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(Kind::Tcp { listener, allowed })
        })?;
        if let Kind::Tcp { listener: tcp, .. } = &listener.kind
            && let Ok(address) = tcp.local_addr()
        {
            listener.address = address.to_string();
        }
        Ok(listener)
    }

    /// Listens on a port for virtual machines; the context number `u32::MAX` is any of this machine's.
    ///
    /// # Errors
    /// The port is in use; the system has no such sockets.
    pub fn vsock(cid: u32, port: u32) -> Result<Self, ListenError> {
        Self::new(format!("vsock {cid}:{port}"), || {
            let listener = VsockListener::bind_with_cid_port(cid, port)?;
            listener.set_nonblocking(true)?;
            Ok(Kind::Vsock(listener))
        })
    }

    /// The sockets that a service manager passed to this process (`LISTEN_FDS`), unix and TCP ones; none if there is no
    /// manager. To be called once, before threads are started.
    ///
    /// # Errors
    /// A passed file is no listening socket of these kinds.
    pub fn activated() -> Result<Vec<Self>, ListenError> {
        let mut passed = ListenFd::from_env();
        (0..passed.len()).map(|index| Self::take(&mut passed, index)).collect()
    }

    fn take(passed: &mut ListenFd, index: usize) -> Result<Self, ListenError> {
        Self::new(format!("socket {index} of the service manager"), || {
            if let Ok(Some(listener)) = passed.take_unix_listener(index) {
                listener.set_nonblocking(true)?;
                return Ok(Kind::Unix { listener, _file: None });
            }
            let missing = || io::Error::from(io::ErrorKind::InvalidInput);
            let listener = passed.take_tcp_listener(index)?.ok_or_else(missing)?;
            listener.set_nonblocking(true)?;
            let allowed = Vec::new();
            Ok(Kind::Tcp { listener, allowed })
        })
    }

    fn new(address: String, bind: impl FnOnce() -> io::Result<Kind>) -> Result<Self, ListenError> {
        match bind() {
            Ok(kind) => Ok(Self { kind, address }),
            Err(source) => Err(ListenError { address, source }),
        }
    }

    /// Takes a connection, with a text that says whose it is; `None` if there is none, or one that is not allowed.
    pub(super) fn accept(&self) -> io::Result<Option<(OwnedFd, String)>> {
        let accepted = match &self.kind {
            Kind::Unix { listener, .. } => listener
                .accept()
                .map(|(stream, _)| Some((stream.into(), format!("a client of {}", self.address)))),
            Kind::Tcp { listener, allowed } => accept_tcp(listener, allowed),
            Kind::Vsock(listener) => listener
                .accept()
                .map(|(stream, peer)| Some((stream.into(), peer.to_string()))),
        };
        match accepted {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted
                ) =>
            {
                Ok(None)
            }
            other => other,
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Unix { listener, .. } => listener.as_fd(),
            Kind::Tcp { listener, .. } => listener.as_fd(),
            Kind::Vsock(listener) => listener.as_fd(),
        }
    }
}

fn accept_tcp(listener: &TcpListener, allowed: &[IpNet]) -> io::Result<Option<(OwnedFd, String)>> {
    let (stream, peer) = listener.accept()?;
    if !is_allowed(peer.ip(), allowed) {
        tracing::warn!(%peer, "refused: not in an allowed network");
        return Ok(None);
    }
    // Replies are sent in whole: there is nothing to wait for.
    stream.set_nodelay(true)?;
    Ok(Some((stream.into(), peer.to_string())))
}

fn is_allowed(peer: IpAddr, allowed: &[IpNet]) -> bool {
    // An IPv4 peer of an IPv6 socket is an IPv4 peer.
    let peer = peer.to_canonical();
    allowed.is_empty() || allowed.iter().any(|network| network.contains(&peer))
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_behind(path) => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        other => other,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_allowed_by_network() {
        let allowed: Vec<IpNet> = vec!["10.1.0.0/16".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        let is_allowed = |peer: &str, allowed| is_allowed(peer.parse().unwrap(), allowed);
        for peer in ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1"] {
            assert!(is_allowed(peer, &allowed), "{peer}");
        }
        for peer in ["10.2.2.3", "::1", "::ffff:10.2.0.1"] {
            assert!(!is_allowed(peer, &allowed), "{peer}");
            assert!(is_allowed(peer, &[]));
        }
    }

    #[test]
    fn a_dead_socket_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = Listener::unix(&path).unwrap();
        let second = Listener::unix(&path).unwrap_err();
        assert_eq!(second.source.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        assert!(!path.exists());
        std::fs::write(&path, "a file").unwrap();
        assert!(Listener::unix(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"a file");
    }
}
