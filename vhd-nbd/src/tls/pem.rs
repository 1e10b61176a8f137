//! Certificates and keys in files.

use std::io;
use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::TlsError;

/// The certificates in a file; at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = || CertificateDer::pem_file_iter(regular(path)?)?.collect::<Result<Vec<_>, _>>();
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

/// The certificates in a file as authorities.
pub(super) fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|source| TlsError::Unusable {
            path: path.to_owned(),
            source,
        })?;
    }
    Ok(roots)
}

/// The path, unless opening it could wait: for the other end of a pipe.
fn regular(path: &Path) -> Result<&Path, pem::Error> {
    match path.metadata() {
        Ok(metadata) if !metadata.is_file() => {
            let reason = "not a regular file";
            Err(pem::Error::Io(io::Error::new(io::ErrorKind::InvalidInput, reason)))
        }
        _ => Ok(path), // what can't be found is said by the open
    }
}

/// The private key in a file.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    regular(path)
        .and_then(PrivateKeyDer::from_pem_file)
        .map_err(|source| TlsError::Read {
            what: "a private key",
            path: path.to_owned(),
            source,
        })
}
