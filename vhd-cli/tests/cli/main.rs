//! The command as scripts see it: grammar, exit codes, JSON, messages, pipes, sudden death.
#![forbid(unsafe_code)]

mod azure;
mod chains;
mod check;
mod convert;
mod create;
mod delta;
mod diff;
mod failures;
mod kill;
mod pages;
mod reports;
mod streams;
mod support;
mod tree;
