//! Who may try: a key with a lease.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};

use super::{COORDINATOR, EtcdEngine, LEADER, failed};
use crate::clock::{Clock, SystemClock};
use crate::engine::{Engine, Leader, Term};
use crate::error::CsvError;
use crate::id::VolumeId;

impl EtcdEngine {
    fn lease_of(&self, term: &Term) -> Result<i64, CsvError> {
        self.leases()
            .get(&term.revision)
            .copied()
            .ok_or_else(|| failed(&"the term is over"))
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
        let answer = self.run(self.client.kv_client().get(self.key(volume, LEADER), None))?;
        let Some(pair) = answer.kvs().first() else {
            return Ok((None, 0));
        };
        let leader = serde_json::from_slice(pair.value()).map_err(|error| failed(&error))?;
        Ok((Some(leader), pair.mod_revision()))
    }
}

impl Engine for EtcdEngine {
    fn campaign(&self, volume: VolumeId) -> Result<Option<Term>, CsvError> {
        let key = self.key(volume, COORDINATOR);
        // Without a question while the copy that is followed has one.
        if self.view_of(volume).is_some_and(|view| view.has(COORDINATOR)) {
            return Ok(None);
        }
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
        let key = self.key(volume, LEADER);
        let unchanged = Compare::mod_revision(key.clone(), CompareOp::Equal, revision);
        let held = Compare::lease(self.key(volume, COORDINATOR), CompareOp::Equal, lease);
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
