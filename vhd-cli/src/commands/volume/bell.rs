//! A bell: whoever has news rings it, and the one who waits looks.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Rings once, however often it is rung until somebody hears it.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rung: Mutex<bool>,
    heard: Condvar,
}

impl Bell {
    pub(super) fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.heard.notify_all();
    }

    /// Waits until it rings, `limit` at most; whether it did.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.heard.wait_timeout_while(rung, limit, |rung| !*rung);
        let (mut rung, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *rung)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn it_is_heard_once_even_if_it_rang_before() {
        let bell = Arc::new(Bell::default());
        bell.ring();
        bell.ring();
        assert!(bell.wait(Duration::ZERO));
        assert!(!bell.wait(Duration::ZERO));
        let other = Arc::clone(&bell);
        std::thread::spawn(move || other.ring());
        assert!(bell.wait(Duration::from_secs(60)));
    }
}
