//! The free space of one partition.

use std::fmt;

use crate::bytes::{count, index};

/// Bytes for which there is one bit: smaller free ranges are not worth knowing, and a disk of 2 TiB takes 64 MiB.
const UNIT: u64 = 4096;
const WORD: u64 = 64;
/// Units that [`FreeMap::run`] looks at in one call.
const MAX_RUN: u64 = 1 << 16;

/// Which bytes of a partition are free: on the 4 KiB grid of the disk, rounded down.
#[derive(Clone)]
pub struct FreeMap {
    start: u64,
    end: u64,
    /// The unit that the first bit is for.
    first: u64,
    units: u64,
    words: Vec<u64>,
    /// A range that the next one may go on from.
    last: (u64, u64),
    free_units: u64,
}

impl fmt::Debug for FreeMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, end, free) = (self.start, self.end, self.free_bytes());
        write!(f, "FreeMap({start:#x}..{end:#x}, {free} bytes free)")
    }
}

impl FreeMap {
    /// A map of a partition in which nothing is free.
    pub(crate) fn new(start: u64, len: u64) -> Self {
        let end = start.saturating_add(len);
        let first = start.div_ceil(UNIT);
        let units = (end / UNIT).saturating_sub(first);
        Self {
            start,
            end,
            first,
            units,
            words: vec![0; index(units.div_ceil(WORD))],
            last: (0, 0),
            free_units: 0,
        }
    }

    /// Says that bytes, counted from the start of the partition, are free.
    pub(crate) fn add(&mut self, offset: u64, len: u64) {
        let from = self.start.saturating_add(offset).min(self.end);
        let to = from.saturating_add(len).min(self.end);
        if from == self.last.1 {
            self.last.1 = to;
            return;
        }
        self.flush();
        self.last = (from, to);
    }

    /// Enters the last range.
    pub(crate) fn flush(&mut self) {
        let (from, to) = std::mem::take(&mut self.last);
        let mut unit = from.div_ceil(UNIT).saturating_sub(self.first);
        let end = (to / UNIT).saturating_sub(self.first).min(self.units);
        while unit < end {
            let bit = unit % WORD;
            let taken = (WORD - bit).min(end - unit);
            let mask = (u64::MAX >> (WORD - taken)) << bit;
            if let Some(word) = self.words.get_mut(index(unit / WORD)) {
                self.free_units += u64::from((mask & !*word).count_ones());
                *word |= mask;
            }
            unit += taken;
        }
    }

    /// The first byte of the partition.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The byte behind the partition.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Bytes that are free.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.free_units * UNIT
    }

    /// Whether the byte at `offset` of the disk, which is in the partition, is free, and how many bytes from it
    /// on agree with it, at least one. A longer run may come in several parts.
    #[must_use]
    pub fn run(&self, offset: u64) -> (bool, u64) {
        let unit = offset / UNIT;
        if unit < self.first {
            return (false, self.first * UNIT - offset);
        }
        let first = unit - self.first;
        let free = self.is_free(first);
        let mut end = first + 1;
        while end < self.units && end - first < MAX_RUN && self.is_free(end) == free {
            // Words of one kind are most of a map.
            let word = self.words.get(index(end / WORD)).copied();
            let whole = word == Some(if free { u64::MAX } else { 0 });
            end += if end.is_multiple_of(WORD) && whole { WORD } else { 1 };
        }
        let end = if end >= self.units && !free {
            self.end
        } else {
            (self.first + end.min(self.units)) * UNIT
        };
        (free, end.saturating_sub(offset).max(1))
    }

    fn is_free(&self, unit: u64) -> bool {
        let word = self.words.get(index(unit / WORD)).copied().unwrap_or(0);
        unit < self.units && word >> (unit % WORD) & 1 == 1
    }

    /// Bytes of memory that the map takes.
    #[must_use]
    pub fn memory(&self) -> u64 {
        count(self.words.len()) * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_rounded_down_to_the_grid_of_the_disk() {
        let mut map = FreeMap::new(63 * 512, 1 << 20);
        map.add(0, 8192);
        map.flush();
        assert_eq!(map.free_bytes(), 4096);
        assert_eq!(map.run(63 * 512), (false, 512));
        assert_eq!(map.run(32768), (true, 4096));
        assert_eq!(map.run(33000), (true, 4096 - 232));
        let (free, len) = map.run(36864);
        assert_eq!((free, 36864 + len), (false, 63 * 512 + (1 << 20)));
    }

    #[test]
    fn ranges_that_continue_one_another_are_one() {
        let mut map = FreeMap::new(0, 1 << 20);
        for kib in 3..13 {
            map.add(kib << 10, 1 << 10);
        }
        map.add(1 << 19, u64::MAX);
        map.flush();
        assert_eq!(map.free_bytes(), 8192 + (1 << 19));
        assert_eq!(map.run(4096), (true, 8192));
        assert_eq!(map.run(1 << 19), (true, 1 << 19));
    }

    #[test]
    fn runs_cover_the_partition() {
        let mut map = FreeMap::new(4096, 10 << 20);
        map.add(1 << 20, 3 << 20);
        map.add(5 << 20, 4096);
        map.flush();
        let (mut at, mut free) = (4096, 0);
        while at < map.end() {
            let (is_free, len) = map.run(at);
            free += if is_free { len } else { 0 };
            at += len;
        }
        assert_eq!((at, free), (map.end(), map.free_bytes()));
    }
}
