//! The threads of an operation.

use std::panic::resume_unwind;
use std::thread;

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
