//! The server: accepts connections, runs them, stops in order.

use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use vhd_block::DeviceError;

use super::budget::Budget;
use super::complaint::Complaint;
use super::connection::Connection;
use super::control::Control;
use super::export_set::ExportSet;
use super::listener::Listener;
use super::registry::Registry;
use super::session::Timeouts;
use super::stats::{Stats, StatsReport};
use super::workers::STACK_SIZE;
use crate::tls::TlsServer;
use crate::transport::Transport;

/// How long the server rests when the system has no room for another connection.
const REST: Duration = Duration::from_millis(50);

/// How often a server that stops looks whether requests are being executed.
const LOOK: Duration = Duration::from_millis(2);

/// What a server allows its clients.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Connections at once. A new one beyond that takes the place of one that still negotiates, or is refused.
    pub max_connections: usize,
    /// How long a negotiation may take.
    pub handshake_timeout: Duration,
    /// How long a client may leave a message unfinished: its own, or ours by not receiving it. A long message has that
    /// time for each MiB. It is no longer than `idle_timeout`.
    pub stall_timeout: Duration,
    /// A client that sends nothing for so long, while nothing is done for it, is disconnected; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// With it, clients must change to TLS before they are told anything.
    pub tls: Option<TlsServer>,
    /// Bytes; what clients can make the server take, all together: [`MIN_MEMORY`](super::MIN_MEMORY) at least. Connections
    /// take up to half of it: there are no more than that allows.
    pub memory: u64,
    /// How long requests in flight may take when the server stops. Those that are not done then are refused, and get a
    /// quarter more to notice.
    pub grace: Duration,
}

impl Default for ServerOptions {
    /// 1024 connections, 10 s to negotiate, 60 s for a message, no idle timeout, no TLS, 512 MiB, 8 s to finish.
    fn default() -> Self {
        Self {
            max_connections: 1024,
            handshake_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
            idle_timeout: None,
            tls: None,
            memory: 512 << 20,
            grace: Duration::from_secs(8),
        }
    }
}

impl ServerOptions {
    pub(super) fn timeouts(&self) -> Timeouts {
        let idle = self.idle_timeout;
        Timeouts {
            stall: idle.map_or(self.stall_timeout, |idle| idle.min(self.stall_timeout)),
            idle,
        }
    }
}

/// Serves a set of exports.
#[derive(Debug)]
pub struct Server {
    exports: ExportSet,
    options: ServerOptions,
    stats: Stats,
    budget: Arc<Budget>,
    /// Connections at once: as many as the options and the memory allow.
    max_connections: usize,
    refusals: Complaint,
    registry: Arc<Registry>,
    stopping: AtomicBool,
    wake_reader: PipeReader,
    wake_writer: PipeWriter,
}

impl Server {
    /// A server of these exports.
    ///
    /// # Errors
    /// The system has no pipe to wake it with.
    pub fn new(exports: ExportSet, options: ServerOptions) -> io::Result<Arc<Self>> {
        let (wake_reader, wake_writer) = io::pipe()?;
        let (budget, max_connections) = Budget::new(options.memory, options.max_connections, options.tls.is_some());
        Ok(Arc::new(Self {
            exports,
            options,
            stats: Stats::new(),
            budget,
            max_connections,
            refusals: Complaint::default(),
            registry: Arc::new(Registry::default()),
            stopping: AtomicBool::new(false),
            wake_reader,
            wake_writer,
        }))
    }

    /// Accepts connections until [`stop`](Self::stop) is called; then lets all connections finish what they received,
    /// refuses what comes meanwhile, closes them, and flushes the disks.
    ///
    /// # Errors
    /// The sockets can't be waited for. A failed flush is the inner error.
    pub fn serve(self: &Arc<Self>, listeners: &[Listener]) -> io::Result<Result<(), DeviceError>> {
        let accepted = self.accept_until_stopped(listeners);
        self.end_connections();
        let flushed = self.exports.iter().map(|export| export.disk().flush());
        let flushed = flushed.fold(Ok(()), Result::and);
        accepted.map(|()| flushed)
    }

    fn end_connections(&self) {
        let grace = self.options.grace;
        let deadline = Instant::now() + grace;
        self.registry.stop_all();
        while self.stats.in_flight.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
            thread::sleep(LOOK);
        }
        self.registry.end_all();
        self.registry.wait_empty(grace / 40);
        self.registry.close_negotiating();
        if !self
            .registry
            .wait_empty(deadline.saturating_duration_since(Instant::now()))
        {
            self.registry.give_up_all();
            if !self.registry.wait_empty(grace / 8) {
                self.registry.close_all();
                // What the system does not let go of must not keep the disks from being flushed.
                self.registry.wait_empty(grace / 8);
            }
        }
    }

    /// Serves a connected socket on a thread of its own, beside those that [`serve`](Self::serve) accepts.
    pub fn serve_socket(self: &Arc<Self>, socket: OwnedFd, peer: String) {
        let added = self.registry.add(Transport::new(socket), self.max_connections);
        let Some((number, control)) = added else {
            self.refusals.say(|times| {
                let limit = self.max_connections;
                tracing::error!(peer, times, "refused: there are {limit} connections");
            });
            return;
        };
        self.stats.connections.fetch_add(1, Ordering::Relaxed);
        let server = Arc::clone(self);
        let builder = thread::Builder::new().name("nbd-session".into()).stack_size(STACK_SIZE);
        let registry = Arc::clone(&self.registry);
        let spawned = builder.spawn(move || {
            let _removal = Removal { registry, number };
            // Gone before the connection is off the list: who waits for that wants the disks for himself.
            let server = server;
            server.run_connection(&control, &peer);
        });
        if let Err(error) = spawned {
            self.refusals
                .say(|times| tracing::error!(%error, times, "no thread for a connection"));
            self.registry.remove(number);
        }
    }

    /// Makes [`serve`](Self::serve) return.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        // If the pipe is full, the server has been woken already.
        let _ = (&self.wake_writer).write(&[0]);
    }

    /// What the server did so far.
    #[must_use]
    pub fn stats(&self) -> StatsReport {
        self.stats.report()
    }

    /// The exports.
    #[must_use]
    pub fn exports(&self) -> &ExportSet {
        &self.exports
    }

    pub(super) fn options(&self) -> &ServerOptions {
        &self.options
    }

    pub(super) fn stats_of(&self) -> &Stats {
        &self.stats
    }

    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Connections at once: as many as the options and the memory allow.
    #[must_use]
    pub fn max_connections(&self) -> usize {
        self.max_connections
    }

    fn run_connection(&self, control: &Control, peer: &str) {
        let _open = self.stats.opened();
        tracing::info!(peer, "connected");
        match (Connection { server: self, control }).run() {
            Ok(()) => tracing::info!(peer, "disconnected"),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::info!(peer, %error, cause, "disconnected");
            }
        }
        control.transport.say_goodbye();
        control.transport.close();
    }

    fn accept_until_stopped(self: &Arc<Self>, listeners: &[Listener]) -> io::Result<()> {
        while !self.stopping.load(Ordering::Relaxed) {
            let mut waiting: Vec<PollFd<'_>> = listeners
                .iter()
                .map(|listener| PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN))
                .collect();
            waiting.push(PollFd::new(&self.wake_reader, PollFlags::IN));
            match poll(&mut waiting, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            for listener in listeners {
                self.accept(listener);
            }
        }
        let _ = (&self.wake_reader).read(&mut [0]);
        Ok(())
    }

    fn accept(self: &Arc<Self>, listener: &Listener) {
        match listener.accept() {
            Ok(Some((socket, peer))) => self.serve_socket(socket, peer),
            Ok(None) => {}
            Err(error) => {
                // Out of files or memory: both come back when connections end.
                listener
                    .complaint()
                    .say(|times| tracing::error!(%error, times, "can't accept on {listener}"));
                thread::sleep(REST);
            }
        }
    }
}

/// Takes a connection off the list, however its thread ends.
struct Removal {
    registry: Arc<Registry>,
    number: u64,
}

impl Drop for Removal {
    fn drop(&mut self) {
        self.registry.remove(self.number);
    }
}
