//! Certificates: who a node is, for nodes of other machines.
//!
//! One authority signs the certificates of a cluster's nodes; a certificate names its node, as a DNS name. Files are read again for each
//! connection, so that a new certificate needs no new start.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};

use crate::error::CsvError;
use crate::id::NodeId;

/// PEM files with who this machine is, and whom it believes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateFiles {
    /// The certificate, with those between it and the authority, if any.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authority of the cluster.
    pub ca: PathBuf,
}

/// What is in the files.
struct Loaded {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
}

impl CertificateFiles {
    /// Whether the files can be used: the certificate is of the authority, belongs to the key, is valid now, and is that of `node`.
    ///
    /// # Errors
    /// `CertificateUnusable`, `CertificateStale`, `CertificateForeign`, `CertificateName`.
    pub fn check(&self, node: Option<&NodeId>) -> Result<(), CsvError> {
        let loaded = self.load()?;
        let whose = self.cert.display().to_string();
        let verifier = self.verifier(&loaded)?;
        let (own, between) = loaded.chain.split_first().expect("at least one");
        let verified = verifier.verify_client_cert(own, between, UnixTime::now());
        verified.map_err(|error| judge(&error, &whose, None).unwrap_or_else(|| unusable(&self.cert, &error)))?;
        if let Some(node) = node.filter(|node| !names(own, node)) {
            let node = node.clone();
            return Err(CsvError::CertificateName { whose, node });
        }
        // A key of another certificate is found out here.
        self.server_config_of(loaded).map(drop)
    }

    /// For connections to other nodes.
    pub(super) fn client_config(&self) -> Result<Arc<ClientConfig>, CsvError> {
        let Loaded { chain, key, roots } = self.load()?;
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&self.cert, &error))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|error| unusable(&self.cert, &error))?;
        Ok(Arc::new(config))
    }

    /// For connections of other nodes: without a certificate of the authority nobody is let in.
    pub(super) fn server_config(&self) -> Result<Arc<ServerConfig>, CsvError> {
        self.server_config_of(self.load()?)
    }

    fn server_config_of(&self, loaded: Loaded) -> Result<Arc<ServerConfig>, CsvError> {
        let verifier = self.verifier(&loaded)?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&self.cert, &error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(loaded.chain, loaded.key)
            .map_err(|error| unusable(&self.cert, &error))?;
        Ok(Arc::new(config))
    }

    fn verifier(&self, loaded: &Loaded) -> Result<Arc<dyn ClientCertVerifier>, CsvError> {
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(&loaded.roots), provider());
        builder.build().map_err(|error| unusable(&self.ca, &error))
    }

    fn load(&self) -> Result<Loaded, CsvError> {
        let key = PrivateKeyDer::from_pem_file(regular(&self.key)?).map_err(|error| unusable(&self.key, &error))?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots.add(certificate).map_err(|error| unusable(&self.ca, &error))?;
        }
        Ok(Loaded {
            chain: certificates(&self.cert)?,
            key,
            roots: Arc::new(roots),
        })
    }
}

/// The certificates in a file; at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CsvError> {
    let read = CertificateDer::pem_file_iter(regular(path)?).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|error| unusable(path, &error))?;
    match found.is_empty() {
        true => Err(unusable(path, &"there is no certificate in it")),
        false => Ok(found),
    }
}

/// The path, unless opening it could wait: for the other end of a pipe.
fn regular(path: &Path) -> Result<&Path, CsvError> {
    match path.metadata() {
        Ok(metadata) if !metadata.is_file() => Err(unusable(path, &"not a regular file")),
        _ => Ok(path), // what can't be found is said by the open
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The name that the certificate of a node has to have.
pub(super) fn server_name(node: &NodeId) -> Option<ServerName<'static>> {
    ServerName::try_from(node.0.clone()).ok()
}

/// Whether a certificate, which has been verified, is that of a node.
pub(super) fn names(certificate: &CertificateDer<'_>, node: &NodeId) -> bool {
    let Some(name) = server_name(node) else { return false };
    ParsedCertificate::try_from(certificate).is_ok_and(|parsed| verify_server_name(&parsed, &name).is_ok())
}

/// What a failure of TLS says about the certificate of `whose`, which should be that of `node`, if it is about one.
pub(super) fn judge(error: &rustls::Error, whose: &str, node: Option<&NodeId>) -> Option<CsvError> {
    let whose = whose.to_owned();
    match error {
        rustls::Error::InvalidCertificate(reason) => {
            let text = error.to_string();
            Some(match (reason, node) {
                (
                    CertificateError::Expired
                    | CertificateError::ExpiredContext { .. }
                    | CertificateError::NotValidYet
                    | CertificateError::NotValidYetContext { .. }
                    | CertificateError::Revoked,
                    _,
                ) => CsvError::CertificateStale { whose, reason: text },
                (CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }, Some(node)) => {
                    let node = node.clone();
                    CsvError::CertificateName { whose, node }
                }
                _ => CsvError::CertificateForeign { whose, reason: text },
            })
        }
        rustls::Error::AlertReceived(alert) => {
            let reason = format!("the other side refuses it: {alert:?}");
            let whose = "this machine's certificate".to_owned();
            match alert {
                AlertDescription::CertificateExpired | AlertDescription::CertificateRevoked => {
                    Some(CsvError::CertificateStale { whose, reason })
                }
                AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateRequired
                | AlertDescription::AccessDenied
                | AlertDescription::DecryptError => Some(CsvError::CertificateForeign { whose, reason }),
                _ => None,
            }
        }
        _ => None,
    }
}

fn unusable(file: &Path, reason: &dyn std::fmt::Display) -> CsvError {
    CsvError::CertificateUnusable {
        file: file.display().to_string(),
        reason: reason.to_string(),
    }
}
