//! Interruptions. A command that can end in order is asked to, by the first signal; the second one ends the process, and
//! so does the first where a command has no such end. No file with a temporary name stays behind then.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::{flag, low_level};
use vhd_core::storage::remove_partial_files;

use crate::output;

/// What the first signal does.
enum First {
    /// It ends the process.
    Ends,
    /// It sets the flag, which is clear until then.
    Asks(Arc<AtomicBool>),
    /// Others see to these signals.
    IsHandled(&'static [i32]),
}

static FIRST: Mutex<First> = Mutex::new(First::Ends);

fn set_first(first: First) {
    *FIRST.lock().unwrap_or_else(PoisonError::into_inner) = first;
}

/// Handles the signals that end a process, from now on. A signal that is ignored (`nohup`) stays ignored.
pub(crate) fn handle_signals() {
    // A file that may grow no further (RLIMIT_FSIZE) is an error like a full disk, not the end.
    let ignored = flag::register(SIGXFSZ, Arc::default());
    let signals = [SIGINT, SIGTERM, SIGHUP]
        .into_iter()
        .filter(|signal| !is_ignored(*signal));
    match (ignored, Signals::new(signals)) {
        (Ok(_), Ok(mut signals)) => {
            thread::spawn(move || signals.forever().for_each(received));
        }
        (Err(error), _) | (_, Err(error)) => {
            output::warning(format_args!("an interruption will not end in order: {error}"));
        }
    }
}

fn received(signal: i32) {
    match &*FIRST.lock().unwrap_or_else(PoisonError::into_inner) {
        First::IsHandled(theirs) if theirs.contains(&signal) => return,
        First::Asks(flag) if !flag.swap(true, Ordering::Relaxed) => return,
        First::Asks(_) | First::Ends | First::IsHandled(_) => {}
    }
    remove_partial_files();
    let _ = low_level::emulate_default_handler(signal);
}

/// Whether the process was started with a signal ignored.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// A flag that is set when the user interrupts the command. Where signals can't be had, it never is.
pub(crate) fn flag_on_interrupt() -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    set_first(First::Asks(Arc::clone(&interrupted)));
    interrupted
}

/// The caller handles these signals itself.
pub(crate) fn is_handled_elsewhere(signals: &'static [i32]) {
    set_first(First::IsHandled(signals));
}
