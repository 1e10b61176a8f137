//! Asking the server that has a disk in use.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::line::{PATIENCE, receive, send};
use super::message::{Answer, Deleted, Job, Request, Taken, VERSION};
use super::place::{socket_of, trusts};
use crate::codes::Kind;
use crate::failure::Failure;

/// Has the server of the disk take a snapshot of it. `None` if no server has it: then it is the caller's to do. With the
/// base of the disk.
pub(crate) fn create_snapshot(disk: &Path, name: &str) -> Result<Option<(PathBuf, Taken)>, Failure> {
    let job = Job::SnapshotCreate { name: name.to_owned() };
    request(disk, job, |answer| match answer {
        Answer::Taken(taken) => Some(taken).filter(|taken| plain(&taken.active)),
        _ => None,
    })
}

/// Has the server of the disk delete a snapshot of it, as [`create_snapshot`] has one taken.
pub(crate) fn delete_snapshot(disk: &Path, name: &str, subtree: bool) -> Result<Option<(PathBuf, Deleted)>, Failure> {
    let name = name.to_owned();
    request(disk, Job::SnapshotDelete { name, subtree }, |answer| match answer {
        Answer::Deleted(deleted) => Some(deleted).filter(|deleted| deleted.files().all(|file| plain(file))),
        _ => None,
    })
}

/// Asks the server; `expected` is what an answer says, unless it says something else or names files elsewhere.
fn request<T>(
    disk: &Path,
    job: Job,
    expected: impl FnOnce(Answer) -> Option<T>,
) -> Result<Option<(PathBuf, T)>, Failure> {
    let Some((base, socket)) = socket_of(disk) else {
        return Ok(None);
    };
    let Ok(stream) = UnixStream::connect(&socket) else {
        // Nobody has it, or somebody who does not listen: the lock will tell.
        return Ok(None);
    };
    match ask(&stream, job).map_err(|error| broken(&socket, &error))? {
        Answer::Failed { code, message } => Err(Failure::new(Kind::of_code(&code), message)),
        answer => match expected(answer) {
            Some(said) => Ok(Some((base, said))),
            None => Err(broken(
                &socket,
                &io::Error::other("that is no answer to what was asked"),
            )),
        },
    }
}

fn ask(stream: &UnixStream, job: Job) -> io::Result<Answer> {
    if !trusts(stream) {
        return Err(io::Error::other("another user listens there"));
    }
    stream.set_write_timeout(Some(PATIENCE))?;
    // The answer may take its time: files are merged or made durable before it.
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
