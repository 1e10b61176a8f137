//! Certificates of a server.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::{Connection, ServerConfig, ServerConnection};

use super::TlsError;
use super::pem::{authorities, certificates, private_key};

/// How a server proves who it is, and whom it believes.
#[derive(Clone, Debug)]
pub struct TlsServer {
    config: Arc<ServerConfig>,
}

impl TlsServer {
    /// The server's certificate (with those between it and the authority, if any) and key, as PEM files. With
    /// `client_ca` only clients with a certificate of that authority are let in.
    ///
    /// # Errors
    /// Files that can't be read or have something else in them; a key that belongs to another certificate.
    pub fn new(certificate: &Path, key: &Path, client_ca: Option<&Path>) -> Result<Self, TlsError> {
        let chain = certificates(certificate)?;
        let private = private_key(key)?;
        let unusable = |source| TlsError::Unusable {
            path: certificate.to_owned(),
            source,
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(authorities(path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|source| TlsError::Verifier {
                    path: path.to_owned(),
                    source,
                })?)
            }
        };
        let config = builder.with_single_cert(chain, private).map_err(unusable)?;
        Ok(Self {
            config: Arc::new(config),
        })
    }

    /// The state of a new connection.
    pub(crate) fn connection(&self) -> Result<Connection, rustls::Error> {
        Ok(ServerConnection::new(Arc::clone(&self.config))?.into())
    }
}
