//! `vhd volume events`: what happened to a volume.

use std::fmt;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{self, ReportArgs};
use crate::running::Name;
use crate::volume::{Machine, peers_of};

pub(super) const NAME: &str = "volume events";

/// Arguments of `vhd volume events`.
#[derive(Args, Debug)]
pub(super) struct EventsArgs {
    /// The volume
    #[arg(value_name = "V")]
    volume: Name,
    #[command(flatten)]
    pub(super) report: ReportArgs,
}

#[derive(Serialize)]
struct EventsReport {
    volume: String,
    /// Oldest first.
    events: Vec<EventJson>,
}

#[derive(Serialize)]
struct EventJson {
    number: i64,
    time: String,
    node: Option<String>,
    event: String,
    text: String,
}

impl fmt::Display for EventsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.events.iter().try_for_each(|event| {
            let node = event.node.as_deref().unwrap_or("-");
            let line = format!("{}  {node:12} {:12} {}", event.time, event.event, event.text);
            writeln!(f, "{}", line.trim_end())
        })
    }
}

pub(super) fn run(args: &EventsArgs) -> Result<Exit, Failure> {
    let machine = Machine::open()?;
    let volume = machine.volume(args.volume.as_str())?;
    let events = peers_of(&machine, &volume)?.events()?;
    let events = events.into_iter().map(|event| EventJson {
        number: event.number,
        time: utc(event.time_ms),
        node: Some(event.node.0).filter(|node| !node.is_empty()),
        event: event.kind,
        text: event.text,
    });
    let report = EventsReport {
        volume: volume.name,
        events: events.collect(),
    };
    output::report(args.report, NAME, &report)?;
    Ok(Exit::Ok)
}

/// A time in UTC, to the millisecond.
pub(super) fn utc(milliseconds: i64) -> String {
    Timestamp::from_millisecond(milliseconds).map_or_else(|_| "-".into(), |time| format!("{time:.3}"))
}
