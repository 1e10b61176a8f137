//! What happened to a machine, as lines of JSON in a file.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use hypervisor::End;
use jiff::Timestamp;
use serde::Serialize;

use super::MachineName;
use crate::failure::Failure;
use crate::output;

/// Something that happened.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Event<'a> {
    /// The guest begins.
    Started,
    /// The guest goes on where it was saved.
    Restored,
    /// The guest goes on from a snapshot.
    WentBack {
        snapshot: &'a str,
    },
    Paused,
    Resumed,
    /// A snapshot of the machine was taken, or deleted.
    SnapshotTaken {
        snapshot: &'a str,
    },
    SnapshotDeleted {
        snapshot: &'a str,
    },
    /// The guest was given a disk, or has let go of one.
    DiskAdded {
        id: &'a str,
    },
    DiskRemoved {
        id: &'a str,
    },
    /// A disk has another size in bytes.
    DiskResized {
        id: &'a str,
        size: u64,
    },
    /// Somebody pressed the power button.
    PowerButton,
    /// The machine has ended: `power-off`, `reset`, `panic`, `stopped`, `saved`, or `failed` with a code and a message.
    Ended {
        reason: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        code: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        message: Option<&'a str>,
    },
}

impl<'a> Event<'a> {
    /// The machine has ended by itself or was ended.
    pub(crate) fn ended(end: End) -> Self {
        Self::Ended {
            reason: match end {
                End::PowerOff => "power-off",
                End::Reset => "reset",
                End::Panic => "panic",
                End::Stopped => "stopped",
                End::Saved => "saved",
            },
            code: None,
            message: None,
        }
    }

    /// The machine could not begin or go on.
    pub(crate) fn failed(failure: &'a Failure) -> Self {
        Self::Ended {
            reason: "failed",
            code: Some(failure.code()),
            message: Some(failure.message()),
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    machine: &'a MachineName,
    #[serde(flatten)]
    event: &'a Event<'a>,
}

/// Where events go.
#[derive(Debug)]
pub(crate) struct Events {
    machine: MachineName,
    file: Option<Mutex<File>>,
}

impl Events {
    /// Appends to a file, if one is named.
    pub(crate) fn open(machine: &MachineName, path: Option<&Path>) -> Result<Self, Failure> {
        let open = |path: &Path| {
            let opened = File::options().append(true).create(true).open(path);
            opened.map_err(|error| Failure::io("open", path, &error))
        };
        Ok(Self {
            machine: machine.clone(),
            file: path.map(open).transpose()?.map(Mutex::new),
        })
    }

    /// Appends an event. A machine does not stop because it cannot be said.
    pub(crate) fn say(&self, event: &Event<'_>) {
        let Some(file) = &self.file else {
            return;
        };
        let line = Line {
            time: now(),
            machine: &self.machine,
            event,
        };
        let mut text = serde_json::to_string(&line).expect("events have text keys and serialise to memory");
        text.push('\n');
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write_all(text.as_bytes()) {
            output::warning(format_args!("an event is not in the file of events: {error}"));
        }
    }
}

/// The time in UTC, to the millisecond.
pub(super) fn now() -> String {
    format!("{:.3}", Timestamp::now())
}
