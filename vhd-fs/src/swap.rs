//! Linux swap: all but the header is garbage while no system sleeps in it.

use crate::bytes::{has, le32};
use crate::window::Window;
use crate::{FreeMap, Unusable};

pub(crate) const NAME: &str = "swap";

const PAGE_SIZES: [u64; 4] = [4096, 8192, 16384, 65536];
const SIGNATURE: &[u8] = b"SWAPSPACE2";
/// What stands in the signature's place while a system sleeps in the swap.
const ASLEEP: [&[u8]; 4] = [b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001"];
/// Where the header's fields begin.
const FIELDS: u64 = 1024;

pub(crate) fn recognise(window: &Window<'_>) -> Result<bool, Unusable> {
    Ok(page_size(window)?.is_some())
}

/// The page size, and whether a system sleeps there.
fn page_size(window: &Window<'_>) -> Result<Option<(u64, bool)>, Unusable> {
    for page in PAGE_SIZES {
        let end = window.peek(page - 10, 10)?;
        if end == SIGNATURE {
            return Ok(Some((page, false)));
        }
        if ASLEEP.iter().any(|signature| has(&end, 0, signature)) {
            return Ok(Some((page, true)));
        }
    }
    Ok(None)
}

pub(crate) fn free_space(window: &Window<'_>) -> Result<FreeMap, Unusable> {
    let Some((page, asleep)) = page_size(window)? else {
        return Err(Unusable::Unrecognised);
    };
    if asleep {
        return Err(window.dirty("a system sleeps in it"));
    }
    let header = window.read(FIELDS, 12)?;
    if le32(&header, 0) != 1 {
        return Err(window.unsupported("an unknown version"));
    }
    let pages = u64::from(le32(&header, 4)) + 1;
    let size = pages.saturating_mul(page);
    if size > window.len {
        return Err(window.damaged("it is larger than its partition"));
    }
    let mut map = window.free_map();
    map.add(page, size.saturating_sub(page));
    Ok(map)
}
