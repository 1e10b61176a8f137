//! The engine etcd: for several machines, and for who runs one anyway.
//!
//! A key with a lease elects. The lease is renewed at a fifth of its time, and its holder stops at four fifths, counted from the
//! moment a renewal was sent. That etcd keeps to the lease is not relied on: versions before 3.4.31 and 3.5.13 revoke leases that
//! are being renewed, and are refused all the same, since each such moment is an outage.
//!
//! ```text
//!   election.rs   who may try                          view.rs      a copy of a volume's keys that follows them
//!   records.rs    what nodes know of each other        version.rs   servers that are refused
//! ```
//!
//! All keys of a volume are below `/csv/CLUSTER/vol/VOLUME/`, its events below `/csv/CLUSTER/event/VOLUME/`.

mod election;
mod records;
mod version;
mod view;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use tokio::runtime::{Builder, Runtime};

pub use records::Presence;

use self::view::View;
use crate::error::CsvError;
use crate::id::{ClusterId, NodeId, VolumeId};
use crate::net::CertificateFiles;

/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(1);
/// HTTP/2 keep-alive: a dead server is noticed between requests.
const ALIVE: Duration = Duration::from_millis(500);
/// The shortest lease that etcd gives, in seconds.
const SHORTEST: u64 = 2;

/// The key that elects: with a lease, its value is the node.
const COORDINATOR: &str = "coord";
/// The key that says where the coordinator was last.
const LEADER: &str = "leader";

/// How an etcd cluster is reached.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// `HOST:PORT`, or with `http://` or `https://` before it.
    pub endpoints: Vec<String>,
    /// Certificates, for TLS in both directions.
    pub tls: Option<CertificateFiles>,
    /// User and password of a role that has the prefix `/csv/CLUSTER/`.
    pub user: Option<(String, String)>,
    /// How long a lease lasts: 2 s at least.
    pub lease: Duration,
    /// Also with servers whose leases are known to be defective. For tests.
    pub any_version: bool,
}

/// The engine etcd. One value speaks for one node.
pub struct EtcdEngine {
    runtime: Runtime,
    client: Client,
    config: EtcdConfig,
    prefix: String,
    node: NodeId,
    lease: Duration,
    /// The leases of the terms that this node has, by revision.
    leases: Mutex<HashMap<u64, i64>>,
    /// A copy of the keys of one volume, if it is followed.
    view: OnceLock<(VolumeId, Arc<View>)>,
    /// The volume in which the node says that it is there.
    present: OnceLock<VolumeId>,
}

impl EtcdEngine {
    /// Connects, and looks at the versions of all servers that answer.
    ///
    /// # Errors
    /// `Engine` if none answers, `EngineVersion` if one has a defect that its leases are worthless with.
    pub fn connect(config: &EtcdConfig, cluster: ClusterId, node: NodeId) -> Result<Self, CsvError> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|error| failed(&error))?;
        let options = options(config)?;
        if !config.any_version {
            version::check_versions(&runtime, config, &options)?;
        }
        let client = runtime
            .block_on(Client::connect(&config.endpoints, Some(options)))
            .map_err(|error| failed(&error))?;
        Ok(Self {
            runtime,
            client,
            config: config.clone(),
            prefix: format!("/csv/{cluster}"),
            node,
            lease: config.lease.max(Duration::from_secs(SHORTEST)),
            leases: Mutex::new(HashMap::new()),
            view: OnceLock::new(),
            present: OnceLock::new(),
        })
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<u64, i64>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a request for as long as one may take.
    fn run<T>(&self, request: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, CsvError> {
        let limited = async { tokio::time::timeout(LIMIT, request).await };
        match self.runtime.block_on(limited) {
            Ok(result) => result.map_err(|error| failed(&error)),
            Err(_) => Err(failed(&format!("no answer within {} s", LIMIT.as_secs()))),
        }
    }

    fn key(&self, volume: VolumeId, name: &str) -> String {
        format!("{}/vol/{volume}/{name}", self.prefix)
    }
}

fn options(config: &EtcdConfig) -> Result<ConnectOptions, CsvError> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(LIMIT)
        .with_timeout(LIMIT)
        .with_keep_alive(ALIVE, ALIVE)
        .with_keep_alive_while_idle(true);
    if let Some((name, password)) = &config.user {
        options = options.with_user(name, password);
    }
    if let Some(tls) = &config.tls {
        let read =
            |path: &PathBuf| std::fs::read(path).map_err(|error| failed(&format!("{}: {error}", path.display())));
        let identity = Identity::from_pem(read(&tls.cert)?, read(&tls.key)?);
        let ca = Certificate::from_pem(read(&tls.ca)?);
        options = options.with_tls(TlsOptions::new().ca_certificate(ca).identity(identity));
    }
    Ok(options)
}

fn failed(error: &dyn std::fmt::Display) -> CsvError {
    CsvError::Engine {
        reason: format!("etcd: {error}"),
    }
}
