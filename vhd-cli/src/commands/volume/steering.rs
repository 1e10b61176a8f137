//! What is wanted of a node's part in a volume, and what is said of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use csv_lock::{CsvError, Ended, Epoch, KnownVolume, NodeId, Steer};

use super::bell::Bell;
use super::metrics::Sample;
use crate::output;
use crate::volume::Peers;

/// What is wanted of a node's part in a volume, and what is said of it. The thread that coordinates waits for nobody here: the agent says
/// what it left to be said.
pub(super) struct Steering {
    peers: Arc<dyn Peers>,
    volume: KnownVolume,
    node: NodeId,
    bell: Arc<Bell>,
    stop: AtomicBool,
    /// Another node shall coordinate, or this one takes no part any more.
    yields: AtomicBool,
    /// The epoch that the node coordinates, 0 if it does not.
    epoch: AtomicU64,
    terms: AtomicU64,
    failures: AtomicU64,
    saying: Mutex<Saying>,
}

#[derive(Default)]
struct Saying {
    /// What is to be said: what kind of event it is, and the text.
    next: Vec<(&'static str, String)>,
    /// What was said last.
    last: String,
}

impl Steering {
    pub(super) fn new(peers: Arc<dyn Peers>, volume: &KnownVolume, node: &NodeId, bell: Arc<Bell>) -> Self {
        Self {
            peers,
            volume: volume.clone(),
            node: node.clone(),
            bell,
            stop: AtomicBool::new(false),
            // Until it was looked.
            yields: AtomicBool::new(true),
            epoch: AtomicU64::new(0),
            terms: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            saying: Mutex::default(),
        }
    }

    pub(super) fn sample(&self) -> Sample {
        let epoch = self.epoch.load(Ordering::Relaxed);
        Sample {
            volume: self.volume.name.clone(),
            node: self.node.to_string(),
            epoch: (epoch > 0).then_some(epoch),
            terms: self.terms.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }

    /// Ends the node's part in the volume.
    pub(super) fn end(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Looks whether the node takes part still, and whether somebody wishes a move. Has the machine know where the coordinator is.
    pub(super) fn look(&self) -> Result<(), CsvError> {
        let wished = self.peers.wished()?;
        let takes_part = self.peers.members()?.iter().any(|member| member.node == self.node);
        let yields = !takes_part || wished.is_some_and(|node| node != self.node);
        self.yields.store(yields, Ordering::Release);
        self.peers.coordinator()?;
        self.say()
    }

    /// Says what is left to be said. An agent does not stop because it cannot be said.
    pub(super) fn say(&self) -> Result<(), CsvError> {
        let next = std::mem::take(&mut self.saying().next);
        for (index, (kind, text)) in next.iter().enumerate() {
            let said = self.peers.set_condition(&self.node, text);
            if let Err(error) = said.and_then(|()| self.peers.note(&self.node, kind, text)) {
                output::warning(format_args!("volume {}: {text}; {error}", self.volume.name));
                let rest = next[index + 1..].to_vec();
                self.saying().next.splice(0..0, rest);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Leaves something to be said, where it is new.
    fn leave_word(&self, kind: &'static str, text: String) {
        let mut saying = self.saying();
        if saying.last == text {
            return;
        }
        saying.last.clone_from(&text);
        saying.next.push((kind, text));
        drop(saying);
        self.bell.ring();
    }

    fn saying(&self) -> std::sync::MutexGuard<'_, Saying> {
        self.saying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Steer for Steering {
    fn stops(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn campaigns(&self) -> bool {
        !self.yields()
    }

    fn yields(&self) -> bool {
        self.yields.load(Ordering::Acquire)
    }

    fn leads(&self, epoch: Epoch) {
        self.epoch.store(epoch.0, Ordering::Relaxed);
        self.terms.fetch_add(1, Ordering::Relaxed);
        self.leave_word("coordinates", format!("coordinates in epoch {epoch}"));
    }

    fn led(&self, ended: &Ended) {
        self.epoch.store(0, Ordering::Relaxed);
        match ended {
            Ended::Stopped | Ended::Rotate => self.leave_word("stepped-down", "ended its term in order".into()),
            Ended::TermOver => self.leave_word("lost-term", "its term ran out".into()),
            Ended::EpochOver(error) => self.leave_word("lost-epoch", error.to_string()),
        }
    }

    fn failed(&self, error: &CsvError) {
        self.epoch.store(0, Ordering::Relaxed);
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.leave_word("failed", error.to_string());
    }
}
