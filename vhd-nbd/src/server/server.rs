//! The server: accepts connections, runs them, stops in order.

use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use vhd_block::DeviceError;

use super::connection::Connection;
use super::export_set::ExportSet;
use super::listener::Listener;
use super::registry::{Control, Registry};
use super::stats::{Stats, StatsReport};
use super::workers::STACK_SIZE;
use crate::tls::TlsServer;
use crate::transport::Transport;

/// How long the server rests when the system has no room for another connection.
const REST: Duration = Duration::from_millis(50);

/// How long closed connections may take to notice.
const LAST_WAIT: Duration = Duration::from_secs(30);

/// What a server allows its clients.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Connections at once. A new one beyond that takes the place of one that still negotiates, or is refused.
    pub max_connections: usize,
    /// How long a negotiation may take.
    pub handshake_timeout: Duration,
    /// A client that sends nothing for so long is disconnected; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// With it, clients must change to TLS before they are told anything.
    pub tls: Option<TlsServer>,
    /// How long requests in flight may take when the server stops.
    pub grace: Duration,
}

impl Default for ServerOptions {
    /// 1024 connections, 10 s to negotiate, no idle timeout, no TLS, 10 s to finish.
    fn default() -> Self {
        Self {
            max_connections: 1024,
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: None,
            tls: None,
            grace: Duration::from_secs(10),
        }
    }
}

/// Serves a set of exports.
#[derive(Debug)]
pub struct Server {
    exports: ExportSet,
    options: ServerOptions,
    stats: Stats,
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
        Ok(Arc::new(Self {
            exports,
            options,
            stats: Stats::new(),
            registry: Arc::new(Registry::default()),
            stopping: AtomicBool::new(false),
            wake_reader,
            wake_writer,
        }))
    }

    /// Accepts connections until [`stop`](Self::stop) is called; then lets all connections finish what they received,
    /// closes them, and flushes the disks.
    ///
    /// # Errors
    /// The sockets can't be waited for. A failed flush is the inner error.
    pub fn serve(self: &Arc<Self>, listeners: &[Listener]) -> io::Result<Result<(), DeviceError>> {
        let accepted = self.accept_until_stopped(listeners);
        self.registry.stop_all();
        if !self.registry.wait_empty(self.options.grace) {
            self.registry.close_all();
            self.registry.wait_empty(LAST_WAIT);
        }
        let flushed = self.exports.iter().map(|export| export.disk().flush());
        let flushed = flushed.fold(Ok(()), Result::and);
        accepted.map(|()| flushed)
    }

    /// Serves a connected socket on a thread of its own, beside those that [`serve`](Self::serve) accepts.
    pub fn serve_socket(self: &Arc<Self>, socket: OwnedFd, peer: String) {
        let added = self.registry.add(Transport::new(socket), self.options.max_connections);
        let Some((number, control)) = added else {
            tracing::warn!(peer, "refused: there are {} connections", self.options.max_connections);
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
            tracing::warn!(%error, "no thread for a connection");
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

    fn run_connection(&self, control: &Control, peer: &str) {
        self.stats.open.fetch_add(1, Ordering::Relaxed);
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
        self.stats.open.fetch_sub(1, Ordering::Relaxed);
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
                tracing::warn!(%error, "can't accept on {listener}");
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
