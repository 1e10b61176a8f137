//! One open VMDK file.

use std::collections::HashMap;
use std::fmt;
use std::io::IoSliceMut;
use std::sync::{Arc, Mutex, PoisonError};

use vhd_block::scatter;
use vhd_block::units::usize_from;

use super::header::Header;
use super::{ENTRIES, SECTOR};
use crate::bytes::le32;
use crate::error::ReadContext as _;
use crate::inflate::inflate_zlib;
use crate::limits::TABLE_CACHE;
use crate::{BrokenRule, ImageError, ImageFile, Layer, Place, Rule};

/// Broken entries that a check lists.
const MAX_LISTED: usize = 100;
/// Before the bytes of a compressed grain: its sector on the disk, and how many bytes follow.
const MARKER: usize = 12;
/// A grain that reads zero.
const ZERO: u32 = 1;

type Table = Arc<[u32]>;

/// A VMDK file, for reading.
pub struct Image {
    file: Arc<dyn ImageFile>,
    header: Header,
    directory: Vec<u32>,
    file_len: u64,
    tables: Mutex<HashMap<u32, Table>>,
    /// The compressed grain that was made last, by its sector in the file.
    last: Mutex<Option<(u32, Arc<[u8]>)>>,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("vmdk::Image")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

impl Image {
    /// Opens the image in `file`.
    ///
    /// # Errors
    /// [`ImageError`]. Grain tables are checked when they are used.
    pub fn open(file: Arc<dyn ImageFile>) -> Result<Self, ImageError> {
        let file_len = file.len().at(0, 0)?;
        let header = Header::read(&*file)?;
        let directory = read_numbers(&*file, header.directory, header.tables)?;
        Ok(Self {
            file,
            header,
            directory,
            file_len,
            tables: Mutex::default(),
            last: Mutex::default(),
        })
    }

    /// What the header says.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Goes through all tables: how many grains are allocated, and what is broken, a hundred rules at most.
    ///
    /// # Errors
    /// [`ImageError::Read`].
    pub fn survey(&self) -> Result<(u64, Vec<BrokenRule>), ImageError> {
        let (mut allocated, mut broken) = (0, Vec::new());
        let grains = self.header.disk_size.div_ceil(self.header.grain_size);
        for number in 0..grains {
            if number % ENTRIES == 0 && self.directory[usize_from(number / ENTRIES)] == 0 {
                continue;
            }
            match self.grain(number) {
                Ok(Some(entry)) if entry > ZERO => allocated += 1,
                Ok(_) => {}
                Err(ImageError::Broken(rule)) if broken.len() < MAX_LISTED => broken.push(rule),
                Err(ImageError::Broken(_)) => return Ok((allocated, broken)),
                Err(error) => return Err(error),
            }
        }
        Ok((allocated, broken))
    }

    /// The entry of a grain, checked; `None` if its table does not exist.
    fn grain(&self, number: u64) -> Result<Option<u32>, ImageError> {
        let index = usize_from(number / ENTRIES);
        let Some(table) = self.table(index)? else {
            return Ok(None);
        };
        let within = number % ENTRIES;
        let entry = table[usize_from(within)];
        let is_special = entry == 0 || entry == ZERO && self.header.zero_grains;
        let start = u64::from(entry) * SECTOR;
        let len = if self.header.compressed {
            SECTOR
        } else {
            self.header.grain_size
        };
        if !is_special && (entry == ZERO || start + len > self.file_len) {
            let at = u64::from(self.directory[index]) * SECTOR + within * 4;
            let found = format!("a grain at {start:#x}");
            let expected = format!("one inside the file of {:#x}", self.file_len);
            return Err(BrokenRule::new(Rule::BlockPastEnd, at, found, expected).into());
        }
        Ok(Some(entry))
    }

    fn table(&self, index: usize) -> Result<Option<Table>, ImageError> {
        let sector = self.directory[index];
        if sector == 0 {
            return Ok(None);
        }
        let lock = || self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(&sector) {
            return Ok(Some(Arc::clone(known)));
        }
        let table: Table = read_numbers(&*self.file, u64::from(sector) * SECTOR, ENTRIES)?.into();
        let mut tables = lock();
        if vhd_block::units::u64_from(tables.len() + 1) * ENTRIES * 4 > TABLE_CACHE {
            tables.clear();
        }
        tables.insert(sector, Arc::clone(&table));
        Ok(Some(table))
    }

    /// The content of a compressed grain.
    fn unpack(&self, number: u64, sector: u32) -> Result<Arc<[u8]>, ImageError> {
        let lock = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, grain)) = &*lock()
            && *known == sector
        {
            return Ok(Arc::clone(grain));
        }
        let at = u64::from(sector) * SECTOR;
        let mut marker = [0; MARKER];
        self.file.read_exact_at(&mut marker, at).at(at, MARKER)?;
        let len = u64::from(le32(&marker, 8));
        // Deflate makes nothing much longer than it was.
        if len > self.header.grain_size * 2 {
            let found = format!("a grain of {len:#x} compressed bytes");
            let expected = format!("at most {:#x}", self.header.grain_size * 2);
            return Err(BrokenRule::new(Rule::Compression, at + 8, found, expected).into());
        }
        let mut packed = vec![0; usize_from(len)];
        self.file
            .read_exact_at(&mut packed, at + 12)
            .at(at + 12, packed.len())?;
        // The last grain of a disk may be shorter.
        let left = self.header.disk_size - number * self.header.grain_size;
        let mut grain = vec![0; usize_from(self.header.grain_size)];
        inflate_zlib(&packed, &mut grain, usize_from(left.min(self.header.grain_size)))
            .map_err(|found| BrokenRule::new(Rule::Compression, at, found, "one whole grain"))?;
        let grain: Arc<[u8]> = grain.into();
        *lock() = Some((sector, Arc::clone(&grain)));
        Ok(grain)
    }
}

impl Layer for Image {
    fn disk_size(&self) -> u64 {
        self.header.disk_size
    }

    fn place(&self, offset: u64, len: u64) -> Result<(Place, u64), ImageError> {
        let size = self.header.grain_size;
        let (number, within) = (offset / size, offset % size);
        let len_here = len.min(size - within);
        Ok(match self.grain(number)? {
            None => {
                let covered = (number / ENTRIES + 1).saturating_mul(ENTRIES * size);
                (Place::Absent, len.min(covered - offset))
            }
            Some(0) => (Place::Absent, len_here),
            Some(ZERO) => (Place::Zero, len_here),
            Some(_) if self.header.compressed => (Place::Computed, len_here),
            Some(sector) => (Place::Stored(u64::from(sector) * SECTOR + within), len_here),
        })
    }

    fn read_computed(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), ImageError> {
        let (number, within) = (offset / self.header.grain_size, offset % self.header.grain_size);
        let Some(sector) = self.grain(number)? else {
            return Ok(());
        };
        let grain = self.unpack(number, sector)?;
        let total = usize_from(scatter::total_len(bufs.iter().map(|buf| &**buf)));
        scatter::for_each_mut(bufs, 0, total, |part, at| {
            part.copy_from_slice(&grain[usize_from(within) + at..][..part.len()]);
            Ok(())
        })
    }

    fn file(&self) -> &dyn ImageFile {
        &*self.file
    }

    fn table_memory(&self) -> u64 {
        vhd_block::units::u64_from(self.directory.len() * 4)
    }
}

fn read_numbers(file: &dyn ImageFile, offset: u64, count: u64) -> Result<Vec<u32>, ImageError> {
    let mut bytes = vec![0; usize_from(count * 4)];
    file.read_exact_at(&mut bytes, offset).at(offset, bytes.len())?;
    let (words, _) = bytes.as_chunks::<4>();
    Ok(words.iter().map(|word| u32::from_le_bytes(*word)).collect())
}
