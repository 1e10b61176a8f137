//! Any bytes as a file system whose files are read.

use std::collections::HashSet;
use std::sync::Arc;

use vhd_fs::files::{FileError, FileType, Files, Node, OpenFiles, SharedDisk};

use super::sparse_disk::SparseDisk;

/// Nodes that are looked at.
const NODES: usize = 200;
/// Bytes of one read.
const READ: usize = 9000;

/// Opens the file system and reads its files: no read leaves the disk, every operation ends, names can be used, and a
/// read has no more than was asked for and no more than the file.
pub fn files(bytes: &[u8]) {
    let Some((&replay, bytes)) = bytes.split_first() else {
        return;
    };
    let Some(disk) = SparseDisk::decode(bytes) else {
        return;
    };
    let shared: SharedDisk = Arc::new(disk.clone());
    match OpenFiles::new().replay(replay % 2 == 1).open(&shared, 0, disk.size) {
        Ok(files) => walk(&files),
        Err(error) => ends(&error),
    }
    assert!(!disk.was_left(), "a read left the disk");
}

fn walk(files: &Files) {
    let (mut seen, mut waiting) = (HashSet::new(), vec![files.root()]);
    while let Some(node) = waiting.pop() {
        if seen.len() == NODES || !seen.insert(node) {
            continue;
        }
        match files.list(node) {
            Err(error) => ends(&error),
            Ok(entries) => {
                for entry in entries {
                    let name = &entry.name;
                    assert!(!name.is_empty() && name != b"." && name != b"..", "{name:?}");
                    assert!(!name.contains(&b'/') && !name.contains(&0), "{name:?}");
                    waiting.push(entry.node);
                }
            }
        }
        read(files, node);
    }
}

fn read(files: &Files, node: Node) {
    let meta = match files.metadata(node) {
        Ok(meta) => meta,
        Err(error) => return ends(&error),
    };
    let middle = meta.size / 2;
    for offset in [0, middle, meta.size.saturating_sub(100), meta.size, u64::MAX - 5] {
        match files.read_at(node, offset, READ) {
            Ok(bytes) => {
                assert!(meta.kind == FileType::Regular && bytes.len() <= READ);
                assert!(
                    bytes.len() as u64 <= meta.size.saturating_sub(offset),
                    "{} bytes at {offset} of {}",
                    bytes.len(),
                    meta.size
                );
            }
            Err(error) => ends(&error),
        }
    }
    match files.read_link(node) {
        Ok(target) => assert!(meta.kind == FileType::Symlink && target.len() <= 64 << 10),
        Err(error) => ends(&error),
    }
}

/// A reader may find anything, but it comes to an end, and not by a panic.
fn ends(error: &FileError) {
    let is_defect = matches!(error, FileError::TimedOut { .. } | FileError::Panicked { .. });
    assert!(!is_defect, "{error}");
}
