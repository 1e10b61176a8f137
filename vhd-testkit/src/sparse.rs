//! Sparse bytes with pages shared between copies: what a file of tests holds.

use std::collections::BTreeMap;
use std::fmt;
use std::io::IoSlice;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use vhd_core::units::{u64_from, usize_from};

use crate::bytes::{SECTOR, is_zero};

/// The unit of sharing and of holes, as on the usual file system.
pub(crate) const PAGE: usize = 4096;
const PAGE_BYTES: u64 = PAGE as u64;
const SECTOR_BYTES: u64 = SECTOR as u64;

type Page = [u8; PAGE];
static ZERO_PAGE: LazyLock<Arc<Page>> = LazyLock::new(|| Arc::new([0; PAGE]));

/// Bytes of a write inside one page.
pub(crate) struct Patch {
    page: u64,
    range: Range<usize>,
    bytes: Arc<Page>,
}

/// Cuts a write at the page boundaries.
pub(crate) fn patches(bufs: &[IoSlice<'_>], offset: u64) -> Vec<Patch> {
    let mut patches: Vec<Patch> = Vec::new();
    let mut position = offset;
    for buf in bufs {
        let mut rest: &[u8] = buf;
        while !rest.is_empty() {
            let (page, start) = (position / PAGE_BYTES, usize_from(position % PAGE_BYTES));
            let (now, later) = rest.split_at(rest.len().min(PAGE - start));
            if patches.last().is_none_or(|last| last.page != page) {
                patches.push(Patch {
                    page,
                    range: start..start,
                    bytes: Arc::clone(&ZERO_PAGE),
                });
            }
            let patch = patches.last_mut().expect("one was just pushed");
            Arc::make_mut(&mut patch.bytes)[start..start + now.len()].copy_from_slice(now);
            patch.range.end = start + now.len();
            position += u64_from(now.len());
            rest = later;
        }
    }
    patches
}

/// The parts of `range` of page `page` that lie in sectors that `kept` accepts.
fn kept_parts(page: u64, range: Range<usize>, kept: impl Fn(u64) -> bool) -> impl Iterator<Item = Range<usize>> {
    let sectors = range.start / SECTOR..range.end.div_ceil(SECTOR);
    sectors
        .filter(move |&sector| kept(page * (PAGE_BYTES / SECTOR_BYTES) + u64_from(sector)))
        .map(move |sector| range.start.max(sector * SECTOR)..range.end.min((sector + 1) * SECTOR))
}

/// A length and the pages below it that are no holes. Clones share everything until one is changed.
#[derive(Clone, Default)]
pub(crate) struct SparseBytes {
    len: u64,
    pages: Arc<BTreeMap<u64, Arc<Page>>>,
}

impl SparseBytes {
    /// `bytes`, with holes where whole pages are zero.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let mut result = Self {
            len: u64_from(bytes.len()),
            ..Self::default()
        };
        for patch in patches(&[IoSlice::new(bytes)], 0) {
            if !is_zero(&patch.bytes[..]) {
                result.store(&patch, |_| true);
            }
        }
        result
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes in pages that are no holes.
    pub(crate) fn allocated(&self) -> u64 {
        u64_from(self.pages.len()) * PAGE_BYTES
    }

    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize_from(self.len)];
        for (&number, page) in self.pages.range(..self.len.div_ceil(PAGE_BYTES)) {
            let start = usize_from(number * PAGE_BYTES);
            let take = PAGE.min(bytes.len() - start);
            bytes[start..start + take].copy_from_slice(&page[..take]);
        }
        bytes
    }

    /// Fills `buf` from `offset`; the caller has checked that it lies below the length.
    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) {
        let mut position = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let start = usize_from(position % PAGE_BYTES);
            let take = rest.len().min(PAGE - start);
            let (now, later) = rest.split_at_mut(take);
            match self.pages.get(&(position / PAGE_BYTES)) {
                Some(page) => now.copy_from_slice(&page[start..start + take]),
                None => now.fill(0),
            }
            position += u64_from(take);
            rest = later;
        }
    }

    /// Stores the sectors of `patch` that `kept` accepts, wherever the length is.
    pub(crate) fn store(&mut self, patch: &Patch, kept: impl Fn(u64) -> bool) {
        let parts: Vec<Range<usize>> = kept_parts(patch.page, patch.range.clone(), kept).collect();
        let bytes: usize = parts.iter().map(Range::len).sum();
        if bytes == 0 {
            return;
        }
        let pages = Arc::make_mut(&mut self.pages);
        if bytes == PAGE {
            pages.insert(patch.page, Arc::clone(&patch.bytes));
            return;
        }
        let page = Arc::make_mut(pages.entry(patch.page).or_insert_with(|| Arc::clone(&ZERO_PAGE)));
        for part in parts {
            page[part.clone()].copy_from_slice(&patch.bytes[part]);
        }
    }

    /// Zeroes the sectors of the range that `kept` accepts; whole pages become holes.
    pub(crate) fn zero(&mut self, offset: u64, len: u64, kept: impl Fn(u64) -> bool) {
        let end = offset.saturating_add(len);
        let span = offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES);
        if span.is_empty() || self.pages.range(span.clone()).next().is_none() {
            return;
        }
        let pages = Arc::make_mut(&mut self.pages);
        let mut emptied = Vec::new();
        for (&number, page) in pages.range_mut(span) {
            let first = number * PAGE_BYTES;
            let range = usize_from(offset.max(first) - first)..usize_from(end.min(first + PAGE_BYTES) - first);
            let parts: Vec<Range<usize>> = kept_parts(number, range, &kept).collect();
            match parts.iter().map(Range::len).sum() {
                0 => {}
                PAGE => emptied.push(number),
                _ => parts.into_iter().for_each(|part| Arc::make_mut(page)[part].fill(0)),
            }
        }
        emptied.iter().for_each(|number| drop(pages.remove(number)));
    }

    /// Sets the length. What lay past a shorter one is gone for good, so a later growth exposes zeroes.
    pub(crate) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.cut(len);
        }
        self.len = len;
    }

    /// Forgets everything from `len` on, even where it lies past the present length.
    pub(crate) fn cut(&mut self, len: u64) {
        self.zero(len, len.next_multiple_of(PAGE_BYTES) - len, |_| true);
        let first = len.div_ceil(PAGE_BYTES);
        if self.pages.range(first..).next().is_some() {
            drop(Arc::make_mut(&mut self.pages).split_off(&first));
        }
    }

    /// Whether page-granular data stands at `offset` (below the length), and where that ends.
    pub(crate) fn segment_at(&self, offset: u64) -> (bool, u64) {
        let mut page = offset / PAGE_BYTES;
        let data = self.pages.contains_key(&page);
        let end = if data {
            while self.pages.contains_key(&page) {
                page += 1;
            }
            page * PAGE_BYTES
        } else {
            self.pages
                .range(page..)
                .next()
                .map_or(u64::MAX, |(&next, _)| next * PAGE_BYTES)
        };
        (data, end.min(self.len))
    }

    /// A hash of the length and of every page that reads otherwise than in `base`: equal contents have equal
    /// hashes for one `base`, whether a page of zeroes is stored or a hole.
    pub(crate) fn difference_hash(&self, base: &Self) -> u64 {
        let mut hash = fold(self.len, 0x2545_f491_4f6c_dd1d);
        if Arc::ptr_eq(&self.pages, &base.pages) {
            return hash;
        }
        for (number, page) in self.pages.iter() {
            let old = base.pages.get(number).unwrap_or(&ZERO_PAGE);
            if !Arc::ptr_eq(page, old) && page != old {
                hash = hash.wrapping_add(page_hash(*number, page));
            }
        }
        let emptied = base.pages.iter().filter(|(number, _)| !self.pages.contains_key(number));
        for (number, _) in emptied.filter(|(_, page)| !is_zero(&page[..])) {
            hash = hash.wrapping_add(page_hash(*number, &ZERO_PAGE));
        }
        hash
    }
}

impl fmt::Debug for SparseBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} bytes in {} pages", self.len, self.pages.len())
    }
}

fn page_hash(number: u64, page: &Page) -> u64 {
    let mut hash = fold(number ^ 0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03);
    for word in page.as_chunks::<8>().0 {
        hash = fold(hash ^ u64::from_le_bytes(*word), 0xa076_1d64_78bd_642f).wrapping_add(hash.rotate_left(23));
    }
    hash
}

/// The two halves of a product on each other, as in wyhash.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::rng;

    #[test]
    fn behaves_like_a_vector_of_bytes() {
        let mut random = rng(1);
        let (mut sparse, mut plain) = (SparseBytes::default(), Vec::<u8>::new());
        for _ in 0..2000 {
            let offset = random.usize(..20_000);
            let len = random.usize(1..9_000);
            match random.u8(..4) {
                0 | 1 => {
                    let data: Vec<u8> = (0..len).map(|_| random.u8(..)).collect();
                    plain.resize(plain.len().max(offset + len), 0);
                    plain[offset..offset + len].copy_from_slice(&data);
                    sparse.set_len(plain.len() as u64);
                    patches(&[IoSlice::new(&data)], offset as u64)
                        .iter()
                        .for_each(|patch| sparse.store(patch, |_| true));
                }
                2 => {
                    let end = plain.len().min(offset + len);
                    plain[offset.min(end)..end].fill(0);
                    sparse.zero(offset as u64, (end.max(offset) - offset) as u64, |_| true);
                }
                _ => {
                    plain.resize(offset, 0);
                    sparse.set_len(offset as u64);
                }
            }
            assert_eq!(sparse.to_vec(), plain);
            let mut all = vec![1; plain.len()];
            sparse.read(&mut all, 0);
            assert_eq!(all, plain);
            let again = SparseBytes::from_bytes(&plain);
            assert_eq!(sparse.difference_hash(&again), again.difference_hash(&again));
        }
    }

    #[test]
    fn segments_alternate_and_end_at_the_length() {
        let mut sparse = SparseBytes::from_bytes(&[1; 3 * PAGE - 5]);
        sparse.zero(PAGE_BYTES, PAGE_BYTES, |_| true);
        assert_eq!(sparse.segment_at(10), (true, PAGE_BYTES));
        assert_eq!(sparse.segment_at(PAGE_BYTES), (false, 2 * PAGE_BYTES));
        assert_eq!(sparse.segment_at(2 * PAGE_BYTES), (true, 3 * PAGE_BYTES - 5));
    }
}
