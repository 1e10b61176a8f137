//! The checksum of the footer and the dynamic header.

use std::ops::Range;

/// The one's complement of the sum of all `bytes`, where those at the indices `field` (the checksum's
/// own place) count as zero (specification, "Hard Disk Footer Format" and "Dynamic Disk Header Format").
#[must_use]
pub fn checksum(bytes: &[u8], field: Range<usize>) -> u32 {
    let before = bytes.iter().take(field.start);
    let after = bytes.iter().skip(field.end);
    !before
        .chain(after)
        .fold(0_u32, |sum, &byte| sum.wrapping_add(u32::from(byte)))
}

/// The place of a checksum that begins at index `start` of its structure.
pub(super) const fn field_at(start: usize) -> Range<usize> {
    start..start + size_of::<u32>()
}

/// The guess that differs from `bytes` in the fewest bytes; `None` where several are equally near, or there is none.
/// Sums of bytes are weak: among guesses with the right one the nearest is by far the likeliest.
pub(super) fn nearest<const N: usize>(bytes: &[u8; N], guesses: impl Iterator<Item = [u8; N]>) -> Option<[u8; N]> {
    let mut best: Option<(usize, [u8; N], bool)> = None;
    for guess in guesses {
        let distance = guess.iter().zip(bytes).filter(|(a, b)| a != b).count();
        match &mut best {
            Some((least, found, unique)) if *least == distance => *unique &= *found == guess,
            Some((least, ..)) if *least < distance => {}
            _ => best = Some((distance, guess, true)),
        }
    }
    best.and_then(|(_, found, unique)| unique.then_some(found))
}

/// The most words in which two copies may differ to be mixed: 2^12 mixes.
const MOST_WORDS: usize = 12;

/// Every way to take each word of four bytes in which two copies of a structure differ from one or the other.
/// Nothing if they differ in too many.
pub(super) fn word_mixes<const N: usize>(one: &[u8; N], other: &[u8; N]) -> Vec<[u8; N]> {
    let words = one
        .chunks(size_of::<u32>())
        .zip(other.chunks(size_of::<u32>()))
        .enumerate();
    let differing: Vec<usize> = words.filter(|(_, (a, b))| a != b).map(|(word, _)| word).collect();
    if differing.len() > MOST_WORDS {
        return Vec::new();
    }
    let mix = |choice: usize| {
        let mut mixed = *one;
        for (bit, word) in differing.iter().enumerate() {
            if choice >> bit & 1 == 1 {
                let range = word * size_of::<u32>()..(word + 1) * size_of::<u32>();
                mixed[range.clone()].copy_from_slice(&other[range]);
            }
        }
        mixed
    };
    (1..1 << differing.len()).map(mix).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_sums() {
        assert_eq!(checksum(&[], 0..0), 0xFFFF_FFFF);
        assert_eq!(checksum(&[0; 512], 64..68), 0xFFFF_FFFF);
        assert_eq!(checksum(&[1, 2, 3], 0..0), !6);
        // Bytes are unsigned: 0xFF adds 255, not -1.
        assert_eq!(checksum(&[0xFF; 512], 64..68), !(508 * 255));
    }

    #[test]
    fn the_field_counts_as_zero() {
        let mut bytes = [7_u8; 16];
        let clean = checksum(&bytes, 4..8);
        bytes[4..8].fill(0xA5);
        assert_eq!(checksum(&bytes, 4..8), clean);
        bytes[8] ^= 1;
        assert_ne!(checksum(&bytes, 4..8), clean);
        bytes[8] ^= 1;
        bytes[3] ^= 1;
        assert_ne!(checksum(&bytes, 4..8), clean);
    }

    proptest! {
        #[test]
        fn sums_what_is_not_the_field(bytes: Vec<u8>, start in 0_usize..120, length in 0_usize..120) {
            let field = start..start + length;
            let outside = bytes.iter().enumerate().filter(|(index, _)| !field.contains(index));
            let sum: u32 = outside.map(|(_, &byte)| u32::from(byte)).sum();
            prop_assert_eq!(checksum(&bytes, field), !sum);
        }
    }
}
