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
    /// A coordinator has answered: what keeps messages from it now may pass.
    was_answered: bool,
}

/// What came of one message.
enum Tried {
    Answered(Result<Answer, Refusal>),
    /// Nothing, and why none can come, if that is known.
    Nothing(Option<CsvError>),
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
            was_answered: false,
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
    /// `Refused`: nothing changed. `NoCoordinator`: whether it took effect is unknown. What keeps messages from the coordinator, if that is
    /// known, as the certificates: at once when none of this session has been answered yet.
    pub fn ask(&mut self, ask: Ask, limit: Duration) -> Result<Answer, CsvError> {
        self.asked += 1;
        let id = RequestId {
            session: self.session.clone(),
            number: self.asked,
        };
        let end = self.clock.now().saturating_add(limit);
        loop {
            let why = match self.try_once(&id, &ask) {
                Tried::Answered(Ok(answer)) => return Ok(answer),
                Tried::Answered(Err(Refusal::StaleEpoch { .. } | Refusal::Moved)) => None,
                Tried::Answered(Err(refusal)) => return Err(refusal.into()),
                Tried::Nothing(Some(why)) if !self.was_answered => return Err(why),
                Tried::Nothing(why) => why,
            };
            if self.clock.now() >= end {
                return Err(why.unwrap_or(CsvError::NoCoordinator {
                    seconds: limit.as_secs(),
                }));
            }
            self.clock.sleep(AGAIN);
        }
    }

    /// One message.
    fn try_once(&mut self, id: &RequestId, ask: &Ask) -> Tried {
        let found = match self.leader.take() {
            Some(leader) => Some(leader),
            None => self.engine.leader(self.format.volume).ok().flatten(),
        };
        let Some(leader) = found else {
            return Tried::Nothing(None);
        };
        self.epoch = self.epoch.max(leader.epoch);
        let request = Request {
            cluster: self.format.cluster,
            volume: self.format.volume,
            epoch: self.epoch,
            id: id.clone(),
            ask: ask.clone(),
        };
        let frame = match self.net.call(&leader.address, &encode(&request), CALL) {
            Ok(frame) => frame,
            Err(error) => {
                let why = error.into_inner().and_then(|cause| cause.downcast::<CsvError>().ok());
                return Tried::Nothing(why.map(|why| *why));
            }
        };
        let reply: Reply = match decode(&frame) {
            Ok(reply) => reply,
            Err(_) => return Tried::Nothing(None),
        };
        self.was_answered = true;
        if reply.epoch < self.epoch {
            // From a coordinator that does not know yet that it is over.
            return Tried::Nothing(None);
        }
        self.epoch = reply.epoch;
        if !matches!(reply.result, Err(Refusal::Moved)) {
            self.leader = Some(leader);
        }
        Tried::Answered(reply.result)
    }
}
