//! A new qcow2 image, written in one go: data as it comes, in any order and by any number of threads, then the tables.
//!
//! ```text
//! cluster 0: header | data and zeroes that were never written, as holes | tables of the second level | first table |
//! reference counts | table of the reference counts
//! ```
//!
//! The file is no image before [`Writer::finish`]. Nothing is read from it and nothing is ever moved.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use vhd_block::units::{u64_from, usize_from};

use super::{COPIED, SIGNATURE, ZERO};

/// Bytes; the longest name of a backing file that the format has room for.
pub const MAX_BACKING_NAME: usize = 1023;

/// Bytes in a cluster: what qemu takes too.
pub const CLUSTER: u64 = 64 << 10;
const ENTRIES: u64 = CLUSTER / 8;
/// Clusters that a block of reference counts of 16 bits counts.
const COUNTS: u64 = CLUSTER / 2;
const VERSION: u32 = 3;
const HEADER_LEN: u32 = 104;
/// The header extension that says the format of the backing file.
const BACKING_FORMAT: u32 = 0xE279_2ACA;
/// 2^4 bits in a reference count.
const REFCOUNT_ORDER: u32 = 4;

/// Where the clusters of a new image are.
pub struct Writer {
    size: u64,
    /// The name of a qcow2 image that has what is not here.
    backing: Option<String>,
    tables: Vec<OnceLock<Box<[AtomicU64]>>>,
    /// The next free cluster. Held while clusters get their places: none is given out twice, and none is left unused.
    next: Mutex<u64>,
}

impl Writer {
    /// An image of a disk of `size` bytes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let tables = size.div_ceil(CLUSTER * ENTRIES);
        Self {
            size,
            backing: None,
            tables: (0..tables).map(|_| OnceLock::new()).collect(),
            next: Mutex::new(1),
        }
    }

    /// The same, over the qcow2 image of that name, which has what is not written here. The format has room for
    /// [`MAX_BACKING_NAME`] bytes.
    #[must_use]
    pub fn over(size: u64, backing: &str) -> Self {
        Self {
            backing: Some(backing.to_owned()),
            ..Self::new(size)
        }
    }

    /// The cluster that begins at `offset` of the disk reads zero, and hides what the backing file has there.
    pub fn zero(&self, offset: u64) {
        let number = offset / CLUSTER;
        let table = self.table_of(number);
        table[usize_from(number % ENTRIES)].store(ZERO, Ordering::Release);
    }

    fn table_of(&self, cluster: u64) -> &[AtomicU64] {
        let new_table = || (0..ENTRIES).map(|_| AtomicU64::new(0)).collect();
        self.tables[usize_from(cluster / ENTRIES)].get_or_init(new_table)
    }

    /// Where in the file the byte at `offset` of the disk goes, and how many of `len` bytes go on from there. Their clusters
    /// get places, if they have none; what is not written of them must be a hole.
    pub fn place(&self, offset: u64, len: u64) -> (u64, u64) {
        let number = offset / CLUSTER;
        let table = self.table_of(number);
        let (first, within) = (number % ENTRIES, offset % CLUSTER);
        let wanted = (within + len).div_ceil(CLUSTER).min(ENTRIES - first);
        let entries = &table[usize_from(first)..usize_from(first + wanted)];
        if entries.iter().any(|entry| entry.load(Ordering::Acquire) == 0) {
            self.allocate(entries);
        }
        let start = entries[0].load(Ordering::Acquire);
        let follows = |(index, entry): &(u64, &AtomicU64)| entry.load(Ordering::Acquire) == start + index * CLUSTER;
        let clusters = u64_from((0..).zip(entries).take_while(follows).count());
        (start + within, len.min(clusters * CLUSTER - within))
    }

    /// Gives the clusters places that have none.
    fn allocate(&self, entries: &[AtomicU64]) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in entries {
            if entry.load(Ordering::Acquire) == 0 {
                entry.store(*next * CLUSTER, Ordering::Release);
                *next += 1;
            }
        }
    }

    /// Writes the tables and the header with `write`, which takes bytes and an offset in the file, and returns the length
    /// that the file must have.
    ///
    /// # Errors
    /// The first of `write`.
    pub fn finish(self, mut write: impl FnMut(&[u8], u64) -> io::Result<()>) -> io::Result<u64> {
        let mut next = self.next.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut l1 = vec![0; usize_from(u64_from(self.tables.len()).div_ceil(ENTRIES).max(1) * CLUSTER)];
        for (index, table) in self.tables.iter().enumerate() {
            let Some(table) = table.get() else { continue };
            let entries = table.iter().map(|entry| match entry.load(Ordering::Acquire) {
                empty @ (0 | ZERO) => empty,
                place => place | COPIED,
            });
            let bytes: Vec<u8> = entries.flat_map(u64::to_be_bytes).collect();
            write(&bytes, next * CLUSTER)?;
            l1[index * 8..][..8].copy_from_slice(&((next * CLUSTER) | COPIED).to_be_bytes());
            next += 1;
        }
        let l1_offset = next * CLUSTER;
        write(&l1, l1_offset)?;
        next += u64_from(l1.len()) / CLUSTER;
        let counts = write_counts(next, &mut write)?;
        let mut header = vec![0; usize_from(CLUSTER)];
        header[..4].copy_from_slice(SIGNATURE);
        put32(&mut header, 4, VERSION);
        put32(&mut header, 20, CLUSTER.trailing_zeros());
        put64(&mut header, 24, self.size);
        put32(
            &mut header,
            36,
            u32::try_from(self.tables.len()).map_err(io::Error::other)?,
        );
        put64(&mut header, 40, l1_offset);
        put64(&mut header, 48, counts.table);
        put32(
            &mut header,
            56,
            u32::try_from(counts.table_clusters).map_err(io::Error::other)?,
        );
        put32(&mut header, 96, REFCOUNT_ORDER);
        put32(&mut header, 100, HEADER_LEN);
        if let Some(backing) = &self.backing {
            name_backing(&mut header, backing)?;
        }
        write(&header, 0)?;
        Ok(counts.end)
    }
}

struct Counts {
    /// Where in the file the table of the reference counts is.
    table: u64,
    table_clusters: u64,
    /// Where the file ends.
    end: u64,
}

/// Writes reference counts, their own clusters included, behind `used` clusters that are all in use.
fn write_counts(used: u64, write: &mut impl FnMut(&[u8], u64) -> io::Result<()>) -> io::Result<Counts> {
    let (mut blocks, mut table_clusters) = (0, 0);
    loop {
        let all = used + blocks + table_clusters;
        let (needed, needed_table) = (all.div_ceil(COUNTS), all.div_ceil(COUNTS).div_ceil(ENTRIES));
        if (needed, needed_table) == (blocks, table_clusters) {
            break;
        }
        (blocks, table_clusters) = (needed, needed_table);
    }
    let all = used + blocks + table_clusters;
    let mut table = vec![0; usize_from(table_clusters * CLUSTER)];
    for block in 0..blocks {
        let counted = (all - block * COUNTS).min(COUNTS);
        let mut bytes = vec![0; usize_from(CLUSTER)];
        let (counts, _) = bytes[..usize_from(counted * 2)].as_chunks_mut::<2>();
        counts.iter_mut().for_each(|count| *count = 1_u16.to_be_bytes());
        write(&bytes, (used + block) * CLUSTER)?;
        table[usize_from(block * 8)..][..8].copy_from_slice(&((used + block) * CLUSTER).to_be_bytes());
    }
    let table_offset = (used + blocks) * CLUSTER;
    write(&table, table_offset)?;
    Ok(Counts {
        table: table_offset,
        table_clusters,
        end: all * CLUSTER,
    })
}

/// Names the backing file, and its format: without that readers would guess it from what a guest has written.
fn name_backing(header: &mut [u8], name: &str) -> io::Result<()> {
    let mut at = usize_from(u64::from(HEADER_LEN));
    let format = b"qcow2";
    put32(header, at, BACKING_FORMAT);
    put32(header, at + 4, u32::try_from(format.len()).map_err(io::Error::other)?);
    header[at + 8..][..format.len()].copy_from_slice(format);
    // Padded to 8 bytes; then the end of the extensions, which is zeroes.
    at += 8 + format.len().next_multiple_of(8) + 8;
    let len = u32::try_from(name.len()).map_err(io::Error::other)?;
    if name.len() > MAX_BACKING_NAME {
        return Err(io::Error::other("the name of the backing file is too long"));
    }
    header[at..][..name.len()].copy_from_slice(name.as_bytes());
    put64(header, 8, u64_from(at));
    put32(header, 16, len);
    Ok(())
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}
