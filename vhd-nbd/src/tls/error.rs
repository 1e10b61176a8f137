//! Why certificates can't be used.

use std::path::PathBuf;

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
    /// A name that no certificate can have.
    #[error("{name:?} is no name of a server that a certificate could prove")]
    ServerName {
        /// The name.
        name: String,
    },
    /// The system has no certificates of authorities.
    #[error("the system has no certificates of authorities to believe")]
    NoAuthorities,
    /// The TLS library can't be used.
    #[error("TLS can't be used")]
    System {
        /// Why not.
        #[source]
        source: rustls::Error,
    },
}
