//! The client: on our own server, on others, on servers that come and go, and on hostile ones.

mod support;

#[path = "client/conformance.rs"]
mod on_our_server;
