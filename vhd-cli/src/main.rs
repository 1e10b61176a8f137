//! The `vhd` command.
#![forbid(unsafe_code)]

fn main() {}
