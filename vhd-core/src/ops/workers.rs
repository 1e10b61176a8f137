//! The threads of an operation.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::Progress;
use crate::device::ByteRange;
use crate::units::usize_from;

/// Bytes of a disk that a thread takes on at once.
const WINDOW: u64 = 64 << 20;
/// Bytes that a thread copies at once.
pub(super) const STEP: u64 = 512 << 10;

/// One thread reads while another writes; more than four only wait for one another at the file.
pub(super) fn useful_threads(asked: usize) -> usize {
    match asked {
        0 => thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4)),
        n => n,
    }
}

/// Does `work` in so many threads at once and waits for all of them. Of several errors the first thread's is told;
/// a panic goes on here.
pub(super) fn in_parallel<T: Send, E: Send>(
    threads: usize,
    work: impl Fn() -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
        // All are waited for before the first is looked at.
        let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        results
            .into_iter()
            .map(|result| result.unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    })
}

/// Does `work` on each window of `size` bytes in so many threads at once (0 for as many as are useful), with a buffer of
/// [`STEP`] bytes for each thread. Windows and steps begin at multiples of a power of two: what is smaller is not cut. After
/// an error no thread begins another one.
pub(super) fn in_windows<E: Send>(
    threads: usize,
    size: u64,
    progress: &dyn Progress,
    work: impl Fn(ByteRange, &mut [u8]) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let work_off = || {
        let mut buffer = vec![0; usize_from(STEP)];
        while !failed.load(Ordering::Relaxed) {
            let start = next.fetch_add(WINDOW, Ordering::Relaxed);
            if start >= size {
                break;
            }
            let window = ByteRange::new(start, WINDOW.min(size - start));
            let done = work(window, &mut buffer);
            failed.fetch_or(done.is_err(), Ordering::Relaxed);
            done?;
            progress.advance(window.len);
        }
        Ok(())
    };
    in_parallel(useful_threads(threads), work_off).map(drop)
}
