//! Images inside the disk of an image: a VHD that a guest stores has footers and a header of its own, which are content here.

use super::basis::{Basis, SEARCH};
use super::draft::Draft;
use super::error::RepairError;
use crate::format::{COOKIE, DiskType, FOOTER_SIZE, Footer, has_footer_cookie, has_header_cookie};
use crate::image::{Space, read_header, read_table};
use crate::units::{BlockIndex, SECTOR_SIZE, u64_from};

/// Whether the footer at `at` is that of an image that begins within the file: its copy, with the header behind it, is not
/// at the start of the file.
pub(super) fn is_footer_of_inner_image(draft: &Draft, footer: &Footer, at: u64) -> Result<bool, RepairError> {
    if !footer.disk_type.is_sparse() {
        return Ok(false);
    }
    if at > 0 && leads_to_header(draft, footer, at)? {
        return Ok(true);
    }
    const STEP: u64 = 1 << 20;
    let least = at.saturating_sub(SEARCH);
    let mut end = at;
    while end > least {
        let start = end.saturating_sub(STEP).max(least) / SECTOR_SIZE * SECTOR_SIZE;
        let window = draft.read(start, end - start)?;
        for (sector, bytes) in (0..).zip(window.chunks(FOOTER_SIZE)) {
            let base = start + sector * SECTOR_SIZE;
            if base == 0 || !bytes.starts_with(&COOKIE) {
                continue;
            }
            let copy = Footer::decode(bytes)
                .ok()
                .filter(|copy| copy.unique_id == footer.unique_id);
            if copy.is_some_and(|copy| copy.disk_type.is_sparse()) && leads_to_header(draft, footer, base)? {
                return Ok(true);
            }
        }
        end = if start == 0 { least } else { start };
    }
    Ok(false)
}

/// Whether there is a header where the footer says, counted from `base`.
fn leads_to_header(draft: &Draft, footer: &Footer, base: u64) -> Result<bool, RepairError> {
    let Some(at) = footer.data_offset.and_then(|offset| base.checked_add(offset)) else {
        return Ok(false);
    };
    let bytes = draft.structure::<FOOTER_SIZE>(at)?;
    Ok(bytes.is_some_and(|bytes| has_header_cookie(&bytes)))
}

/// Whether the header at `at` is that of an image that begins within the file: the copy of a footer stands before it, as
/// far as `named` says or as is usual.
pub(super) fn is_header_of_inner_image(draft: &Draft, at: u64, named: u64) -> Result<bool, RepairError> {
    for distance in [named, u64_from(FOOTER_SIZE)] {
        let base = at.checked_sub(distance).filter(|base| *base > 0);
        let copy = base
            .map(|base| draft.structure::<FOOTER_SIZE>(base))
            .transpose()?
            .flatten();
        if copy.is_some_and(|copy| has_footer_cookie(&copy)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether `at` lies within the data of a block, by the header and the table that a footer leads to.
pub(super) fn is_in_a_block(draft: &Draft, footer: &Footer, at: u64) -> Result<bool, RepairError> {
    if footer.disk_type == DiskType::Fixed {
        return Ok(false);
    }
    let len = draft.len()?;
    let read = read_header(&*draft.overlay, footer, len).and_then(|(offset, header)| {
        read_table(&*draft.overlay, &header, footer, offset, len).map(|entries| (header, entries))
    });
    let (header, entries) = match read {
        Ok(read) => read,
        Err(error) => return RepairError::of_host(error).map_or(Ok(false), Err),
    };
    let space = Space {
        layout: header.layout,
        disk_size: footer.current_size,
        regions: &[],
        end: len,
    };
    let mut blocks = (0..).map(BlockIndex).zip(entries);
    Ok(blocks.any(|(block, entry)| {
        let place = entry.bitmap_offset();
        place.is_some_and(|place| place.0 < at && at < space.end_of(block, place))
    }))
}

/// The copy at the start of the file, if it is that of an image of blocks and not of `other`.
pub(super) fn outer_copy(draft: &Draft, other: &Footer) -> Result<Option<Basis>, RepairError> {
    let copy = draft.structure::<FOOTER_SIZE>(0)?.and_then(Basis::of);
    Ok(copy.filter(|copy| copy.footer.disk_type.is_sparse() && copy.footer != *other))
}
