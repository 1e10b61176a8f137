//! A node: campaigns for a volume, takes it over, serves it until its term or its epoch ends, and begins anew.

use std::time::Duration;

use crate::clock::Clock;
use crate::coordinator::{Coordinator, Served};
use crate::engine::{Engine, Leader, Term};
use crate::error::CsvError;
use crate::id::{Epoch, NodeId};
use crate::message::{Request, decode, encode};
use crate::net::{Listener, Net};
use crate::takeover::take_over;
use crate::volume::{VolumeFormat, VolumeIo};

/// The most requests of one batch: they share one sync.
const BATCH: usize = 64;
/// How long a coordinator waits for a request before it looks at its term again.
const IDLE: Duration = Duration::from_millis(20);

/// How often the time between two attempts is doubled when they fail.
const MOST_DOUBLINGS: u32 = 6;

/// A node's part in one volume.
pub struct Node<C, N, V, E> {
    /// Its clock.
    pub clock: C,
    /// Its network.
    pub net: N,
    /// Its way to the volume.
    pub volume: V,
    /// Its engine.
    pub engine: E,
    /// What the volume is.
    pub format: VolumeFormat,
    /// Its name.
    pub node: NodeId,
    /// Where it listens while it is the coordinator.
    pub address: String,
    /// How long it waits between two campaigns.
    pub patience: Duration,
}

/// What somebody wants of a node that takes part in a volume, and who is told how it goes. A closure says when to stop.
pub trait Steer {
    /// Whether the node shall stop taking part.
    fn stops(&self) -> bool;

    /// Whether it may become the coordinator now.
    fn campaigns(&self) -> bool {
        true
    }

    /// Whether it shall end its term in order, for another node.
    fn yields(&self) -> bool {
        false
    }

    /// It serves as the coordinator of this epoch.
    fn leads(&self, _epoch: Epoch) {}

    /// It is not the coordinator any more.
    fn led(&self, _ended: &Ended) {}

    /// It could not campaign or lead; it tries again.
    fn failed(&self, _error: &CsvError) {}
}

impl<F: Fn() -> bool> Steer for F {
    fn stops(&self) -> bool {
        self()
    }
}

/// How a term went.
#[derive(Debug)]
pub enum Ended {
    /// The node was asked to stop, or to let another one coordinate.
    Stopped,
    /// The engine's term ran out, or was lost.
    TermOver,
    /// The epoch ended: superseded, or a failure of the volume.
    EpochOver(CsvError),
    /// The journal is long: the same node goes on with a new one.
    Rotate,
}

impl<C: Clock, N: Net, V: VolumeIo, E: Engine> Node<C, N, V, E> {
    /// Takes part until it shall stop. Failures are logged and tried again.
    pub fn run(&self, steer: &dyn Steer) {
        let mut failures = 0;
        while !steer.stops() {
            let outcome = match steer.campaigns() {
                true => self.try_to_lead(steer),
                false => Ok(None),
            };
            match outcome {
                Ok(Some(Ended::Rotate)) => {}
                // Each attempt at a volume that cannot be led costs an epoch on it.
                Ok(Some(Ended::EpochOver(_))) | Err(_) => {
                    self.clock.sleep(self.patience * (1 << failures));
                    failures = MOST_DOUBLINGS.min(failures + 1);
                }
                Ok(_) => {
                    failures = 0;
                    self.clock.sleep(self.patience);
                }
            }
        }
    }

    /// Campaigns once, and leads the volume if it is elected.
    fn try_to_lead(&self, steer: &dyn Steer) -> Result<Option<Ended>, CsvError> {
        let led = match self.engine.campaign(self.format.volume) {
            Ok(None) => return Ok(None),
            Ok(Some(term)) => self.lead(term, steer),
            Err(error) => {
                // It has cost nothing: as soon as the engine answers again, there shall be a coordinator.
                tracing::warn!(node = %self.node, %error, "could not campaign");
                steer.failed(&error);
                return Ok(None);
            }
        };
        match &led {
            Ok(ended) => {
                tracing::info!(node = %self.node, ?ended, "the term ended");
                steer.led(ended);
            }
            Err(error) => {
                tracing::warn!(node = %self.node, %error, "could not lead the volume");
                steer.failed(error);
            }
        }
        led.map(Some)
    }

    /// One term: takes the volume over, publishes where it is, serves.
    ///
    /// # Errors
    /// Failures of the engine, the network and the volume before it serves. The term is given back.
    pub fn lead(&self, term: Term, steer: &dyn Steer) -> Result<Ended, CsvError> {
        let mut held = term;
        let result = self.serve(&mut held, steer);
        // What the engine does not hear of ends by itself.
        if let Err(error) = self.engine.resign(self.format.volume, &held) {
            tracing::warn!(node = %self.node, %error, "could not resign");
        }
        result
    }

    fn serve(&self, term: &mut Term, steer: &dyn Steer) -> Result<Ended, CsvError> {
        let failed = |error: std::io::Error| CsvError::Engine {
            reason: format!("listening at {}: {error}", self.address),
        };
        let mut listener = self.net.listen(&self.address).map_err(failed)?;
        let mut coordinator = take_over(&self.volume, &self.format, &self.node, term.revision)?;
        let leader = Leader {
            node: self.node.clone(),
            address: self.address.clone(),
            epoch: coordinator.epoch(),
        };
        self.engine.publish(self.format.volume, term, &leader)?;
        steer.leads(leader.epoch);
        loop {
            if steer.stops() || steer.yields() {
                coordinator.close()?;
                return Ok(Ended::Stopped);
            }
            if coordinator.should_rotate() {
                coordinator.close()?;
                return Ok(Ended::Rotate);
            }
            if !self.keep(term) {
                return Ok(Ended::TermOver);
            }
            let batch = listener.accept(BATCH, IDLE).map_err(failed)?;
            if let Some(error) = answer(&mut coordinator, &mut listener, batch) {
                return Ok(Ended::EpochOver(error));
            }
        }
    }

    /// Renews the term when it is time. False if it is over.
    fn keep(&self, term: &mut Term) -> bool {
        if self.clock.now() >= term.renew_at {
            match self.engine.renew(self.format.volume, term) {
                Ok(Some(longer)) => *term = longer,
                Ok(None) => return false,
                Err(error) => tracing::warn!(node = %self.node, %error, "could not renew the term"),
            }
        }
        self.clock.now() < term.until
    }
}

/// Serves a batch of messages; why the epoch is over, if it is. Messages that cannot be read are dropped: whoever sent them asks
/// again.
fn answer<V: VolumeIo, L: Listener>(
    coordinator: &mut Coordinator<'_, V>,
    listener: &mut L,
    batch: Vec<(Vec<u8>, L::Caller)>,
) -> Option<CsvError> {
    let (mut requests, mut callers) = (Vec::new(), Vec::new());
    for (message, caller) in batch {
        match decode::<Request>(&message) {
            Ok(request) => {
                requests.push(request);
                callers.push(caller);
            }
            Err(error) => tracing::warn!(%error, "a message was dropped"),
        }
    }
    if requests.is_empty() {
        return None;
    }
    let Served { replies, ended } = coordinator.serve(&requests);
    for (reply, caller) in replies.iter().zip(callers) {
        listener.reply(caller, encode(reply));
    }
    ended
}
