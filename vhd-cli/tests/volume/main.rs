//! `vhd volume` with real processes: agents that coordinate, follow, stop, and are killed.
#![forbid(unsafe_code)]

mod agents;
mod disks;
mod faults;
mod support;
mod writer;
