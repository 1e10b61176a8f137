//! Listening while a machine runs.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::message::{Answer, Job, Request, VERSION};
use super::{Claim, Worker};
use crate::codes::Kind;
use crate::control::line::{PATIENCE, receive, send};
use crate::control::place::trusts;
use crate::failure::Failure;

/// Clients at a time; what is attached to the console is one.
const CLIENTS: usize = 16;

/// The socket of a machine. Nobody listens there when this was dropped.
pub(crate) struct Server {
    socket: PathBuf,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens for what is asked of a machine.
    pub(crate) fn listen(claim: &Claim, worker: Arc<Worker>) -> Result<Self, Failure> {
        let socket = claim.socket();
        let failed = |error: io::Error| Failure::io("listen on", &socket, &error);
        let listener = UnixListener::bind(&socket).map_err(failed)?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let stopped = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopped);
        let thread = thread::Builder::new().name("control".into());
        let thread = thread
            .spawn(move || accept(&listener, &worker, &stop))
            .map_err(failed)?;
        Ok(Self {
            socket,
            stopped,
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        // Wakes the thread.
        if UnixStream::connect(&self.socket).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// Those who are served, counted.
struct Served(Arc<AtomicUsize>);

impl Served {
    fn one_more(count: &Arc<AtomicUsize>) -> Option<Self> {
        let served = Self(Arc::clone(count));
        (count.fetch_add(1, Ordering::AcqRel) < CLIENTS).then_some(served)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn accept(listener: &UnixListener, worker: &Arc<Worker>, stop: &AtomicBool) {
    let count = Arc::default();
    for stream in listener.incoming() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        let Ok(stream) = stream else {
            // No descriptors are left: those that are served give theirs back.
            thread::sleep(PATIENCE / 100);
            continue;
        };
        let (worker, served) = (Arc::clone(worker), Served::one_more(&count));
        let answer = move || {
            let answered = match &served {
                Some(_) => serve(&stream, &worker),
                None => send(&stream, &refuse("it serves as many others as it can")),
            };
            // Whoever goes away in the middle gets no answer.
            drop(answered);
        };
        if thread::Builder::new().name("client".into()).spawn(answer).is_err() {
            thread::sleep(PATIENCE / 100);
        }
    }
}

fn serve(stream: &UnixStream, worker: &Worker) -> io::Result<()> {
    if !trusts(stream) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = match receive::<Request>(stream, Some(Instant::now() + PATIENCE)) {
        Ok(request) if request.version != VERSION => {
            let message = format!(
                "it speaks version {VERSION}, and was asked in version {}",
                request.version
            );
            return send(stream, &refuse(&message));
        }
        Ok(request) => request,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        Err(error) => return send(stream, &refuse(&format!("that is no request: {error}"))),
    };
    match request.job {
        Job::Console => {
            send(stream, &Answer::Done)?;
            worker.attach(stream)
        }
        Job::SaveInto { file } => {
            let client = stream.try_clone()?;
            // Where that succeeds, the answer is given when the disks are closed.
            let saved = worker.save(file, client);
            saved.or_else(|failure| send(stream, &answer_failure(&failure)))
        }
        Job::DiskAdd { disk } => {
            let added = worker.add_disk(disk, stream);
            send(
                stream,
                &added.map_or_else(|failure| answer_failure(&failure), |()| Answer::Done),
            )
        }
        Job::SnapshotApply { name, first } => {
            let client = stream.try_clone()?;
            // Where that succeeds, the answer is given when the guest goes on.
            let going = worker.go_back(&name, first.as_deref(), client);
            going.or_else(|failure| send(stream, &answer_failure(&failure)))
        }
        job => send(
            stream,
            &worker.answer(job).unwrap_or_else(|failure| answer_failure(&failure)),
        ),
    }
}

/// The answer to what failed.
pub(crate) fn answer_failure(failure: &Failure) -> Answer {
    Answer::Failed {
        code: failure.code().to_owned(),
        message: failure.message().to_owned(),
    }
}

fn refuse(message: &str) -> Answer {
    Answer::Failed {
        code: Kind::MachineControl.code().code.to_owned(),
        message: format!("the process of the machine refuses: {message}"),
    }
}
