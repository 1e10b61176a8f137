//! The sector bitmap of one block in memory.
//!
//! A bit is set after the sector's data is in the file (readers go by the bit) and reaches the file
//! after that data is durable (INV-02): a flush writes a snapshot that it took before its first sync.

use std::ops::Deref;

use crate::format::{mask, word_from_bytes, word_to_bytes};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::units::{u64_from, usize_from};

const WORD_BITS: u32 = 64;

/// Which sectors of a block are in this file. Readers take no lock.
#[derive(Debug)]
pub(super) struct SectorMap {
    words: Words,
    /// Bytes of the whole bitmap in the file.
    bitmap_bytes: u32,
    /// Sectors of the block that lie on the disk (fewer than the block has in the last one).
    sectors: u32,
    /// How many of them are absent.
    absent: AtomicU32,
    /// Bits were set since the last snapshot.
    dirty: AtomicBool,
    /// The bitmap can be written without new space (INV-40).
    writable: AtomicBool,
}

/// The words of a bitmap, without zeroes behind the sectors of the block: a block of 512 bytes has one sector and a
/// bitmap of 512 bytes, and an image may have millions of such blocks.
#[derive(Debug)]
enum Words {
    /// Of a block of at most 32 KiB, which need no allocation of their own.
    One(AtomicU64),
    Many(Box<[AtomicU64]>),
}

impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        match self {
            Self::One(word) => std::slice::from_ref(word),
            Self::Many(words) => words,
        }
    }
}

impl Words {
    fn new(words: &[u64]) -> Self {
        match words {
            [word] => Self::One(AtomicU64::new(*word)),
            words => Self::Many(words.iter().map(|word| AtomicU64::new(*word)).collect()),
        }
    }
}

impl SectorMap {
    /// The map as the file holds it: `bytes` is a whole bitmap, `sectors` the ones on the disk.
    pub(super) fn from_bytes(bytes: &[u8], sectors: u32) -> Self {
        let (chunks, _) = bytes.as_chunks::<8>();
        let mut words: Vec<u64> = chunks.iter().map(|chunk| word_from_bytes(*chunk)).collect();
        // Bits behind the sectors mean nothing, and are written as they were found.
        let used = words.iter().rposition(|&word| word != 0).map_or(0, |last| last + 1);
        words.truncate(used.max(usize_from(u64::from(sectors.div_ceil(WORD_BITS)))).max(1));
        let present: u32 = pieces(0, sectors)
            .map(|(word, bits)| (words[word] & bits).count_ones())
            .sum();
        Self {
            words: Words::new(&words),
            bitmap_bytes: u32::try_from(bytes.len()).expect("a bitmap has at most 64 KiB"),
            sectors,
            absent: AtomicU32::new(sectors - present),
            dirty: AtomicBool::new(false),
            writable: AtomicBool::new(false),
        }
    }

    /// The map of a block that was just given space: nothing is present.
    pub(super) fn empty(bitmap_bytes: u64, sectors: u32) -> Self {
        Self::from_bytes(&vec![0; usize_from(bitmap_bytes)], sectors)
    }

    /// Whether [`mark_writable`](SectorMap::mark_writable) was called.
    pub(super) fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Acquire)
    }

    /// Notes that the bitmap's place in the file can be written without new space.
    pub(super) fn mark_writable(&self) {
        self.writable.store(true, Ordering::Release);
    }

    /// The map as the file is to hold it.
    fn to_bytes(&self) -> Vec<u8> {
        let words = self.words.iter();
        let mut bytes: Vec<u8> = words
            .flat_map(|word| word_to_bytes(word.load(Ordering::Acquire)))
            .collect();
        bytes.resize(usize_from(self.bitmap_bytes.into()), 0);
        bytes
    }

    /// Sectors of the block that lie on the disk.
    pub(super) fn sectors(&self) -> u32 {
        self.sectors
    }

    /// Bytes of memory that the map takes.
    pub(super) fn memory(&self) -> u64 {
        let outside = match &self.words {
            Words::One(_) => 0,
            Words::Many(words) => size_of_val(&**words),
        };
        u64_from(size_of::<Self>() + outside)
    }

    /// Every sector on the disk is present.
    pub(super) fn is_full(&self) -> bool {
        self.absent.load(Ordering::Acquire) == 0
    }

    /// Whether sector `first` is present, and how many sectors from it on (at most `limit`, at least 1) agree.
    pub(super) fn run(&self, first: u32, limit: u32) -> (bool, u32) {
        let mut present = None;
        let mut length = 0;
        for (index, bits) in pieces(first, limit) {
            let word = self.words[index].load(Ordering::Acquire);
            let wanted = *present.get_or_insert(word & top_bit(bits) != 0);
            let agreeing = if wanted { word } else { !word };
            let offset = bits.leading_zeros();
            let run = (agreeing << offset).leading_ones().min(bits.count_ones());
            length += run;
            if run < bits.count_ones() {
                break;
            }
        }
        (present.unwrap_or(false), length)
    }

    /// Marks `count` sectors from `first` as present, whose data is in the file; `true` if one of them was absent.
    pub(super) fn set(&self, first: u32, count: u32) -> bool {
        let mut added = 0;
        for (index, bits) in pieces(first, count) {
            let before = self.words[index].fetch_or(bits, Ordering::AcqRel);
            added += (bits & !before).count_ones();
        }
        self.absent.fetch_sub(added, Ordering::AcqRel);
        added > 0
    }

    /// Notes that bits were set; `true` if no one had since the last snapshot.
    pub(super) fn mark_dirty(&self) -> bool {
        !self.dirty.swap(true, Ordering::AcqRel)
    }

    /// Takes the bytes to write. Bits set from now on make the map dirty again.
    pub(super) fn snapshot(&self) -> Vec<u8> {
        // Cleared first: a writer that finds the flag set before this swap has its bits in the bytes below.
        self.dirty.swap(false, Ordering::AcqRel);
        self.to_bytes()
    }
}

/// The words that `count` sectors from `first` touch, each with the mask of the bits in question.
fn pieces(first: u32, count: u32) -> impl Iterator<Item = (usize, u64)> {
    let end = first + count;
    let mut next = first;
    std::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        let bit = next % WORD_BITS;
        let taken = (WORD_BITS - bit).min(end - next);
        let index = usize_from(u64::from(next / WORD_BITS));
        next += taken;
        Some((index, mask(bit, taken)))
    })
}

fn top_bit(bits: u64) -> u64 {
    1 << (63 - bits.leading_zeros())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_sector_is_the_highest_bit_of_the_first_byte() {
        let mut bytes = [0; 512];
        bytes[0] = 0b1010_0000;
        let map = SectorMap::from_bytes(&bytes, 4096);
        assert_eq!(map.run(0, 4096), (true, 1));
        assert_eq!(map.run(1, 4095), (false, 1));
        assert_eq!(map.run(2, 4094), (true, 1));
        assert_eq!(map.run(3, 4093), (false, 4093));
    }

    #[test]
    fn only_sectors_on_the_disk_count_towards_full() {
        let map = SectorMap::from_bytes(&[0; 512], 70);
        map.set(0, 69);
        assert!(!map.is_full());
        map.set(60, 10);
        assert!(map.is_full());
        assert_eq!(map.run(0, 70), (true, 70));
    }

    #[test]
    fn small_blocks_have_small_maps_and_lose_no_bits() {
        let mut bytes = [0; 512];
        bytes[0] = 0x80;
        let map = SectorMap::from_bytes(&bytes, 1);
        assert!(map.memory() <= 40, "{}", map.memory());
        assert_eq!((map.is_full(), map.to_bytes()), (true, bytes.to_vec()));
        bytes[100] = 1; // behind the sectors
        assert_eq!(SectorMap::from_bytes(&bytes, 1).to_bytes(), bytes);
    }

    proptest! {
        #[test]
        fn set_and_run_agree_with_a_vector_of_booleans(
            writes in prop::collection::vec((0u32..700, 1u32..200), 0..12), probe in 0u32..700,
        ) {
            let map = SectorMap::from_bytes(&[0; 512], 700);
            let mut model = [false; 700];
            for (first, count) in writes {
                let end = (first + count).min(700);
                map.set(first, end - first);
                model[usize_from(first.into())..usize_from(end.into())].fill(true);
            }
            let rest = &model[usize_from(probe.into())..];
            let expected = rest.iter().take_while(|&&bit| bit == rest[0]).count();
            let (present, length) = map.run(probe, 700 - probe);
            prop_assert_eq!(present, rest[0]);
            prop_assert_eq!(u64::from(length), crate::units::u64_from(expected));
            let again = SectorMap::from_bytes(&map.to_bytes(), 700);
            prop_assert_eq!(again.to_bytes(), map.to_bytes());
            prop_assert_eq!(again.is_full(), model.iter().all(|&bit| bit));
        }
    }
}
