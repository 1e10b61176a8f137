//! Listening for commands while a disk is in use.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vhd_core::ErrorKind;
use vhd_core::ops::Progress;

use super::line::{Lines, PATIENCE, send};
use super::message::{Answer, Job, LONGEST_REQUEST, Request, VERSION};
use super::place::{directory, prepare, socket_of, trusts};
use crate::codes::Kind;
use crate::failure::Failure;
use crate::output;
use crate::rate::Limited;

/// Peers that are heard at once. The others wait until one of them is through.
const PEERS: usize = 64;

/// Between two messages about how far a job is.
const NEWS: Duration = Duration::from_millis(200);

/// What is done for commands, one job at a time.
pub(crate) trait Jobs: Send + Sync {
    /// Does a job. What it copies it tells `progress`; `cancel` is set when it is to stop, and what is done is kept.
    fn run(&self, job: Job, progress: &dyn Progress, cancel: &AtomicBool) -> Result<Answer, Failure>;

    /// A file of the disk, if that can be told. A job may have made the disk go on in other files.
    fn file(&self) -> Option<PathBuf>;
}

/// A control socket. It goes when this is dropped.
pub(crate) struct Control {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    socket: Mutex<PathBuf>,
    stopped: AtomicBool,
    peers: AtomicUsize,
    jobs: Box<dyn Jobs>,
    /// Held while a job is done.
    turn: Mutex<()>,
    /// Stops the job that is done.
    cancel: Mutex<Option<Arc<AtomicBool>>>,
}

impl Control {
    /// Listens for what is asked of the disk that `file` belongs to, which the caller has locked for writing.
    pub(crate) fn listen(file: &Path, jobs: impl Jobs + 'static) -> io::Result<Self> {
        let (_, socket) = socket_of(file).ok_or(io::ErrorKind::Unsupported)?;
        prepare(&directory())?;
        // Who has the lock may: what is there is of a program that is gone.
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&socket)?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;
        let shared = Arc::new(Shared {
            socket: Mutex::new(socket),
            stopped: AtomicBool::new(false),
            peers: AtomicUsize::new(0),
            jobs: Box::new(jobs),
            turn: Mutex::new(()),
            cancel: Mutex::new(None),
        });
        let serving = Arc::clone(&shared);
        let thread = thread::spawn(move || thread::scope(|scope| serving.accept(scope, &listener)));
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.shared.stop();
        // Wakes the thread.
        let socket = self
            .shared
            .socket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let woken = UnixStream::connect(&socket);
        let _ = fs::remove_file(&socket);
        if let (Ok(_), Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn accept<'scope>(&'scope self, scope: &'scope thread::Scope<'scope, '_>, listener: &UnixListener) {
        for stream in listener.incoming() {
            // Each has ten seconds at most before its job begins, and there is one job.
            while self.peers.load(Ordering::Acquire) >= PEERS && !self.stopped.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(10));
            }
            if self.stopped.load(Ordering::Acquire) {
                return;
            }
            self.peers.fetch_add(1, Ordering::AcqRel);
            scope.spawn(move || {
                // Whoever goes away in the middle gets no answer; the disk is as the job left it.
                let answered = stream.and_then(|stream| self.serve(&stream));
                self.peers.fetch_sub(1, Ordering::AcqRel);
                if let Err(error) = answered {
                    output::warning(format_args!(
                        "a request on the control socket was not answered: {error}"
                    ));
                }
            });
        }
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        if let Some(cancel) = &*self.cancel.lock().unwrap_or_else(PoisonError::into_inner) {
            cancel.store(true, Ordering::Relaxed);
        }
    }

    fn serve(&self, stream: &UnixStream) -> io::Result<()> {
        if !trusts(stream) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut lines = Lines::new(stream, LONGEST_REQUEST);
        let answer = match lines.next::<Request>(Instant::now() + PATIENCE) {
            Ok(Some(request)) if request.version != VERSION => refuse(format!(
                "the program that has the disk in use speaks version {VERSION} on its control socket, and was asked in version {}",
                request.version
            )),
            Ok(Some(request)) => self.take_turn(request, stream),
            Ok(None) => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => refuse(format!("that is no request: {error}")),
        };
        send(stream, &answer)
    }

    /// Does the job, if there is no other.
    fn take_turn(&self, request: Request, stream: &UnixStream) -> Answer {
        let _turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let busy = "another command is having a job done on this disk: try again when it is through";
                return failed(&Failure::new(Kind::Library(ErrorKind::Locked), busy));
            }
        };
        let cancel = Arc::new(AtomicBool::new(false));
        *self.cancel.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&cancel));
        if self.stopped.load(Ordering::Acquire) {
            cancel.store(true, Ordering::Relaxed);
        }
        let answer = self.attended(request, stream, &cancel);
        *self.cancel.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.follow();
        answer
    }

    /// Goes to where commands look for the disk from now on, in one step: the next one finds it there.
    fn follow(&self) {
        let Some((_, wanted)) = self.jobs.file().and_then(|file| socket_of(&file)) else {
            return;
        };
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        if *socket == wanted {
            return;
        }
        match fs::rename(&*socket, &wanted) {
            Ok(()) => *socket = wanted,
            Err(error) => output::warning(format_args!(
                "commands don't find this program by the file that it writes to now: {error}"
            )),
        }
    }

    /// Does the job as long as somebody waits for it.
    fn attended(&self, request: Request, stream: &UnixStream, cancel: &AtomicBool) -> Answer {
        let through = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| watch(stream, &through, cancel));
            let news = News::new(stream);
            let limited = Limited::new(&news, request.rate, cancel);
            let done = self.jobs.run(request.job, &limited, cancel);
            through.store(true, Ordering::Release);
            // Wakes who watches.
            let _ = stream.shutdown(Shutdown::Read);
            done.unwrap_or_else(|failure| failed(&failure))
        })
    }
}

/// Stops the job when the peer closes its sending side, or is gone. It has said all that it may say.
fn watch(stream: &UnixStream, through: &AtomicBool, cancel: &AtomicBool) {
    use std::io::Read as _;
    if stream.set_read_timeout(None).is_err() {
        return;
    }
    let _ = (&mut &*stream).read(&mut [0]);
    if !through.load(Ordering::Acquire) {
        cancel.store(true, Ordering::Relaxed);
    }
}

/// Tells the peer how far the job is. One that does not listen does not hold the job up.
struct News<'a> {
    stream: &'a UnixStream,
    state: Mutex<Counted>,
}

struct Counted {
    total: u64,
    done: u64,
    told: Instant,
    deaf: bool,
}

impl<'a> News<'a> {
    fn new(stream: &'a UnixStream) -> Self {
        Self {
            stream,
            state: Mutex::new(Counted {
                total: 0,
                done: 0,
                told: Instant::now(),
                deaf: false,
            }),
        }
    }

    fn tell(&self, state: &mut Counted) {
        state.told = Instant::now();
        let (total, done) = (state.total, state.done);
        state.deaf = state.deaf || send(self.stream, &Answer::Progress { total, done }).is_err();
    }
}

impl Progress for News<'_> {
    fn begin(&self, total: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.total, state.done) = (total, 0);
        self.tell(&mut state);
    }

    fn advance(&self, bytes: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.done += bytes;
        if state.told.elapsed() >= NEWS {
            self.tell(&mut state);
        }
    }
}

fn failed(failure: &Failure) -> Answer {
    Answer::Failed {
        code: failure.code().to_owned(),
        message: failure.message().to_owned(),
    }
}

fn refuse(message: String) -> Answer {
    failed(&Failure::new(Kind::Control, message))
}
