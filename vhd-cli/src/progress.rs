//! How far a long operation is: a bar on a terminal, or lines where asked for.

use std::io::{self, IsTerminal as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use vhd_core::ops::Progress;

use crate::{human, output};

/// Between two lines.
const LINE_INTERVAL: Duration = Duration::from_secs(1);
const TEMPLATE: &str =
    "{prefix} [{wide_bar}] {percent:>3}%  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  ETA {eta}";

/// Whether progress is shown.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct ProgressArgs {
    /// Show progress on standard error even if it is no terminal: a line each second
    #[arg(long, short, conflicts_with = "no_progress")]
    pub(crate) progress: bool,
    /// Show no progress bar on a terminal
    #[arg(long)]
    pub(crate) no_progress: bool,
}

/// Shows how far an operation is, until it is dropped.
pub(crate) enum Reporter {
    Silent,
    Bar(ProgressBar),
    Lines(Lines),
}

/// Progress as lines for a log.
pub(crate) struct Lines {
    verb: &'static str,
    started: Instant,
    total: AtomicU64,
    done: AtomicU64,
    last: Mutex<Instant>,
}

impl ProgressArgs {
    /// A reporter for the operation that `verb` names.
    pub(crate) fn reporter(self, verb: &'static str) -> Reporter {
        let terminal = io::stderr().is_terminal();
        match (self.no_progress, terminal, self.progress) {
            (true, ..) | (false, false, false) => Reporter::Silent,
            (false, true, _) => Reporter::bar(verb),
            (false, false, true) => Reporter::Lines(Lines::new(verb)),
        }
    }
}

impl Reporter {
    fn bar(verb: &'static str) -> Self {
        let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
            .with_style(style.progress_chars("=> "))
            .with_prefix(verb);
        Self::Bar(bar)
    }
}

impl Progress for Reporter {
    fn begin(&self, total_bytes: u64) {
        match self {
            Self::Silent => {}
            Self::Bar(bar) => {
                bar.reset();
                bar.set_length(total_bytes);
            }
            Self::Lines(lines) => lines.begin(total_bytes),
        }
    }

    fn advance(&self, bytes: u64) {
        match self {
            Self::Silent => {}
            Self::Bar(bar) => bar.inc(bytes),
            Self::Lines(lines) => lines.advance(bytes),
        }
    }
}

impl Drop for Reporter {
    /// The bar goes away: what follows on standard error starts on a clean line.
    fn drop(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

impl Lines {
    fn new(verb: &'static str) -> Self {
        let now = Instant::now();
        Self {
            verb,
            started: now,
            total: AtomicU64::new(0),
            done: AtomicU64::new(0),
            last: Mutex::new(now),
        }
    }

    fn begin(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
        self.print(0, total);
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let total = self.total.load(Ordering::Relaxed);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= LINE_INTERVAL || done == total {
            *last = Instant::now();
            self.print(done, total);
        }
    }

    fn print(&self, done: u64, total: u64) {
        let millis = self.started.elapsed().as_millis();
        output::eprint(&line(self.verb, done, total, millis));
    }
}

/// `done` of `total` bytes after `millis` milliseconds.
fn line(verb: &str, done: u64, total: u64, millis: u128) -> String {
    let percent = u128::from(done) * 100 / u128::from(total.max(1));
    let rate = u64::try_from(u128::from(done) * 1000 / millis.max(1)).unwrap_or(u64::MAX);
    let eta = total.saturating_sub(done).checked_div(rate);
    let eta = eta.map_or("unknown".to_owned(), |seconds| format!("{seconds} s"));
    let (done, total, rate) = (human::binary(done), human::binary(total), human::binary(rate));
    format!("vhd: {verb} {percent}%, {done} of {total}, {rate}/s, ETA {eta}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_rate_and_eta() {
        assert_eq!(
            line("converting", 1 << 30, 4 << 30, 2000),
            "vhd: converting 25%, 1.00 GiB of 4.00 GiB, 512.00 MiB/s, ETA 6 s\n"
        );
        assert_eq!(
            line("hashing", 0, 0, 0),
            "vhd: hashing 0%, 0 bytes of 0 bytes, 0 bytes/s, ETA unknown\n"
        );
    }
}
