//! Parent locators that lead nowhere.

use super::basis::Basis;
use super::draft::Draft;
use super::error::RepairError;
use super::finding::{Certainty, RepairCode};
use super::header::Located;
use super::tail::Tail;
use crate::format::{DynamicHeader, LocatorEntry, MAX_LOCATOR_LENGTH, decode_locator};
use crate::image::{Region, metadata_regions};

/// Removes locators that are not inside the file, and those that have no path where blocks can be. A locator with a path in
/// it stays, whatever the table says: its place has the header's checksum, and an entry has none.
pub(super) fn remove_useless(draft: &mut Draft, basis: &Basis, located: &mut Located) -> Result<(), RepairError> {
    let len = draft.len()?;
    let mut removed = false;
    for slot in 0..located.header.locators.len() {
        let Some(locator) = located.header.locators[slot] else {
            continue;
        };
        let inside = locator.end().is_some_and(|end| end <= len) && locator.length <= MAX_LOCATOR_LENGTH;
        let certainty = match inside {
            false => Certainty::Certain,
            true if leads_somewhere(draft, &located.header, &locator)? => continue,
            true if !is_under_a_block(draft, located, slot)? => continue,
            true => Certainty::Assumed,
        };
        located.header.locators[slot] = None;
        removed = true;
        let (start, bytes) = (locator.offset, locator.length);
        let message = format!(
            "the {} locator at {start:#x}+{bytes:#x} leads nowhere and is removed",
            locator.code
        );
        draft.found(RepairCode::LocatorRemoved, certainty, Some(start), message);
    }
    if removed {
        let offset = basis.footer.data_offset.unwrap_or(located.offset);
        draft.write(offset, &located.header.encode())?;
    }
    Ok(())
}

/// Whether there is a path in a locator. Bytes of a disk are rarely text, but 40 of them may be text by chance: the path
/// has the name that the header knows, or is of printable ASCII for the most part.
fn leads_somewhere(draft: &Draft, header: &DynamicHeader, locator: &LocatorEntry) -> Result<bool, RepairError> {
    let bytes = draft.read(locator.offset, u64::from(locator.length))?;
    let Some(path) = decode_locator(locator.code, &bytes) else {
        return Ok(false);
    };
    let name_of = |path: &str| path.rsplit(['\\', '/']).next().unwrap_or_default().to_lowercase();
    let known = header.parent_name.to_string_lossy();
    let is_known = !known.is_empty() && name_of(&path) == name_of(&known);
    let is_text = !path.contains('\u{FFFD}') && !path.contains(char::is_control);
    let printable = path.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').count();
    Ok(is_known || is_text && printable * 2 >= path.chars().count())
}

/// Whether an entry that can be a block's lies over a locator: its space is in the file and over no other metadata.
fn is_under_a_block(draft: &Draft, located: &Located, slot: usize) -> Result<bool, RepairError> {
    let header = &located.header;
    let Some(locator) = header.locators[slot] else {
        return Ok(false);
    };
    let mut others = header.clone();
    others.locators[slot] = None;
    let regions = metadata_regions(&others, located.offset);
    let (layout, end) = (header.layout, Tail::of(draft)?.space_end(draft.len()?));
    let bytes = u64::from(locator.length);
    let mut places = located.entries.iter().filter_map(|entry| entry.bitmap_offset());
    Ok(places.any(|place| {
        let (from, to) = (place.0, place.0 + layout.stored_bytes());
        let over = |start: u64, end: u64| from < end && start < to;
        let can_be = from + layout.bitmap_bytes() <= end
            && !regions.iter().any(|region: &Region| over(region.start, region.end));
        can_be && bytes > 0 && over(locator.offset, locator.offset + bytes)
    }))
}
