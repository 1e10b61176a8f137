//! A thread that accepts connections, and one for each of them.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// So many connections at once; more are turned away.
const CONNECTIONS: usize = 256;
/// How long a connection may be silent.
pub(super) const SILENT: Duration = Duration::from_secs(30);
/// How long an answer may wait for a caller who does not read.
pub(super) const SLOW: Duration = Duration::from_secs(1);
/// How often a listener looks whether it shall end.
const LOOK: Duration = Duration::from_millis(100);

/// Accepts until this is dropped.
pub(super) struct Accepting(Arc<AtomicBool>);

impl Drop for Accepting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What is done with a connection: it ends when the closure does.
pub(super) trait Serve<S>: Fn(S) + Clone + Send + 'static {}
impl<S, F: Fn(S) + Clone + Send + 'static> Serve<S> for F {}

/// Starts to accept. The listener does not block.
pub(super) fn accept_all<L, S>(
    listener: L,
    accept: impl Fn(&L) -> io::Result<S> + Send + 'static,
    serve: impl Serve<S>,
) -> io::Result<Accepting>
where
    L: AsFd + Send + 'static,
    S: Send + 'static,
{
    let end = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&end);
    let thread = thread::Builder::new().name("csv-listen".into());
    thread.spawn(move || {
        let open = Arc::new(AtomicUsize::new(0));
        let look = Timespec {
            tv_sec: 0,
            tv_nsec: LOOK.subsec_nanos().into(),
        };
        while !ended.load(Ordering::Relaxed) {
            let ready = poll(&mut [PollFd::new(&listener, PollFlags::IN)], Some(&look));
            if !matches!(ready, Ok(1)) {
                continue;
            }
            if let Ok(stream) = accept(&listener) {
                spawn(stream, &open, serve.clone());
            }
        }
    })?;
    Ok(Accepting(end))
}

/// Serves a connection, unless there are too many. One that is not served is closed.
fn spawn<S: Send + 'static>(stream: S, open: &Arc<AtomicUsize>, serve: impl Serve<S>) {
    let place = Place::take(open);
    if let Some(place) = place {
        let thread = thread::Builder::new().name("csv-connection".into());
        let _ = thread.spawn(move || {
            serve(stream);
            drop(place);
        });
    }
}

/// One of the connections.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(open: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Self(Arc::clone(open));
        (open.fetch_add(1, Ordering::Relaxed) < CONNECTIONS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
