//! One open qcow2 file.

use std::fmt;
use std::io::IoSliceMut;
use std::sync::{Arc, Mutex, PoisonError};

use vhd_block::scatter;
use vhd_block::units::usize_from;

use super::header::Header;
use super::tables::{Cluster, Tables};
use crate::error::ReadContext as _;
use crate::inflate::inflate_raw;
use crate::{BrokenRule, ImageError, ImageFile, Layer, Place, Rule};

/// Clusters that are compared with each other: 4 TiB of data in clusters of 64 KiB, 1 GiB of memory.
const MAX_COMPARED: usize = 1 << 26;
/// Broken entries that a check lists.
const MAX_LISTED: usize = 100;

/// A qcow2 file, for reading.
pub struct Image {
    file: Arc<dyn ImageFile>,
    header: Header,
    tables: Tables,
    file_len: u64,
    /// The compressed cluster that was made last, by the offset of its bytes.
    last: Mutex<Option<(u64, Arc<[u8]>)>>,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("qcow2::Image")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

impl Image {
    /// Opens the image in `file`. Of one with a backing file, only what it holds itself can be read from it.
    ///
    /// # Errors
    /// [`ImageError`]. The tables of the second level are checked when they are used.
    pub fn open(file: Arc<dyn ImageFile>) -> Result<Self, ImageError> {
        let file_len = file.len().at(0, 0)?;
        let header = Header::read(&*file)?;
        let tables = Tables::read(&*file, &header, file_len)?;
        Ok(Self {
            file,
            header,
            tables,
            file_len,
            last: Mutex::default(),
        })
    }

    /// What the header says.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Goes through all tables: how many clusters are allocated, and what is broken, a hundred rules at most.
    ///
    /// # Errors
    /// [`ImageError::Read`].
    pub fn survey(&self) -> Result<(u64, Vec<BrokenRule>), ImageError> {
        let mut broken = Vec::new();
        let mut clusters: Vec<(u64, u64)> = Vec::new();
        let mut allocated = 0;
        for index in 0..self.tables.len() {
            let Some((table, at)) = self.tables.second(&*self.file, index)? else {
                continue;
            };
            clusters.push((at, at));
            for (entry, at) in table.iter().zip((at..).step_by(8)) {
                match self.tables.decode(*entry, at) {
                    Ok(Cluster::Stored(offset)) => {
                        allocated += 1;
                        // Of more than that many, a part is looked at for clusters that are in use twice.
                        if clusters.len() < MAX_COMPARED {
                            clusters.push((offset, at));
                        }
                    }
                    Ok(Cluster::Compressed(..)) => allocated += 1,
                    Ok(_) => {}
                    Err(_) if broken.len() >= MAX_LISTED => {}
                    Err(rule) => broken.push(rule),
                }
            }
        }
        clusters.sort_unstable();
        for pair in clusters.windows(2) {
            if pair[0].0 == pair[1].0 && broken.len() < MAX_LISTED {
                let found = format!("the cluster at {:#x}, which is another's", pair[1].0);
                broken.push(BrokenRule::new(
                    Rule::BlockOverlap,
                    pair[1].1,
                    found,
                    "a cluster of its own",
                ));
            }
        }
        Ok((allocated, broken))
    }

    fn cluster(&self, offset: u64) -> Result<Cluster, ImageError> {
        let number = offset / self.header.cluster_size;
        let entries = self.header.l2_entries();
        let Some((table, at)) = self.tables.second(&*self.file, usize_from(number / entries))? else {
            return Ok(Cluster::Absent);
        };
        let index = number % entries;
        Ok(self.tables.decode(table[usize_from(index)], at + index * 8)?)
    }

    /// How many bytes from `offset` on are like the cluster that begins it, up to `len`.
    fn run(&self, offset: u64, len: u64, first: Cluster) -> Result<u64, ImageError> {
        let size = self.header.cluster_size;
        let mut known = size - offset % size;
        let mut clusters = 1;
        while known < len {
            let table = (offset + known) / size / self.header.l2_entries();
            if first == Cluster::Absent && self.tables.is_absent(usize_from(table)) {
                known = (table + 1) * self.header.l2_entries() * size - offset;
                continue;
            }
            let follows = match (first, self.cluster(offset + known)?) {
                (Cluster::Stored(start), Cluster::Stored(next)) => next == start + clusters * size,
                (Cluster::Absent, Cluster::Absent) | (Cluster::Zero, Cluster::Zero) => true,
                _ => false,
            };
            if !follows {
                break;
            }
            known += size;
            clusters += 1;
        }
        Ok(known.min(len))
    }

    /// The content of a compressed cluster.
    fn inflate(&self, offset: u64, len: u64) -> Result<Arc<[u8]>, ImageError> {
        let lock = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, cluster)) = &*lock()
            && *known == offset
        {
            return Ok(Arc::clone(cluster));
        }
        let mut packed = vec![0; usize_from(len)];
        self.file.read_exact_at(&mut packed, offset).at(offset, packed.len())?;
        let mut cluster = vec![0; usize_from(self.header.cluster_size)];
        inflate_raw(&packed, &mut cluster).map_err(|found| {
            let expected = format!("a deflated cluster of {:#x} bytes", cluster.len());
            BrokenRule::new(Rule::Compression, offset, found, expected)
        })?;
        let cluster: Arc<[u8]> = cluster.into();
        *lock() = Some((offset, Arc::clone(&cluster)));
        Ok(cluster)
    }
}

impl Layer for Image {
    fn disk_size(&self) -> u64 {
        self.header.disk_size
    }

    fn place(&self, offset: u64, len: u64) -> Result<(Place, u64), ImageError> {
        let size = self.header.cluster_size;
        let cluster = self.cluster(offset)?;
        Ok(match cluster {
            Cluster::Absent => (Place::Absent, self.run(offset, len, cluster)?),
            Cluster::Zero => (Place::Zero, self.run(offset, len, cluster)?),
            Cluster::Compressed(..) => (Place::Computed, len.min(size - offset % size)),
            Cluster::Stored(start) => {
                let at = start + offset % size;
                let len = self.run(offset, len, cluster)?;
                // The last cluster of a file may be cut: what is not there reads zero.
                match self.file_len.saturating_sub(at) {
                    0 => (Place::Zero, len.min(size - offset % size)),
                    stored => (Place::Stored(at), len.min(stored)),
                }
            }
        })
    }

    fn read_computed(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), ImageError> {
        let Cluster::Compressed(start, len) = self.cluster(offset)? else {
            return Ok(());
        };
        let cluster = self.inflate(start, len)?;
        let from = usize_from(offset % self.header.cluster_size);
        let total = usize_from(scatter::total_len(bufs.iter().map(|buf| &**buf)));
        scatter::for_each_mut(bufs, 0, total, |part, at| {
            part.copy_from_slice(&cluster[from + at..][..part.len()]);
            Ok(())
        })
    }

    fn file(&self) -> &dyn ImageFile {
        &*self.file
    }

    fn table_memory(&self) -> u64 {
        self.tables.memory()
    }
}
