//! A session: asks the coordinator of a volume, wherever it is, until it has an answer.

use std::time::Duration;

use uuid::Uuid;

use crate::clock::Clock;
use crate::engine::{Engine, Leader};
use crate::error::{CsvError, Refusal};
use crate::id::{Epoch, NodeId, Session};
use crate::journal::RequestId;
use crate::message::{Answer, Ask, Reply, Request, decode, encode};
use crate::net::Net;
use crate::volume::VolumeFormat;

/// How long one message may take.
const CALL: Duration = Duration::from_secs(2);
/// How long to wait before the next try.
const AGAIN: Duration = Duration::from_millis(20);

/// A session of a node with a volume.
pub struct Client<C, N, E> {
    clock: C,
    net: N,
    engine: E,
    format: VolumeFormat,
    session: Session,
    asked: u64,
    /// The newest epoch that anybody named.
    epoch: Epoch,
    /// The coordinator that answered last: the engine is asked when it answers no more.
    leader: Option<Leader>,
}

impl<C: Clock, N: Net, E: Engine> Client<C, N, E> {
    /// A new session of `node`; `id` is never used twice.
    pub fn new(clock: C, net: N, engine: E, format: VolumeFormat, node: NodeId, id: Uuid) -> Self {
        Self {
            clock,
            net,
            engine,
            format,
            session: Session { node, id },
            asked: 0,
            epoch: Epoch::default(),
            leader: None,
        }
    }

    /// Who this is.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Asks, across failovers of the coordinator, for `limit` at most. The same request is never carried out twice.
    ///
    /// # Errors
    /// `Refused`: nothing changed. `NoCoordinator`: whether it took effect is unknown.
    pub fn ask(&mut self, ask: Ask, limit: Duration) -> Result<Answer, CsvError> {
        self.asked += 1;
        let id = RequestId {
            session: self.session.clone(),
            number: self.asked,
        };
        let end = self.clock.now().saturating_add(limit);
        loop {
            match self.try_once(&id, &ask) {
                Some(Ok(answer)) => return Ok(answer),
                Some(Err(Refusal::StaleEpoch { .. } | Refusal::Moved)) | None => {}
                Some(Err(refusal)) => return Err(refusal.into()),
            }
            if self.clock.now() >= end {
                return Err(CsvError::NoCoordinator {
                    seconds: limit.as_secs(),
                });
            }
            self.clock.sleep(AGAIN);
        }
    }

    /// One message; `None` if there is no answer.
    fn try_once(&mut self, id: &RequestId, ask: &Ask) -> Option<Result<Answer, Refusal>> {
        let leader = match self.leader.take() {
            Some(leader) => leader,
            None => self.engine.leader(self.format.volume).ok()??,
        };
        self.epoch = self.epoch.max(leader.epoch);
        let request = Request {
            cluster: self.format.cluster,
            volume: self.format.volume,
            epoch: self.epoch,
            id: id.clone(),
            ask: ask.clone(),
        };
        let frame = self.net.call(&leader.address, &encode(&request), CALL).ok()?;
        let reply: Reply = decode(&frame).ok()?;
        if reply.epoch < self.epoch {
            // From a coordinator that does not know yet that it is over.
            return None;
        }
        self.epoch = reply.epoch;
        if !matches!(reply.result, Err(Refusal::Moved)) {
            self.leader = Some(leader);
        }
        Some(reply.result)
    }
}
