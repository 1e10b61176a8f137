//! Zeroes in a file, by whatever the file system offers.

use std::io;

use super::StorageFile;
use crate::units::{u64_from, usize_from};

const CHUNK: usize = 64 << 10;

/// Makes a range read zero and frees its space, or writes zeroes where the file system has no holes.
pub fn clear_range(file: &dyn StorageFile, offset: u64, len: u64) -> io::Result<()> {
    or_write_zeroes(file, offset, len, file.punch_hole(offset, len))
}

/// Makes a range read zero and keeps its space, by writing zeroes where the file system has nothing better.
pub fn zero_range_kept(file: &dyn StorageFile, offset: u64, len: u64) -> io::Result<()> {
    or_write_zeroes(file, offset, len, file.zero_range(offset, len))
}

fn or_write_zeroes(file: &dyn StorageFile, offset: u64, len: u64, tried: io::Result<()>) -> io::Result<()> {
    match tried {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => write_zeroes(file, offset, len),
        other => other,
    }
}

fn write_zeroes(file: &dyn StorageFile, offset: u64, len: u64) -> io::Result<()> {
    let zeroes = vec![0; CHUNK.min(usize_from(len))];
    let mut done = 0;
    while done < len {
        let part = u64_from(zeroes.len()).min(len - done);
        file.write_all_at(&zeroes[..usize_from(part)], offset + done)?;
        done += part;
    }
    Ok(())
}
