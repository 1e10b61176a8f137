//! What one layer holds in a block of the disk.
//!
//! Two kinds of sectors count: those that are not zero, with their bytes, and, in a differencing image, those that
//! are present and zero: they hide the parent. A sector of a base that reads zero does not count, allocated or not,
//! so neither compaction nor holes of the host file change a content.

use std::sync::LazyLock;

use crate::units::{SECTOR_SIZE, usize_from};

/// Bytes of the virtual disk that share a digest.
pub const DIGEST_BLOCK: u64 = 2 << 20;

/// Sectors of a block.
pub(super) const SECTORS: usize = usize_from(DIGEST_BLOCK / SECTOR_SIZE);

/// Bytes of a set of sectors.
pub(super) const SET_BYTES: usize = SECTORS / 8;

/// BLAKE3 of a set of sectors and of the bytes of these sectors.
pub(super) type Digest = [u8; 32];

/// The digest of no sectors.
static NOTHING: LazyLock<Digest> = LazyLock::new(|| digest(&SectorSet::default(), &[]));

/// What one layer holds in a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Nothing that counts.
    Empty,
    /// Zeroes in every sector, which hide the parent.
    Covered,
    /// Sectors that are not zero.
    Data(Digest),
    /// Zeroes that hide the parent, and perhaps sectors that are not zero.
    Mixed { digest: Digest, covered: SectorSet },
}

impl Content {
    /// Of a block of `sectors` sectors; `buffer` has the bytes of those in `data` in their places.
    pub(super) fn of(buffer: &[u8], data: &SectorSet, covered: SectorSet, sectors: usize) -> Self {
        if covered.is_empty() {
            return if data.is_empty() {
                Self::Empty
            } else {
                Self::Data(digest(data, buffer))
            };
        }
        if covered.count() == sectors {
            return Self::Covered;
        }
        Self::Mixed {
            digest: digest(data, buffer),
            covered,
        }
    }

    fn digest(&self) -> Digest {
        match self {
            Self::Empty | Self::Covered => *NOTHING,
            Self::Data(digest) | Self::Mixed { digest, .. } => *digest,
        }
    }

    fn covers(&self, sector: usize) -> bool {
        match self {
            Self::Empty | Self::Data(_) => false,
            Self::Covered => true,
            Self::Mixed { covered, .. } => covered.contains(sector),
        }
    }

    /// The zeroes that `self` had and `now` has not any more, if that is all that differs: what compaction drops
    /// where the parents read zero too. `None` if more differs.
    pub(super) fn dropped(&self, now: &Self) -> Option<SectorSet> {
        if self.digest() != now.digest() {
            return None;
        }
        let mut dropped = SectorSet::default();
        for sector in 0..SECTORS {
            match (self.covers(sector), now.covers(sector)) {
                (true, false) => dropped.insert(sector, 1),
                (false, true) => return None,
                _ => {}
            }
        }
        Some(dropped)
    }
}

/// Some sectors of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SectorSet(Box<[u8; SET_BYTES]>);

impl Default for SectorSet {
    fn default() -> Self {
        Self(Box::new([0; SET_BYTES]))
    }
}

impl SectorSet {
    pub(super) fn from_bytes(bytes: [u8; SET_BYTES]) -> Self {
        Self(Box::new(bytes))
    }

    /// The first sector is the highest bit of the first byte.
    pub(super) fn as_bytes(&self) -> &[u8; SET_BYTES] {
        &self.0
    }

    pub(super) fn insert(&mut self, first: usize, count: usize) {
        for sector in first..first + count {
            self.0[sector / 8] |= 0x80 >> (sector % 8);
        }
    }

    fn contains(&self, sector: usize) -> bool {
        self.0[sector / 8] & (0x80 >> (sector % 8)) != 0
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|&byte| byte == 0)
    }

    fn count(&self) -> usize {
        self.0.iter().map(|byte| usize_from(byte.count_ones().into())).sum()
    }

    /// The sectors as maximal runs: first, count.
    pub(super) fn runs(&self) -> impl Iterator<Item = (usize, usize)> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let first = (next..SECTORS).find(|&sector| self.contains(sector))?;
            let end = (first..SECTORS).find(|&sector| !self.contains(sector));
            next = end.unwrap_or(SECTORS);
            Some((first, next - first))
        })
    }
}

/// The set goes first and has one length, so no two contents have the same bytes.
fn digest(data: &SectorSet, buffer: &[u8]) -> Digest {
    let sector = usize_from(SECTOR_SIZE);
    let mut hasher = blake3::Hasher::new();
    hasher.update(data.as_bytes());
    for (first, count) in data.runs() {
        hasher.update(&buffer[first * sector..(first + count) * sector]);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(sectors: &[usize]) -> SectorSet {
        let mut set = SectorSet::default();
        sectors.iter().for_each(|&sector| set.insert(sector, 1));
        set
    }

    fn content(buffer: &[u8], data: &[usize], covered: &[usize]) -> Content {
        Content::of(buffer, &set(data), set(covered), SECTORS)
    }

    #[test]
    fn runs_are_maximal() {
        let runs: Vec<_> = set(&[0, 1, 7, 8, 9, 4095]).runs().collect();
        assert_eq!(runs, [(0, 2), (7, 3), (4095, 1)]);
        assert_eq!(set(&[]).runs().count(), 0);
        let mut all = SectorSet::default();
        all.insert(0, SECTORS);
        assert_eq!(all.runs().collect::<Vec<_>>(), [(0, SECTORS)]);
        assert_eq!(all.count(), SECTORS);
    }

    #[test]
    fn place_and_bytes_count() {
        let mut buffer = vec![0; usize_from(DIGEST_BLOCK)];
        buffer[512..1536].fill(7);
        let one = content(&buffer, &[1], &[]);
        assert_ne!(one, content(&buffer, &[2], &[]));
        assert_ne!(one, content(&buffer, &[1, 2], &[]));
        assert_ne!(one, content(&buffer, &[1], &[5]));
        buffer[700] = 8;
        assert_ne!(one, content(&buffer, &[1], &[]));
        assert_eq!(content(&buffer, &[], &[]), Content::Empty);
    }

    #[test]
    fn only_zeroes_may_be_dropped() {
        let buffer = vec![3; usize_from(DIGEST_BLOCK)];
        let before = content(&buffer, &[1], &[4, 5, 9]);
        assert_eq!(before.dropped(&before), Some(set(&[])));
        assert_eq!(before.dropped(&content(&buffer, &[1], &[4])), Some(set(&[5, 9])));
        assert_eq!(before.dropped(&content(&buffer, &[1], &[])), Some(set(&[4, 5, 9])));
        assert_eq!(before.dropped(&content(&buffer, &[1], &[4, 5, 9, 10])), None);
        assert_eq!(before.dropped(&content(&buffer, &[], &[4, 5, 9])), None);
        assert_eq!(before.dropped(&Content::Empty), None);
        assert_eq!(Content::Empty.dropped(&Content::Covered), None);
        let zeroes = content(&buffer, &[], &[4]);
        assert_eq!(zeroes.dropped(&Content::Empty), Some(set(&[4])));
        let all = Content::Covered.dropped(&Content::Empty).unwrap();
        assert_eq!(all.count(), SECTORS);
    }
}
