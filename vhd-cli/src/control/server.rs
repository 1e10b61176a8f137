//! Listening for commands while a disk is served.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::message::{Answer, Job, PATIENCE, Request, Taken, VERSION, receive, send};
use super::place::{prepare, socket_of, trusts};
use crate::failure::Failure;
use crate::output;

/// A control socket. It goes when this is dropped.
pub(crate) struct Control {
    socket: PathBuf,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Listens for what is asked of the disk that `file` belongs to, which the caller has locked for writing. One request
    /// at a time; `take` is to keep the present state under a name.
    pub(crate) fn listen(
        file: &Path,
        take: impl Fn(&str) -> Result<Taken, Failure> + Send + 'static,
    ) -> io::Result<Self> {
        let (_, socket) = socket_of(file).ok_or(io::ErrorKind::Unsupported)?;
        prepare(&socket)?;
        // Who has the lock may: what is there is of a server that is gone.
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&socket)?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;
        let stopped = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopped);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                // Whoever goes away in the middle gets no answer; the disk is as the job left it.
                let answered = stream.and_then(|stream| serve(&stream, &take));
                if let Err(error) = answered {
                    output::warning(format_args!(
                        "a request on the control socket was not answered: {error}"
                    ));
                }
            }
        });
        Ok(Self {
            socket,
            stopped,
            thread: Some(thread),
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        // Wakes the thread.
        let woken = UnixStream::connect(&self.socket);
        let _ = fs::remove_file(&self.socket);
        if let (Ok(_), Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

fn serve(stream: &UnixStream, take: &impl Fn(&str) -> Result<Taken, Failure>) -> io::Result<()> {
    if !trusts(stream) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    stream.set_write_timeout(Some(PATIENCE))?;
    let answer = match receive::<Request>(stream, Some(Instant::now() + PATIENCE)) {
        Ok(request) if request.version != VERSION => refuse(format!(
            "the server speaks version {VERSION} on its control socket, and was asked in version {}",
            request.version
        )),
        Ok(Request {
            job: Job::SnapshotCreate { name },
            ..
        }) => match take(&name) {
            Ok(taken) => Answer::Taken(taken),
            Err(failure) => Answer::Failed {
                code: failure.code().to_owned(),
                message: failure.message().to_owned(),
            },
        },
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        Err(error) => refuse(format!("that is no request: {error}")),
    };
    send(stream, &answer)
}

fn refuse(message: String) -> Answer {
    Answer::Failed {
        code: crate::codes::Kind::Control.code().code.to_owned(),
        message,
    }
}
