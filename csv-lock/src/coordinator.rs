//! The coordinator of a volume: decides on requests in batches, and answers only what has taken effect.
//!
//! Each batch is: decide and open files; **append** the decisions to the journal, durable; **check** that the epoch is not over;
//! only then **apply** them to names and tables, and answer (INV-91). Where the check fails nothing is applied and nothing
//! answered but "moved". A decision that was appended in time is found by the successor, one that came late is void.

use crate::decide::{self, Decision};
use crate::effects::{self, Prepared};
use crate::error::{CsvError, Refusal};
use crate::id::Epoch;
use crate::journal::{JournalWriter, Record};
use crate::message::{Answer, Ask, Reply, Request};
use crate::state::{Sealed, State};
use crate::takeover::still_current;
use crate::volume::{VolumeFormat, VolumeIo};

/// After so many effects that are not known to be durable they are made so.
const SETTLE_AFTER: usize = 1024;
/// A journal of this length, in bytes, is ended by a new epoch of the same node.
const ROTATE_AT: u64 = 16 << 20;

/// The coordinator of a volume for one epoch.
pub struct Coordinator<'v, V: VolumeIo> {
    volume: &'v V,
    format: VolumeFormat,
    epoch: Epoch,
    journal: JournalWriter<V::File>,
    sealed: Sealed,
}

/// What came of a batch.
#[derive(Debug)]
pub struct Served {
    /// One reply per request.
    pub replies: Vec<Reply>,
    /// Why the epoch is over, if it is: nothing may be asked of this coordinator any more.
    pub ended: Option<CsvError>,
}

/// Requests that are appended, checked and applied together. No two of them touch the same names.
struct Group<F> {
    effects: Vec<Prepared<F>>,
    names: Vec<String>,
}

impl<'v, V: VolumeIo> Coordinator<'v, V> {
    pub(crate) fn new(
        volume: &'v V,
        format: VolumeFormat,
        epoch: Epoch,
        journal: JournalWriter<V::File>,
        sealed: Sealed,
    ) -> Self {
        Self {
            volume,
            format,
            epoch,
            journal,
            sealed,
        }
    }

    /// The epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The volume's metadata, as this coordinator knows it: whether its epoch is over is not asked.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.sealed.state
    }

    /// Whether the journal is so long that the same node should take the volume over anew.
    #[must_use]
    pub fn should_rotate(&self) -> bool {
        self.journal.len() > ROTATE_AT
    }

    /// Serves requests. Every answer is one that survives any crash, from an epoch that was not over when the answer was found.
    pub fn serve(&mut self, requests: &[Request]) -> Served {
        let mut replies: Vec<Reply> = Vec::with_capacity(requests.len());
        let mut answered = 0;
        let ended = self.serve_all(requests, &mut replies, &mut answered).err();
        if ended.is_some() {
            // Not known to have taken effect: the successor knows.
            replies.truncate(answered);
            replies.resize_with(requests.len(), || self.reply(Err(Refusal::Moved)));
        }
        Served { replies, ended }
    }

    fn serve_all(
        &mut self,
        requests: &[Request],
        replies: &mut Vec<Reply>,
        answered: &mut usize,
    ) -> Result<(), CsvError> {
        let mut group = Group {
            effects: Vec::new(),
            names: Vec::new(),
        };
        for request in requests {
            let names = request.ask.names();
            if names.iter().any(|name| group.names.iter().any(|taken| taken == name)) {
                self.commit(&mut group)?;
                *answered = replies.len();
            }
            let result = self.take(request, &mut group)?;
            replies.push(self.reply(result));
        }
        self.commit(&mut group)?;
        *answered = replies.len();
        if self.sealed.unsettled.len() >= SETTLE_AFTER {
            self.settle()?;
        }
        Ok(())
    }

    fn reply(&self, result: Result<Answer, Refusal>) -> Reply {
        Reply {
            epoch: self.epoch,
            result,
        }
    }

    /// Decides on a request and puts it into the group.
    fn take(&mut self, request: &Request, group: &mut Group<V::File>) -> Result<Result<Answer, Refusal>, CsvError> {
        if let Err(refusal) = self.addressed_to_us(request)? {
            return Ok(Err(refusal));
        }
        let state = &self.sealed.state;
        if let Some(outcome) = state.answered(&request.id) {
            return Ok(Ok(Answer::Outcome(outcome.clone())));
        }
        if state.is_late(&request.id) {
            return Ok(Err(Refusal::Late));
        }
        if request.ask == Ask::Disks {
            let disks = state.disks.iter().map(|(path, disk)| (path.clone(), disk.clone()));
            return Ok(Ok(Answer::Disks(disks.collect())));
        }
        let id = self.journal.next_id();
        let Decision { op, entries } = match decide::decide(self.volume, state, request) {
            Ok(decision) => decision,
            Err(refusal) => return Ok(Err(refusal)),
        };
        self.journal.push(&Record::Intent {
            request: request.id.clone(),
            op: op.clone(),
        });
        let outcome = self.sealed.apply(id, &request.id, &op);
        if op.has_effect() {
            group.names.extend(request.ask.names().into_iter().map(str::to_owned));
            group.effects.push(match entries {
                Some(entries) => entries,
                None => Prepared::Names(id, op),
            });
        }
        Ok(Ok(Answer::Outcome(outcome)))
    }

    /// Whether a message is for this cluster, volume and epoch (INV-97).
    fn addressed_to_us(&self, request: &Request) -> Result<Result<(), Refusal>, CsvError> {
        if request.cluster != self.format.cluster {
            return Ok(Err(Refusal::ForeignCluster {
                expected: self.format.cluster,
                found: request.cluster,
            }));
        }
        if request.volume != self.format.volume {
            return Ok(Err(Refusal::WrongVolume {
                expected: self.format.volume,
                found: request.volume,
            }));
        }
        if request.epoch > self.epoch {
            // The sender knows more than we do. The volume decides, not the message.
            still_current(self.volume, self.epoch)?;
        }
        if request.epoch != self.epoch {
            return Ok(Err(Refusal::StaleEpoch {
                current: self.epoch,
                found: request.epoch,
            }));
        }
        Ok(Ok(()))
    }

    /// Append, check, apply (INV-91). Also without a decision: an answer that only reads is true at the check.
    fn commit(&mut self, group: &mut Group<V::File>) -> Result<(), CsvError> {
        if self.journal.is_waiting() {
            self.journal.append()?;
        }
        still_current(self.volume, self.epoch)?;
        group.names.clear();
        for effect in group.effects.drain(..) {
            effect.carry_out(self.volume, self.epoch)?;
        }
        Ok(())
    }

    /// Makes all effects durable and says so in the journal; deleted files go for good.
    pub(crate) fn settle(&mut self) -> Result<(), CsvError> {
        if !self.sealed.unsettled.is_empty() {
            effects::sync_entries(self.volume, &self.sealed)?;
            self.journal.push(&Record::Settled);
            self.journal.append()?;
            still_current(self.volume, self.epoch)?;
            self.sealed.unsettled.clear();
        }
        effects::empty_trash(self.volume, self.epoch)
    }

    /// Ends the epoch in order: the successor has nothing to repeat.
    ///
    /// # Errors
    /// Failures of the volume: then the successor repeats what may be missing.
    pub fn close(mut self) -> Result<(), CsvError> {
        self.settle()
    }
}
