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

use super::line::{PATIENCE, receive, send};
use super::message::{Answer, Deleted, Job, Request, Taken, VERSION};
use super::place::{prepare, socket_of, trusts};
use crate::failure::Failure;
use crate::output;

/// What is done for commands.
pub(crate) trait Jobs: Send {
    /// Keeps the present state under a name.
    fn take(&self, name: &str) -> Result<Taken, Failure>;
    /// Deletes a snapshot. `cancel` is set when the server is about to stop: what is done is kept.
    fn delete(&self, name: &str, subtree: bool, cancel: &AtomicBool) -> Result<Deleted, Failure>;
}

/// A control socket. It goes when this is dropped.
pub(crate) struct Control {
    socket: PathBuf,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Listens for what is asked of the disk that `file` belongs to, which the caller has locked for writing. One request
    /// at a time.
    pub(crate) fn listen(file: &Path, jobs: impl Jobs + 'static) -> io::Result<Self> {
        let (_, socket) = socket_of(file).ok_or(io::ErrorKind::Unsupported)?;
        prepare(socket.parent().unwrap_or(Path::new("/")))?;
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
                let answered = stream.and_then(|stream| serve(&stream, &jobs, &stop));
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

fn serve(stream: &UnixStream, jobs: &impl Jobs, stop: &AtomicBool) -> io::Result<()> {
    if !trusts(stream) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    stream.set_write_timeout(Some(PATIENCE))?;
    let answer = match receive::<Request>(stream, Some(Instant::now() + PATIENCE)) {
        Ok(request) if request.version != VERSION => refuse(format!(
            "the server speaks version {VERSION} on its control socket, and was asked in version {}",
            request.version
        )),
        Ok(Request { job, .. }) => run(job, jobs, stop).unwrap_or_else(|failure| Answer::Failed {
            code: failure.code().to_owned(),
            message: failure.message().to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        Err(error) => refuse(format!("that is no request: {error}")),
    };
    send(stream, &answer)
}

fn run(job: Job, jobs: &impl Jobs, stop: &AtomicBool) -> Result<Answer, Failure> {
    match job {
        Job::SnapshotCreate { name } => jobs.take(&name).map(Answer::Taken),
        Job::SnapshotDelete { name, subtree } => jobs.delete(&name, subtree, stop).map(Answer::Deleted),
    }
}

fn refuse(message: String) -> Answer {
    Answer::Failed {
        code: crate::codes::Kind::Control.code().code.to_owned(),
        message,
    }
}
