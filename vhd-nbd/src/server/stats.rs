//! What a server did.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::protocol::Command;

/// The longest latency that is told apart, in nanoseconds: a minute.
const LONGEST: u64 = 60_000_000_000;

/// Counts of everything that a server did, for all its connections.
#[derive(Debug)]
pub(super) struct Stats {
    totals: Mutex<Totals>,
    pub(super) connections: AtomicU64,
    open: AtomicU64,
    /// Requests that have been received and not been answered.
    pub(super) in_flight: AtomicU64,
}

#[derive(Debug)]
struct Totals {
    tally: Tally,
    latency: Histogram<u64>,
}

/// Counts that are collected by one thread before they are added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    reads: u64,
    bytes_read: u64,
    writes: u64,
    bytes_written: u64,
    flushes: u64,
    trims: u64,
    zeroes: u64,
    others: u64,
    errors: u64,
}

impl Tally {
    /// Counts a request of so many bytes.
    pub(super) fn count(&mut self, command: Command, bytes: u64, succeeded: bool) {
        match command {
            Command::Read => {
                self.reads += 1;
                self.bytes_read += if succeeded { bytes } else { 0 };
            }
            Command::Write => {
                self.writes += 1;
                self.bytes_written += if succeeded { bytes } else { 0 };
            }
            Command::Flush => self.flushes += 1,
            Command::Trim => self.trims += 1,
            Command::WriteZeroes => self.zeroes += 1,
            _ => self.others += 1,
        }
        self.errors += u64::from(!succeeded);
    }

    /// Requests that were read requests, and their bytes.
    pub(super) fn reads(&self) -> (u64, u64) {
        (self.reads, self.bytes_read)
    }

    fn requests(&self) -> u64 {
        self.reads + self.writes + self.flushes + self.trims + self.zeroes + self.others
    }

    fn add(&mut self, other: &Self) {
        self.reads += other.reads;
        self.bytes_read += other.bytes_read;
        self.writes += other.writes;
        self.bytes_written += other.bytes_written;
        self.flushes += other.flushes;
        self.trims += other.trims;
        self.zeroes += other.zeroes;
        self.others += other.others;
        self.errors += other.errors;
    }
}

/// A connection that is open.
pub(super) struct Open<'a>(&'a AtomicU64);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Stats {
    pub(super) fn new() -> Self {
        let latency = Histogram::new_with_bounds(1000, LONGEST, 2).expect("bounds that a histogram can have");
        let totals = Totals {
            tally: Tally::default(),
            latency,
        };
        Self {
            totals: Mutex::new(totals),
            connections: AtomicU64::new(0),
            open: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
        }
    }

    /// Counts a connection as open, until the guard is dropped.
    pub(super) fn opened(&self) -> Open<'_> {
        self.open.fetch_add(1, Ordering::Relaxed);
        Open(&self.open)
    }

    /// Adds requests that were all answered so long after they had been received, and empties the tally.
    pub(super) fn add(&self, tally: &mut Tally, latency: Duration) {
        let tally = std::mem::take(tally);
        let requests = tally.requests();
        if requests == 0 {
            return;
        }
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(LONGEST);
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        totals.tally.add(&tally);
        totals
            .latency
            .saturating_record_n(nanoseconds.clamp(1, LONGEST), requests);
    }

    pub(super) fn report(&self) -> StatsReport {
        let totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let Tally {
            reads,
            bytes_read,
            writes,
            bytes_written,
            flushes,
            trims,
            zeroes,
            others,
            errors,
        } = totals.tally;
        let quantile = |quantile| Duration::from_nanos(totals.latency.value_at_quantile(quantile));
        StatsReport {
            connections: self.connections.load(Ordering::Relaxed),
            open_connections: self.open.load(Ordering::Relaxed),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            reads,
            bytes_read,
            writes,
            bytes_written,
            flushes,
            trims,
            zeroes,
            others,
            errors,
            latency_p50: quantile(0.5),
            latency_p99: quantile(0.99),
        }
    }
}

/// What a server did since it began. The latency of a request is the time from its arrival in the server to the moment
/// when its reply is with the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatsReport {
    /// Connections that were accepted.
    pub connections: u64,
    /// Connections that are open.
    pub open_connections: u64,
    /// Requests that have been received and not been answered.
    pub in_flight: u64,
    /// READ.
    pub reads: u64,
    /// Bytes of them.
    pub bytes_read: u64,
    /// WRITE.
    pub writes: u64,
    /// Bytes of them.
    pub bytes_written: u64,
    /// FLUSH.
    pub flushes: u64,
    /// TRIM.
    pub trims: u64,
    /// WRITE_ZEROES.
    pub zeroes: u64,
    /// Other requests.
    pub others: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
    /// Half of all requests were answered in this time.
    pub latency_p50: Duration,
    /// 99 of 100 requests were answered in this time.
    pub latency_p99: Duration,
}

impl fmt::Display for StatsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "connections {} (open {}), in flight {}, reads {} ({} bytes), writes {} ({} bytes), flushes {}, trims {}, \
             zeroes {}, others {}, errors {}, latency p50 {:?}, p99 {:?}",
            self.connections,
            self.open_connections,
            self.in_flight,
            self.reads,
            self.bytes_read,
            self.writes,
            self.bytes_written,
            self.flushes,
            self.trims,
            self.zeroes,
            self.others,
            self.errors,
            self.latency_p50,
            self.latency_p99
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_added_up() {
        let stats = Stats::new();
        let mut tally = Tally::default();
        tally.count(Command::Read, 4096, true);
        tally.count(Command::Write, 512, false);
        stats.add(&mut tally, Duration::from_micros(50));
        assert_eq!(tally, Tally::default());
        tally.count(Command::Flush, 0, true);
        stats.add(&mut tally, Duration::from_millis(2));
        let report = stats.report();
        assert_eq!((report.reads, report.bytes_read), (1, 4096));
        assert_eq!((report.writes, report.bytes_written, report.errors), (1, 0, 1));
        assert_eq!(report.flushes, 1);
        assert!((45..56).contains(&report.latency_p50.as_micros()), "{report}");
        assert!((1900..2100).contains(&report.latency_p99.as_micros()), "{report}");
    }
}
