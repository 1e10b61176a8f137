//! What commands ask of the disks and snapshots of a machine that runs here: one thing at a time, and nothing more when the
//! machine ends.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::codes::Kind;
use crate::commands::vm::worker::{Answer, MachineName, answer_failure};
use crate::control::line::send;
use crate::failure::Failure;

/// Where they take turns.
#[derive(Default)]
pub(crate) struct Desk {
    turn: Mutex<()>,
    /// Looked at for a moment, also by who has the turn.
    state: Mutex<State>,
    cancel: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    /// The machine is to go on from a snapshot.
    going_back: Option<GoingBack>,
    has_ended: bool,
}

struct GoingBack {
    snapshot: String,
    /// Who is answered when it does.
    client: UnixStream,
}

/// A turn: nobody else changes the machine's disks or snapshots until it is dropped.
pub(crate) struct Turn<'a> {
    desk: &'a Desk,
    _held: MutexGuard<'a, ()>,
}

impl Desk {
    /// Waits for a turn.
    ///
    /// # Errors
    /// The machine has ended, or is about to go on from a snapshot.
    pub(crate) fn turn(&self, name: &MachineName) -> Result<Turn<'_>, Failure> {
        let held = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.state();
        if state.has_ended || state.going_back.is_some() {
            drop(state);
            return Err(self.gone(name));
        }
        drop(state);
        Ok(Turn {
            desk: self,
            _held: held,
        })
    }

    /// Why there is no guest.
    pub(crate) fn gone(&self, name: &MachineName) -> Failure {
        match &self.state().going_back {
            None => Failure::new(Kind::NoSuchMachine, format!("the machine {name} has ended")),
            Some(going) => {
                let message = format!(
                    "the machine {name} is going back to the snapshot \"{}\": try again when it runs",
                    going.snapshot
                );
                Failure::new(Kind::MachineCannot, message)
            }
        }
    }

    /// The guest has ended: what is being done comes to a safe end. Returns the snapshot from which the machine goes on; if
    /// there is none nothing is begun any more.
    pub(crate) fn guest_ended(&self) -> Option<String> {
        self.cancel.store(true, Ordering::Relaxed);
        let _held = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state();
        self.cancel.store(false, Ordering::Relaxed);
        state.has_ended = state.going_back.is_none();
        state.going_back.as_ref().map(|going| going.snapshot.clone())
    }

    /// The machine goes on from a snapshot, or will never: whoever asked for that is answered.
    pub(crate) fn answer(&self, gone_back: Result<(), &Failure>) {
        let mut state = self.state();
        state.has_ended = gone_back.is_err();
        let Some(going) = state.going_back.take() else {
            return;
        };
        let answer = match gone_back {
            Ok(()) => Answer::Done,
            Err(failure) => answer_failure(failure),
        };
        // Whoever went away sees it by the machine.
        let _ = send(&going.client, &answer);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Set when the machine ends.
    pub(crate) fn cancel(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.desk.cancel)
    }

    /// When the guest has ended, which the caller sees to, the machine goes on from a snapshot.
    pub(crate) fn go_back(&self, snapshot: &str, client: UnixStream) {
        self.desk.state().going_back = Some(GoingBack {
            snapshot: snapshot.to_owned(),
            client,
        });
    }
}
