//! The bytes of one file: read ahead on one thread, written without space for zeroes on the other.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::sync_channel;
use std::thread;

use vhd_block::is_zero;
use vhd_core::ops::Progress;
use vhd_core::units::u64_from;
use vhd_fs::files::{FileError, Files, Node};

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;
/// Pieces that are read before they are written.
const AHEAD: usize = 2;
/// Zeroes of this size, where they are aligned, become holes.
const HOLE: usize = 64 << 10;

/// Why a file was not copied.
pub(super) enum CopyError {
    Read(FileError),
    Write(io::Error),
}

/// Copies the `size` bytes of a file into an empty one.
pub(super) fn copy(
    files: &Files,
    node: Node,
    size: u64,
    target: &File,
    progress: &dyn Progress,
) -> Result<u64, CopyError> {
    if size <= u64_from(PIECE) {
        let bytes = files.read_at(node, 0, PIECE).map_err(CopyError::Read)?;
        write_sparsely(target, &bytes, 0).map_err(CopyError::Write)?;
        return finish(target, u64_from(bytes.len()), progress);
    }
    let (sender, pieces) = sync_channel(AHEAD);
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut at = 0;
            loop {
                let piece = files.read_at(node, at, PIECE);
                let last = piece.as_ref().map_or(true, |bytes| bytes.len() < PIECE);
                at += u64_from(PIECE);
                // The writer is gone after an error of its own.
                if sender.send(piece).is_err() || last {
                    return;
                }
            }
        });
        let mut done = 0;
        for piece in pieces {
            let bytes = piece.map_err(CopyError::Read)?;
            write_sparsely(target, &bytes, done).map_err(CopyError::Write)?;
            done += u64_from(bytes.len());
            progress.advance(u64_from(bytes.len()));
        }
        target.set_len(done).map_err(CopyError::Write)?;
        Ok(done)
    })
}

fn finish(target: &File, len: u64, progress: &dyn Progress) -> Result<u64, CopyError> {
    target.set_len(len).map_err(CopyError::Write)?;
    progress.advance(len);
    Ok(len)
}

/// Writes what is not zero.
fn write_sparsely(target: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    let mut start = 0;
    let mut end = 0;
    for piece in bytes.chunks(HOLE) {
        let next = end + piece.len();
        if is_zero(piece) {
            write_part(target, bytes, start..end, at)?;
            start = next;
        }
        end = next;
    }
    write_part(target, bytes, start..end, at)
}

fn write_part(target: &File, bytes: &[u8], range: std::ops::Range<usize>, at: u64) -> io::Result<()> {
    match bytes.get(range.clone()) {
        Some(part) if !part.is_empty() => target.write_all_at(part, at + u64_from(range.start)),
        _ => Ok(()),
    }
}
