//! Where clients come in.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;
use vsock::VsockListener;

use super::activation::Passed;
use super::complaint::Complaint;
use super::policy::{OpenToAll, TcpPolicy};
use super::socket_file::SocketFile;
use crate::keepalive::keep_alive;

/// Why a server can't listen.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {address}")]
pub struct ListenError {
    /// Where.
    pub address: String,
    /// Why not.
    #[source]
    pub source: ListenFailure,
}

/// Why a server can't listen somewhere.
#[derive(Debug, thiserror::Error)]
pub enum ListenFailure {
    /// The system can't, or does not want to.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The policy does not allow it.
    #[error(transparent)]
    Policy(#[from] OpenToAll),
    /// What a service manager passed is no socket that clients can connect to.
    #[error("{0}")]
    Passed(String),
}

/// A socket that clients connect to.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
    address: String,
    complaint: Complaint,
}

#[derive(Debug)]
enum Kind {
    Unix {
        /// Dropped before the listener, which keeps the identity of the file; `None` if somebody else made the socket.
        _file: Option<SocketFile>,
        listener: UnixListener,
    },
    Tcp {
        listener: TcpListener,
        policy: TcpPolicy,
    },
    Vsock(VsockListener),
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
        Self::new(address, || {
            let (listener, file) = SocketFile::bind(path)?;
            listener.set_nonblocking(true)?;
            let _file = Some(file);
            Ok(Kind::Unix { _file, listener })
        })
    }

    /// Listens on a TCP address; port 0 is any free one. Connections that the policy does not allow are closed at once.
    ///
    /// # Errors
    /// The port is in use; the address is not this machine's; the policy does not allow to listen there.
    pub fn tcp(address: SocketAddr, policy: TcpPolicy) -> Result<Self, ListenError> {
        Self::new(address.to_string(), || {
            policy.may_listen(address)?;
            Kind::tcp(TcpListener::bind(address)?, policy)
        })
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
    /// A passed file is no listening socket of these kinds; it can't be told how many there are; the policy does not allow
    /// to listen on one.
    pub fn activated(policy: &TcpPolicy) -> Result<Vec<Self>, ListenError> {
        let said = Passed::from_env().map_err(|message| ListenError {
            address: "the sockets of the service manager".to_owned(),
            source: ListenFailure::Passed(message),
        })?;
        let Some(said) = said else {
            return Ok(Vec::new());
        };
        let mut passed = ListenFd::from_env();
        let taken = (0..said.count).map(|index| Self::take(&mut passed, index, said.name(index), policy));
        taken.collect()
    }

    /// Whether a service manager passed sockets to this process.
    ///
    /// # Errors
    /// It can't be told how many there are.
    pub fn are_passed() -> Result<bool, ListenError> {
        let said = Passed::from_env().map_err(|message| ListenError {
            address: "the sockets of the service manager".to_owned(),
            source: ListenFailure::Passed(message),
        })?;
        Ok(said.is_some())
    }

    fn take(passed: &mut ListenFd, index: usize, name: String, policy: &TcpPolicy) -> Result<Self, ListenError> {
        Self::new(name, || {
            let wrong = || ListenFailure::Passed("it is no socket of TCP or unix streams that listens".to_owned());
            if let Ok(Some(listener)) = passed.take_unix_listener(index) {
                is_listening(&listener).then_some(()).ok_or_else(wrong)?;
                listener.set_nonblocking(true)?;
                return Ok(Kind::Unix { _file: None, listener });
            }
            let listener = passed.take_tcp_listener(index).ok().flatten().ok_or_else(wrong)?;
            is_listening(&listener).then_some(()).ok_or_else(wrong)?;
            policy.may_listen(listener.local_addr()?)?;
            Kind::tcp(listener, policy.clone())
        })
    }

    fn new(address: String, bind: impl FnOnce() -> Result<Kind, ListenFailure>) -> Result<Self, ListenError> {
        match bind() {
            Ok(kind) => Ok(Self {
                address: kind.tcp_address().unwrap_or(address),
                kind,
                complaint: Complaint::default(),
            }),
            Err(source) => Err(ListenError { address, source }),
        }
    }

    /// What goes wrong with it again and again.
    pub(super) fn complaint(&self) -> &Complaint {
        &self.complaint
    }

    /// Takes a connection, with a text that says whose it is; `None` if there is none, or one that is not allowed.
    pub(super) fn accept(&self) -> io::Result<Option<(OwnedFd, String)>> {
        let accepted = match &self.kind {
            Kind::Unix { listener, .. } => listener
                .accept()
                .map(|(stream, _)| Some((stream.into(), format!("a client of {}", self.address)))),
            Kind::Tcp { listener, policy } => accept_tcp(listener, policy, &self.complaint),
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

impl Kind {
    fn tcp(listener: TcpListener, policy: TcpPolicy) -> Result<Self, ListenFailure> {
        listener.set_nonblocking(true)?;
        Ok(Self::Tcp { listener, policy })
    }

    /// The address of a TCP socket, with its real port.
    fn tcp_address(&self) -> Option<String> {
        match self {
            Self::Tcp { listener, .. } => listener.local_addr().ok().map(|address| address.to_string()),
            _ => None,
        }
    }
}

fn is_listening(socket: impl AsFd) -> bool {
    socket_acceptconn(socket).unwrap_or(false)
}

fn accept_tcp(
    listener: &TcpListener,
    policy: &TcpPolicy,
    complaint: &Complaint,
) -> io::Result<Option<(OwnedFd, String)>> {
    let (stream, peer) = listener.accept()?;
    if !policy.may_connect(peer.ip()) {
        complaint.say(|times| tracing::warn!(%peer, times, "refused: not in an allowed network"));
        return Ok(None);
    }
    prepare(&stream)?;
    Ok(Some((stream.into(), peer.to_string())))
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    // Replies are sent in whole: there is nothing to wait for.
    stream.set_nodelay(true)?;
    keep_alive(stream)
}
