//! Something that goes wrong again and again, said now and then.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often it is said.
const PERIOD: Duration = Duration::from_secs(60);

/// When something was last said, and how often it has happened since.
#[derive(Debug, Default)]
pub(super) struct Complaint(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    said: Option<Instant>,
    times: u64,
}

impl Complaint {
    /// It has happened. Says so, with how often, unless it was said a short while ago.
    pub(super) fn say(&self, say: impl FnOnce(u64)) {
        self.say_every(PERIOD, say);
    }

    fn say_every(&self, period: Duration, say: impl FnOnce(u64)) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.times += 1;
        if state.said.is_none_or(|said| said.elapsed() >= period) {
            state.said = Some(Instant::now());
            say(std::mem::take(&mut state.times));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_at_once_and_then_counted() {
        let complaint = Complaint::default();
        let mut said = Vec::new();
        for _ in 0..5 {
            complaint.say(|times| said.push(times));
        }
        complaint.say_every(Duration::ZERO, |times| said.push(times));
        assert_eq!(said, [1, 5]);
    }
}
