//! Fill patterns that say where they belong and when they were written.
//!
//! The bytes are text: 32-byte records `@<offset, 16 hex digits> #<generation, 12 hex digits>\n`, each with
//! the offset of the record itself. So a hex dump of a failed test reads by itself, and a shift of a few
//! bytes, a swap of two sectors and a stale sector all look different.

use std::fmt;

use vhd_core::units::{u64_from, usize_from};

/// Bytes in a sector, the unit that a disk writes whole or not at all.
pub const SECTOR: usize = 512;

/// Bytes in one record of the pattern.
const RECORD: usize = 32;
const HEX: &[u8; 16] = b"0123456789abcdef";
const OFFSET_DIGITS: usize = 16;
const GENERATION_DIGITS: usize = 12;

/// The largest generation that a pattern can tell.
pub const MAX_GENERATION: u64 = (1 << (4 * GENERATION_DIGITS)) - 1;

/// Fills `buf` with the pattern for the bytes from `offset`. The offset needs no alignment: a byte depends
/// on its own offset and the generation only, not on where a fill began.
///
/// # Panics
/// When `generation` is above [`MAX_GENERATION`].
pub fn fill(buf: &mut [u8], offset: u64, generation: u64) {
    assert!(
        generation <= MAX_GENERATION,
        "generation {generation:#x} has too many digits"
    );
    let mut position = offset;
    let mut rest = buf;
    while !rest.is_empty() {
        let within = usize_from(position % u64_from(RECORD));
        let take = rest.len().min(RECORD - within);
        let (now, later) = rest.split_at_mut(take);
        now.copy_from_slice(&record(position - u64_from(within), generation)[within..within + take]);
        position = position.wrapping_add(u64_from(take));
        rest = later;
    }
}

/// `len` bytes of the pattern from `offset`.
#[must_use]
pub fn pattern(offset: u64, len: usize, generation: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(&mut bytes, offset, generation);
    bytes
}

fn record(offset: u64, generation: u64) -> [u8; RECORD] {
    let mut bytes = *b"@0000000000000000 #000000000000\n";
    put_hex(&mut bytes[1..1 + OFFSET_DIGITS], offset);
    put_hex(&mut bytes[19..19 + GENERATION_DIGITS], generation);
    bytes
}

fn put_hex(digits: &mut [u8], mut value: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = HEX[usize_from(value & 15)];
        value >>= 4;
    }
}

fn get_hex(digits: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// What a run of bytes turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing but zero bytes.
    Zero,
    /// The pattern, whole.
    Pattern {
        /// The offset that the first byte was written for.
        offset: u64,
        /// The generation it was written with.
        generation: u64,
    },
    /// Records of the pattern that do not belong together: a torn or mixed-up sector.
    Mixed {
        /// Offset and generation in the first record.
        first: (u64, u64),
        /// The first byte that does not continue it.
        breaks_at: usize,
    },
    /// Anything else; the first bytes of it.
    Other([u8; 8]),
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero => write!(f, "zeroes"),
            Self::Pattern { offset, generation } => write!(f, "offset {offset:#x} generation {generation:#x}"),
            Self::Mixed {
                first: (offset, generation),
                breaks_at,
            } => {
                write!(
                    f,
                    "offset {offset:#x} generation {generation:#x} up to byte {breaks_at}, then something else"
                )
            }
            Self::Other(bytes) => write!(f, "bytes that no test wrote, starting {bytes:02x?}"),
        }
    }
}

/// Says what `bytes` are, where they start at a multiple of 32: one sector, usually.
#[must_use]
pub fn identify(bytes: &[u8]) -> Content {
    if is_zero(bytes) {
        return Content::Zero;
    }
    let Some((offset, generation)) = bytes.first_chunk::<RECORD>().and_then(parse) else {
        let mut start = [0; 8];
        start.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        return Content::Other(start);
    };
    for (index, found) in bytes.chunks(RECORD).enumerate() {
        let wanted = record(offset.wrapping_add(u64_from(index * RECORD)), generation);
        if let Some(at) = (0..found.len()).find(|&i| found[i] != wanted[i]) {
            return Content::Mixed {
                first: (offset, generation),
                breaks_at: index * RECORD + at,
            };
        }
    }
    Content::Pattern { offset, generation }
}

fn parse(bytes: &[u8; RECORD]) -> Option<(u64, u64)> {
    let offset = get_hex(&bytes[1..1 + OFFSET_DIGITS])?;
    let generation = get_hex(&bytes[19..19 + GENERATION_DIGITS])?;
    (record(offset, generation) == *bytes).then_some((offset, generation))
}

/// Whether all bytes are zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

/// Panics with the first differing sector and what both sides hold there, if the two differ.
///
/// # Panics
/// When they differ.
#[track_caller]
pub fn assert_same(found: &[u8], wanted: &[u8], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}: lengths differ");
    let mut pairs = found.chunks(SECTOR).zip(wanted.chunks(SECTOR)).enumerate();
    if let Some((index, (found, wanted))) = pairs.find(|(_, (found, wanted))| found != wanted) {
        let at = index * SECTOR;
        panic!(
            "{what}: at {at:#x} found {}, wanted {}",
            identify(found),
            identify(wanted)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_tells_offset_and_generation() {
        let bytes = pattern(0x1200, SECTOR, 7);
        assert_eq!(
            identify(&bytes),
            Content::Pattern {
                offset: 0x1200,
                generation: 7
            }
        );
        assert_eq!(&bytes[..32], b"@0000000000001200 #000000000007\n");
    }

    #[test]
    fn a_fill_in_parts_equals_a_fill_at_once() {
        let whole = pattern(100, 1000, 3);
        let mut parts = pattern(100, 37, 3);
        parts.extend(pattern(137, 963, 3));
        assert_eq!(whole, parts);
    }

    #[test]
    fn torn_foreign_and_zero_sectors_are_told_apart() {
        let mut torn = pattern(0, SECTOR, 1);
        fill(&mut torn[256..], 256, 2);
        assert!(matches!(identify(&torn), Content::Mixed { first: (0, 1), breaks_at } if breaks_at >= 256));
        assert_eq!(identify(&[0; SECTOR]), Content::Zero);
        assert_eq!(identify(&[9; SECTOR]), Content::Other([9; 8]));
        assert_eq!(identify(&[9; 3]), Content::Other([9, 9, 9, 0, 0, 0, 0, 0]));
    }
}
