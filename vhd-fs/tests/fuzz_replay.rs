//! The fuzz target of file systems, for a bounded time.
#![forbid(unsafe_code)]

#[allow(unreachable_pub, reason = "a part of another package")]
#[path = "../../fuzz/src/file_system.rs"]
mod file_system;
#[path = "../../fuzz/src/replay.rs"]
mod replay;

#[test]
fn file_systems() {
    replay::replay("file_system", 1500, file_system::file_system);
}
