//! Certificates of a server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{Connection, RootCertStore, ServerConfig, ServerConnection};

/// Why certificates can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file can't be read, or is no PEM file with what is needed.
    #[error("can't read {what} from {}", path.display())]
    Read {
        /// What is needed.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A file has no certificate.
    #[error("there is no certificate in {}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A certificate is not usable, or does not belong to the key.
    #[error("the certificate in {} can't be used", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rustls::Error,
    },
    /// Clients can't be verified with the certificates.
    #[error("clients can't be verified with {}", path.display())]
    Verifier {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rustls::server::VerifierBuilderError,
    },
}

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
        let private = PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::Read {
            what: "a private key",
            path: key.to_owned(),
            source,
        })?;
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

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let found = read().map_err(|source| TlsError::Read {
        what: "certificates",
        path: path.to_owned(),
        source,
    })?;
    if found.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned() });
    }
    Ok(found)
}

fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|source| TlsError::Unusable {
            path: path.to_owned(),
            source,
        })?;
    }
    Ok(roots)
}
