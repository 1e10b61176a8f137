//! Whether the log ends with the record of an unmount: then there is nothing to replay.
//!
//! The log is a ring of 512-byte blocks. The first word of each is the number of the round in which it was
//! written, so the head is where that number changes. The kernel decides in the same way (xlog_find_tail,
//! xlog_check_unmount_rec).

use super::Layout;
use crate::Unusable;
use crate::bytes::{be32, byte, index};

const BLOCK: u64 = 512;
const MAGIC: u32 = 0xFEED_BABE;
const VERSION_2: u32 = 2;
/// Bytes of a record that one header block describes.
const HEADER_COVERS: u64 = 32 << 10;
/// Blocks before the head in which the header of the last record must be: an unmount record is short.
const MAX_BACK: u64 = 1024;
/// Bytes read at once.
const CHUNK: u64 = 1 << 20;
/// The largest log that XFS makes.
const MAX_LOG: u64 = 4 << 30;
const UNMOUNT: u8 = 0x20;

/// Where the log goes on, if its blocks are those of two rounds, the later ones first.
struct Head {
    block: u64,
}

pub(super) fn is_clean(layout: &Layout<'_>) -> Result<bool, Unusable> {
    let inside = layout.log_start.checked_add(layout.log_len);
    if inside.is_none_or(|end| end > layout.window.len) || !(BLOCK * 64..=MAX_LOG).contains(&layout.log_len) {
        return Err(layout.window.damaged("its log is not inside it"));
    }
    match find_head(layout)? {
        Some(head) => ends_with_unmount(layout, &head),
        None => Ok(false),
    }
}

fn cycle_of(block: &[u8]) -> u32 {
    match be32(block, 0) {
        MAGIC => be32(block, 4),
        cycle => cycle,
    }
}

/// `None` if the numbers of the rounds are not those of a log that was ended in order.
fn find_head(layout: &Layout<'_>) -> Result<Option<Head>, Unusable> {
    let (mut first, mut head) = (None, None);
    let mut number = 0;
    let mut done = 0;
    while done < layout.log_len {
        let take = CHUNK.min(layout.log_len - done);
        let bytes = layout.window.read(layout.log_start + done, take)?;
        for block in bytes.chunks_exact(index(BLOCK)) {
            let cycle = cycle_of(block);
            let newest = *first.get_or_insert(cycle);
            match (cycle == newest, head) {
                (true, None) => {}
                (true, Some(_)) => return Ok(None),
                (false, _) if cycle.checked_add(1) != Some(newest) => return Ok(None),
                (false, None) => head = Some(number),
                (false, Some(_)) => {}
            }
            number += 1;
        }
        done += take;
    }
    // Written exactly to its end, or never: the next block is the first one.
    Ok(Some(Head {
        block: head.unwrap_or(0),
    }))
}

fn ends_with_unmount(layout: &Layout<'_>, head: &Head) -> Result<bool, Unusable> {
    let blocks = layout.log_len / BLOCK;
    let read = |number: u64| layout.window.read(layout.log_start + number % blocks * BLOCK, BLOCK);
    for back in 1..=MAX_BACK.min(blocks) {
        let number = (head.block + blocks - back) % blocks;
        let header = read(number)?;
        if be32(&header, 0) != MAGIC {
            continue;
        }
        let (version, len) = (be32(&header, 8), u64::from(be32(&header, 12)));
        let size = u64::from(be32(&header, 320));
        let headers = if version & VERSION_2 != 0 && size > HEADER_COVERS {
            size.div_ceil(HEADER_COVERS)
        } else {
            1
        };
        let behind = number + headers + len.div_ceil(BLOCK);
        let operation = read(number + headers)?;
        let is_unmount = be32(&header, 40) == 1 && byte(&operation, 9) & UNMOUNT != 0;
        return Ok(is_unmount && behind % blocks == head.block);
    }
    Ok(false)
}
