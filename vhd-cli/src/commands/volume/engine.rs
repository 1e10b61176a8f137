//! The options that say how a machine reaches the engine of its cluster, and other nodes.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use csv_lock::{CertificateFiles, EngineAccess};

use crate::failure::Failure;
use crate::volume::EngineName;

/// How a machine reaches its cluster. What is not given stays as this machine knows it.
#[derive(Args, Debug)]
pub(super) struct EngineArgs {
    /// Who elects the coordinator: local (the processes of one machine), or etcd://HOST:PORT[,HOST:PORT...] [default: local for a new
    /// volume, else what the volume says]
    #[arg(long, value_name = "ENGINE")]
    pub(super) engine: Option<EngineName>,
    /// The certificate of this machine, as a PEM file: for etcd, and for the nodes of other machines
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    tls_cert: Option<PathBuf>,
    /// The private key of the certificate, as a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The authority that the certificates of etcd and of all nodes are of, as a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
    /// A user of etcd whose role has the prefix /csv/CLUSTER/
    #[arg(long, value_name = "NAME", requires = "etcd_password_file")]
    etcd_user: Option<String>,
    /// The file with the user's password
    #[arg(long, value_name = "FILE", requires = "etcd_user")]
    etcd_password_file: Option<PathBuf>,
    /// Also use versions of etcd that revoke leases which are being renewed: for tests, each such moment is an outage
    #[arg(long)]
    etcd_any_version: bool,
}

impl EngineArgs {
    /// How the machine reaches its cluster, which it did like this before.
    ///
    /// # Errors
    /// There is no such file.
    pub(super) fn access(&self, before: EngineAccess) -> Result<EngineAccess, Failure> {
        let mut access = before;
        if let (Some(cert), Some(key), Some(ca)) = (&self.tls_cert, &self.tls_key, &self.tls_ca) {
            access.certificates = Some(CertificateFiles {
                cert: whole(cert)?,
                key: whole(key)?,
                ca: whole(ca)?,
            });
        }
        if let (Some(user), Some(file)) = (&self.etcd_user, &self.etcd_password_file) {
            access.user = Some((user.clone(), whole(file)?));
        }
        access.any_version |= self.etcd_any_version;
        Ok(access)
    }
}

/// The path from the root: agents run elsewhere.
fn whole(path: &Path) -> Result<PathBuf, Failure> {
    fs::canonicalize(path).map_err(|error| Failure::io("open", path, &error))
}
