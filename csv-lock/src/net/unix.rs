//! Messages over unix sockets, for the processes of one machine.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Net;
use super::accept::{Accepting, SILENT, SLOW, accept_all};
use super::frame::read_frame;
use super::inbox::{Caller, Inbox, Message};

/// Unix sockets; an address is a path. Connections are kept for the next call; clones share them.
#[derive(Clone, Debug, Default)]
pub struct UnixNet {
    idle: Arc<Mutex<HashMap<String, Vec<UnixStream>>>>,
}

/// A listening socket. Its name goes when this is dropped.
struct Door {
    path: PathBuf,
    _accepting: Accepting,
}

impl Net for UnixNet {
    type Listener = Inbox;

    fn listen(&self, address: &str) -> io::Result<Inbox> {
        Inbox::new(|sender| Ok(vec![Box::new(listen(address.into(), sender.clone())?)]))
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

/// Listens at a path; what arrives goes to the sender, until the door is dropped.
pub(super) fn listen(path: PathBuf, sender: SyncSender<Message>) -> io::Result<impl Send> {
    // Under a name of its own until nobody else may connect; the rename replaces what an earlier life left.
    let new = path.with_extension(format!("new{}", std::process::id()));
    remove_if_there(&new)?;
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    fs::rename(&new, &path)?;
    let accept = |listener: &UnixListener| listener.accept().map(|(stream, _)| stream);
    let accepting = accept_all(listener, accept, move |stream| read_all(stream, &sender))?;
    Ok(Door {
        path,
        _accepting: accepting,
    })
}

/// Sends a message and reads its answer. A connection that failed is not used again: an answer may still be on its way.
fn exchange(mut stream: UnixStream, message: &[u8], limit: Duration) -> io::Result<(Vec<u8>, UnixStream)> {
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(message)?;
    let answer = read_frame(&mut stream)?;
    Ok((answer, stream))
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Err(error) = remove_if_there(&self.path) {
            tracing::debug!(%error, "a socket stays");
        }
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads messages until the connection ends, is silent, or says something that is no message.
fn read_all(mut stream: UnixStream, sender: &SyncSender<Message>) {
    let prepared = stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_read_timeout(Some(SILENT)))
        .and_then(|()| stream.set_write_timeout(Some(SLOW)));
    if prepared.is_err() {
        return;
    }
    while let Ok(frame) = read_frame(&mut stream) {
        let Ok(caller) = stream.try_clone() else { return };
        if sender.send((frame, Caller::socket(caller))).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

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
