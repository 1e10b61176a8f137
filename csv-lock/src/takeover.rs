//! Becoming the coordinator of a volume. The engine says who may try; what follows needs no trust in it.
//!
//! 1. Allot an epoch on the volume: from now on every older coordinator finds that it is superseded (INV-90).
//! 2. Make the stage directory of the epoch.
//! 3. Read the journals before it, from the newest down to one with a seal.
//! 4. Seal: write all that was found as the first record of the own journal, durable (INV-93).
//! 5. Check that there is no newer epoch yet.
//! 6. Take the older stage directories apart: late renames into them fail from now on (INV-96).
//! 7. Carry out again what may be missing (INV-94), make it durable, and say so.

use std::io::ErrorKind;

use crate::coordinator::Coordinator;
use crate::effects;
use crate::error::{CsvError, VolumeContext};
use crate::id::{Epoch, NodeId, OpId};
use crate::journal::{JournalWriter, Record, read_journal};
use crate::state::Sealed;
use crate::volume::{EPOCHS, ROOT, VolumeFile, VolumeFormat, VolumeIo, epoch_file, epoch_of, stage_dir, stage_dirs};

/// Exists from the first seal on: an empty journal 1 is then one that was cleared or lost, not one that never began.
const SEALED: &str = ".csv/sealed";
/// So many journals before one's own keep their content, for people.
const KEPT: u64 = 1;
/// So many before those are looked at: more than attempts that die between two that succeed.
const CLEARED: u64 = 64;

/// Takes the volume over for `node`. `engine_revision` is what the engine said, for people.
///
/// # Errors
/// `Superseded` when another node was faster: nothing is lost, the volume is in that one's hands. Damage and failures of the
/// volume: the next attempt begins anew.
pub fn take_over<'v, V: VolumeIo>(
    volume: &'v V,
    format: &VolumeFormat,
    node: &NodeId,
    engine_revision: u64,
) -> Result<Coordinator<'v, V>, CsvError> {
    let (epoch, file) = allot(volume)?;
    // Before the check: whoever comes after us finds it (INV-96).
    let stage = stage_dir(epoch);
    volume.make_dir(&stage).at("creating", &stage)?;
    volume.sync_dir(ROOT).at("syncing", ROOT)?;

    let sealed = read_before(volume, format, epoch)?;
    let mut journal = JournalWriter::new(file, epoch);
    journal.push(&Record::Seal {
        volume: format.volume,
        node: node.clone(),
        engine_revision,
        sealed: sealed.clone(),
    });
    journal.append()?;
    still_current(volume, epoch)?;

    gather(volume, epoch)?;
    effects::redo(volume, epoch, &sealed)?;
    let mut coordinator = Coordinator::new(volume, format.clone(), epoch, journal, sealed);
    coordinator.settle()?;
    forget_before(volume, epoch)?;
    tracing::info!(%epoch, %node, "took the volume over");
    Ok(coordinator)
}

/// `Superseded` if a newer epoch exists. As epochs have no gaps and their names stay, one name tells.
pub(crate) fn still_current<V: VolumeIo>(volume: &V, epoch: Epoch) -> Result<(), CsvError> {
    let next = epoch_file(epoch.next());
    if volume.exists(&next).at("looking for", &next)? {
        return Err(CsvError::Superseded { epoch });
    }
    Ok(())
}

/// The newest epoch on the volume, 0 if there is none.
///
/// # Errors
/// Failures of the volume.
pub fn newest_epoch<V: VolumeIo>(volume: &V) -> Result<Epoch, CsvError> {
    let names = volume.list(EPOCHS).at("listing", EPOCHS)?;
    Ok(names.iter().filter_map(|name| epoch_of(name)).max().unwrap_or_default())
}

/// Creates the journal of the first epoch that nobody has.
fn allot<V: VolumeIo>(volume: &V) -> Result<(Epoch, V::File), CsvError> {
    let mut epoch = newest_epoch(volume)?.next();
    loop {
        let name = epoch_file(epoch);
        match volume.create_new(&name) {
            // The next one, never a gap.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => epoch = epoch.next(),
            created => {
                let file = created.at("creating", &name)?;
                volume.sync_dir(EPOCHS).at("syncing", EPOCHS)?;
                return Ok((epoch, file));
            }
        }
    }
}

/// All that took effect before `epoch`.
fn read_before<V: VolumeIo>(volume: &V, format: &VolumeFormat, epoch: Epoch) -> Result<Sealed, CsvError> {
    for number in (1..epoch.0).rev() {
        let before = Epoch(number);
        let mut records = read_journal(volume, before)?.into_iter();
        // Without a seal that coordinator decided on nothing. If it seals after we have looked, it checks after that, and finds us.
        let Some(Record::Seal {
            volume: owner,
            mut sealed,
            ..
        }) = records.next()
        else {
            continue;
        };
        if owner != format.volume {
            return Err(CsvError::JournalDamaged {
                file: epoch_file(before),
                offset: 0,
                reason: "it belongs to another volume",
            });
        }
        for (record, seq) in records.zip(1..) {
            match record {
                Record::Intent { request, op } => {
                    sealed.apply(OpId { epoch: before, seq }, &request, &op);
                }
                Record::Settled => sealed.unsettled.clear(),
                Record::Seal { .. } => unreachable!("the reader refuses a second seal"),
            }
        }
        return Ok(sealed);
    }
    if epoch.0 == 1 {
        return Ok(Sealed::default());
    }
    still_current(volume, epoch)?;
    // Attempts that died before their seal are all there is: a volume without operations.
    let first = Epoch(1);
    let untouched = read_journal(volume, first)?.is_empty() && !volume.exists(SEALED).at("looking for", SEALED)?;
    if untouched {
        return Ok(Sealed::default());
    }
    Err(CsvError::NoSeal { below: epoch })
}

/// Moves what older epochs deleted into the own stage directory and removes theirs: a rename into a removed directory fails,
/// even one that began before.
fn gather<V: VolumeIo>(volume: &V, epoch: Epoch) -> Result<(), CsvError> {
    loop {
        let older = stage_dirs(volume, epoch).at("listing", ROOT)?;
        if older.is_empty() {
            return volume.sync_dir(ROOT).at("syncing", ROOT);
        }
        for dir in older.into_iter().map(stage_dir) {
            empty_into(volume, &dir, epoch)?;
            match volume.remove_dir(&dir) {
                // A late rename came in between: once again.
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {}
                removed => removed.at("removing", &dir)?,
            }
        }
    }
}

fn empty_into<V: VolumeIo>(volume: &V, dir: &str, epoch: Epoch) -> Result<(), CsvError> {
    let names = match volume.list(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return still_current(volume, epoch),
        names => names.at("listing", dir)?,
    };
    let own = stage_dir(epoch);
    for name in names {
        let from = format!("{dir}/{name}");
        match volume.rename(&from, &format!("{own}/{name}"), false) {
            // Taken by another one, who may have superseded us.
            Err(error) if error.kind() == ErrorKind::NotFound => still_current(volume, epoch)?,
            renamed => renamed.at("moving", &from)?,
        }
    }
    volume.sync_dir(&own).at("syncing", &own)
}

/// Empties the journals that no successor will read. Names stay (INV-90).
fn forget_before<V: VolumeIo>(volume: &V, epoch: Epoch) -> Result<(), CsvError> {
    if !volume.exists(SEALED).at("looking for", SEALED)? {
        match volume.create_new(SEALED) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            created => drop(created.at("creating", SEALED)?),
        }
        volume.sync_dir(ROOT).at("syncing", ROOT)?;
    }
    for number in epoch.0.saturating_sub(KEPT + CLEARED).max(1)..epoch.0.saturating_sub(KEPT) {
        let name = epoch_file(Epoch(number));
        let file = volume.open(&name).at("opening", &name)?;
        if !file.is_empty().at("reading", &name)? {
            volume.clear(&name).at("clearing", &name)?;
        }
    }
    Ok(())
}
