//! The journal of an epoch: one append-only file that only the coordinator of that epoch writes.

mod frame;
mod reader;
mod record;
mod writer;

pub(crate) use reader::read_journal;
pub use record::{Op, Outcome, Record, RequestId, Table};
pub(crate) use writer::JournalWriter;
