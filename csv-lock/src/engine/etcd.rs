//! The engine etcd: for several machines, and for who runs one anyway.
//!
//! A key with a lease elects. The lease is renewed at a fifth of its time, and its holder stops at four fifths, counted from the
//! moment a renewal was sent. That etcd keeps to the lease is not relied on: versions before 3.4.31 and 3.5.13 revoke leases that
//! are being renewed, and are refused all the same, since each such moment is an outage.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Identity, PutOptions, TlsOptions, Txn, TxnOp,
};
use tokio::runtime::{Builder, Runtime};

use super::{Engine, Leader, Term};
use crate::clock::{Clock, SystemClock};
use crate::error::CsvError;
use crate::id::{ClusterId, NodeId, VolumeId};

/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(1);
/// HTTP/2 keep-alive: a dead server is noticed between requests.
const ALIVE: Duration = Duration::from_millis(500);
/// The shortest lease that etcd gives, in seconds.
const SHORTEST: u64 = 2;

/// How an etcd cluster is reached.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// `HOST:PORT`, or with `http://` or `https://` before it.
    pub endpoints: Vec<String>,
    /// Certificates, for TLS in both directions.
    pub tls: Option<EtcdTls>,
    /// User and password of a role that has the prefix `/csv/CLUSTER/`.
    pub user: Option<(String, String)>,
    /// How long a lease lasts: 2 s at least.
    pub lease: Duration,
    /// Also with servers whose leases are known to be defective. For tests.
    pub any_version: bool,
}

/// Files with certificates in PEM.
#[derive(Clone, Debug)]
pub struct EtcdTls {
    /// Who signs the servers' certificates.
    pub ca: PathBuf,
    /// This client's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// The engine etcd. One value speaks for one node.
pub struct EtcdEngine {
    runtime: Runtime,
    client: Client,
    prefix: String,
    node: NodeId,
    lease: Duration,
    /// The leases of the terms that this node has, by revision.
    leases: Mutex<HashMap<u64, i64>>,
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
            check_versions(&runtime, config, &options)?;
        }
        let client = runtime
            .block_on(Client::connect(&config.endpoints, Some(options)))
            .map_err(|error| failed(&error))?;
        Ok(Self {
            runtime,
            client,
            prefix: format!("/csv/{cluster}"),
            node,
            lease: config.lease.max(Duration::from_secs(SHORTEST)),
            leases: Mutex::new(HashMap::new()),
        })
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<u64, i64>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease_of(&self, term: &Term) -> Result<i64, CsvError> {
        self.leases()
            .get(&term.revision)
            .copied()
            .ok_or_else(|| failed(&"the term is over"))
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

    /// A term whose renewal was sent at `sent` (never counted from the answer).
    fn term(&self, revision: u64, sent: Duration) -> Term {
        Term {
            revision,
            until: sent + self.lease * 4 / 5,
            renew_at: sent + self.lease / 5,
        }
    }

    /// What is registered, and the revision of that.
    fn registered(&self, volume: VolumeId) -> Result<(Option<Leader>, i64), CsvError> {
        let answer = self.run(self.client.kv_client().get(self.key(volume, "leader"), None))?;
        let Some(pair) = answer.kvs().first() else {
            return Ok((None, 0));
        };
        let leader = serde_json::from_slice(pair.value()).map_err(|error| failed(&error))?;
        Ok((Some(leader), pair.mod_revision()))
    }
}

impl Engine for EtcdEngine {
    fn campaign(&self, volume: VolumeId) -> Result<Option<Term>, CsvError> {
        let key = self.key(volume, "coord");
        // Without a lease for each look.
        if !self
            .run(self.client.kv_client().get(key.clone(), None))?
            .kvs()
            .is_empty()
        {
            return Ok(None);
        }
        let sent = SystemClock.now();
        let seconds = self.lease.as_secs().cast_signed();
        let lease = self.run(self.client.lease_client().grant(seconds, None))?.id();
        let put = TxnOp::put(
            key.clone(),
            self.node.0.clone(),
            Some(PutOptions::new().with_lease(lease)),
        );
        let free = Compare::create_revision(key, CompareOp::Equal, 0);
        let answer = self.run(self.client.kv_client().txn(Txn::new().when([free]).and_then([put])))?;
        if !answer.succeeded() {
            // Ends by itself if this does not arrive.
            self.run(self.client.lease_client().revoke(lease))?;
            return Ok(None);
        }
        let revision = answer.header().map_or(0, |header| header.revision().cast_unsigned());
        self.leases().insert(revision, lease);
        Ok(Some(self.term(revision, sent)))
    }

    fn renew(&self, _: VolumeId, term: &Term) -> Result<Option<Term>, CsvError> {
        let lease = self.lease_of(term)?;
        let sent = SystemClock.now();
        let mut client = self.client.lease_client();
        let renewed = self.run(async move {
            // Opening the stream renews once. A lease that is gone is an error of its own.
            match client.keep_alive(lease).await {
                Ok(_) => Ok(true),
                Err(etcd_client::Error::LeaseKeepAliveError(_)) => Ok(false),
                Err(error) => Err(error),
            }
        })?;
        if renewed {
            return Ok(Some(self.term(term.revision, sent)));
        }
        self.leases().remove(&term.revision);
        Ok(None)
    }

    fn resign(&self, _: VolumeId, term: &Term) -> Result<(), CsvError> {
        let lease = self.leases().remove(&term.revision);
        if let Some(lease) = lease {
            self.run(self.client.lease_client().revoke(lease))?;
        }
        Ok(())
    }

    fn publish(&self, volume: VolumeId, term: &Term, leader: &Leader) -> Result<(), CsvError> {
        let lease = self.lease_of(term)?;
        let (known, revision) = self.registered(volume)?;
        if let Some(known) = known.filter(|known| known.epoch >= leader.epoch) {
            return Err(failed(&format!(
                "epoch {} is registered, not older than {}",
                known.epoch, leader.epoch
            )));
        }
        let key = self.key(volume, "leader");
        let unchanged = Compare::mod_revision(key.clone(), CompareOp::Equal, revision);
        let held = Compare::lease(self.key(volume, "coord"), CompareOp::Equal, lease);
        let value = serde_json::to_vec(leader).expect("a leader has string keys alone");
        let put = TxnOp::put(key, value, None);
        let answer = self.run(
            self.client
                .kv_client()
                .txn(Txn::new().when([unchanged, held]).and_then([put])),
        )?;
        if answer.succeeded() {
            return Ok(());
        }
        Err(failed(&"the term is over"))
    }

    fn leader(&self, volume: VolumeId) -> Result<Option<Leader>, CsvError> {
        Ok(self.registered(volume)?.0)
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

/// Refuses servers with leases that are known to be defective. Servers that do not answer are not asked again.
fn check_versions(runtime: &Runtime, config: &EtcdConfig, options: &ConnectOptions) -> Result<(), CsvError> {
    let mut answered = false;
    let mut last = String::new();
    for endpoint in &config.endpoints {
        let asked = runtime.block_on(async {
            let mut client = Client::connect([endpoint], Some(options.clone())).await?;
            Ok::<_, etcd_client::Error>(client.status().await?.version().to_owned())
        });
        match asked {
            Ok(version) => {
                answered = true;
                check_version(&version)?;
            }
            Err(error) => last = format!("{endpoint}: {error}"),
        }
    }
    if answered { Ok(()) } else { Err(failed(&last)) }
}

fn check_version(found: &str) -> Result<(), CsvError> {
    let mut parts = found
        .split('.')
        .map(|part| part.split('-').next().and_then(|digits| digits.parse::<u32>().ok()));
    let mut part = || parts.next().flatten().unwrap_or(0);
    let wanted = match (part(), part(), part()) {
        (3, 4, 31..) | (3, 5, 13..) | (3, 6.., _) | (4.., _, _) => return Ok(()),
        (3, 5, _) => "3.5.13",
        _ => "3.4.31",
    };
    Err(CsvError::EngineVersion {
        found: found.to_owned(),
        wanted,
    })
}

fn failed(error: &dyn std::fmt::Display) -> CsvError {
    CsvError::Engine {
        reason: format!("etcd: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_defective_leases_are_refused() {
        for good in ["3.4.31", "3.4.40", "3.5.13", "3.5.21", "3.6.0", "3.6.0-rc.1", "4.0.0"] {
            assert!(check_version(good).is_ok(), "{good}");
        }
        for bad in ["3.4.23", "3.5.12", "3.5.1", "3.3.40", "2.3.8", "", "x.y.z"] {
            assert_eq!(check_version(bad).unwrap_err().code(), "VHD-E0912", "{bad}");
        }
    }
}
