//! Writes VHDX files for tests, after the specification and apart from the reader: other code, other checksums.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]

pub mod vhdx_writer;
