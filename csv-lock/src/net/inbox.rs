//! Where a coordinator gets its messages, from whatever listens for it.

use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use super::Listener;

/// So many messages wait; whoever listens waits with more.
const WAITING: usize = 256;

/// A message, and who waits for its answer.
pub(super) type Message = (Vec<u8>, Caller);

/// Where a coordinator gets its messages. What listens for it ends when it is dropped.
pub struct Inbox {
    /// Closed before messages are dropped, so that no more come.
    _doors: Vec<Box<dyn Send>>,
    pub(super) messages: Receiver<Message>,
}

/// Who waits for an answer. One that gets none is told by the end of its connection, and asks the successor at once.
pub struct Caller(Option<Way>);

enum Way {
    /// The answer goes straight to the socket.
    Socket(UnixStream),
    /// A thread has the connection to itself, and its keys.
    Thread(SyncSender<Vec<u8>>),
}

impl Inbox {
    /// An inbox; `open` puts doors to it where messages come from.
    pub(super) fn new(open: impl FnOnce(&SyncSender<Message>) -> io::Result<Vec<Box<dyn Send>>>) -> io::Result<Self> {
        let (sender, messages) = sync_channel(WAITING);
        Ok(Self {
            _doors: open(&sender)?,
            messages,
        })
    }
}

impl Caller {
    pub(super) fn socket(stream: UnixStream) -> Self {
        Self(Some(Way::Socket(stream)))
    }

    /// A caller, and where its thread waits for the answer: an error there is that none comes.
    pub(super) fn thread() -> (Self, Receiver<Vec<u8>>) {
        let (sender, answer) = sync_channel(1);
        (Self(Some(Way::Thread(sender))), answer)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        if let Some(Way::Socket(stream)) = self.0.take() {
            // The thread that reads from it has it open too.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Listener for Inbox {
    type Caller = Caller;

    fn accept(&mut self, most: usize, limit: Duration) -> io::Result<Vec<Message>> {
        let first = match self.messages.recv_timeout(limit) {
            Ok(first) => first,
            Err(RecvTimeoutError::Timeout) => return Ok(Vec::new()),
            Err(RecvTimeoutError::Disconnected) => return Err(ErrorKind::BrokenPipe.into()),
        };
        let more = self.messages.try_iter().take(most.saturating_sub(1));
        Ok(std::iter::once(first).chain(more).collect())
    }

    fn reply(&mut self, mut caller: Caller, message: Vec<u8>) {
        let sent = match caller.0.take() {
            Some(Way::Socket(mut stream)) => stream.write_all(&message),
            Some(Way::Thread(answer)) => answer.send(message).map_err(|_| ErrorKind::BrokenPipe.into()),
            None => Ok(()),
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "a caller has gone");
        }
    }
}
