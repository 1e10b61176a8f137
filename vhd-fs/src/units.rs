//! A set of units of 4 KiB of a partition, on the grid of the disk.

use crate::bytes::{count, index};

/// Bytes for which there is one bit: smaller free ranges are not worth knowing, and a disk of 2 TiB takes 64 MiB.
pub(crate) const UNIT: u64 = 4096;
pub(crate) const WORD: u64 = 64;

/// A bit for each unit that is wholly inside the partition.
#[derive(Clone)]
pub(crate) struct Units {
    /// The unit that the first bit is for.
    pub(crate) first: u64,
    pub(crate) len: u64,
    words: Vec<u64>,
}

impl Units {
    /// An empty set for the bytes `start..end` of the disk.
    pub(crate) fn new(start: u64, end: u64) -> Self {
        let first = start.div_ceil(UNIT);
        let len = (end / UNIT).saturating_sub(first);
        Self {
            first,
            len,
            words: vec![0; index(len.div_ceil(WORD))],
        }
    }

    /// Adds the units that are wholly inside of a range of bytes; answers how many were not there.
    pub(crate) fn add_inside(&mut self, from: u64, to: u64) -> u64 {
        self.add(from.div_ceil(UNIT), to / UNIT)
    }

    /// Adds the units that a range of bytes touches.
    pub(crate) fn add_touched(&mut self, from: u64, to: u64) {
        self.add(from / UNIT, to.div_ceil(UNIT));
    }

    /// Adds units of the disk, as far as they are in the partition.
    fn add(&mut self, from: u64, to: u64) -> u64 {
        let mut unit = from.saturating_sub(self.first);
        let end = to.saturating_sub(self.first).min(self.len);
        let mut added = 0;
        while unit < end {
            let bit = unit % WORD;
            let taken = (WORD - bit).min(end - unit);
            let mask = (u64::MAX >> (WORD - taken)) << bit;
            if let Some(word) = self.words.get_mut(index(unit / WORD)) {
                added += u64::from((mask & !*word).count_ones());
                *word |= mask;
            }
            unit += taken;
        }
        added
    }

    /// The bits of 64 units.
    pub(crate) fn word(&self, number: u64) -> u64 {
        self.words.get(index(number)).copied().unwrap_or(0)
    }

    /// Whether a unit, counted from the first one, is in the set.
    pub(crate) fn has(&self, unit: u64) -> bool {
        unit < self.len && self.word(unit / WORD) >> (unit % WORD) & 1 == 1
    }

    /// Whether a unit is in both sets, which must be of the same partition.
    pub(crate) fn intersects(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).any(|(one, other)| one & other != 0)
    }

    /// Bytes of memory that the set takes.
    pub(crate) fn memory(&self) -> u64 {
        count(self.words.len()) * 8
    }
}
