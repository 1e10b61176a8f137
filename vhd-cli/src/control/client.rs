//! Asking the server that has a disk in use.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::message::{Answer, Job, PATIENCE, Request, Taken, VERSION, receive, send};
use super::place::{socket_of, trusts};
use crate::codes::Kind;
use crate::failure::Failure;

/// Has the server of the disk take a snapshot of it. `None` if no server has it: then it is the caller's to do. With the
/// base of the disk.
pub(crate) fn create_snapshot(disk: &Path, name: &str) -> Result<Option<(PathBuf, Taken)>, Failure> {
    let Some((base, socket)) = socket_of(disk) else {
        return Ok(None);
    };
    let Ok(stream) = UnixStream::connect(&socket) else {
        // Nobody has it, or somebody who does not listen: the lock will tell.
        return Ok(None);
    };
    let job = Job::SnapshotCreate { name: name.to_owned() };
    match ask(&stream, job).map_err(|error| broken(&socket, &error))? {
        Answer::Taken(taken) if plain(&taken.active) => Ok(Some((base, taken))),
        Answer::Taken(_) => Err(broken(&socket, &io::Error::other("it names a file elsewhere"))),
        Answer::Failed { code, message } => Err(Failure::new(Kind::of_code(&code), message)),
    }
}

fn ask(stream: &UnixStream, job: Job) -> io::Result<Answer> {
    if !trusts(stream) {
        return Err(io::Error::other("another user listens there"));
    }
    stream.set_write_timeout(Some(PATIENCE))?;
    // The answer may take its time: a frozen leaf is made durable before it.
    send(stream, &Request { version: VERSION, job })?;
    receive(stream, None)
}

fn broken(socket: &Path, error: &io::Error) -> Failure {
    let message = format!(
        "the server that has the disk in use does not answer as it should on {}: {error}; --offline does not ask it",
        socket.display()
    );
    Failure::new(Kind::Control, message)
}

fn plain(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|file| file == name)
}
