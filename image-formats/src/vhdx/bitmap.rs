//! Sector bitmaps: which sectors of a partly present block are in the file.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use vhd_block::units::{u64_from, usize_from};

use crate::error::ReadContext as _;
use crate::limits::BITMAP_CACHE;
use crate::{ImageError, ImageFile};

/// The bits of blocks that were looked at, by the offset of their first byte.
#[derive(Default)]
pub(super) struct Bitmaps {
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    maps: HashMap<u64, Arc<[u8]>>,
    bytes: u64,
}

impl Bitmaps {
    /// The `len` bytes at `offset` of the file. When too much is kept, all of it is dropped.
    pub(super) fn get(&self, file: &dyn ImageFile, offset: u64, len: u64) -> Result<Arc<[u8]>, ImageError> {
        let lock = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().maps.get(&offset) {
            return Ok(Arc::clone(known));
        }
        let mut bytes = vec![0; usize_from(len)];
        file.read_exact_at(&mut bytes, offset).at(offset, bytes.len())?;
        let map: Arc<[u8]> = bytes.into();
        let mut cache = lock();
        if cache.bytes + len > BITMAP_CACHE {
            *cache = Cache::default();
        }
        cache.bytes += len;
        cache.maps.insert(offset, Arc::clone(&map));
        Ok(map)
    }
}

/// Whether the sector is present, and how many of the `count` sectors from it on are alike. The lowest bit of a byte is
/// its first sector.
pub(super) fn run(bits: &[u8], sector: u64, count: u64) -> (bool, u64) {
    let bit = |sector: u64| (bits[usize_from(sector / 8)] >> (sector % 8)) & 1 == 1;
    let present = bit(sector);
    let whole = if present { 0xFF } else { 0 };
    let end = sector + count;
    let mut at = sector + 1;
    while at < end {
        if at.is_multiple_of(8) && bits[usize_from(at / 8)] == whole {
            let from = usize_from(at / 8);
            let alike = bits[from..].iter().take_while(|byte| **byte == whole).count();
            at += u64_from(alike) * 8;
        } else if bit(at) == present {
            at += 1;
        } else {
            break;
        }
    }
    (present, at.min(end) - sector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_bit_by_bit() {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..500 {
            let bits: Vec<u8> = (0..32)
                .map(|_| [0, 0, 0xFF, 0xFF, rng.u8(..)][rng.usize(..5)])
                .collect();
            let sector = rng.u64(0..256);
            let count = rng.u64(1..=256 - sector);
            let bit = |sector: u64| (bits[usize_from(sector / 8)] >> (sector % 8)) & 1 == 1;
            let expected = (sector..sector + count)
                .take_while(|at| bit(*at) == bit(sector))
                .count();
            assert_eq!(run(&bits, sector, count), (bit(sector), u64_from(expected)));
        }
    }
}
