//! Counting what goes through a disk.

use std::sync::atomic::{AtomicU64, Ordering};

use thread_local::ThreadLocal;

/// What went through a [`Disk`](crate::Disk) and its clones since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskStats {
    /// Read requests.
    pub reads: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Write requests.
    pub writes: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Flush requests.
    pub flushes: u64,
    /// Requests to write zeroes.
    pub zeroes: u64,
    /// Requests to discard.
    pub discards: u64,
}

/// The counts of each thread. An exchange on a shared count would wait until the bytes that were just read have left the
/// processor's store buffer: a thirtieth of a read of 4 KiB.
#[derive(Default)]
pub(super) struct Counters {
    threads: ThreadLocal<OfThread>,
}

/// Counts that one thread changes and others read.
#[derive(Default)]
pub(super) struct OfThread {
    pub(super) reads: Count,
    pub(super) bytes_read: Count,
    pub(super) writes: Count,
    pub(super) bytes_written: Count,
    pub(super) flushes: Count,
    pub(super) zeroes: Count,
    pub(super) discards: Count,
}

/// A number that only goes up.
#[derive(Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    /// Only by the thread that it is of: another's would be lost.
    pub(super) fn add(&self, more: u64) {
        self.0.store(self.get() + more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    /// The counts of this thread.
    pub(super) fn here(&self) -> &OfThread {
        self.threads.get_or_default()
    }

    /// The sums over all threads.
    pub(super) fn sum(&self) -> DiskStats {
        let mut sum = DiskStats::default();
        for thread in &self.threads {
            sum.reads += thread.reads.get();
            sum.bytes_read += thread.bytes_read.get();
            sum.writes += thread.writes.get();
            sum.bytes_written += thread.bytes_written.get();
            sum.flushes += thread.flushes.get();
            sum.zeroes += thread.zeroes.get();
            sum.discards += thread.discards.get();
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_count_of_any_thread_is_lost() {
        const THREADS: u64 = 8;
        const EACH: u64 = 20_000;
        let counters = Counters::default();
        // Twice: a thread may get the place of one that has ended.
        for _ in 0..2 {
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        for _ in 0..EACH {
                            counters.here().reads.add(1);
                            counters.here().bytes_read.add(512);
                        }
                    });
                }
            });
        }
        let sum = counters.sum();
        assert_eq!(sum.reads, 2 * THREADS * EACH);
        assert_eq!(sum.bytes_read, 512 * sum.reads);
    }
}
