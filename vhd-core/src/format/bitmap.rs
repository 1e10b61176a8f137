//! The bit order of a block's sector bitmap (specification, "Data Blocks").
//!
//! On disk, sector `i` of a block is the bit `0x80 >> (i % 8)` of byte `i / 8`. Read as big-endian words
//! of 64 bits, sector `i` is bit `63 - i % 64` of word `i / 64`, so runs of sectors are runs of bits and
//! `leading_zeros`/`leading_ones` measure them.

/// Sectors in one word of a bitmap.
pub const SECTORS_PER_WORD: u32 = u64::BITS;

/// Eight bytes of a bitmap as a word whose bit 63 is the first of 64 sectors.
#[must_use]
pub const fn word_from_bytes(bytes: [u8; 8]) -> u64 {
    u64::from_be_bytes(bytes)
}

/// A word whose bit 63 is the first of 64 sectors as eight bytes of a bitmap.
#[must_use]
pub const fn word_to_bytes(word: u64) -> [u8; 8] {
    word.to_be_bytes()
}

/// The bits of the `count` sectors from `first` (0 to 63) within a word. Sectors past the end of the
/// word have no bit in it, so `mask(60, 64)` is four bits.
#[must_use]
pub const fn mask(first: u32, count: u32) -> u64 {
    bits_from(first) & !bits_from(first.saturating_add(count))
}

/// The bits of all sectors from `first` to the end of a word.
const fn bits_from(first: u32) -> u64 {
    match u64::MAX.checked_shr(first) {
        Some(bits) => bits,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn first_sector_is_the_highest_bit_of_the_first_byte() {
        assert_eq!(word_to_bytes(mask(0, 1)), [0x80, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(word_to_bytes(mask(7, 1)), [0x01, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(word_to_bytes(mask(8, 1)), [0, 0x80, 0, 0, 0, 0, 0, 0]);
        assert_eq!(word_to_bytes(mask(63, 1)), [0, 0, 0, 0, 0, 0, 0, 0x01]);
        assert_eq!(word_from_bytes([0xC0, 0, 0, 0, 0, 0, 0, 0]), mask(0, 2));
    }

    #[test]
    fn masks_at_the_edges() {
        assert_eq!(mask(0, 0), 0);
        assert_eq!(mask(5, 0), 0);
        assert_eq!(mask(0, 64), u64::MAX);
        assert_eq!(mask(63, 1), 1);
        assert_eq!(mask(60, 64), 0xF);
        assert_eq!(mask(64, 1), 0);
        assert_eq!(mask(1, u32::MAX), u64::MAX >> 1);
    }

    proptest! {
        #[test]
        fn words_and_bytes_are_one_to_one(bytes: [u8; 8]) {
            prop_assert_eq!(word_to_bytes(word_from_bytes(bytes)), bytes);
        }

        /// The rule on disk, bit by bit, against the mask.
        #[test]
        fn mask_is_the_rule_of_the_format(first in 0_u32..64, count in 0_u32..80) {
            let bytes = word_to_bytes(mask(first, count));
            for sector in 0..64_u32 {
                let byte = bytes[usize::try_from(sector / 8).unwrap()];
                let set = byte & (0x80 >> (sector % 8)) != 0;
                prop_assert_eq!(set, sector >= first && sector < first + count, "sector {}", sector);
            }
        }
    }
}
