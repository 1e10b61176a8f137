//! Messages between sessions and coordinators.
//!
//! ```text
//!   frame.rs    one message on a stream            inbox.rs         where a coordinator gets them
//!   accept.rs   threads that listen                address.rs       where a coordinator listens, as text
//!   unix.rs     processes of one machine           certificates.rs  who a node of another machine is
//!   tls/        between machines                   node.rs          both, by the address
//! ```

mod accept;
mod address;
mod certificates;
mod frame;
mod inbox;
mod node;
mod tls;
mod unix;

use std::io;
use std::time::Duration;

pub use address::Address;
pub use certificates::CertificateFiles;
pub use inbox::{Caller, Inbox};
pub use node::NodeNet;
pub use tls::TlsServer;
pub use unix::UnixNet;

/// A network. Messages may be lost, doubled, late; [`Request`](crate::Request) is made for that.
pub trait Net: Send + Sync {
    /// Where a coordinator gets its messages.
    type Listener: Listener;

    /// Listens at an address.
    ///
    /// # Errors
    /// What the system says.
    fn listen(&self, address: &str) -> io::Result<Self::Listener>;

    /// Sends a message and waits for its answer, `limit` at most.
    ///
    /// # Errors
    /// `TimedOut`, `ConnectionRefused`; what the system says. Whether the message arrived is then unknown. A
    /// [`CsvError`](crate::CsvError) inside says why no message to this address can arrive, now or later.
    fn call(&self, address: &str, message: &[u8], limit: Duration) -> io::Result<Vec<u8>>;
}

/// Where a coordinator gets its messages.
pub trait Listener {
    /// Who waits for an answer.
    type Caller;

    /// Waits for messages, `limit` at most, and takes up to `most`.
    ///
    /// # Errors
    /// What the system says.
    fn accept(&mut self, most: usize, limit: Duration) -> io::Result<Vec<(Vec<u8>, Self::Caller)>>;

    /// Answers. A caller who has gone is no error.
    fn reply(&mut self, caller: Self::Caller, message: Vec<u8>);
}
