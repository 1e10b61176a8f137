//! Parts of a list of buffers.

use std::io::{IoSlice, IoSliceMut};

use crate::units::u64_from;

/// The bytes in all buffers.
#[must_use]
pub fn total_len<'a>(lens: impl Iterator<Item = &'a [u8]>) -> u64 {
    lens.map(|buf| u64_from(buf.len())).sum()
}

/// Calls `action` for each contiguous part of the `len` bytes from `start` of `bufs`, with how far into the
/// range it is.
///
/// # Errors
/// The first of `action`.
pub fn for_each_mut<E>(
    bufs: &mut [IoSliceMut<'_>],
    start: usize,
    len: usize,
    mut action: impl FnMut(&mut [u8], usize) -> Result<(), E>,
) -> Result<(), E> {
    let mut position = 0;
    for buf in bufs {
        let (from, to) = overlap(position, buf.len(), start, len);
        if from < to {
            action(&mut buf[from - position..to - position], from - start)?;
        }
        position += buf.len();
    }
    Ok(())
}

/// [`for_each_mut`] for buffers that are read.
///
/// # Errors
/// The first of `action`.
pub fn for_each<'a, E>(
    bufs: &'a [IoSlice<'_>],
    start: usize,
    len: usize,
    mut action: impl FnMut(&'a [u8], usize) -> Result<(), E>,
) -> Result<(), E> {
    let mut position = 0;
    for buf in bufs {
        let (from, to) = overlap(position, buf.len(), start, len);
        if from < to {
            action(&buf[from - position..to - position], from - start)?;
        }
        position += buf.len();
    }
    Ok(())
}

fn overlap(position: usize, buf_len: usize, start: usize, len: usize) -> (usize, usize) {
    (position.max(start), (position + buf_len).min(start + len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cross_buffers_and_skip_empty_ones() {
        let (mut a, mut b, mut c) = ([1, 2, 3], [], [4, 5]);
        let mut bufs = [
            IoSliceMut::new(&mut a),
            IoSliceMut::new(&mut b),
            IoSliceMut::new(&mut c),
        ];
        let mut seen = Vec::new();
        for_each_mut(&mut bufs, 1, 3, |part, at| {
            seen.push((part.to_vec(), at));
            Ok::<(), ()>(())
        })
        .unwrap();
        assert_eq!(seen, [(vec![2, 3], 0), (vec![4], 2)]);
    }
}
