//! Asking the process of a machine.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use vhd_core::error::with_causes;
use vhd_core::storage::{StagedFile, StorageError, StorageFile as _};

use super::MachineName;
use super::claim::machines;
use super::message::{Answer, Job, MachineInfo, Named, Request, VERSION};
use crate::codes::Kind;
use crate::commands::vm::disk_spec::DiskSpec;
use crate::commands::vm::passed::Passed;
use crate::commands::vm::snapshot::sweep_directories;
use crate::control::descriptors::send_files;
use crate::control::line::{PATIENCE, receive, send};
use crate::control::place::trusts;
use crate::failure::Failure;

/// How often it is looked whether a machine has ended.
const LOOK: Duration = Duration::from_millis(20);

/// The machines whose processes live.
pub(crate) fn living() -> Result<Vec<MachineName>, Failure> {
    sweep_directories(|name| machines().is_alive(name));
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

    /// Gives the machine another disk. What its process may not open is opened here, and passed to it.
    pub(crate) fn add_disk(&self, disk: DiskSpec) -> Result<(), Failure> {
        let (answer, stream) = self.connect(Job::DiskAdd { disk: disk.clone() })?;
        if !matches!(answer, Answer::Outside) {
            return Ok(());
        }
        let (passed, files) = Passed::open(&disk)?;
        let answer = send(&stream, &passed)
            .and_then(|()| send_files(&stream, &files))
            .and_then(|()| receive(&stream, None));
        // From here on the machine has the locks.
        drop(files);
        self.answered(answer).map(drop)
    }

    /// Has the machine write itself to a file, whose name it gets from here, and end.
    pub(crate) fn save(&self, path: &Path) -> Result<(), Failure> {
        if path.symlink_metadata().is_ok() {
            return Err(StorageError::Exists { path: path.to_owned() }.into());
        }
        let staged = StagedFile::create_beside(path)?;
        let file = staged.storage();
        let file = file.host_file().expect("it was just created on this host").try_clone();
        let file = OwnedFd::from(file.map_err(|error| Failure::io("write", path, &error))?);
        let job = Job::SaveInto {
            file: path.display().to_string(),
        };
        let broken = |error: io::Error| self.broken(&error);
        let stream = self.call(&job).map_err(broken)?;
        // A machine that refuses may be gone by now: its answer says why.
        let _ = send_files(&stream, &[file]);
        match self.answered(receive(&stream, None))? {
            Answer::Written => {}
            _ => return Err(self.misunderstood()),
        }
        let published = staged.publish(false, false);
        let failed = published.as_ref().err().map(|error| with_causes(error));
        let answer = send(&stream, &Named { failed }).and_then(|()| receive(&stream, None));
        published?;
        self.answered(answer).map(drop).inspect_err(|_| {
            // It is good for nothing.
            let _ = fs::remove_file(path);
        })
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
        let stream = self.call(&job).map_err(|error| self.broken(&error))?;
        // The answer may take its time.
        let answer = self.answered(receive(&stream, None))?;
        Ok((answer, stream))
    }

    /// An answer that says that something was done.
    fn answered(&self, answer: io::Result<Answer>) -> Result<Answer, Failure> {
        match answer.map_err(|error| self.broken(&error))? {
            Answer::Failed { code, message } => Err(Failure::new(Kind::of_code(&code), message)),
            answer => Ok(answer),
        }
    }

    /// Says what is asked for.
    fn call(&self, job: &Job) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(&self.socket)?;
        if !trusts(&stream) {
            return Err(io::Error::other("another user listens there"));
        }
        stream.set_write_timeout(Some(PATIENCE))?;
        send(&stream, &Request { version: VERSION, job })?;
        Ok(stream)
    }

    fn broken(&self, error: &io::Error) -> Failure {
        let (name, socket) = (&self.name, self.socket.display());
        let message = format!("the process of the machine {name} does not answer as it should on {socket}: {error}");
        Failure::new(Kind::MachineControl, message)
    }
}
