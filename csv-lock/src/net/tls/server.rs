//! The side that answers: one address of an agent, for all volumes that it coordinates.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::{ServerConnection, StreamOwned};

use crate::error::{CsvError, Refusal};
use crate::id::VolumeId;
use crate::message::{Reply, Request, decode, encode};
use crate::net::accept::{Accepting, SILENT, SLOW, accept_all};
use crate::net::certificates::{CertificateFiles, names};
use crate::net::frame::read_frame;
use crate::net::inbox::{Caller, Message};

/// How long keys may be negotiated, and how long one that was refused may take to read why.
const NEGOTIATE: Duration = Duration::from_secs(5);

/// Where an agent answers the nodes of other machines. It ends when this is dropped.
pub struct TlsServer {
    address: SocketAddr,
    routes: Arc<Routes>,
    _accepting: Accepting,
}

/// Which volumes are coordinated here.
#[derive(Default)]
struct Routes {
    by_volume: Mutex<HashMap<VolumeId, (u64, SyncSender<Message>)>>,
}

/// A volume's messages come in as long as this exists.
struct Route {
    volume: VolumeId,
    number: u64,
    routes: Arc<Routes>,
}

impl fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsServer({})", self.address)
    }
}

impl TlsServer {
    /// Listens at an address.
    ///
    /// # Errors
    /// What the system says.
    pub fn bind(address: SocketAddr, files: CertificateFiles) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let routes: Arc<Routes> = Arc::default();
        let served = Arc::clone(&routes);
        let accept = |listener: &TcpListener| listener.accept();
        let accepting = accept_all(listener, accept, move |(stream, from): (TcpStream, SocketAddr)| {
            if let Err(error) = serve(&stream, &files, &served) {
                tracing::info!(%from, %error, "a connection ended");
            }
        })?;
        Ok(Self {
            address,
            routes,
            _accepting: accepting,
        })
    }

    /// The address, with the port that the system chose if none was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The messages of a volume go to the sender, until what is returned is dropped.
    pub(in crate::net) fn route(&self, volume: VolumeId, sender: SyncSender<Message>) -> impl Send + use<> {
        let mut by_volume = self.routes.lock();
        let number = by_volume.get(&volume).map_or(0, |(number, _)| number + 1);
        by_volume.insert(volume, (number, sender));
        Route {
            volume,
            number,
            routes: Arc::clone(&self.routes),
        }
    }
}

impl Routes {
    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, (u64, SyncSender<Message>)>> {
        self.by_volume.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, volume: VolumeId) -> Option<SyncSender<Message>> {
        self.lock().get(&volume).map(|(_, sender)| sender.clone())
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        let mut by_volume = self.routes.lock();
        // Not that of the next term.
        if by_volume
            .get(&self.volume)
            .is_some_and(|(number, _)| *number == self.number)
        {
            by_volume.remove(&self.volume);
        }
    }
}

/// Answers one after the other, until the connection ends, is silent, or asks what is not coordinated here.
fn serve(stream: &TcpStream, files: &CertificateFiles, routes: &Routes) -> Result<(), CsvError> {
    let failed = |error: io::Error| CsvError::Message {
        reason: error.to_string(),
    };
    let connection = ServerConnection::new(files.server_config()?);
    let connection = connection.map_err(|error| failed(io::Error::other(error)))?;
    let mut stream = negotiate(stream, connection).map_err(failed)?;
    let certificate = stream.conn.peer_certificates().and_then(|chain| chain.first());
    let certificate = certificate.expect("nobody is let in without one").clone().into_owned();
    loop {
        let frame = read_frame(&mut stream).map_err(failed)?;
        let request: Request = decode(&frame)?;
        let answer = match refuse(&request, &certificate) {
            Some(refusal) => encode(&refusal),
            None => {
                let Some(sender) = routes.find(request.volume) else {
                    return Ok(());
                };
                let (caller, answer) = Caller::thread();
                if sender.send((frame, caller)).is_err() {
                    return Ok(());
                }
                let Ok(answer) = answer.recv() else { return Ok(()) };
                answer
            }
        };
        stream
            .write_all(&answer)
            .and_then(|()| stream.flush())
            .map_err(failed)?;
    }
}

/// A node speaks for itself (INV-106).
fn refuse(request: &Request, certificate: &CertificateDer<'_>) -> Option<Reply> {
    let node = &request.id.session.node;
    (!names(certificate, node)).then(|| Reply {
        // The sender believes no older one, and this is about no epoch.
        epoch: request.epoch,
        result: Err(Refusal::ForeignNode { node: node.clone() }),
    })
}

fn negotiate(
    stream: &TcpStream,
    mut connection: ServerConnection,
) -> io::Result<StreamOwned<ServerConnection, TcpStream>> {
    let mut stream = stream.try_clone()?;
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(NEGOTIATE))?;
    stream.set_write_timeout(Some(SLOW))?;
    while connection.is_handshaking() {
        if let Err(error) = connection.complete_io(&mut stream) {
            // Closed at once, with bytes that nobody has read, it would take the alert with the reason back.
            let _ = stream.shutdown(Shutdown::Write);
            let _ = io::copy(&mut (&stream).take(1 << 16), &mut io::sink());
            return Err(error);
        }
    }
    stream.set_read_timeout(Some(SILENT))?;
    Ok(StreamOwned::new(connection, stream))
}
