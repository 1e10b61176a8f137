//! Where the bytes of a file are: extents in the inode, or at the leaves of a tree.

use xfs::{BmbtRec, InodeFormat, XFS_BMAP_CRC_MAGIC, XFS_BMAP_MAGIC, verify_bmbt_block_crc};

use super::geometry::Geometry;
use super::inode::XfsInode;
use super::{FORMAT, failed_io};
use crate::bytes::{be16, be32, be64, count, index};
use crate::files::FileError;
use crate::files::region::Region;

const RECORD_LEN: usize = 16;
const KEY_LEN: usize = 8;
const POINTER_LEN: usize = 8;
/// The root in the inode: its level and its number of records.
const ROOT_HEADER: usize = 4;
/// The header of a node elsewhere: magic, level, records, siblings; with checksum and identity in version 5.
const NODE_HEADER: usize = 24;
const NODE_HEADER_V5: usize = 72;
const LEVEL_AT: usize = 4;
const RECORDS_AT: usize = 6;
/// Extents of one file. 32 bytes each in memory.
const MAX_EXTENTS: usize = 4 << 20;

/// Bytes of a file that lie side by side on the disk.
#[derive(Clone, Copy, Debug)]
struct Extent {
    start: u64,
    len: u64,
    place: u64,
    /// Space that was never written: it reads as zeroes.
    unwritten: bool,
}

/// Where the bytes of a file are, in ascending order.
#[derive(Debug)]
pub(super) struct Extents(Vec<Extent>);

impl Extents {
    pub(super) fn read(region: &Region, geometry: &Geometry, inode: &XfsInode) -> Result<Self, FileError> {
        let mut records = Vec::new();
        match inode.core.format {
            InodeFormat::Extents => {
                let len = usize::try_from(inode.extents)
                    .ok()
                    .and_then(|number| number.checked_mul(RECORD_LEN));
                let bytes = len.and_then(|len| inode.data_fork().get(..len));
                let bytes = bytes
                    .ok_or_else(|| FileError::damaged(FORMAT, format!("{} extents in an inode", inode.extents)))?;
                push_records(&mut records, bytes)?;
            }
            InodeFormat::Btree => {
                let fork = inode.data_fork();
                let level = be16(fork, 0);
                for node in pointers(fork, ROOT_HEADER, usize::from(be16(fork, 2)))? {
                    collect(region, geometry, node, level, &mut records)?;
                }
            }
            _ => {
                return Err(FileError::damaged(
                    FORMAT,
                    "an inode without extents where there must be some",
                ));
            }
        }
        Self::from_records(&records, geometry)
    }

    fn from_records(records: &[BmbtRec], geometry: &Geometry) -> Result<Self, FileError> {
        let block = u64::from(geometry.superblock.blocksize);
        let mut extents: Vec<Extent> = Vec::with_capacity(records.len());
        for record in records {
            // As Linux has it, a file has at most 2^63 - 1 bytes; nothing that is computed below is larger than that.
            let end = (record.startoff + record.blockcount).checked_mul(block);
            if end.is_none_or(|end| i64::try_from(end).is_err()) {
                let what = format!("an extent of a file at its block {:#x}", record.startoff);
                return Err(FileError::damaged(FORMAT, what));
            }
            let extent = Extent {
                start: record.startoff * block,
                len: record.blockcount * block,
                place: geometry.block_at(record.startblock)?,
                unwritten: record.unwritten,
            };
            if extents.last().is_some_and(|last| last.start + last.len > extent.start) {
                return Err(FileError::damaged(FORMAT, "the extents of a file are not in order"));
            }
            extents.push(extent);
        }
        Ok(Self(extents))
    }

    /// Fills the buffer; holes read as zeroes.
    pub(super) fn read_at(&self, region: &Region, buf: &mut [u8], offset: u64) -> Result<(), FileError> {
        buf.fill(0);
        let end = offset.saturating_add(count(buf.len()));
        let first = self.0.partition_point(|extent| extent.start + extent.len <= offset);
        for extent in self.0.iter().skip(first).take_while(|extent| extent.start < end) {
            let (from, to) = (extent.start.max(offset), (extent.start + extent.len).min(end));
            if !extent.unwritten {
                let part = &mut buf[index(from - offset)..index(to - offset)];
                region
                    .fill(part, extent.place + (from - extent.start))
                    .map_err(failed_io)?;
            }
        }
        Ok(())
    }

    /// The multiples of `step` that have bytes on the disk, ascending.
    pub(super) fn mapped_steps(&self, step: u64) -> impl Iterator<Item = u64> + '_ {
        let mut next = 0;
        self.0.iter().flat_map(move |extent| {
            let first = (extent.start / step * step).max(next);
            next = (extent.start + extent.len).next_multiple_of(step).max(next);
            (first..next).step_by(index(step))
        })
    }
}

fn push_records(records: &mut Vec<BmbtRec>, bytes: &[u8]) -> Result<(), FileError> {
    if records.len() + bytes.len() / RECORD_LEN > MAX_EXTENTS {
        return Err(FileError::unsupported(
            FORMAT,
            format!("a file in more than {MAX_EXTENTS} pieces"),
        ));
    }
    let (raw, _) = bytes.as_chunks::<RECORD_LEN>();
    records.extend(raw.iter().map(BmbtRec::unpack));
    Ok(())
}

/// The pointers of a node with this many records: they are behind the space for all keys that would fit.
fn pointers(node: &[u8], header: usize, number: usize) -> Result<Vec<u64>, FileError> {
    let most = node.len().saturating_sub(header) / (KEY_LEN + POINTER_LEN);
    if number == 0 || number > most {
        return Err(FileError::damaged(
            FORMAT,
            format!("{number} records in a node for {most}"),
        ));
    }
    let start = header + most * KEY_LEN;
    Ok((0..number).map(|at| be64(node, start + at * POINTER_LEN)).collect())
}

/// Collects the records below the node at `block`, which is below one of `level`.
fn collect(
    region: &Region,
    geometry: &Geometry,
    block: u64,
    level: u16,
    records: &mut Vec<BmbtRec>,
) -> Result<(), FileError> {
    let damaged = |what: &str| FileError::damaged(FORMAT, format!("the node of extents at block {block:#x} {what}"));
    let node = region
        .bytes_at(geometry.block_at(block)?, u64::from(geometry.superblock.blocksize))
        .map_err(failed_io)?;
    let header = match be32(&node, 0) {
        XFS_BMAP_CRC_MAGIC => NODE_HEADER_V5,
        XFS_BMAP_MAGIC => NODE_HEADER,
        _ => return Err(damaged("is none")),
    };
    if verify_bmbt_block_crc(&node) == Some(false) {
        return Err(damaged("has another checksum"));
    }
    // Each step goes down by one, so the way ends.
    let own = be16(&node, LEVEL_AT);
    if own.checked_add(1) != Some(level) {
        return Err(damaged("is at another level"));
    }
    let number = usize::from(be16(&node, RECORDS_AT));
    if own == 0 {
        let bytes = node.get(header..header + number * RECORD_LEN);
        return push_records(records, bytes.ok_or_else(|| damaged("has more records than fit"))?);
    }
    for below in pointers(&node, header, number)? {
        collect(region, geometry, below, own, records)?;
    }
    Ok(())
}
