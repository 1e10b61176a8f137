//! The client: on our own server, on others, on servers that come and go, and on hostile ones.

mod support;

#[path = "client/breaks.rs"]
mod breaks;
#[path = "client/conformance.rs"]
mod conformance;
#[path = "client/hostile.rs"]
mod hostile;
#[path = "client/other_servers.rs"]
mod other_servers;
#[path = "client/resize.rs"]
mod resize;
#[path = "client/tls.rs"]
mod tls;
