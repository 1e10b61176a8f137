//! Engines: who may try to become a volume's coordinator, and where the present one is found.
//!
//! An engine elects; it never protects. A wrong election costs time: the epochs on the volume keep its metadata whole even if
//! an engine elects everybody at once.

#[cfg(feature = "etcd")]
mod etcd;
mod local;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::CsvError;
use crate::id::{Epoch, NodeId, VolumeId};

#[cfg(feature = "etcd")]
pub use etcd::{EtcdConfig, EtcdEngine, Presence};
pub use local::LocalEngine;

/// The right to be a volume's coordinator for some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// What the engine counts; for people.
    pub revision: u64,
    /// When the holder must stop, on its own [`Clock`](crate::Clock). Counted from the moment the renewal was *sent*, and shorter
    /// than what the engine grants. `Duration::MAX` if the system ends the term with the process.
    pub until: Duration,
    /// When to renew it.
    pub renew_at: Duration,
}

/// Where a volume's coordinator is found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// The node.
    pub node: NodeId,
    /// Where it listens, as the [`Net`](crate::Net) of the cluster understands it.
    pub address: String,
    /// Its epoch.
    pub epoch: Epoch,
}

/// Elects the coordinators of volumes and tells where they are. One engine speaks for one node.
pub trait Engine: Send + Sync {
    /// Tries to become the coordinator. `None` if another node is; it does not wait for its end.
    ///
    /// # Errors
    /// `Engine` if it does not answer.
    fn campaign(&self, volume: VolumeId) -> Result<Option<Term>, CsvError>;

    /// Extends a term. `None` if it is over.
    ///
    /// # Errors
    /// `Engine` if it does not answer: the term is as it was.
    fn renew(&self, volume: VolumeId, term: &Term) -> Result<Option<Term>, CsvError>;

    /// Ends a term early.
    ///
    /// # Errors
    /// `Engine` if it does not answer: the term ends by itself.
    fn resign(&self, volume: VolumeId, term: &Term) -> Result<(), CsvError>;

    /// Tells everybody where the coordinator is. Only the holder of the term may, and no older epoch replaces a newer one.
    ///
    /// # Errors
    /// `Engine` if it does not answer or the term is over.
    fn publish(&self, volume: VolumeId, term: &Term, leader: &Leader) -> Result<(), CsvError>;

    /// Where the coordinator was last seen.
    ///
    /// # Errors
    /// `Engine` if it does not answer.
    fn leader(&self, volume: VolumeId) -> Result<Option<Leader>, CsvError>;
}

impl<E: Engine + ?Sized> Engine for Arc<E> {
    fn campaign(&self, volume: VolumeId) -> Result<Option<Term>, CsvError> {
        (**self).campaign(volume)
    }

    fn renew(&self, volume: VolumeId, term: &Term) -> Result<Option<Term>, CsvError> {
        (**self).renew(volume, term)
    }

    fn resign(&self, volume: VolumeId, term: &Term) -> Result<(), CsvError> {
        (**self).resign(volume, term)
    }

    fn publish(&self, volume: VolumeId, term: &Term, leader: &Leader) -> Result<(), CsvError> {
        (**self).publish(volume, term, leader)
    }

    fn leader(&self, volume: VolumeId) -> Result<Option<Leader>, CsvError> {
        (**self).leader(volume)
    }
}
