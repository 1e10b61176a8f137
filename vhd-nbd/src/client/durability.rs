//! Which writes a server may have lost.

use crate::kinds;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vhd_block::DeviceError;

/// Watches over writes that were answered and not flushed. When a connection breaks the server may have died with
/// them, and nobody can tell: from then on the disk is closed to changes, and no flush succeeds.
#[derive(Debug, Default)]
pub(super) struct Durability(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Changes that were answered.
    answered: u64,
    /// Of them, those that a flush covers.
    flushed: u64,
    /// Connections that broke.
    breaks: u64,
    lost: bool,
}

/// The moment when a request was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    answered: u64,
    breaks: u64,
}

impl Durability {
    /// The present moment; a request that is sent again has a new one.
    pub(super) fn mark(&self) -> Mark {
        let state = self.state();
        Mark {
            answered: state.answered,
            breaks: state.breaks,
        }
    }

    /// Refuses changes and flushes after a loss.
    pub(super) fn check(&self) -> Result<(), DeviceError> {
        if !self.state().lost {
            return Ok(());
        }
        Err(DeviceError::Remote {
            kind: kinds::WRITES_LOST,
            message: "a connection broke before what was written was flushed: the server may have lost it; open the \
                      disk again"
                .to_owned(),
        })
    }

    /// A change that was sent at `mark` is answered, and not durable.
    pub(super) fn changed(&self, mark: Mark) {
        let mut state = self.state();
        state.answered += 1;
        // The break may have been noted before the answer was.
        state.lost |= state.breaks != mark.breaks;
    }

    /// A flush that was sent at `mark` succeeded.
    pub(super) fn flushed(&self, mark: Mark) -> Result<(), DeviceError> {
        let mut state = self.state();
        state.flushed = state.flushed.max(mark.answered);
        drop(state);
        self.check()
    }

    /// A connection broke.
    pub(super) fn broke(&self) {
        let mut state = self.state();
        state.breaks += 1;
        state.lost |= state.answered > state.flushed;
    }

    /// The server may execute a change at any time from now on.
    pub(super) fn lose(&self) {
        self.state().lost = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_break_loses_what_is_answered_and_not_flushed() {
        let durability = Durability::default();
        durability.broke();
        let mark = durability.mark();
        durability.changed(mark);
        durability.flushed(durability.mark()).unwrap();
        durability.broke();
        durability.check().unwrap();
        durability.changed(durability.mark());
        // Sent before the answer came: does not cover it.
        durability.flushed(mark).unwrap();
        durability.broke();
        let lost = durability.check().unwrap_err();
        assert_eq!(lost.kind(), kinds::WRITES_LOST);
        assert!(durability.flushed(durability.mark()).is_err());
    }

    #[test]
    fn an_answer_that_is_noted_after_the_break_counts() {
        let durability = Durability::default();
        let mark = durability.mark();
        durability.broke();
        durability.check().unwrap();
        durability.changed(mark);
        assert!(durability.check().is_err());
    }
}
