//! The two levels of tables: the first is in memory, those of the second are read when they are needed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use vhd_block::units::{u64_from, usize_from};

use super::header::Header;
use super::{COMPRESSED, OFFSET, ZERO};
use crate::error::ReadContext as _;
use crate::limits::TABLE_CACHE;
use crate::{BrokenRule, ImageError, ImageFile, Rule};

/// What the tables say of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cluster {
    Absent,
    Zero,
    Stored(u64),
    /// Where the compressed bytes begin, and how many there are at most.
    Compressed(u64, u64),
}

type Table = Arc<[u64]>;

pub(super) struct Tables {
    l1: Vec<u64>,
    cluster_size: u64,
    file_len: u64,
    version: u32,
    cache: Mutex<HashMap<u64, Table>>,
}

impl Tables {
    /// Reads the first table, and checks where those of the second level are.
    pub(super) fn read(file: &dyn ImageFile, header: &Header, file_len: u64) -> Result<Self, ImageError> {
        let needed = header.disk_size.div_ceil(header.cluster_size * header.l2_entries());
        let mut l1 = read_table(file, header.l1_offset, needed)?;
        for (index, entry) in l1.iter_mut().enumerate() {
            let offset = *entry & OFFSET;
            if offset == 0 {
                *entry = 0;
                continue;
            }
            let end = offset.checked_add(header.cluster_size);
            if !offset.is_multiple_of(header.cluster_size) || end.is_none_or(|end| end > file_len) {
                let at = header.l1_offset + u64_from(index * 8);
                let expected = format!(
                    "a multiple of {:#x} inside the file of {file_len:#x}",
                    header.cluster_size
                );
                return Err(BrokenRule::new(Rule::Table, at, format!("a table at {offset:#x}"), expected).into());
            }
            *entry = offset;
        }
        refuse_twice(&l1, header.l1_offset)?;
        Ok(Self {
            l1,
            cluster_size: header.cluster_size,
            file_len,
            version: header.version,
            cache: Mutex::default(),
        })
    }

    /// Bytes of memory that they take at most.
    pub(super) fn memory(&self) -> u64 {
        u64_from(self.l1.len() * 8) + TABLE_CACHE.min(u64_from(self.l1.len()) * self.cluster_size)
    }

    /// Whether nothing is allocated of what a table of the second level would cover.
    pub(super) fn is_absent(&self, index: usize) -> bool {
        self.l1.get(index).is_none_or(|offset| *offset == 0)
    }

    /// Tables of the second level.
    pub(super) fn len(&self) -> usize {
        self.l1.len()
    }

    /// A table of the second level, and where it is; `None` if nothing that it would cover is allocated.
    pub(super) fn second(&self, file: &dyn ImageFile, index: usize) -> Result<Option<(Table, u64)>, ImageError> {
        let offset = self.l1[index];
        if offset == 0 {
            return Ok(None);
        }
        let lock = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(&offset) {
            return Ok(Some((Arc::clone(known), offset)));
        }
        let table: Table = read_table(file, offset, self.cluster_size / 8)?.into();
        let mut cache = lock();
        if u64_from(cache.len() + 1) * self.cluster_size > TABLE_CACHE {
            cache.clear();
        }
        cache.insert(offset, Arc::clone(&table));
        Ok(Some((table, offset)))
    }

    /// What an entry at an offset of the file says.
    pub(super) fn decode(&self, entry: u64, at: u64) -> Result<Cluster, BrokenRule> {
        if entry & COMPRESSED != 0 {
            return self.compressed(entry, at);
        }
        let offset = entry & OFFSET;
        if self.version >= 3 && entry & ZERO != 0 {
            return Ok(Cluster::Zero);
        }
        if offset == 0 {
            return Ok(Cluster::Absent);
        }
        if !offset.is_multiple_of(self.cluster_size) || offset >= self.file_len {
            let expected = format!(
                "a multiple of {:#x} inside the file of {:#x}",
                self.cluster_size, self.file_len
            );
            return Err(BrokenRule::new(
                Rule::BlockPastEnd,
                at,
                format!("a cluster at {offset:#x}"),
                expected,
            ));
        }
        Ok(Cluster::Stored(offset))
    }

    fn compressed(&self, entry: u64, at: u64) -> Result<Cluster, BrokenRule> {
        let offset_bits = 62 - (self.cluster_size.trailing_zeros() - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let sectors = ((entry & (COMPRESSED - 1)) >> offset_bits) + 1;
        if offset >= self.file_len {
            let found = format!("a compressed cluster at {offset:#x}");
            let expected = format!("one inside the file of {:#x}", self.file_len);
            return Err(BrokenRule::new(Rule::BlockPastEnd, at, found, expected));
        }
        let len = (sectors * 512 - offset % 512).min(self.file_len - offset);
        Ok(Cluster::Compressed(offset, len))
    }
}

/// A table that is in use twice would make a small file as large as one likes.
fn refuse_twice(l1: &[u64], at: u64) -> Result<(), BrokenRule> {
    let mut sorted: Vec<u64> = l1.iter().copied().filter(|offset| *offset != 0).collect();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => {
            let found = format!("the table at {:#x} twice", pair[0]);
            Err(BrokenRule::new(Rule::Table, at, found, "each table once"))
        }
        None => Ok(()),
    }
}

fn read_table(file: &dyn ImageFile, offset: u64, entries: u64) -> Result<Vec<u64>, ImageError> {
    let mut bytes = vec![0; usize_from(entries * 8)];
    file.read_exact_at(&mut bytes, offset).at(offset, bytes.len())?;
    let (words, _) = bytes.as_chunks::<8>();
    Ok(words.iter().map(|word| u64::from_be_bytes(*word)).collect())
}
