//! The fuzz targets of file systems, for a bounded time.
#![forbid(unsafe_code)]

#[allow(unreachable_pub, reason = "a part of another package")]
#[path = "../../fuzz/src/file_system.rs"]
mod file_system;
#[allow(unreachable_pub, reason = "a part of another package")]
#[path = "../../fuzz/src/files.rs"]
mod files;
#[path = "../../fuzz/src/replay.rs"]
mod replay;
#[allow(unreachable_pub, reason = "a part of another package")]
#[path = "../../fuzz/src/sparse_disk.rs"]
mod sparse_disk;

#[test]
fn file_systems() {
    replay::replay("file_system", 1500, file_system::file_system);
}

#[test]
fn files_of_file_systems() {
    replay::replay("files", 1500, files::files);
}
