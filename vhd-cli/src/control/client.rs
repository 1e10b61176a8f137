//! Asking the program that has a disk in use.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vhd_core::ops::Progress;

use super::line::{Lines, PATIENCE, send};
use super::message::{Answer, Deleted, Job, LONGEST_ANSWER, MergeJob, Request, ResizeJob, Taken, VERSION};
use super::place::{socket_of, trusts};
use crate::codes::Kind;
use crate::commands::merge::MergeJson;
use crate::commands::resize::ResizeJson;
use crate::failure::Failure;

/// How often an interruption is looked for while the program works.
const LOOK: Duration = Duration::from_millis(100);

/// What goes along with a job that another program does.
pub(crate) struct Along<'a> {
    /// Bytes that are copied in a second at most.
    pub(crate) rate: Option<u64>,
    /// Told how far it is.
    pub(crate) progress: &'a dyn Progress,
    /// Set to have it stopped at a safe point.
    pub(crate) cancel: &'a AtomicBool,
}

/// Has the program that has the disk in use take a snapshot of it. `None` if none has it: then it is the caller's to do. With
/// the base of the disk.
pub(crate) fn create_snapshot(disk: &Path, name: &str) -> Result<Option<(PathBuf, Taken)>, Failure> {
    let along = Along {
        rate: None,
        progress: &(),
        cancel: &AtomicBool::new(false),
    };
    let job = Job::SnapshotCreate { name: name.to_owned() };
    request(disk, job, &along, |answer| match answer {
        Answer::Taken(taken) => Some(taken).filter(|taken| plain(&taken.active)),
        _ => None,
    })
}

/// Has it delete a snapshot, as [`create_snapshot`] has one taken.
pub(crate) fn delete_snapshot(
    disk: &Path,
    name: &str,
    subtree: bool,
    along: &Along<'_>,
) -> Result<Option<(PathBuf, Deleted)>, Failure> {
    let name = name.to_owned();
    request(
        disk,
        Job::SnapshotDelete { name, subtree },
        along,
        |answer| match answer {
            Answer::Deleted(deleted) => Some(deleted).filter(|deleted| deleted.files().all(|file| plain(file))),
            _ => None,
        },
    )
}

/// Has the program that has `disk` in use merge layers of it.
pub(crate) fn merge(disk: &Path, job: MergeJob, along: &Along<'_>) -> Result<Option<MergeJson>, Failure> {
    let merged = request(disk, Job::Merge(job), along, |answer| match answer {
        Answer::Merged(merged) => Some(merged),
        _ => None,
    });
    Ok(merged?.map(|(_, merged)| merged))
}

/// Has the program that has `disk` in use give it another size.
pub(crate) fn resize(disk: &Path, job: ResizeJob, along: &Along<'_>) -> Result<Option<ResizeJson>, Failure> {
    let resized = request(disk, Job::Resize(job), along, |answer| match answer {
        Answer::Resized(resized) => Some(resized),
        _ => None,
    });
    Ok(resized?.map(|(_, resized)| resized))
}

/// Asks the program; `expected` is what an answer says, unless it says something else or names files elsewhere.
fn request<T>(
    disk: &Path,
    job: Job,
    along: &Along<'_>,
    expected: impl FnOnce(Answer) -> Option<T>,
) -> Result<Option<(PathBuf, T)>, Failure> {
    let Some((base, socket)) = socket_of(disk) else {
        return Ok(None);
    };
    let Ok(stream) = UnixStream::connect(&socket) else {
        // Nobody has it, or somebody who does not listen: the lock will tell.
        return Ok(None);
    };
    match ask(&stream, job, along).map_err(|error| broken(&socket, &error))? {
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

fn ask(stream: &UnixStream, job: Job, along: &Along<'_>) -> io::Result<Answer> {
    if !trusts(stream) {
        return Err(io::Error::other("another user listens there"));
    }
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = Request {
        version: VERSION,
        job,
        rate: along.rate,
    };
    send(stream, &request)?;
    let mut lines = Lines::new(stream, LONGEST_ANSWER);
    let (mut known_total, mut known_done, mut asked_to_stop) = (None, 0, false);
    loop {
        // The answer may take its time: files are merged or made durable before it.
        match lines.next(Instant::now() + LOOK)? {
            Some(Answer::Progress { total, done }) => {
                if known_total != Some(total) || done < known_done {
                    along.progress.begin(total);
                    (known_total, known_done) = (Some(total), 0);
                }
                along.progress.advance(done - known_done);
                known_done = done;
            }
            Some(answer) => return Ok(answer),
            None => {}
        }
        if !asked_to_stop && along.cancel.load(Ordering::Relaxed) {
            asked_to_stop = true;
            stream.shutdown(Shutdown::Write)?;
        }
    }
}

fn broken(socket: &Path, error: &io::Error) -> Failure {
    let message = format!(
        "the program that has the disk in use does not answer as it should on {}: {error}; --offline does not ask it",
        socket.display()
    );
    Failure::new(Kind::Control, message)
}

fn plain(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|file| file == name)
}
