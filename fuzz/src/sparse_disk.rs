//! Any bytes as a disk that is zero but for some sectors.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vhd_fs::ReadAt;

const SECTOR: usize = 512;
/// The size of a disk is a multiple of this.
const UNIT: u64 = 64 << 10;

/// The disk. Copies share what they note.
#[derive(Clone)]
pub struct SparseDisk {
    pub size: u64,
    sectors: Arc<BTreeMap<u64, Vec<u8>>>,
    left: Arc<AtomicBool>,
}

impl SparseDisk {
    /// Two bytes for the size in units of 64 KiB, then sectors: four bytes for its number, and 512 for its content.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (size, rest) = bytes.split_first_chunk::<2>()?;
        let sectors = rest.chunks_exact(4 + SECTOR).map(|record| {
            let number = u32::from_le_bytes([record[0], record[1], record[2], record[3]]);
            (u64::from(number), record[4..].to_vec())
        });
        Some(Self {
            size: u64::from(u16::from_le_bytes(*size)) * UNIT,
            sectors: Arc::new(sectors.collect()),
            left: Arc::default(),
        })
    }

    /// Whether a read left the disk. A panic may be caught by those who read.
    pub fn was_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }
}

impl ReadAt for SparseDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        if end > self.size {
            self.left.store(true, Ordering::Relaxed);
            panic!("a read leaves the disk");
        }
        buf.fill(0);
        for (number, bytes) in self.sectors.range(offset / 512..end.div_ceil(512)) {
            let start = number * 512;
            let (from, to) = (start.max(offset), (start + 512).min(end));
            let source = &bytes[(from - start) as usize..(to - start) as usize];
            buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
        }
        Ok(())
    }
}
