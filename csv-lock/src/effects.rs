//! Carrying operations out on the volume: names and table entries.
//!
//! Everything here may happen late, in a coordinator that was superseded long ago, or twice, by it and by its successor. Each
//! effect is therefore one that took effect already or changes nothing: a prepared file has a name that is moved once, a deleted
//! one goes to a name that is made once, and a table entry is written once (INV-94, INV-95, INV-96).

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};

use crate::error::{CsvError, VolumeContext};
use crate::id::{Epoch, OpId};
use crate::journal::{Op, Table};
use crate::state::{Sealed, State};
use crate::takeover::still_current;
use crate::volume::{VolumeFile, VolumeIo, incoming, parent_of, stage_dir, trash};

/// The entry of a block without a place.
const UNUSED: u32 = u32::MAX;
const SECTOR: u64 = 512;

/// An effect that is ready: files that it writes are open since before the check, so that a late write meets them and no others.
pub(crate) enum Prepared<F> {
    /// A change of names.
    Names(OpId, Op),
    /// New entries of a block table.
    Entries {
        /// The disk's file.
        file: F,
        /// The disk, for messages.
        path: String,
        /// Its block table.
        table: Table,
        /// Blocks and their places, in bytes.
        blocks: Vec<(u32, u64)>,
        /// Where the file ends with them.
        end: u64,
    },
}

impl<F: VolumeFile> Prepared<F> {
    /// Carries it out.
    pub(crate) fn carry_out<V: VolumeIo<File = F>>(&self, volume: &V, epoch: Epoch) -> Result<(), CsvError> {
        match self {
            Self::Names(id, op) => change_names(volume, epoch, *id, op),
            Self::Entries {
                file,
                path,
                table,
                blocks,
                end,
            } => {
                if blocks.is_empty() {
                    return Ok(());
                }
                fill_bitmaps(file, table, blocks).at("writing bitmaps of", path)?;
                write_footer(file, table, *end).at("writing the footer of", path)?;
                write_entries(file, table, blocks).at("writing the block table of", path)
            }
        }
    }
}

/// The place of a block in the file in bytes, if it has one.
pub(crate) fn read_entry<F: VolumeFile>(file: &F, table: &Table, block: u32) -> io::Result<Option<u64>> {
    let mut entry = [0; 4];
    file.read_at(&mut entry, entry_offset(table, block))?;
    let sector = u32::from_be_bytes(entry);
    Ok((sector != UNUSED).then_some(u64::from(sector) * SECTOR))
}

/// Whether a place can be written into a table.
pub(crate) fn fits_entry(place: u64) -> bool {
    place.is_multiple_of(SECTOR) && u32::try_from(place / SECTOR).is_ok_and(|sector| sector != UNUSED)
}

fn entry_offset(table: &Table, block: u32) -> u64 {
    table.offset + 4 * u64::from(block)
}

fn write_entries<F: VolumeFile>(file: &F, table: &Table, blocks: &[(u32, u64)]) -> io::Result<()> {
    for &(block, place) in blocks {
        // Decided with `fits_entry`; a journal that says otherwise is refused.
        let sector = u32::try_from(place / SECTOR).map_err(|_| ErrorKind::InvalidData)?;
        file.write_at(&sector.to_be_bytes(), entry_offset(table, block))?;
    }
    Ok(())
}

/// Writes the bitmaps of new blocks, where their space counts as data from the beginning. Nobody changes them after that.
fn fill_bitmaps<F: VolumeFile>(file: &F, table: &Table, blocks: &[(u32, u64)]) -> io::Result<()> {
    if !table.full {
        return Ok(());
    }
    let ones = vec![0xff; usize::try_from(table.bitmap).map_err(|_| ErrorKind::InvalidData)?];
    blocks.iter().try_for_each(|&(_, place)| file.write_at(&ones, place))
}

/// Repeats the beginning of the file at its end, in a place that no block ever gets (INV-101).
fn write_footer<F: VolumeFile>(file: &F, table: &Table, end: u64) -> io::Result<()> {
    let Some(place) = end.checked_sub(table.footer).filter(|_| table.footer > 0) else {
        return Ok(());
    };
    let mut bytes = vec![0; usize::try_from(table.footer).map_err(|_| ErrorKind::InvalidData)?];
    file.read_at(&mut bytes, 0)?;
    file.write_at(&bytes, place)
}

/// Gives, replaces or takes a name. Done already: nothing.
fn change_names<V: VolumeIo>(volume: &V, epoch: Epoch, id: OpId, op: &Op) -> Result<(), CsvError> {
    match op {
        Op::Create {
            path, incoming: name, ..
        } => move_in(volume, epoch, name, path, false),
        Op::Replace {
            path, incoming: name, ..
        } => move_in(volume, epoch, name, path, true),
        Op::Delete { path } => move_out(volume, epoch, id, path),
        _ => Ok(()),
    }
}

fn move_in<V: VolumeIo>(volume: &V, epoch: Epoch, name: &str, path: &str, replace: bool) -> Result<(), CsvError> {
    let from = incoming(name);
    match volume.rename(&from, path, replace) {
        // Its name was moved before. If it is still there, the directory of the disk is what is missing.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if volume.exists(&from).at("looking for", &from)? {
                still_current(volume, epoch)?;
                return Err(error).at("creating", path);
            }
        }
        renamed => renamed.at("creating", path)?,
    }
    // Names become durable in the order of the operations: a successor tells by them what was done.
    sync_dir_of(volume, path)?;
    sync_dir_of(volume, &from)
}

fn move_out<V: VolumeIo>(volume: &V, epoch: Epoch, id: OpId, path: &str) -> Result<(), CsvError> {
    let to = trash(epoch, id);
    // The disk's name may be another file's by now: only the deleted file's new name tells that it was done.
    if volume.exists(&to).at("looking for", &to)? {
        return Ok(());
    }
    // A successor that gathers may have taken that new name away: only if there was none after we looked is the answer right.
    still_current(volume, epoch)?;
    match volume.rename(path, &to, false) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // Either somebody removed the file by hand, or our stage directory is gone and we are superseded.
            still_current(volume, epoch)?;
            if volume.exists(path).at("looking for", path)? {
                return Err(error).at("deleting", path);
            }
        }
        renamed => renamed.at("deleting", path)?,
    }
    sync_dir_of(volume, path)?;
    let stage = stage_dir(epoch);
    volume.sync_dir(&stage).at("syncing", &stage)
}

fn sync_dir_of<V: VolumeIo>(volume: &V, path: &str) -> Result<(), CsvError> {
    let dir = parent_of(path);
    volume.sync_dir(dir).at("syncing", dir)
}

/// Carries out again, in order, what may be missing from the volume, and makes it durable.
pub(crate) fn redo<V: VolumeIo>(volume: &V, epoch: Epoch, sealed: &Sealed) -> Result<(), CsvError> {
    for (id, op) in &sealed.unsettled {
        change_names(volume, epoch, *id, op)?;
    }
    // Names are as the state says. Files are opened first and the check comes after that: while it says yes, no successor had
    // given these names to other files (INV-94).
    let mut ready = Vec::new();
    for (path, entries) in entries_of(sealed) {
        match volume.open(path) {
            Ok(file) => ready.push((file, path, entries.table, entries)),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                tracing::warn!(path, "the disk's file is gone: entries of its block table are dropped");
            }
            Err(error) => return Err(error).at("opening", path),
        }
    }
    still_current(volume, epoch)?;
    for (file, path, table, entries) in &ready {
        let Entries { blocks, new, end, .. } = entries;
        file.extend_to(*end).at("extending", path)?;
        fill_bitmaps(file, table, new).at("writing bitmaps of", path)?;
        write_footer(file, table, *end).at("writing the footer of", path)?;
        write_entries(file, table, blocks).at("writing the block table of", path)?;
        file.sync().at("syncing", path)?;
    }
    Ok(())
}

/// Makes the table entries durable that were written since the last time.
pub(crate) fn sync_entries<V: VolumeIo>(volume: &V, sealed: &Sealed) -> Result<(), CsvError> {
    for path in entries_of(sealed).into_keys() {
        match volume.open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            opened => opened.at("opening", path)?.sync().at("syncing", path)?,
        }
    }
    Ok(())
}

/// Removes deleted files for good, when no successor will ask whether they are there.
pub(crate) fn empty_trash<V: VolumeIo>(volume: &V, epoch: Epoch) -> Result<(), CsvError> {
    let dir = stage_dir(epoch);
    for name in volume.list(&dir).at("listing", &dir)? {
        let path = format!("{dir}/{name}");
        match volume.remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            removed => removed.at("removing", &path)?,
        }
    }
    Ok(())
}

/// What has to be in the file of a disk.
struct Entries {
    table: Table,
    /// Blocks and their places.
    blocks: Vec<(u32, u64)>,
    /// Those of them whose space was given with these entries.
    new: Vec<(u32, u64)>,
    /// Where the file ends with them.
    end: u64,
}

/// The entries of disks whose file is still the one that they were decided for.
fn entries_of(sealed: &Sealed) -> BTreeMap<&str, Entries> {
    let mut found: BTreeMap<&str, Entries> = BTreeMap::new();
    for (id, op) in &sealed.unsettled {
        let Op::Alloc {
            path,
            blocks,
            fresh,
            end,
        } = op
        else {
            continue;
        };
        let Some(table) = table_of(&sealed.state, path, *id) else {
            continue;
        };
        let entries = found.entry(path).or_insert_with(|| Entries {
            table,
            blocks: Vec::new(),
            new: Vec::new(),
            end: 0,
        });
        entries.blocks.extend(blocks);
        entries.new.extend(blocks.iter().filter(|(_, place)| place >= fresh));
        entries.end = entries.end.max(*end);
    }
    found
}

fn table_of(state: &State, path: &str, id: OpId) -> Option<Table> {
    let disk = state.disks.get(path).filter(|disk| disk.file < id)?;
    disk.table
}
