//! Where a server is, and how to get there.

use std::fmt;
use std::io;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use vsock::VsockStream;

use crate::keepalive::keep_alive;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host and a port.
    Tcp {
        /// A name, or an address without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A socket of this machine; one whose name begins with a NUL character is in no directory.
    Unix(PathBuf),
    /// A port of a virtual machine or of its host.
    Vsock {
        /// The context number.
        cid: u32,
        /// The port.
        port: u32,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.to_string_lossy().replace('\0', "@")),
            Self::Vsock { cid, port } => write!(f, "vsock {cid}:{port}"),
        }
    }
}

impl Address {
    /// The name that a server there must be able to prove, where nobody says another.
    pub(super) fn server_name(&self) -> &str {
        match self {
            Self::Tcp { host, .. } => host,
            Self::Unix(_) | Self::Vsock { .. } => "localhost",
        }
    }

    /// A blocking socket that is connected; each address that a name has is tried for `timeout` at most.
    pub(super) fn connect(&self, timeout: Duration) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp { host, port } => connect_tcp(host, *port, timeout),
            Self::Unix(path) => connect_unix(path, timeout),
            Self::Vsock { cid, port } => Ok(VsockStream::connect_with_cid_port(*cid, *port)?.into()),
        }
    }
}

fn connect_tcp(host: &str, port: u16, timeout: Duration) -> io::Result<OwnedFd> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => {
                // Requests are sent in whole: there is nothing to wait for.
                stream.set_nodelay(true)?;
                keep_alive(&stream)?;
                return Ok(stream.into());
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn connect_unix(path: &Path, timeout: Duration) -> io::Result<OwnedFd> {
    let bytes = path.as_os_str().as_bytes();
    let address = match bytes.strip_prefix(b"\0") {
        Some(name) => SocketAddrUnix::new_abstract_name(name)?,
        None => SocketAddrUnix::new(bytes)?,
    };
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // A server that accepts nobody would keep this waiting for ever.
    set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
    connect(&socket, &address)?;
    Ok(socket)
}
