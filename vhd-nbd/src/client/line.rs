//! A connection that comes back after it broke.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vhd_block::DeviceError;
use vhd_block::ErrorKind;
use vhd_block::with_causes;

use super::broken::Break;
use super::expected::Expected;
use super::link::Link;
use super::{Address, ClientError, ClientOptions};
use crate::tls::TlsClient;

/// The first pause between two attempts, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What all connections of a disk lead to.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) address: Address,
    pub(super) export: String,
    pub(super) tls: Option<TlsClient>,
    pub(super) options: ClientOptions,
}

/// A failure that several threads are told of.
#[derive(Clone, Debug)]
struct Failed {
    kind: ErrorKind,
    message: String,
}

#[derive(Debug)]
enum State {
    /// Not needed so far.
    Unused,
    Up(Arc<Link>),
    /// A thread connects.
    Connecting,
    /// Broken; what the last attempt to connect again failed with, if there was one.
    Down(Option<Failed>),
    /// The server does not keep to the protocol, or to what it said: no other connection would do better.
    Failed(Failed),
    /// One more than the server wants.
    Unusable,
}

/// A connection that comes back after it broke.
#[derive(Debug)]
pub(super) struct Line {
    state: Mutex<State>,
    changed: Condvar,
    /// Requests that take it.
    load: AtomicUsize,
}

/// A request's place on a line.
#[derive(Debug)]
pub(super) struct Place<'a>(&'a Line);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.load.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::ops::Deref for Place<'_> {
    type Target = Line;

    fn deref(&self) -> &Line {
        self.0
    }
}

/// How long to wait after so many failures in a row; none after the first.
pub(super) fn pause(failures: u32) -> Duration {
    match failures.checked_sub(2) {
        None => Duration::ZERO,
        Some(doublings) => PAUSES.1.min(PAUSES.0.saturating_mul(1 << doublings.min(10))),
    }
}

impl Line {
    /// A connection that is there, or one that is made when it is needed.
    pub(super) fn new(link: Option<Link>) -> Self {
        Self {
            state: Mutex::new(link.map_or(State::Unused, |link| State::Up(Arc::new(link)))),
            changed: Condvar::new(),
            load: AtomicUsize::new(0),
        }
    }

    /// Requests that take it; `None` if it can't be used.
    pub(super) fn load(&self) -> Option<usize> {
        let load = self.load.load(Ordering::Relaxed);
        (!matches!(*self.state(), State::Unusable)).then_some(load)
    }

    /// Takes a place.
    pub(super) fn enter(&self) -> Place<'_> {
        self.load.fetch_add(1, Ordering::Relaxed);
        Place(self)
    }

    /// The connection; a new one if the last broke. `None` if the server does not want another one.
    pub(super) fn link(&self, target: &Target, expected: &Expected) -> Result<Option<Arc<Link>>, DeviceError> {
        let mut state = self.state();
        let mut waited = false;
        loop {
            match &*state {
                State::Up(link) => return Ok(Some(Arc::clone(link))),
                State::Unusable => return Ok(None),
                State::Failed(failed) => return Err(failed.error()),
                // Who waited does not begin again where another just gave up.
                State::Down(Some(failed)) if waited => return Err(failed.error()),
                State::Connecting => {
                    waited = true;
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                State::Unused | State::Down(_) => break,
            }
        }
        let is_first = matches!(*state, State::Unused);
        *state = State::Connecting;
        drop(state);
        let (next, result) = if is_first {
            // Without it there are the others.
            connect(target, expected).map_or((State::Unusable, Ok(None)), up)
        } else {
            connect_again(target, expected).map_or_else(|error| down(&error), up)
        };
        *self.state() = next;
        self.changed.notify_all();
        result
    }

    /// Notes that a connection broke; `true` if it was not known.
    pub(super) fn broke(&self, link: &Arc<Link>, broken: &Break, target: &Target) -> bool {
        let mut state = self.state();
        if !matches!(&*state, State::Up(current) if Arc::ptr_eq(current, link)) {
            return false;
        }
        tracing::warn!(server = %target.address, ?broken, "a connection broke");
        *state = if broken.is_passing() {
            State::Down(None)
        } else {
            let error = broken.error(&target.address);
            State::Failed(Failed {
                kind: error.kind(),
                message: error.to_string(),
            })
        };
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Failed {
    fn new(error: &ClientError) -> Self {
        Self {
            kind: error.kind(),
            message: with_causes(error),
        }
    }

    fn error(&self) -> DeviceError {
        DeviceError::Remote {
            kind: self.kind,
            message: self.message.clone(),
        }
    }
}

/// What an attempt to connect comes to, for the line and for the request.
type Outcome = (State, Result<Option<Arc<Link>>, DeviceError>);

fn up(link: Link) -> Outcome {
    let link = Arc::new(link);
    (State::Up(Arc::clone(&link)), Ok(Some(link)))
}

fn down(error: &ClientError) -> Outcome {
    let failed = Failed::new(error);
    let result = Err(failed.error());
    if error.is_passing() {
        (State::Down(Some(failed)), result)
    } else {
        (State::Failed(failed), result)
    }
}

/// Connects to what must be the export that it was.
fn connect(target: &Target, expected: &Expected) -> Result<Link, ClientError> {
    let link = Link::open(&target.address, &target.export, target.tls.as_ref(), &target.options)?;
    match expected.objection(link.agreement()) {
        None => Ok(link),
        Some(what) => Err(ClientError::Changed {
            address: target.address.clone(),
            what,
        }),
    }
}

/// Tries to connect until it works, time is up, or trying is of no use.
fn connect_again(target: &Target, expected: &Expected) -> Result<Link, ClientError> {
    let end = Instant::now() + target.options.reconnect;
    let mut failures = 1;
    loop {
        let error = match connect(target, expected) {
            Ok(link) => return Ok(link),
            Err(error) => error,
        };
        failures += 1;
        let pause = pause(failures);
        if !error.is_passing() || Instant::now() + pause >= end {
            return Err(error);
        }
        thread::sleep(pause);
    }
}
