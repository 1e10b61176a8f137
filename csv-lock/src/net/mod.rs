//! Messages between sessions and coordinators.

mod unix;

use std::io;
use std::time::Duration;

pub use unix::{UnixCaller, UnixInbox, UnixNet};

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
    /// `TimedOut`, `ConnectionRefused`; what the system says. Whether the message arrived is then unknown.
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
