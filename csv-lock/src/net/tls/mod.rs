//! Messages over TCP with TLS, between machines. Both sides have a certificate of the cluster's authority (INV-106): the coordinator
//! is the node that the engine names, and who asks speaks for the node that its certificate names.

mod caller;
mod server;

pub(super) use caller::TlsCalls;
pub use server::TlsServer;
