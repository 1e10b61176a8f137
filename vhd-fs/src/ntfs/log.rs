//! Whether `$LogFile` has anything to replay.

use super::Volume;
use super::runs::Run;
use crate::Unusable;
use crate::bytes::{has, index, le16, le32, le64};

/// Bytes of a restart page that are looked at.
const PAGE: u64 = 4096;
const NO_CLIENT: u16 = 0xFFFF;
const CLEAN: u16 = 2;
/// Windows writes 2 while it sleeps or has fast startup, and goes back to 1 when it is shut down.
const MAJOR_VERSION: u16 = 1;

/// What a restart page says.
struct Restart {
    lsn: u64,
    clean: bool,
}

pub(super) fn is_clean(volume: &Volume<'_>, log: &[Run]) -> Result<bool, Unusable> {
    let first = read_page(volume, log, 0)?;
    // Programs that empty the log fill it with ones.
    let second_at = match restart(&first) {
        Some(_) => u64::from(le32(&first, 16)).clamp(PAGE, 16 * PAGE),
        None => PAGE,
    };
    let second = read_page(volume, log, second_at)?;
    let is_empty = |page: &[u8]| page.iter().all(|&byte| byte == 0xFF);
    Ok(match (restart(&first), restart(&second)) {
        (None, None) => is_empty(&first) && is_empty(&second),
        (Some(one), None) | (None, Some(one)) => one.clean,
        (Some(one), Some(other)) => {
            if one.lsn >= other.lsn {
                one.clean
            } else {
                other.clean
            }
        }
    })
}

fn read_page(volume: &Volume<'_>, log: &[Run], at: u64) -> Result<Vec<u8>, Unusable> {
    let mut page = vec![0; index(PAGE)];
    volume.read_runs(log, at, &mut page)?;
    Ok(page)
}

fn restart(page: &[u8]) -> Option<Restart> {
    if !has(page, 0, b"RSTR") {
        return None;
    }
    let area = usize::from(le16(page, 24));
    let (in_use, flags) = (le16(page, area + 12), le16(page, area + 14));
    Some(Restart {
        lsn: le64(page, area),
        clean: le16(page, 28) == MAJOR_VERSION && (in_use == NO_CLIENT || flags & CLEAN != 0),
    })
}
