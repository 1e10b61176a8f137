//! The side that asks.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::{ClientConnection, StreamOwned};

use crate::error::CsvError;
use crate::id::NodeId;
use crate::net::certificates::{CertificateFiles, judge, server_name};
use crate::net::frame::read_frame;

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// Connections to nodes of other machines, kept for the next call.
#[derive(Default)]
pub(in crate::net) struct TlsCalls {
    idle: Mutex<HashMap<(NodeId, SocketAddr), Vec<Stream>>>,
}

impl fmt::Debug for TlsCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsCalls")
    }
}

impl TlsCalls {
    /// Sends a message to the node at an address and waits for its answer.
    pub(in crate::net) fn call(
        &self,
        files: &CertificateFiles,
        node: &NodeId,
        address: SocketAddr,
        message: &[u8],
        limit: Duration,
    ) -> io::Result<Vec<u8>> {
        let to = (node.clone(), address);
        let anew = || exchange(connect(files, node, address, limit)?, message, limit);
        let kept = self.idle().get_mut(&to).and_then(Vec::pop);
        let answered = match kept {
            // The other side may have closed it meanwhile; a request may arrive twice.
            Some(stream) => exchange(stream, message, limit).or_else(|error| match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => Err(error),
                _ => anew(),
            }),
            None => anew(),
        };
        let (answer, stream) = answered.map_err(|error| explain(error, node))?;
        self.idle().entry(to).or_default().push(stream);
        Ok(answer)
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<(NodeId, SocketAddr), Vec<Stream>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn connect(files: &CertificateFiles, node: &NodeId, address: SocketAddr, limit: Duration) -> io::Result<Stream> {
    let name = server_name(node).ok_or_else(|| {
        io::Error::other(CsvError::CertificateName {
            whose: "no certificate".into(),
            node: node.clone(),
        })
    })?;
    let config = files.client_config().map_err(io::Error::other)?;
    let stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// Sends a message and reads its answer. A connection that failed is not used again: an answer may still be on its way.
fn exchange(mut stream: Stream, message: &[u8], limit: Duration) -> io::Result<(Vec<u8>, Stream)> {
    stream.sock.set_read_timeout(Some(limit))?;
    stream.write_all(message)?;
    stream.flush()?;
    let answer = read_frame(&mut stream)?;
    Ok((answer, stream))
}

/// A failure that is about a certificate is told as that.
fn explain(error: io::Error, node: &NodeId) -> io::Error {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    let judged = cause.and_then(|cause| {
        judge(
            cause,
            &format!("the certificate at the address of node {node}"),
            Some(node),
        )
    });
    judged.map_or(error, io::Error::other)
}
