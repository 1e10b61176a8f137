//! Sectors that are checked and completed: records of the file table and blocks of directories.

use crate::bytes::{has, le16};

const STRIDE: usize = 512;

/// Checks a structure that begins with `magic`. The last two bytes of each sector stand in a list of their own, and in
/// their place is a number that tells whether all sectors were written. `None` if they were not, or it is another one.
pub(super) fn complete(mut bytes: Vec<u8>, magic: &[u8]) -> Option<Vec<u8>> {
    let (list, entries) = (usize::from(le16(&bytes, 4)), usize::from(le16(&bytes, 6)));
    let sectors = bytes.len() / STRIDE;
    if !has(&bytes, 0, magic) || entries != sectors + 1 || list + 2 * entries > STRIDE - 2 {
        return None;
    }
    let written = le16(&bytes, list);
    for sector in 0..sectors {
        let at = (sector + 1) * STRIDE - 2;
        if le16(&bytes, at) != written {
            return None;
        }
        let saved = le16(&bytes, list + 2 * (sector + 1)).to_le_bytes();
        bytes[at..at + 2].copy_from_slice(&saved);
    }
    Some(bytes)
}
