//! The free space of one partition.

use std::fmt;

use crate::units::{UNIT, Units, WORD};

/// Units that [`FreeMap::run`] looks at in one call.
const MAX_RUN: u64 = 1 << 16;

/// Which bytes of a partition are free: on the 4 KiB grid of the disk, rounded down.
#[derive(Clone)]
pub struct FreeMap {
    start: u64,
    end: u64,
    free: Units,
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
        Self {
            start,
            end,
            free: Units::new(start, end),
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
        self.free_units += self.free.add_inside(from, to);
    }

    /// Whether something of `used` is free.
    pub(crate) fn intersects(&self, used: &Units) -> bool {
        self.free.intersects(used)
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
        let (unit, base) = (offset / UNIT, self.free.first);
        if unit < base {
            return (false, base * UNIT - offset);
        }
        let (first, units) = (unit - base, self.free.len);
        let free = self.free.has(first);
        let mut end = first + 1;
        while end < units && end - first < MAX_RUN && self.free.has(end) == free {
            // Words of one kind are most of a map.
            let whole = self.free.word(end / WORD) == if free { u64::MAX } else { 0 };
            end += if end.is_multiple_of(WORD) && whole { WORD } else { 1 };
        }
        let end = if end >= units && !free {
            self.end
        } else {
            (base + end.min(units)) * UNIT
        };
        (free, end.saturating_sub(offset).max(1))
    }

    /// Bytes of memory that the map takes.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.free.memory()
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
