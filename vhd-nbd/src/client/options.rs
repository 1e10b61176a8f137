//! How a client behaves.

use std::time::Duration;

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The export is to be written too.
    pub write: bool,
    /// The most connections, where the server says that they all show one disk; 1 at least. They are made when needed.
    pub connections: usize,
    /// How long connecting and negotiating may take, each.
    pub connect_timeout: Duration,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// How long a new connection is tried for when one broke; with zero, a broken one is an error at once.
    pub reconnect: Duration,
}

impl Default for ClientOptions {
    /// For reading, 4 connections, 30 s to connect, 120 s for a request, 60 s to reconnect.
    fn default() -> Self {
        Self {
            write: false,
            connections: 4,
            connect_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(120),
            reconnect: Duration::from_secs(60),
        }
    }
}
