//! An engine that elects by lease, and lies now and then: it gives the lease to a second node while the first one still has it.

use std::time::Duration;

use csv_lock::{Clock, CsvError, Engine, Leader, Term, VolumeId};

use crate::world::{Handle, MILLI, Micros, SECOND};

/// How long a lease lasts.
const LEASE: Micros = 3 * SECOND;

#[derive(Default)]
pub(crate) struct Leases {
    holder: Option<(usize, u64, Micros)>,
    leader: Option<Leader>,
    revision: u64,
}

/// A node's way to the engine, and its clock.
#[derive(Clone)]
pub(crate) struct SimEngine(pub Handle);

#[derive(Clone)]
pub(crate) struct SimClock(pub Handle);

impl Clock for SimClock {
    fn now(&self) -> Duration {
        Duration::from_micros(self.0.world.lock().now)
    }

    fn sleep(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap();
        drop(self.0.pass(micros));
    }
}

impl SimEngine {
    fn call<T>(&self, change: impl FnOnce(&mut Leases, Micros, &mut fastrand::Rng) -> T) -> Result<T, CsvError> {
        let mut inner = self.0.pass(self.0.latency() + MILLI);
        let now = inner.now;
        if inner.nodes[self.0.node].engine_cut_off_until > now {
            drop(inner);
            drop(self.0.pass(500 * MILLI));
            return Err(CsvError::Engine {
                reason: "cut off".into(),
            });
        }
        let inner = &mut *inner;
        Ok(change(&mut inner.leases, now, &mut inner.rng))
    }

    fn term(sent: Micros, revision: u64) -> Term {
        Term {
            revision,
            until: Duration::from_micros(sent + LEASE * 8 / 10),
            renew_at: Duration::from_micros(sent + LEASE / 5),
        }
    }
}

impl Engine for SimEngine {
    fn campaign(&self, _: VolumeId) -> Result<Option<Term>, CsvError> {
        let sent = self.0.world.lock().now;
        let node = self.0.node;
        self.call(|leases, now, rng| {
            let free = leases.holder.is_none_or(|(_, _, until)| until <= now);
            if !free && rng.u32(..50) != 0 {
                return None;
            }
            leases.revision += 1;
            leases.holder = Some((node, leases.revision, now + LEASE));
            Some(Self::term(sent, leases.revision))
        })
    }

    fn renew(&self, _: VolumeId, term: &Term) -> Result<Option<Term>, CsvError> {
        let sent = self.0.world.lock().now;
        self.call(|leases, now, _| {
            let held = leases.holder.filter(|&(_, revision, _)| revision == term.revision)?;
            leases.holder = Some((held.0, held.1, now + LEASE));
            Some(Self::term(sent, term.revision))
        })
    }

    fn resign(&self, _: VolumeId, term: &Term) -> Result<(), CsvError> {
        self.call(|leases, _, _| {
            if leases.holder.is_some_and(|(_, revision, _)| revision == term.revision) {
                leases.holder = None;
            }
        })
    }

    fn publish(&self, _: VolumeId, term: &Term, leader: &Leader) -> Result<(), CsvError> {
        self.call(|leases, _, _| {
            let held = leases.holder.is_some_and(|(_, revision, _)| revision == term.revision);
            let newer = leases.leader.as_ref().is_none_or(|known| known.epoch < leader.epoch);
            if held && newer {
                leases.leader = Some(leader.clone());
                return Ok(());
            }
            Err(CsvError::Engine {
                reason: "the term is over".into(),
            })
        })?
    }

    fn leader(&self, _: VolumeId) -> Result<Option<Leader>, CsvError> {
        self.call(|leases, _, _| leases.leader.clone())
    }
}
