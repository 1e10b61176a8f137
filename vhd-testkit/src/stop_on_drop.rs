//! Threads that a test stops, however it ends.

use std::sync::atomic::{AtomicBool, Ordering};

/// Sets a flag when it is dropped. A scope waits for its threads even when the test has failed: threads that run until a
/// flag is set would keep it waiting for ever.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
