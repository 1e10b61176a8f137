//! Opening an image: every structure is validated before the first byte is read through it.

use std::sync::Arc;

use super::Poison;
use super::allocator::Allocator;
use super::commit::{Pending, PublishFence, Writer};
use super::error::OpenError;
use super::flush::FlushCoalescer;
use super::footers::{FooterSource, Footers};
use super::granted::{BlockSource, Granted};
use super::room::Room;
use super::sector_maps::SectorMaps;
use super::sparse::Sparse;
use super::table::BlockTable;
use super::validate::{Region, Space, metadata_regions};
use super::{Body, Image};
use crate::format::{
    BlockLayout, DiskType, DynamicHeader, ENTRIES_PER_SECTOR, FOOTER_SIZE, Footer, HEADER_SIZE, LEGACY_FOOTER_SIZE,
    TABLE_ENTRY_SIZE, TableEntry, check_table_covers,
};
use crate::storage::{LeastLen, StorageFile};
use crate::sync::{AtomicBool, Mutex};
use crate::units::{BlockIndex, FileOffset, SECTOR_SIZE, u64_from, usize_from};

/// The most blocks an image may have: its table then takes 64 MiB in the file and twice that in memory.
/// 2040 GiB in blocks of 128 KiB stay below it; Microsoft's smallest block is 512 KiB.
pub const MAX_BLOCKS: u64 = 1 << 24;

/// Bytes of a table that are read at once.
const READ_AT_ONCE: usize = 256 << 10;

/// Locks that serialise the first write of a block; two blocks may share one.
#[cfg(not(loom))]
const STRIPES: usize = 64;
#[cfg(loom)]
const STRIPES: usize = 1;

/// How an image is opened.
#[derive(Clone, Default)]
pub struct OpenMode {
    writable: bool,
    /// Layers above this one.
    depth: u64,
    fence: Option<Arc<dyn PublishFence>>,
    blocks: Option<Arc<dyn BlockSource>>,
}

impl OpenMode {
    /// For reading.
    #[must_use]
    pub fn read_only() -> Self {
        Self::default()
    }

    /// For reading, as an ancestor of another image: what is learned of it is kept within a bound, for a chain
    /// may have thousands.
    #[must_use]
    pub fn ancestor() -> Self {
        Self {
            depth: 1,
            ..Self::default()
        }
    }

    /// As an ancestor below so many layers: the deeper, the less is kept of it.
    #[must_use]
    pub(crate) fn at_depth(mut self, depth: usize) -> Self {
        self.depth = crate::units::u64_from(depth);
        self
    }

    /// For reading and writing. The file must be writable too.
    #[must_use]
    pub fn read_write() -> Self {
        Self {
            writable: true,
            ..Self::default()
        }
    }

    /// Asks `fence` before each change of metadata (INV-06).
    #[must_use]
    pub fn with_fence(mut self, fence: Arc<dyn PublishFence>) -> Self {
        self.fence = Some(fence);
        self
    }

    /// Space for blocks comes from `blocks`, and the end of the file is not this image's (INV-100).
    #[must_use]
    pub fn with_blocks(mut self, blocks: Arc<dyn BlockSource>) -> Self {
        self.blocks = Some(blocks);
        self
    }
}

/// How often a file is looked at anew whose length changes meanwhile.
const LOOKS: usize = 8;

impl Image {
    /// Opens the image in `file`.
    ///
    /// A damaged footer is recovered from its copy and a damaged copy from the footer; opened for writing,
    /// the damaged one is restored in the file.
    ///
    /// # Errors
    /// [`OpenError`] names the first rule that the file breaks.
    pub fn open(file: Arc<dyn StorageFile>, mode: &OpenMode) -> Result<Self, OpenError> {
        let mut file_len = len_of(&*file)?;
        for _ in 0..LOOKS {
            let opened = Self::open_of_len(&file, file_len, mode);
            let now = len_of(&*file)?;
            // Who looks at an image without a lock may meet its writer, who made the file longer or shorter meanwhile.
            if opened.is_ok() || mode.writable || now == file_len {
                return opened;
            }
            file_len = now;
        }
        Self::open_of_len(&file, file_len, mode)
    }

    fn open_of_len(file: &Arc<dyn StorageFile>, file_len: u64, mode: &OpenMode) -> Result<Self, OpenError> {
        let footers = Footers::read(&**file)?;
        let footer = footers.footer.clone();
        let body = match footer.disk_type {
            DiskType::Fixed => {
                check_fixed_length(&footer, file_len)?;
                Body::Fixed(Poison::new())
            }
            DiskType::Dynamic | DiskType::Differencing => {
                Body::Sparse(Box::new(open_sparse(file, &footers, file_len, mode)?))
            }
        };
        Ok(Self {
            file: Arc::clone(file),
            footers,
            writable: mode.writable,
            body,
            coalescer: FlushCoalescer::new(),
            frozen: AtomicBool::new(false),
            clean: AtomicBool::new(false),
            least_len: LeastLen::new(file_len),
            closed: AtomicBool::new(false),
        })
    }
}

fn len_of(file: &dyn StorageFile) -> Result<u64, OpenError> {
    file.len().map_err(|source| OpenError::Read {
        structure: "file length",
        offset: 0,
        source,
    })
}

fn check_fixed_length(footer: &Footer, file_len: u64) -> Result<(), OpenError> {
    let needed = footer.current_size + u64_from(LEGACY_FOOTER_SIZE);
    if file_len < needed {
        return Err(OpenError::FileTooShort {
            file_len,
            disk_size: footer.current_size,
            needed,
        });
    }
    Ok(())
}

fn open_sparse(
    file: &Arc<dyn StorageFile>,
    footers: &Footers,
    file_len: u64,
    mode: &OpenMode,
) -> Result<Sparse, OpenError> {
    let footer = &footers.footer;
    let (header_offset, header) = read_header(&**file, footer, file_len)?;
    let place = TablePlace::of(&header, footer, header_offset, file_len)?;
    let used = place.read_used(&**file)?;
    let regions = metadata_regions(&header, header_offset);
    let space = Space {
        layout: header.layout,
        disk_size: footer.current_size,
        regions: &regions,
        end: space_end(footers, file_len),
    };
    space.check(&used)?;
    let differencing = footer.disk_type == DiskType::Differencing;
    let blocks = usize_from(place.blocks);
    // What has others above or below it, and is not written, is asked once per block.
    let is_asked_once = !mode.writable && (mode.depth > 0 || differencing);
    let writer = match mode.writable {
        true => Some(open_writer(file, footers, header.layout, &regions, file_len, mode)?),
        false => None,
    };
    Ok(Sparse {
        differencing,
        layout: header.layout,
        disk_size: footer.current_size,
        table_offset: header.table_offset,
        table: match is_asked_once {
            true => BlockTable::of_used(blocks, &used),
            false => BlockTable::of_all(blocks, &used),
        },
        maps: match mode.writable {
            true => SectorMaps::resident(place.blocks),
            false => SectorMaps::cached(header.layout.bitmap_bytes(), mode.depth),
        },
        header,
        writer,
    })
}

/// Where block space ends: at the tail footer if there is one.
pub(super) fn space_end(footers: &Footers, file_len: u64) -> u64 {
    match footers.source {
        FooterSource::Tail(offset) | FooterSource::LegacyTail(offset) => offset.0,
        FooterSource::Copy => file_len,
    }
}

/// Reads the dynamic header, and says where it was.
pub(crate) fn read_header(
    file: &dyn StorageFile,
    footer: &Footer,
    file_len: u64,
) -> Result<(u64, DynamicHeader), OpenError> {
    let offset = footer.data_offset.unwrap_or(u64::MAX);
    let end = offset.checked_add(u64_from(HEADER_SIZE));
    if offset < u64_from(FOOTER_SIZE) || end.is_none_or(|end| end > file_len) {
        return Err(OpenError::HeaderLocation { offset, file_len });
    }
    let mut bytes = [0; HEADER_SIZE];
    file.read_exact_at(&mut bytes, offset)
        .map_err(|source| OpenError::Read {
            structure: "dynamic header",
            offset,
            source,
        })?;
    let header = DynamicHeader::decode(&bytes).map_err(|source| OpenError::Format {
        structure: "dynamic header",
        offset,
        source,
    })?;
    Ok((offset, header))
}

/// Reads the entries of the blocks that the disk has; surplus entries are ignored.
pub(crate) fn read_table(
    file: &dyn StorageFile,
    header: &DynamicHeader,
    footer: &Footer,
    header_offset: u64,
    file_len: u64,
) -> Result<Vec<TableEntry>, OpenError> {
    let place = TablePlace::of(header, footer, header_offset, file_len)?;
    // The length is bounded by the file's and by MAX_BLOCKS before anything is allocated for it.
    let mut entries = vec![TableEntry::unused(); usize_from(place.blocks)];
    for (block, entry) in place.read_used(file)? {
        entries[block.as_usize()] = entry;
    }
    Ok(entries)
}

/// The part of a block table that the disk needs, inside the file.
struct TablePlace {
    offset: u64,
    blocks: u64,
}

/// Entries that are unused, as many as are looked at together.
const UNUSED: [u8; TABLE_ENTRY_SIZE * ENTRIES_PER_SECTOR] = [0xFF; TABLE_ENTRY_SIZE * ENTRIES_PER_SECTOR];

impl TablePlace {
    fn of(header: &DynamicHeader, footer: &Footer, header_offset: u64, file_len: u64) -> Result<Self, OpenError> {
        let blocks = check_table_covers(header, footer).map_err(|source| OpenError::Format {
            structure: "dynamic header",
            offset: header_offset,
            source,
        })?;
        if blocks > MAX_BLOCKS {
            let block_size = header.layout.block_size();
            return Err(OpenError::TooManyBlocks {
                blocks,
                block_size,
                maximum: MAX_BLOCKS,
            });
        }
        let offset = header.table_offset;
        let len = blocks * u64_from(TABLE_ENTRY_SIZE);
        if offset.checked_add(len).is_none_or(|end| end > file_len) {
            return Err(OpenError::TableLocation { offset, len, file_len });
        }
        Ok(Self { offset, blocks })
    }

    /// Reads the entries that are in use, in order, a piece of the table after the other: a chain of large disks has
    /// hundreds of MiB of tables, and hardly an entry in them.
    fn read_used(&self, file: &dyn StorageFile) -> Result<Vec<(BlockIndex, TableEntry)>, OpenError> {
        let len = usize_from(self.blocks) * TABLE_ENTRY_SIZE;
        let mut piece = vec![0; len.min(READ_AT_ONCE)];
        let mut used = Vec::new();
        for start in (0..len).step_by(READ_AT_ONCE) {
            let offset = self.offset + u64_from(start);
            let piece = &mut piece[..READ_AT_ONCE.min(len - start)];
            file.read_exact_at(piece, offset).map_err(|source| OpenError::Read {
                structure: "block table",
                offset,
                source,
            })?;
            for (sector, first) in piece.chunks(UNUSED.len()).zip((start..).step_by(UNUSED.len())) {
                if sector == &UNUSED[..sector.len()] {
                    continue;
                }
                let (entries, _) = sector.as_chunks::<TABLE_ENTRY_SIZE>();
                let entries = entries.iter().map(|entry| TableEntry::from_be_bytes(*entry));
                let blocks = (first / TABLE_ENTRY_SIZE..).map_while(|block| u32::try_from(block).ok());
                used.extend(
                    blocks
                        .map(BlockIndex)
                        .zip(entries)
                        .filter(|(_, entry)| *entry != TableEntry::unused()),
                );
            }
        }
        Ok(used)
    }
}

fn open_writer(
    file: &Arc<dyn StorageFile>,
    footers: &Footers,
    layout: BlockLayout,
    regions: &[Region],
    file_len: u64,
    mode: &OpenMode,
) -> Result<Writer, OpenError> {
    if let (Some(fence), false) = (&mode.fence, footers.agree()) {
        fence.check().map_err(|reason| OpenError::FenceLost { reason })?;
    }
    footers.restore_copy(&**file)?;
    let tail = match mode.blocks {
        Some(_) => None,
        None => footers.restore_tail(&**file, file_len)?,
    };
    let footer_end = tail.map_or(0, |FileOffset(offset)| offset + u64_from(FOOTER_SIZE));
    let used = file_len.max(footer_end).max(claimed_end(regions));
    Ok(Writer {
        allocator: Allocator::new(Arc::clone(file), layout, footers.raw, used, tail),
        stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
        pending: Mutex::new(Pending::default()),
        poison: Poison::new(),
        fence: mode.fence.clone(),
        granted: mode.blocks.clone().map(Granted::new),
        room: Room::new(layout.bitmap_bytes()),
        full_bitmap: vec![0xFF; usize_from(layout.bitmap_bytes())].into(),
    })
}

/// Where the last region ends that a block could come to lie over. A header may claim space behind the end of
/// the file (a surplus of the table, a stale locator): a block there would not be accepted by the next open.
fn claimed_end(regions: &[Region]) -> u64 {
    let reachable = |region: &&Region| region.start / SECTOR_SIZE < u64::from(u32::MAX);
    regions
        .iter()
        .filter(reachable)
        .map(|region| region.end)
        .max()
        .unwrap_or(0)
}
