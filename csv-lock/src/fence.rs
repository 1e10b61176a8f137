//! Fences: proofs that a process or node writes no more.
//!
//! A lease that ran out proves nothing. A disk that has a writer goes to another one only with a proof.

use std::fmt;
use std::fs;
use std::io;
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

impl Fence for LocalKill {
    fn strength(&self) -> Strength {
        Strength::Kernel
    }

    fn fence(&self, node: &NodeId, process: &Process) -> Result<Proof, CsvError> {
        let not_fenced = |reason: String| CsvError::NotFenced {
            node: node.clone(),
            reason,
        };
        let pid = process.pid;
        if boot()? != process.boot {
            return Ok(proof(format!("the machine was started again after process {pid}")));
        }
        let Some(number) = Pid::from_raw(pid).filter(|_| pid > 1) else {
            return Err(not_fenced(format!("{pid} is no process to kill")));
        };
        // The descriptor first: from here on the number means the same process, which is then compared.
        let descriptor = match pidfd_open(number, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(proof(format!("process {pid} has ended"))),
            opened => opened.map_err(|error| not_fenced(format!("process {pid}: {error}")))?,
        };
        if started(pid)? != Some(process.started) {
            return Ok(proof(format!("process {pid} has ended")));
        }
        match pidfd_send_signal(&descriptor, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(not_fenced(format!("killing process {pid}: {error}"))),
        }
        let limit = Timespec {
            tv_sec: END.as_secs().cast_signed(),
            tv_nsec: 0,
        };
        match poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&limit)) {
            Ok(1) => Ok(proof(format!("process {pid} was killed"))),
            Ok(_) => Err(not_fenced(format!(
                "process {pid} was killed and has not ended for {} s",
                END.as_secs()
            ))),
            Err(error) => Err(not_fenced(format!("waiting for the end of process {pid}: {error}"))),
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

        let proof = LocalKill.fence(&node(), &process).unwrap();
        assert!(proof.to_string().contains("was killed"), "{proof}");
        assert!(child.wait().unwrap().code().is_none(), "it ended by a signal");
        LocalKill.fence(&node(), &process).unwrap();
    }
}
