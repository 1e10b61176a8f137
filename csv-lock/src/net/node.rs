//! The network of a node: sockets on its machine, TLS between machines.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::inbox::Inbox;
use super::tls::{TlsCalls, TlsServer};
use super::unix::{self, UnixNet};
use super::{Address, CertificateFiles, Net};
use crate::error::CsvError;
use crate::id::VolumeId;

/// Sockets for processes of the same machine, TLS for the others; the [`Address`] says which. Clones share connections.
#[derive(Clone, Debug)]
pub struct NodeNet {
    machine: Uuid,
    files: Option<CertificateFiles>,
    here: UnixNet,
    elsewhere: Arc<TlsCalls>,
    serves: Option<(VolumeId, Arc<TlsServer>)>,
}

impl NodeNet {
    /// The network of a process on a machine. Without certificates it reaches no other machine.
    #[must_use]
    pub fn new(machine: Uuid, files: Option<CertificateFiles>) -> Self {
        Self {
            machine,
            files,
            here: UnixNet::default(),
            elsewhere: Arc::default(),
            serves: None,
        }
    }

    /// For the coordinator of a volume: other machines reach it at the server's address.
    #[must_use]
    pub fn serving(mut self, volume: VolumeId, server: Arc<TlsServer>) -> Self {
        self.serves = Some((volume, server));
        self
    }
}

impl Net for NodeNet {
    type Listener = Inbox;

    fn listen(&self, address: &str) -> io::Result<Inbox> {
        let address = parse(address)?;
        Inbox::new(|sender| {
            let mut doors: Vec<Box<dyn Send>> = vec![Box::new(unix::listen(address.socket.into(), sender.clone())?)];
            if let Some((volume, server)) = &self.serves {
                doors.push(Box::new(server.route(*volume, sender.clone())));
            }
            Ok(doors)
        })
    }

    fn call(&self, address: &str, message: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
        let address = parse(address)?;
        if address.is_here(self.machine) {
            return self.here.call(&address.socket, message, limit);
        }
        let unreachable = |reason: &str| {
            io::Error::other(CsvError::Unreachable {
                node: address.node.clone(),
                reason: reason.to_owned(),
            })
        };
        let listens = address
            .listens
            .ok_or_else(|| unreachable("its agent answers its own machine alone: start it with --listen ADDR:PORT"))?;
        let files = self.files.as_ref().ok_or_else(|| {
            unreachable("this machine has no certificate: `vhd volume add DIR --tls-cert F --tls-key F --tls-ca F`")
        })?;
        self.elsewhere.call(files, &address.node, listens, message, limit)
    }
}

fn parse(address: &str) -> io::Result<Address> {
    address
        .parse()
        .map_err(|error: String| io::Error::new(io::ErrorKind::InvalidInput, error))
}
