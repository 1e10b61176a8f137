//! What a coordinator decides on a request: an operation with every place and value in it, or a refusal. Nothing is changed but
//! the length of a file, which may grow without harm.

use std::io::{self, ErrorKind};

use crate::effects::{Prepared, fits_entry, read_entry};
use crate::error::Refusal;
use crate::id::{Generation, Session};
use crate::journal::{Op, Table};
use crate::message::{Ask, MAX_BLOCKS, Request};
use crate::state::{Disk, State};
use crate::volume::{VolumeFile, VolumeIo, check_disk_path, incoming, parent_of};

/// Bytes that the data of a block is aligned to.
const DATA_ALIGNMENT: u64 = 4096;

/// An operation, and the open file of the table that it changes.
pub(crate) struct Decision<F> {
    pub(crate) op: Op,
    pub(crate) entries: Option<Prepared<F>>,
}

impl Ask {
    /// The names that a request touches: two that touch the same one are carried out one after the other.
    pub(crate) fn names(&self) -> Vec<&str> {
        match self {
            Self::Disks | Self::Fenced { .. } => Vec::new(),
            Self::Create { path, incoming, .. } | Self::Replace { path, incoming, .. } => vec![path, incoming],
            Self::Adopt { path, .. }
            | Self::Delete { path }
            | Self::Open { path }
            | Self::Close { path, .. }
            | Self::Handover { path, .. }
            | Self::Alloc { path, .. } => vec![path],
        }
    }
}

/// Decides on a request that changes something.
pub(crate) fn decide<V: VolumeIo>(volume: &V, state: &State, request: &Request) -> Result<Decision<V::File>, Refusal> {
    let who = &request.id.session;
    let op = match &request.ask {
        Ask::Disks => unreachable!("answered without a decision"),
        Ask::Adopt { path, table } => {
            new_disk(state, path)?;
            let end = measured(volume.open(path), path, || no_such_disk(path))?;
            check_table(path, table.as_ref(), end)?;
            Op::Adopt {
                path: path.clone(),
                table: *table,
                end,
            }
        }
        Ask::Create {
            path,
            incoming: name,
            table,
        } => {
            new_disk(state, path)?;
            if volume.exists(path).map_err(|error| failed(path, &error))? {
                return Err(Refusal::Exists { path: path.clone() });
            }
            let dir = parent_of(path);
            volume.list(dir).map_err(|error| failed(path, &error))?;
            let end = prepared(volume, path, name, table.as_ref())?;
            Op::Create {
                path: path.clone(),
                incoming: name.clone(),
                table: *table,
                end,
            }
        }
        Ask::Replace {
            path,
            incoming: name,
            table,
            generation,
        } => {
            let disk = existing(state, path)?;
            match generation {
                Some(generation) => writer(disk, path, who, *generation)?,
                None => unwritten(disk, path)?,
            }
            let end = prepared(volume, path, name, table.as_ref())?;
            Op::Replace {
                path: path.clone(),
                incoming: name.clone(),
                table: *table,
                end,
            }
        }
        Ask::Delete { path } => {
            unwritten(existing(state, path)?, path)?;
            Op::Delete { path: path.clone() }
        }
        Ask::Open { path } => {
            unwritten(existing(state, path)?, path)?;
            Op::Open {
                path: path.clone(),
                holder: who.clone(),
            }
        }
        Ask::Close { path, generation } => {
            writer(existing(state, path)?, path, who, *generation)?;
            Op::Close { path: path.clone() }
        }
        Ask::Handover { path, generation, to } => {
            writer(existing(state, path)?, path, who, *generation)?;
            Op::Handover {
                path: path.clone(),
                to: to.clone(),
            }
        }
        Ask::Fenced { session, proof } => Op::Fenced {
            session: session.clone(),
            proof: proof.clone(),
        },
        Ask::Alloc {
            path,
            generation,
            blocks,
        } => {
            let disk = existing(state, path)?;
            writer(disk, path, who, *generation)?;
            return allocate(volume, disk, path, blocks);
        }
    };
    Ok(Decision { op, entries: None })
}

/// Places for blocks: those that have one keep it, the others come one after the other at the end.
fn allocate<V: VolumeIo>(volume: &V, disk: &Disk, path: &str, blocks: &[u32]) -> Result<Decision<V::File>, Refusal> {
    let table = disk
        .table
        .ok_or_else(|| bad(path, "the disk has no block table".into()))?;
    if blocks.len() > MAX_BLOCKS {
        return Err(bad(
            path,
            format!("{} blocks, at most {MAX_BLOCKS} are given at once", blocks.len()),
        ));
    }
    let file = volume.open(path).map_err(|error| failed(path, &error))?;
    let (mut places, mut new) = (Vec::new(), Vec::new());
    let mut end = disk.end;
    for &block in blocks {
        if block >= table.entries {
            return Err(bad(path, format!("block {block} of a table of {}", table.entries)));
        }
        if places.iter().any(|&(known, _)| known == block) {
            continue;
        }
        let place = match read_entry(&file, &table, block).map_err(|error| failed(path, &error))? {
            Some(place) => place,
            None => {
                let place = next_place(&table, end);
                if !fits_entry(place) {
                    return Err(bad(
                        path,
                        format!("the file has no place left for a table entry at {place:#x}"),
                    ));
                }
                new.push((block, place));
                end = place + table.block;
                place
            }
        };
        places.push((block, place));
    }
    if !new.is_empty() {
        // A place of its own, like a block's: no later block comes to lie over a footer that is written late.
        end += table.footer;
    }
    // Before the decision: a full volume refuses it. Longer than needed does no harm.
    file.extend_to(end).map_err(|error| match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Refusal::NoSpace {
            path: path.to_owned(),
            reason: error.to_string(),
        },
        _ => failed(path, &error),
    })?;
    let op = Op::Alloc {
        path: path.to_owned(),
        blocks: places,
        fresh: disk.end,
        end,
    };
    let entries = Prepared::Entries {
        file,
        path: path.to_owned(),
        table,
        blocks: new,
        end,
    };
    Ok(Decision {
        op,
        entries: Some(entries),
    })
}

/// Where a block begins that is put behind `end`.
fn next_place(table: &Table, end: u64) -> u64 {
    match table.bitmap {
        0 => end,
        bitmap => (end + bitmap).next_multiple_of(DATA_ALIGNMENT) - bitmap,
    }
}

/// Where new blocks of a prepared file begin.
fn prepared<V: VolumeIo>(volume: &V, path: &str, name: &str, table: Option<&Table>) -> Result<u64, Refusal> {
    let not_prepared = || Refusal::NotPrepared { name: name.to_owned() };
    if name.contains('/') || check_disk_path(name).is_err() {
        return Err(not_prepared());
    }
    let end = measured(volume.open(&incoming(name)), path, not_prepared)?;
    check_table(path, table, end)?;
    Ok(end)
}

/// The length of a file, up to the next sector.
fn measured<F: VolumeFile>(file: io::Result<F>, path: &str, missing: impl Fn() -> Refusal) -> Result<u64, Refusal> {
    let refuse = |error: io::Error| match error.kind() {
        ErrorKind::NotFound => missing(),
        _ => failed(path, &error),
    };
    let len = file.map_err(refuse)?.len().map_err(refuse)?;
    len.checked_next_multiple_of(512)
        .ok_or_else(|| bad(path, "the file is too long".into()))
}

fn check_table(path: &str, table: Option<&Table>, end: u64) -> Result<(), Refusal> {
    let Some(table) = table else { return Ok(()) };
    let last = table.offset.checked_add(4 * u64::from(table.entries));
    if last.is_none_or(|last| last > end) {
        return Err(bad(path, "the block table ends after the file".into()));
    }
    if table.block == 0 || !table.block.is_multiple_of(512) || table.block > 1 << 40 {
        return Err(bad(path, format!("blocks of {} bytes", table.block)));
    }
    if table.bitmap >= table.block || !table.bitmap.is_multiple_of(512) {
        return Err(bad(path, format!("bitmaps of {} bytes", table.bitmap)));
    }
    if table.footer > table.offset || !table.footer.is_multiple_of(512) || table.footer > DATA_ALIGNMENT {
        return Err(bad(path, format!("a footer of {} bytes", table.footer)));
    }
    Ok(())
}

fn new_disk(state: &State, path: &str) -> Result<(), Refusal> {
    check_disk_path(path)?;
    if state.disks.contains_key(path) {
        return Err(Refusal::Exists { path: path.to_owned() });
    }
    Ok(())
}

fn existing<'s>(state: &'s State, path: &str) -> Result<&'s Disk, Refusal> {
    check_disk_path(path)?;
    state.disks.get(path).ok_or_else(|| no_such_disk(path))
}

/// Nobody may be writing the disk (INV-98).
fn unwritten(disk: &Disk, path: &str) -> Result<(), Refusal> {
    match &disk.writer {
        None => Ok(()),
        Some(holder) => Err(Refusal::Held {
            path: path.to_owned(),
            holder: holder.to_string(),
            generation: disk.generation,
        }),
    }
}

/// The sender must be the disk's writer, of the last generation (INV-98).
fn writer(disk: &Disk, path: &str, who: &Session, generation: Generation) -> Result<(), Refusal> {
    if disk.writer.as_ref() == Some(who) && disk.generation == generation {
        return Ok(());
    }
    Err(Refusal::StaleGeneration {
        path: path.to_owned(),
        current: disk.generation,
        found: generation,
    })
}

fn no_such_disk(path: &str) -> Refusal {
    Refusal::NoSuchDisk { path: path.to_owned() }
}

fn bad(path: &str, reason: String) -> Refusal {
    Refusal::BadBlock {
        path: path.to_owned(),
        reason,
    }
}

fn failed(path: &str, error: &io::Error) -> Refusal {
    Refusal::Failed {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}
