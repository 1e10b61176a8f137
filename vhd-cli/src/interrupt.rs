//! Interruptions: the first one asks the operation to end in order, the second one ends the process.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::output;

/// A flag that is set when the user interrupts the command. Where signals can't be had, it never is.
pub(crate) fn flag_on_interrupt() -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag clear and sets it, the second one finds it set.
        let registered = flag::register_conditional_default(signal, Arc::clone(&interrupted))
            .and_then(|_| flag::register(signal, Arc::clone(&interrupted)));
        if let Err(error) = registered {
            output::warning(format_args!("an interruption will not end in order: {error}"));
        }
    }
    interrupted
}
