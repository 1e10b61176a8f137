//! Whether Windows sleeps in the file `hiberfil.sys` of the root directory. What was mounted then is still in use, and
//! changes when Windows wakes up. `$LogFile` does not always say so; ntfs-3g asks this file too.

use super::fixup::complete;
use super::record::{Attribute, IN_USE};
use super::runs::Run;
use super::{TYPE_DATA, Volume};
use crate::Unusable;
use crate::bytes::{byte, count, index, le16, le32, le64};

const ROOT: u64 = 5;
const TYPE_INDEX_ROOT: u32 = 0x90;
const TYPE_INDEX_ALLOCATION: u32 = 0xA0;
const NAME: &[u8] = b"hiberfil.sys";
/// Bytes of the file that tell.
const HEADER: usize = 4096;
/// Where the header of an index is in the root and in a block, and what names of files look like in it.
const IN_ROOT: usize = 16;
const IN_BLOCK: usize = 24;
const KEY: usize = 16;
const NAME_LENGTH: usize = KEY + 64;
const LAST_ENTRY: u16 = 2;
/// Bytes of the largest root directory that is read.
const MAX_INDEX: u64 = 64 << 20;
/// The bits of a reference that are the number of the record; the others count how often it was used.
const RECORD_BITS: u32 = 48;

/// Requires that no Windows sleeps in the volume.
pub(super) fn check(volume: &Volume<'_>, mft: &[Run]) -> Result<(), Unusable> {
    for reference in find(volume, mft)? {
        if sleeps(volume, mft, reference)? {
            return Err(volume.window.dirty("Windows sleeps in it (hiberfil.sys)"));
        }
    }
    Ok(())
}

/// References to all files of that name, those of blocks that are not used any more too.
fn find(volume: &Volume<'_>, mft: &[Run]) -> Result<Vec<u64>, Unusable> {
    let damaged = || volume.window.damaged("its root directory is damaged");
    let directory = volume.record(mft, ROOT)?;
    let Attribute::Resident(root) = directory.index(TYPE_INDEX_ROOT)?.ok_or_else(damaged)? else {
        return Err(damaged());
    };
    let mut found = Vec::new();
    collect(root, IN_ROOT, &mut found);
    let Some(allocation) = directory.index(TYPE_INDEX_ALLOCATION)? else {
        return Ok(found);
    };
    let block = u64::from(le32(root, 8));
    if !block.is_power_of_two() || !(512..=65536).contains(&block) {
        return Err(damaged());
    }
    let len = allocation.len();
    if len > MAX_INDEX {
        return Err(volume.window.unsupported("a root directory of more than 64 MiB"));
    }
    let runs = allocation.runs(volume)?;
    for at in (0..len / block).map(|number| number * block) {
        let mut bytes = vec![0; index(block)];
        volume.read_runs(&runs, at, &mut bytes)?;
        // A block that was never used has no header.
        if bytes.starts_with(b"INDX") {
            collect(&complete(bytes, b"INDX").ok_or_else(damaged)?, IN_BLOCK, &mut found);
        }
    }
    Ok(found)
}

/// Adds the references to files of that name in an index whose header is at `header`.
fn collect(bytes: &[u8], header: usize, found: &mut Vec<u64>) {
    let start = |at: usize| header.saturating_add(index(u64::from(le32(bytes, at))));
    let (mut at, end) = (start(header), start(header + 4).min(bytes.len()));
    while at + KEY <= end {
        let (len, flags) = (usize::from(le16(bytes, at + 8)), le16(bytes, at + 12));
        if flags & LAST_ENTRY != 0 || len < KEY {
            return;
        }
        let name_len = usize::from(byte(bytes, at + NAME_LENGTH));
        let units = (0..name_len).map(|unit| le16(bytes, at + NAME_LENGTH + 2 + 2 * unit));
        let is_meant =
            |(unit, wanted): (u16, &u8)| u8::try_from(unit).is_ok_and(|unit| unit.eq_ignore_ascii_case(wanted));
        if name_len == NAME.len() && units.zip(NAME).all(is_meant) {
            found.push(le64(bytes, at));
        }
        at += len;
    }
}

/// Whether the file holds a system. One that is too short is not ours to judge.
fn sleeps(volume: &Volume<'_>, mft: &[Run], reference: u64) -> Result<bool, Unusable> {
    let number = reference & ((1 << RECORD_BITS) - 1);
    let mut start = [0; 24];
    volume.read_runs(mft, number * volume.record, &mut start)?;
    let (uses, flags) = (le16(&start, 16), le16(&start, 22));
    // A block that is not used any more can name a file that is gone.
    if u64::from(uses) != reference >> RECORD_BITS || flags & IN_USE == 0 {
        return Ok(false);
    }
    let record = volume.record(mft, number)?;
    let data = record.attribute(TYPE_DATA)?;
    if data.len() < count(HEADER) {
        return Ok(true);
    }
    let Attribute::NonResident(_) = data else {
        return Ok(true);
    };
    let mut header = vec![0; HEADER];
    let written = index(data.written()).min(HEADER);
    volume.read_runs(&data.runs(volume)?, 0, &mut header[..written])?;
    let woke_up = header[..4].eq_ignore_ascii_case(b"wake");
    Ok(!woke_up && header.iter().any(|&byte| byte != 0))
}
