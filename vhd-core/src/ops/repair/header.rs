//! The dynamic header: where it is, or what it was.

use super::basis::Basis;
use super::draft::Draft;
use super::error::RepairError;
use super::finding::{Certainty, RepairCode};
use super::nested;
use super::tail::Tail;
use crate::format::{
    BlockLayout, DEFAULT_BLOCK_SIZE, DiskType, DynamicHeader, FOOTER_SIZE, HEADER_SIZE, TABLE_ENTRY_SIZE, TableEntry,
    block_layouts, has_header_cookie, reconstruct_header, reseal_header, table_bytes,
};
use crate::image::{Space, TABLE_OFFSET, metadata_regions, read_table};
use crate::storage::is_zero;
use crate::units::{SECTOR_SIZE, u64_from};

/// Bytes at either end of the file in which a header is looked for.
const SEARCH: u64 = 16 << 20;
/// Bytes: writers leave less than this between blocks, to align them.
const SLACK: u64 = 4096;

/// Bytes that may lie between two blocks that follow one another; of small blocks, too few to hold another one.
pub(super) fn slack(stored: u64) -> u64 {
    SLACK.min(stored / 16).max(1)
}

/// The header to go by, and the table that it leads to.
pub(super) struct Located {
    pub(super) offset: u64,
    pub(super) header: DynamicHeader,
    pub(super) entries: Vec<TableEntry>,
}

/// The header that stands at `offset`, if it is valid.
pub(super) fn standing(draft: &Draft, offset: u64) -> Result<Option<DynamicHeader>, RepairError> {
    let bytes = draft.structure::<HEADER_SIZE>(offset)?;
    Ok(bytes.and_then(|bytes| DynamicHeader::decode(&bytes).ok()))
}

pub(super) fn find(draft: &mut Draft, basis: &mut Basis) -> Result<Located, RepairError> {
    let named = basis.footer.data_offset.unwrap_or(0);
    if let Some(located) = at(draft, basis, named)? {
        return Ok(located);
    }
    if let Some(located) = elsewhere(draft, basis)? {
        let message = format!("the footer says that the header is at {named:#x}, and it is elsewhere");
        draft.found(
            RepairCode::HeaderFound,
            Certainty::Certain,
            Some(located.offset),
            message,
        );
        basis.change(|footer| footer.data_offset = Some(located.offset));
        return Ok(located);
    }
    let usual = u64_from(FOOTER_SIZE);
    for offset in [named, usual] {
        let found = match reconstructed(draft, basis, offset)? {
            Some(located) => Some((located, Certainty::Certain)),
            None => by_evidence(draft, basis, offset)?.map(|located| (located, Certainty::Assumed)),
        };
        if let Some((located, certainty)) = found {
            put(draft, basis, &located, certainty)?;
            return Ok(located);
        }
    }
    let reason = "the dynamic header or the table that it names is lost, and the file does not tell what they were";
    Err(RepairError::hopeless(reason))
}

/// The header at `offset`, if it is valid and leads to a table of the disk.
fn at(draft: &Draft, basis: &Basis, offset: u64) -> Result<Option<Located>, RepairError> {
    if offset < u64_from(FOOTER_SIZE) {
        return Ok(None);
    }
    match standing(draft, offset)? {
        Some(header) => with_table(draft, basis, offset, header),
        None => Ok(None),
    }
}

fn with_table(
    draft: &Draft,
    basis: &Basis,
    offset: u64,
    header: DynamicHeader,
) -> Result<Option<Located>, RepairError> {
    match read_table(&*draft.overlay, &header, &basis.footer, offset, draft.len()?) {
        Ok(entries) => Ok(Some(Located {
            offset,
            header,
            entries,
        })),
        Err(error) => RepairError::of_host(error).map_or(Ok(None), Err),
    }
}

/// A valid header at another place than the footer says: the usual one first.
fn elsewhere(draft: &Draft, basis: &Basis) -> Result<Option<Located>, RepairError> {
    let len = draft.len()?;
    let ends = [
        (0, len.min(SEARCH)),
        (len.saturating_sub(SEARCH).next_multiple_of(SECTOR_SIZE), len),
    ];
    for (start, end) in ends {
        if start >= end {
            continue;
        }
        let window = draft.read(start, end - start)?;
        for (sector, _) in window
            .chunks(512)
            .enumerate()
            .filter(|(_, bytes)| has_header_cookie(bytes))
        {
            let offset = start + u64_from(sector) * SECTOR_SIZE;
            if nested::is_header_of_inner_image(draft, offset, basis.footer.data_offset.unwrap_or(0))? {
                continue;
            }
            let found = at(draft, basis, offset)?;
            // A disk may hold images, whose headers are not meant: theirs would have to fit this disk's size.
            let fits =
                |located: &Located| u64_from(located.entries.len()) == u64::from(located.header.max_table_entries);
            if let Some(located) = found.filter(fits) {
                return Ok(Some(located));
            }
        }
    }
    Ok(None)
}

/// The damaged header at `offset`, if its checksum says what it was. A sum of bytes is weak: where it speaks for another
/// shape of table or blocks than is written there, those must confirm it.
fn reconstructed(draft: &Draft, basis: &Basis, offset: u64) -> Result<Option<Located>, RepairError> {
    let Some(bytes) = draft.structure::<HEADER_SIZE>(offset)? else {
        return Ok(None);
    };
    let header =
        reconstruct_header(&bytes, &basis.footer, TABLE_OFFSET).and_then(|bytes| DynamicHeader::decode(&bytes).ok());
    let Some(header) = header else {
        return Ok(None);
    };
    let shape = |header: &DynamicHeader| (header.table_offset, header.layout, header.max_table_entries);
    let written = DynamicHeader::decode(&reseal_header(&bytes)).ok();
    match written.is_some_and(|written| shape(&written) == shape(&header)) {
        true => with_table(draft, basis, offset, header),
        false => confirmed(draft, basis, offset, header, true),
    }
}

/// The one header that table and blocks confirm: by what is left of it, with the usual place of the table and any
/// block size.
fn by_evidence(draft: &Draft, basis: &Basis, offset: u64) -> Result<Option<Located>, RepairError> {
    let Some(bytes) = draft.structure::<HEADER_SIZE>(offset)? else {
        return Ok(None);
    };
    // A header that is valid speaks of a table that is not there: an empty one elsewhere is not it.
    let is_lost = DynamicHeader::decode(&bytes).is_err();
    let left = DynamicHeader::decode(&reseal_header(&bytes)).ok();
    let dynamic = basis.footer.disk_type == DiskType::Dynamic;
    let size = basis.footer.current_size;
    if let Some(header) = &left {
        for guess in [header.clone(), with_entries(header, header.layout, size)] {
            if let Some(located) = confirmed(draft, basis, offset, guess, is_lost)? {
                return Ok(Some(located));
            }
        }
    }
    // Without its header a differencing image has lost its parent, and reads wrong over any other.
    let template = match left {
        Some(header) => header,
        None if dynamic => DynamicHeader::new_dynamic(size, default_layout()?, TABLE_OFFSET),
        None => return Ok(None),
    };
    let mut found = Vec::new();
    for layout in block_layouts() {
        let may_be_empty = is_lost && layout.block_size() == u64::from(DEFAULT_BLOCK_SIZE);
        let header = DynamicHeader {
            table_offset: TABLE_OFFSET,
            ..with_entries(&template, layout, size)
        };
        found.extend(confirmed(draft, basis, offset, header, may_be_empty)?);
    }
    Ok(if found.len() == 1 { found.pop() } else { None })
}

fn default_layout() -> Result<BlockLayout, RepairError> {
    BlockLayout::new(DEFAULT_BLOCK_SIZE).map_err(|error| RepairError::hopeless(error.to_string()))
}

fn with_entries(header: &DynamicHeader, layout: BlockLayout, size: u64) -> DynamicHeader {
    DynamicHeader {
        layout,
        max_table_entries: u32::try_from(layout.blocks_for(size)).unwrap_or(u32::MAX),
        ..header.clone()
    }
}

/// The header, if its table refers to blocks that lie as blocks of that size do; or, where it refers to none, if the
/// file has no room for one.
fn confirmed(
    draft: &Draft,
    basis: &Basis,
    offset: u64,
    header: DynamicHeader,
    may_be_empty: bool,
) -> Result<Option<Located>, RepairError> {
    let Some(located) = with_table(draft, basis, offset, header)? else {
        return Ok(None);
    };
    let (len, header) = (draft.len()?, &located.header);
    let exact = u64_from(located.entries.len()) == u64::from(header.max_table_entries);
    let regions = metadata_regions(header, offset);
    let space = Space {
        layout: header.layout,
        disk_size: basis.footer.current_size,
        regions: &regions,
        end: Tail::of(draft)?.space_end(len),
    };
    if !exact || !is_padded(draft, header)? || space.violations(&located.entries, &mut Err).is_err() {
        return Ok(None);
    }
    let mut placed: Vec<u64> = located
        .entries
        .iter()
        .filter_map(|entry| Some(entry.bitmap_offset()?.0))
        .collect();
    placed.sort_unstable();
    let stored = header.layout.stored_bytes();
    let table_end = header.table_offset + table_bytes(u64::from(header.max_table_entries));
    let is_confirmed = match placed.is_empty() {
        true => may_be_empty && table_end <= len && space.end < table_end + stored.min(u64::from(DEFAULT_BLOCK_SIZE)),
        false => are_packed(&placed, stored, space.end),
    };
    Ok(is_confirmed.then_some(located))
}

/// Whether blocks of this size follow one another as writers put them, with at least one pair to tell by.
fn are_packed(placed: &[u64], stored: u64, end: u64) -> bool {
    let followers = placed.iter().skip(1).copied().chain([end]);
    let gaps = placed
        .iter()
        .zip(followers)
        .map(|(at, next)| next.checked_sub(at + stored));
    let tight = gaps.filter(|gap| gap.is_some_and(|gap| gap < slack(stored))).count();
    tight > 0 && tight * 2 >= placed.len()
}

/// Whether the last sector of the table is filled up with one byte, as writers do, and not with further entries.
fn is_padded(draft: &Draft, header: &DynamicHeader) -> Result<bool, RepairError> {
    let entries = u64::from(header.max_table_entries) * u64_from(TABLE_ENTRY_SIZE);
    let padding = table_bytes(u64::from(header.max_table_entries)) - entries;
    let start = header.table_offset + entries;
    let padding = draft.read(start, padding.min(draft.len()?.saturating_sub(start)))?;
    Ok(is_zero(&padding) || padding.iter().all(|&byte| byte == 0xFF))
}

/// Writes the header where the footer says it is.
fn put(draft: &mut Draft, basis: &mut Basis, located: &Located, certainty: Certainty) -> Result<(), RepairError> {
    let (header, offset) = (&located.header, located.offset);
    let unsure = match (certainty, basis.footer.disk_type) {
        (Certainty::Assumed, DiskType::Differencing) => "; which parent it names is not certain",
        _ => "",
    };
    let message = format!(
        "the dynamic header is put right: blocks of {} bytes, a table of {} entries at {:#x}{unsure}",
        header.layout.block_size(),
        header.max_table_entries,
        header.table_offset
    );
    draft.found(RepairCode::HeaderRestored, certainty, Some(offset), message);
    draft.write(offset, &header.encode())?;
    if basis.footer.data_offset != Some(offset) {
        basis.change(|footer| footer.data_offset = Some(offset));
    }
    Ok(())
}
