//! Messages over unix sockets, for the processes of one machine.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Listener, Net};
use crate::message::payload_len;

/// So many connections at once; more are turned away.
const CONNECTIONS: usize = 256;
/// How long a connection may be silent.
const SILENT: Duration = Duration::from_secs(30);
/// How long an answer may wait for a caller who does not read: the coordinator waits too.
const SLOW: Duration = Duration::from_secs(1);
/// How often a listener looks whether it shall end.
const LOOK: Duration = Duration::from_millis(100);

/// Unix sockets; an address is a path. Connections are kept for the next call; clones share them.
#[derive(Clone, Debug, Default)]
pub struct UnixNet {
    idle: Arc<Mutex<HashMap<String, Vec<UnixStream>>>>,
}

/// A listening socket. Its name goes when it is dropped.
pub struct UnixInbox {
    path: PathBuf,
    messages: Receiver<(Vec<u8>, UnixCaller)>,
    end: Arc<AtomicBool>,
}

/// Who waits for an answer. One that gets none is told by the end of its connection, and asks the successor at once.
pub struct UnixCaller(Option<UnixStream>);

impl Drop for UnixCaller {
    fn drop(&mut self) {
        if let Some(stream) = self.0.take() {
            // The thread that reads from it has it open too.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Net for UnixNet {
    type Listener = UnixInbox;

    fn listen(&self, address: &str) -> io::Result<UnixInbox> {
        let path = PathBuf::from(address);
        // Under a name of its own until nobody else may connect; the rename replaces what an earlier life left.
        let new = path.with_extension(format!("new{}", std::process::id()));
        remove_if_there(&new)?;
        let listener = UnixListener::bind(&new)?;
        fs::set_permissions(&new, Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        fs::rename(&new, &path)?;
        let (sender, messages) = sync_channel(CONNECTIONS);
        let end = Arc::new(AtomicBool::new(false));
        let ended = end.clone();
        thread::Builder::new()
            .name("csv-listen".into())
            .spawn(move || accept_all(&listener, &sender, &ended))?;
        Ok(UnixInbox { path, messages, end })
    }

    fn call(&self, address: &str, message: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
        let kept = self.idle().get_mut(address).and_then(Vec::pop);
        let answered = match kept {
            // The other side may have closed it meanwhile; a request may arrive twice.
            Some(stream) => exchange(stream, message, limit).or_else(|error| match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => Err(error),
                _ => exchange(UnixStream::connect(address)?, message, limit),
            }),
            None => exchange(UnixStream::connect(address)?, message, limit),
        };
        let (answer, stream) = answered?;
        self.idle().entry(address.to_owned()).or_default().push(stream);
        Ok(answer)
    }
}

impl UnixNet {
    fn idle(&self) -> MutexGuard<'_, HashMap<String, Vec<UnixStream>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends a message and reads its answer. A connection that failed is not used again: an answer may still be on its way.
fn exchange(mut stream: UnixStream, message: &[u8], limit: Duration) -> io::Result<(Vec<u8>, UnixStream)> {
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(message)?;
    let answer = read_frame(&mut stream)?;
    Ok((answer, stream))
}

impl Listener for UnixInbox {
    type Caller = UnixCaller;

    fn accept(&mut self, most: usize, limit: Duration) -> io::Result<Vec<(Vec<u8>, UnixCaller)>> {
        let first = match self.messages.recv_timeout(limit) {
            Ok(first) => first,
            Err(RecvTimeoutError::Timeout) => return Ok(Vec::new()),
            Err(RecvTimeoutError::Disconnected) => return Err(ErrorKind::BrokenPipe.into()),
        };
        let more = self.messages.try_iter().take(most.saturating_sub(1));
        Ok(std::iter::once(first).chain(more).collect())
    }

    fn reply(&mut self, mut caller: UnixCaller, message: Vec<u8>) {
        let Some(mut stream) = caller.0.take() else { return };
        if let Err(error) = stream.write_all(&message) {
            tracing::debug!(%error, "a caller has gone");
        }
    }
}

impl Drop for UnixInbox {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Err(error) = remove_if_there(&self.path) {
            tracing::debug!(%error, "a socket stays");
        }
    }
}

fn remove_if_there(path: &std::path::Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn accept_all(listener: &UnixListener, sender: &SyncSender<(Vec<u8>, UnixCaller)>, end: &AtomicBool) {
    let open = Arc::new(AtomicUsize::new(0));
    let look = Timespec {
        tv_sec: 0,
        tv_nsec: LOOK.subsec_nanos().into(),
    };
    while !end.load(Ordering::Relaxed) {
        let ready = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&look));
        if !matches!(ready, Ok(1)) {
            continue;
        }
        let Ok((stream, _)) = listener.accept() else { continue };
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (sender, closed) = (sender.clone(), open.clone());
        let served = thread::Builder::new().name("csv-connection".into()).spawn(move || {
            read_all(stream, &sender);
            closed.fetch_sub(1, Ordering::Relaxed);
        });
        if served.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Reads messages until the connection ends, is silent, or says something that is no message.
fn read_all(mut stream: UnixStream, sender: &SyncSender<(Vec<u8>, UnixCaller)>) {
    let prepared = stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_read_timeout(Some(SILENT)))
        .and_then(|()| stream.set_write_timeout(Some(SLOW)));
    if prepared.is_err() {
        return;
    }
    while let Ok(frame) = read_frame(&mut stream) {
        let Ok(caller) = stream.try_clone() else { return };
        if sender.send((frame, UnixCaller(Some(caller)))).is_err() {
            return;
        }
    }
}

/// One whole frame, header included.
fn read_frame(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut header = [0; 8];
    stream.read_exact(&mut header)?;
    let len = payload_len(header).map_err(|error| io::Error::new(ErrorKind::InvalidData, error.to_string()))?;
    let mut frame = header.to_vec();
    // Grows with what arrives, not with what is announced.
    stream.take(len as u64).read_to_end(&mut frame)?;
    if frame.len() != header.len() + len {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::encode;

    #[test]
    fn a_message_that_nobody_answers_ends_its_connection() {
        let dir = tempfile::tempdir().unwrap();
        let address = dir.path().join("socket").to_str().unwrap().to_owned();
        let net = UnixNet::default();
        let inbox = net.listen(&address).unwrap();
        // Far longer than the test may take.
        let limit = Duration::from_secs(600);
        let call = || {
            let (net, address) = (net.clone(), address.clone());
            thread::spawn(move || net.call(&address, &encode(&"hello"), limit))
        };
        // Taken and dropped; then still in the inbox, or on its way, when that goes.
        let calling = call();
        drop(inbox.messages.recv_timeout(limit).unwrap());
        assert!(calling.join().unwrap().is_err());
        let calling = call();
        thread::sleep(Duration::from_millis(50));
        drop(inbox);
        assert!(calling.join().unwrap().is_err());
    }
}
