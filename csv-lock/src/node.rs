//! A node: campaigns for a volume, takes it over, serves it until its term or its epoch ends, and begins anew.

use std::time::Duration;

use crate::clock::Clock;
use crate::coordinator::{Coordinator, Served};
use crate::engine::{Engine, Leader, Term};
use crate::error::CsvError;
use crate::id::NodeId;
use crate::message::{Request, decode, encode};
use crate::net::{Listener, Net};
use crate::takeover::take_over;
use crate::volume::{VolumeFormat, VolumeIo};

/// The most requests of one batch: they share one sync.
const BATCH: usize = 64;
/// How long a coordinator waits for a request before it looks at its term again.
const IDLE: Duration = Duration::from_millis(20);

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

/// How a term went.
#[derive(Debug)]
pub enum Ended {
    /// The node was asked to stop.
    Stopped,
    /// The engine's term ran out, or was lost.
    TermOver,
    /// The epoch ended: superseded, or a failure of the volume.
    EpochOver(CsvError),
    /// The journal is long: the same node goes on with a new one.
    Rotate,
}

impl<C: Clock, N: Net, V: VolumeIo, E: Engine> Node<C, N, V, E> {
    /// Takes part until `stop` says so. Failures are logged and tried again.
    pub fn run(&self, stop: &dyn Fn() -> bool) {
        while !stop() {
            match self.engine.campaign(self.format.volume) {
                Ok(Some(term)) => match self.lead(term, stop) {
                    Ok(Ended::Rotate | Ended::Stopped) => {}
                    Ok(ended) => {
                        tracing::info!(node = %self.node, ?ended, "the term ended");
                        self.clock.sleep(self.patience);
                    }
                    Err(error) => {
                        tracing::warn!(node = %self.node, %error, "could not lead the volume");
                        self.clock.sleep(self.patience);
                    }
                },
                Ok(None) => self.clock.sleep(self.patience),
                Err(error) => {
                    tracing::warn!(node = %self.node, %error, "could not campaign");
                    self.clock.sleep(self.patience);
                }
            }
        }
    }

    /// One term: takes the volume over, publishes where it is, serves.
    ///
    /// # Errors
    /// Failures of the engine, the network and the volume before it serves. The term is given back.
    pub fn lead(&self, term: Term, stop: &dyn Fn() -> bool) -> Result<Ended, CsvError> {
        let mut held = term;
        let result = self.serve(&mut held, stop);
        // What the engine does not hear of ends by itself.
        if let Err(error) = self.engine.resign(self.format.volume, &held) {
            tracing::warn!(node = %self.node, %error, "could not resign");
        }
        result
    }

    fn serve(&self, term: &mut Term, stop: &dyn Fn() -> bool) -> Result<Ended, CsvError> {
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
        loop {
            if stop() {
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
