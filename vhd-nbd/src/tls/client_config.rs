//! Whom a client believes, and how it proves who it is.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore};

use super::TlsError;
use super::pem::{authorities, certificates, private_key};

/// The names of the files in a directory of certificates, as other NBD programs call them.
const AUTHORITY: &str = "ca-cert.pem";
const CERTIFICATE: &str = "client-cert.pem";
const KEY: &str = "client-key.pem";

/// Whom a client believes, and how it proves who it is.
#[derive(Clone, Debug)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    server_name: ServerName<'static>,
}

impl TlsClient {
    /// The server must have a certificate for `server_name` (a host name or an address) of the authority in
    /// `ca-cert.pem` of the directory, or of one that the system believes if there is no directory. A
    /// `client-cert.pem` with its `client-key.pem` is shown to a server that asks.
    ///
    /// # Errors
    /// Files that can't be read or have something else in them; a name that no certificate can have; a system without
    /// authorities.
    pub fn new(directory: Option<&Path>, server_name: &str) -> Result<Self, TlsError> {
        let name = ServerName::try_from(server_name.to_owned()).map_err(|_| TlsError::ServerName {
            name: server_name.to_owned(),
        })?;
        let roots = match directory {
            Some(directory) => authorities(&directory.join(AUTHORITY))?,
            None => system_authorities()?,
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|source| TlsError::System { source })?
            .with_root_certificates(roots);
        let certificate = directory.map(|directory| directory.join(CERTIFICATE));
        let config = match certificate.filter(|path| path.exists()) {
            None => builder.with_no_client_auth(),
            Some(path) => builder
                .with_client_auth_cert(certificates(&path)?, private_key(&path.with_file_name(KEY))?)
                .map_err(|source| TlsError::Unusable { path, source })?,
        };
        Ok(Self {
            config: Arc::new(config),
            server_name: name,
        })
    }

    /// The state of a new connection.
    pub(crate) fn connection(&self) -> Result<Connection, rustls::Error> {
        Ok(ClientConnection::new(Arc::clone(&self.config), self.server_name.clone())?.into())
    }
}

fn system_authorities() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    // Some of a system's many may be damaged or of a kind that is not known: the others do.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(TlsError::NoAuthorities);
    }
    Ok(roots)
}
