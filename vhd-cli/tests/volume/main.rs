//! `vhd volume` with real processes: agents that coordinate, follow, stop, and are killed.
#![forbid(unsafe_code)]

mod agents;
mod disks;
mod faults;
mod maintenance;
#[allow(dead_code, reason = "shared with the tests of several machines")]
mod support;
mod writer;
