//! What the nodes of a volume know of each other: who takes part, who is there, who shall coordinate, what happened.

use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{COORDINATOR, EtcdEngine, LEADER, LIMIT, SHORTEST, failed};
use crate::engine::Leader;
use crate::error::CsvError;
use crate::id::{NodeId, VolumeId};
use crate::registry::{Event, Member, now_ms};

const MEMBER: &str = "member/";
const NODE: &str = "node/";
const WISH: &str = "wish";
/// So many events of a volume are kept.
const KEPT: usize = 1000;
/// How long until a node says again that it is there, if that could not be heard.
const AGAIN: Duration = Duration::from_millis(500);

/// A node whose agent runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Its machine.
    pub machine: Uuid,
    /// Where other machines find it, if they do.
    pub listens: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct MemberRecord {
    joined_ms: i64,
    condition: String,
}

#[derive(Serialize, Deserialize)]
struct EventRecord {
    time_ms: i64,
    node: String,
    kind: String,
    text: String,
}

impl EtcdEngine {
    /// A node takes part from now on. False if it did already.
    ///
    /// # Errors
    /// `Engine`.
    pub fn join(&self, volume: VolumeId, node: &NodeId) -> Result<bool, CsvError> {
        let key = self.key(volume, &format!("{MEMBER}{node}"));
        let record = MemberRecord {
            joined_ms: now_ms(),
            condition: String::new(),
        };
        let put = TxnOp::put(key.clone(), json(&record), None);
        let free = Compare::create_revision(key, CompareOp::Equal, 0);
        self.transact(Txn::new().when([free]).and_then([put]))
    }

    /// A node takes no part any more. False if it took none.
    ///
    /// # Errors
    /// `Engine`.
    pub fn leave(&self, volume: VolumeId, node: &NodeId) -> Result<bool, CsvError> {
        let key = self.key(volume, &format!("{MEMBER}{node}"));
        Ok(self.run(self.client.kv_client().delete(key, None))?.deleted() > 0)
    }

    /// The nodes that take part in a volume, by name.
    ///
    /// # Errors
    /// `Engine`.
    pub fn members(&self, volume: VolumeId) -> Result<Vec<Member>, CsvError> {
        let found = self.below(volume, MEMBER)?.into_iter();
        let read = found.map(|(node, value)| {
            let MemberRecord { joined_ms, condition } = parsed(&value)?;
            let node = NodeId(node);
            Ok(Member {
                node,
                joined_ms,
                condition,
            })
        });
        read.collect()
    }

    /// What an agent has to say about its part in a volume, if it takes part.
    ///
    /// # Errors
    /// `Engine`.
    pub fn set_condition(&self, volume: VolumeId, node: &NodeId, condition: &str) -> Result<(), CsvError> {
        let name = format!("{MEMBER}{node}");
        let Some(value) = self.value(volume, &name)? else {
            return Ok(());
        };
        let mut record: MemberRecord = parsed(&value)?;
        condition.clone_into(&mut record.condition);
        let key = self.key(volume, &name);
        // It may have been evicted meanwhile.
        let exists = Compare::create_revision(key.clone(), CompareOp::NotEqual, 0);
        let put = TxnOp::put(key, json(&record), None);
        self.transact(Txn::new().when([exists]).and_then([put])).map(drop)
    }

    /// For `limit` no other node than this one shall become the coordinator.
    ///
    /// # Errors
    /// `Engine`.
    pub fn wish(&self, volume: VolumeId, node: &NodeId, limit: Duration) -> Result<(), CsvError> {
        let seconds = limit.as_secs().max(SHORTEST).cast_signed();
        let lease = self.run(self.client.lease_client().grant(seconds, None))?.id();
        let options = PutOptions::new().with_lease(lease);
        self.run(
            self.client
                .kv_client()
                .put(self.key(volume, WISH), node.0.clone(), Some(options)),
        )?;
        Ok(())
    }

    /// The wish is fulfilled, or given up.
    ///
    /// # Errors
    /// `Engine`.
    pub fn end_wish(&self, volume: VolumeId, node: &NodeId) -> Result<(), CsvError> {
        let key = self.key(volume, WISH);
        let same = Compare::value(key.clone(), CompareOp::Equal, node.0.clone());
        self.transact(Txn::new().when([same]).and_then([TxnOp::delete(key, None)]))
            .map(drop)
    }

    /// Who shall coordinate the volume, while somebody wishes it.
    ///
    /// # Errors
    /// `Engine`.
    pub fn wished(&self, volume: VolumeId) -> Result<Option<NodeId>, CsvError> {
        let value = self.value(volume, WISH)?;
        Ok(value.map(|value| NodeId(String::from_utf8_lossy(&value).into_owned())))
    }

    /// The coordinator, while one has the right to be that and has said where it is.
    ///
    /// # Errors
    /// `Engine`.
    pub fn coordinator(&self, volume: VolumeId) -> Result<Option<Leader>, CsvError> {
        let (Some(elected), Some(leader)) = (self.value(volume, COORDINATOR)?, self.value(volume, LEADER)?) else {
            return Ok(None);
        };
        let leader: Leader = parsed(&leader)?;
        Ok((leader.node.0.as_bytes() == elected).then_some(leader))
    }

    /// Takes the right to coordinate from a node that is gone, and that it is there.
    ///
    /// # Errors
    /// `Engine`.
    pub fn expel(&self, volume: VolumeId, node: &NodeId) -> Result<(), CsvError> {
        let key = self.key(volume, COORDINATOR);
        let same = Compare::value(key.clone(), CompareOp::Equal, node.0.clone());
        self.transact(Txn::new().when([same]).and_then([TxnOp::delete(key, None)]))?;
        let key = self.key(volume, &format!("{NODE}{node}"));
        self.run(self.client.kv_client().delete(key, None))?;
        Ok(())
    }

    /// The nodes of a volume whose agents run, as far as etcd knows.
    ///
    /// # Errors
    /// `Engine`.
    pub fn present(&self, volume: VolumeId) -> Result<Vec<(NodeId, Presence)>, CsvError> {
        let found = self.below(volume, NODE)?.into_iter();
        found.map(|(node, value)| Ok((NodeId(node), parsed(&value)?))).collect()
    }

    /// Says from now on that this node is there, once in the life of the engine; no more when the engine is dropped.
    pub fn appear(&self, volume: VolumeId, presence: &Presence) {
        if self.present.set(volume).is_err() {
            return;
        }
        let key = self.key(volume, &format!("{NODE}{}", self.node));
        let (client, value, lease) = (self.client.clone(), json(presence), self.lease);
        self.runtime.spawn(async move {
            loop {
                if let Err(error) = be_there(&client, &key, &value, lease).await {
                    tracing::debug!(%error, "etcd does not hear that this node is there");
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
    }

    /// How many servers answer, of how many.
    #[must_use]
    pub fn votes(&self) -> (usize, usize) {
        let asked: Vec<_> = self
            .config
            .endpoints
            .iter()
            .map(|endpoint| self.answers(endpoint.clone()))
            .collect();
        let answers = asked.into_iter().filter_map(|asked| self.runtime.block_on(asked).ok());
        (answers.filter(|&answers| answers).count(), self.config.endpoints.len())
    }

    fn answers(&self, endpoint: String) -> tokio::task::JoinHandle<bool> {
        let options = super::options(&self.config);
        self.runtime.spawn(async move {
            let Ok(options) = options else { return false };
            let asked = async { Client::connect([endpoint], Some(options)).await?.status().await };
            matches!(tokio::time::timeout(LIMIT, asked).await, Ok(Ok(_)))
        })
    }

    /// Notes an event, and forgets the oldest ones.
    ///
    /// # Errors
    /// `Engine`.
    pub fn note(&self, volume: VolumeId, node: &NodeId, kind: &str, text: &str) -> Result<(), CsvError> {
        let time_ms = now_ms();
        let record = EventRecord {
            time_ms,
            node: node.0.clone(),
            kind: kind.to_owned(),
            text: text.to_owned(),
        };
        let prefix = self.events_of(volume);
        let key = format!("{prefix}{time_ms:020}-{}", Uuid::new_v4());
        self.run(self.client.kv_client().put(key, json(&record), None))?;
        let sorted = GetOptions::new().with_prefix().with_keys_only();
        let sorted = sorted.with_sort(SortTarget::Key, SortOrder::Descend);
        let keys = self.run(self.client.kv_client().get(prefix.clone(), Some(sorted)))?;
        if let Some(oldest) = keys.kvs().get(KEPT - 1) {
            let before = DeleteOptions::new().with_range(oldest.key());
            self.run(self.client.kv_client().delete(prefix, Some(before)))?;
        }
        Ok(())
    }

    /// The events of a volume, oldest first.
    ///
    /// # Errors
    /// `Engine`.
    pub fn events(&self, volume: VolumeId) -> Result<Vec<Event>, CsvError> {
        let sorted = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Create, SortOrder::Ascend);
        let found = self.run(self.client.kv_client().get(self.events_of(volume), Some(sorted)))?;
        let read = found.kvs().iter().map(|pair| {
            let EventRecord {
                time_ms,
                node,
                kind,
                text,
            } = parsed(pair.value())?;
            Ok(Event {
                number: pair.create_revision(),
                time_ms,
                node: NodeId(node),
                kind,
                text,
            })
        });
        read.collect()
    }

    fn events_of(&self, volume: VolumeId) -> String {
        format!("{}/event/{volume}/", self.prefix)
    }

    /// A value of a volume: from the copy that is followed, or from etcd.
    fn value(&self, volume: VolumeId, name: &str) -> Result<Option<Vec<u8>>, CsvError> {
        if let Some(view) = self.view_of(volume) {
            return Ok(view.get(name));
        }
        let answer = self.run(self.client.kv_client().get(self.key(volume, name), None))?;
        Ok(answer.kvs().first().map(|pair| pair.value().to_vec()))
    }

    /// The names and values below a name of a volume, by name; from the copy that is followed, or from etcd.
    fn below(&self, volume: VolumeId, name: &str) -> Result<Vec<(String, Vec<u8>)>, CsvError> {
        if let Some(view) = self.view_of(volume) {
            return Ok(view.below(name));
        }
        let prefix = self.key(volume, name);
        let options = GetOptions::new().with_prefix();
        let answer = self.run(self.client.kv_client().get(prefix.clone(), Some(options)))?;
        let below = |key: &[u8]| String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
        let pairs = answer.kvs().iter();
        Ok(pairs.map(|pair| (below(pair.key()), pair.value().to_vec())).collect())
    }

    /// Whether the transaction's conditions held.
    fn transact(&self, transaction: Txn) -> Result<bool, CsvError> {
        Ok(self.run(self.client.kv_client().txn(transaction))?.succeeded())
    }
}

impl Drop for EtcdEngine {
    fn drop(&mut self) {
        // What etcd does not hear of ends with the lease.
        if let Some(&volume) = self.present.get() {
            let key = self.key(volume, &format!("{NODE}{}", self.node));
            let _ = self.run(self.client.kv_client().delete(key, None));
        }
    }
}

/// Puts a key with a lease and renews that, until it is lost or cannot be renewed.
async fn be_there(client: &Client, key: &str, value: &[u8], lease: Duration) -> Result<(), etcd_client::Error> {
    let mut leases = client.lease_client();
    let id = leases.grant(lease.as_secs().cast_signed(), None).await?.id();
    let options = PutOptions::new().with_lease(id);
    client.kv_client().put(key, value, Some(options)).await?;
    loop {
        tokio::time::sleep(lease / 5).await;
        // Opening the stream renews once. What only was not heard is said again.
        let renewed = tokio::time::timeout(LIMIT, leases.keep_alive(id)).await;
        if let Ok(Err(lost @ etcd_client::Error::LeaseKeepAliveError(_))) = renewed {
            return Err(lost);
        }
    }
}

fn json(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record has text keys alone")
}

fn parsed<T: DeserializeOwned>(value: &[u8]) -> Result<T, CsvError> {
    serde_json::from_slice(value).map_err(|error| failed(&error))
}
