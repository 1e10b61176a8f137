//! Certificates and keys in files.

use std::io;
use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::TlsError;
use vhd_core::storage::read_existing;

/// Bytes: no file of certificates is larger.
const MAX_PEM: u64 = 16 << 20;

/// The certificates in a file; at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = || CertificateDer::pem_slice_iter(&content(path)?).collect::<Result<Vec<_>, _>>();
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

/// What is in a file, which may be of any kind.
fn content(path: &Path) -> Result<Vec<u8>, pem::Error> {
    match read_existing(path, MAX_PEM) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(pem::Error::Io(io::ErrorKind::NotFound.into())),
        Err(error) => Err(pem::Error::Io(io::Error::other(error))),
    }
}

/// The private key in a file.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let read = content(path).and_then(|text| PrivateKeyDer::from_pem_slice(&text));
    read.map_err(|source| TlsError::Read {
        what: "a private key",
        path: path.to_owned(),
        source,
    })
}
