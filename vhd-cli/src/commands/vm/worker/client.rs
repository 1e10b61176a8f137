//! Asking the process of a machine.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::MachineName;
use super::claim::machines;
use super::message::{Answer, Job, MachineInfo, Request, VERSION};
use crate::codes::Kind;
use crate::control::line::{PATIENCE, receive, send};
use crate::control::place::trusts;
use crate::failure::Failure;

/// How often it is looked whether a machine has ended.
const LOOK: Duration = Duration::from_millis(20);

/// The machines whose processes live.
pub(crate) fn living() -> Result<Vec<MachineName>, Failure> {
    machines()
        .names()
        .map_err(|error| Failure::new(Kind::MachineControl, format!("can't look for machines: {error}")))
}

/// A machine that is asked.
pub(crate) struct Client {
    name: MachineName,
    socket: PathBuf,
}

impl Client {
    /// A machine whose process lives.
    pub(crate) fn find(name: &MachineName) -> Result<Self, Failure> {
        if !machines().is_alive(name) {
            let message = format!("there is no machine {name} of this user; `vhd vm list` shows all");
            return Err(Failure::new(Kind::NoSuchMachine, message));
        }
        Ok(Self {
            name: name.clone(),
            socket: machines().socket(name),
        })
    }

    /// Has the machine do something.
    pub(crate) fn ask(&self, job: Job) -> Result<Answer, Failure> {
        self.connect(job).map(|(answer, _)| answer)
    }

    /// What the machine is.
    pub(crate) fn info(&self) -> Result<MachineInfo, Failure> {
        match self.ask(Job::Info)? {
            Answer::Info(info) => Ok(info),
            _ => Err(self.misunderstood()),
        }
    }

    /// It answered something else than it was asked for.
    pub(crate) fn misunderstood(&self) -> Failure {
        self.broken(&io::Error::other("that is no answer to what was asked"))
    }

    /// The console of the machine, both ways.
    pub(crate) fn console(&self) -> Result<UnixStream, Failure> {
        let (_, stream) = self.connect(Job::Console)?;
        let waits = stream
            .set_read_timeout(None)
            .and_then(|()| stream.set_write_timeout(None));
        waits.map_err(|error| self.broken(&error))?;
        Ok(stream)
    }

    /// Waits until the process has ended; returns whether it has.
    pub(crate) fn wait_for_end(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while machines().is_alive(&self.name) {
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(LOOK);
        }
        true
    }

    fn connect(&self, job: Job) -> Result<(Answer, UnixStream), Failure> {
        match self.converse(job).map_err(|error| self.broken(&error))? {
            (Answer::Failed { code, message }, _) => Err(Failure::new(Kind::of_code(&code), message)),
            answered => Ok(answered),
        }
    }

    fn converse(&self, job: Job) -> io::Result<(Answer, UnixStream)> {
        let stream = UnixStream::connect(&self.socket)?;
        if !trusts(&stream) {
            return Err(io::Error::other("another user listens there"));
        }
        stream.set_write_timeout(Some(PATIENCE))?;
        // The answer may take its time.
        send(&stream, &Request { version: VERSION, job })?;
        let answer = receive(&stream, None)?;
        Ok((answer, stream))
    }

    fn broken(&self, error: &io::Error) -> Failure {
        let (name, socket) = (&self.name, self.socket.display());
        let message = format!("the process of the machine {name} does not answer as it should on {socket}: {error}");
        Failure::new(Kind::MachineControl, message)
    }
}
