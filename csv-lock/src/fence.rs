//! Fences: proofs that a process or node writes no more.
//!
//! A lease that ran out proves nothing. A disk that has a writer goes to another one only with a proof.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::error::CsvError;
use crate::id::NodeId;

/// How long a killed process may take to end. One that waits for a disk takes as long as the disk does.
const END: Duration = Duration::from_secs(30);

/// How much a fence promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strength {
    /// Somebody says so.
    Word,
    /// The kernel of the machine on which the process ran.
    Kernel,
}

/// A process, so that its number cannot be taken for another one's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The boot of the machine that it belongs to.
    pub boot: String,
    /// Its number.
    pub pid: i32,
    /// When it was started, in the kernel's ticks since boot.
    pub started: u64,
}

/// Why a process or node is known to write no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    text: String,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Ends what a process can still write, and proves it.
pub trait Fence {
    /// How much its proofs promise.
    fn strength(&self) -> Strength;

    /// Fences the process of a node.
    ///
    /// # Errors
    /// `NotFenced`: it may still write.
    fn fence(&self, node: &NodeId, process: &Process) -> Result<Proof, CsvError>;
}

/// Kills a process of this machine; the kernel says when it has ended, and with it every request that it made.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalKill;

/// Does nothing; has a proof for a process of this machine that has ended by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct HasEnded;

/// An operator who has switched the node off, or knows that it is off.
#[derive(Clone, Debug)]
pub struct Operator {
    /// What the operator says; for people.
    pub statement: String,
}

impl Process {
    /// This process.
    ///
    /// # Errors
    /// `Engine` if `/proc` does not tell.
    pub fn this() -> Result<Self, CsvError> {
        let pid = std::process::id().cast_signed();
        let started = started(pid)?.ok_or_else(|| unreadable(&io::ErrorKind::NotFound.into()))?;
        Ok(Self {
            boot: boot()?,
            pid,
            started,
        })
    }
}

/// What the kernel of this machine says of a process.
enum Life {
    /// It has ended, and this is how that is known.
    Over(Proof),
    /// It lives; the descriptor means it and no other.
    Lives(OwnedFd),
}

/// Looks for a process of `node`.
fn look_for(node: &NodeId, process: &Process) -> Result<Life, CsvError> {
    let pid = process.pid;
    if boot()? != process.boot {
        let text = format!("the machine was started again after process {pid}");
        return Ok(Life::Over(proof(text)));
    }
    let Some(number) = Pid::from_raw(pid).filter(|_| pid > 1) else {
        return Err(not_fenced(node, format!("{pid} is no process to kill")));
    };
    let has_ended = || Life::Over(proof(format!("process {pid} has ended")));
    // The descriptor first: from here on the number means the same process, which is then compared.
    let descriptor = match pidfd_open(number, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(has_ended()),
        opened => opened.map_err(|error| not_fenced(node, format!("process {pid}: {error}")))?,
    };
    if started(pid)? != Some(process.started) || wait_for_end(&descriptor, Duration::ZERO)? {
        return Ok(has_ended());
    }
    Ok(Life::Lives(descriptor))
}

/// Whether a process has ended when `limit` is over. A zombie has.
fn wait_for_end(descriptor: &OwnedFd, limit: Duration) -> Result<bool, CsvError> {
    let limit = Timespec {
        tv_sec: limit.as_secs().cast_signed(),
        tv_nsec: limit.subsec_nanos().into(),
    };
    match poll(&mut [PollFd::new(descriptor, PollFlags::IN)], Some(&limit)) {
        Ok(ready) => Ok(ready == 1),
        Err(error) => Err(unreadable(&error.into())),
    }
}

impl Fence for LocalKill {
    fn strength(&self) -> Strength {
        Strength::Kernel
    }

    fn fence(&self, node: &NodeId, process: &Process) -> Result<Proof, CsvError> {
        let pid = process.pid;
        let descriptor = match look_for(node, process)? {
            Life::Over(proof) => return Ok(proof),
            Life::Lives(descriptor) => descriptor,
        };
        match pidfd_send_signal(&descriptor, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(not_fenced(node, format!("killing process {pid}: {error}"))),
        }
        if wait_for_end(&descriptor, END)? {
            return Ok(proof(format!("process {pid} was killed")));
        }
        let seconds = END.as_secs();
        Err(not_fenced(
            node,
            format!("process {pid} was killed and has not ended for {seconds} s"),
        ))
    }
}

impl Fence for HasEnded {
    fn strength(&self) -> Strength {
        Strength::Kernel
    }

    fn fence(&self, node: &NodeId, process: &Process) -> Result<Proof, CsvError> {
        match look_for(node, process)? {
            Life::Over(proof) => Ok(proof),
            Life::Lives(_) => Err(not_fenced(node, format!("process {} lives", process.pid))),
        }
    }
}

impl Fence for Operator {
    fn strength(&self) -> Strength {
        Strength::Word
    }

    fn fence(&self, _: &NodeId, _: &Process) -> Result<Proof, CsvError> {
        Ok(proof(format!("an operator confirmed: {}", self.statement)))
    }
}

fn not_fenced(node: &NodeId, reason: String) -> CsvError {
    CsvError::NotFenced {
        node: node.clone(),
        reason,
    }
}

fn proof(text: String) -> Proof {
    Proof { text }
}

fn boot() -> Result<String, CsvError> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(|error| unreadable(&error))?;
    Ok(text.trim().to_owned())
}

/// When a process was started; `None` if there is none of that number.
fn started(pid: i32) -> Result<Option<u64>, CsvError> {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // The process ended between open and read.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => return Ok(None),
        read => read.map_err(|error| unreadable(&error))?,
    };
    // The name of the program, in parentheses, may hold anything; the 22nd field is the 20th after it.
    let started = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok());
    started
        .map(Some)
        .ok_or_else(|| unreadable(&io::ErrorKind::InvalidData.into()))
}

fn unreadable(error: &io::Error) -> CsvError {
    CsvError::Engine {
        reason: format!("/proc does not tell about processes: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn node() -> NodeId {
        NodeId("n".into())
    }

    #[test]
    fn a_stopped_process_is_killed_and_a_number_is_not_taken_for_another() {
        let mut child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id().cast_signed();
        let number = Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(number, Signal::STOP).unwrap();
        let process = Process {
            boot: boot().unwrap(),
            pid,
            started: started(pid).unwrap().unwrap(),
        };
        // The same number, another process: it is not touched.
        let other = Process {
            started: process.started - 1,
            ..process.clone()
        };
        LocalKill.fence(&node(), &other).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        let before = Process {
            boot: "another boot".into(),
            ..process.clone()
        };
        LocalKill.fence(&node(), &before).unwrap();
        assert!(child.try_wait().unwrap().is_none());

        assert!(HasEnded.fence(&node(), &process).is_err());
        assert!(child.try_wait().unwrap().is_none());
        let proof = LocalKill.fence(&node(), &process).unwrap();
        assert!(proof.to_string().contains("was killed"), "{proof}");
        assert!(child.wait().unwrap().code().is_none(), "it ended by a signal");
        LocalKill.fence(&node(), &process).unwrap();
        HasEnded.fence(&node(), &process).unwrap();
    }
}
