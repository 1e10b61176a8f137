//! The right to write a disk of a volume: taken from the coordinator, asked for space, and given back.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use csv_lock::{Answer, Ask, CsvError, Fence as _, Generation, HasEnded, MAX_BLOCKS, Outcome, Refusal, Table};
use uuid::Uuid;
use vhd_core::image::{BlockSource, NoBlock, PublishFence};

use super::name::DiskName;
use super::new_disk::forget;
use super::table::table_of;
use super::{Machine, PAUSE, Session, peers_of};
use crate::codes::Kind;
use crate::failure::Failure;
use crate::output;

/// The right to write a disk.
pub(crate) struct Right {
    machine: Machine,
    disk: DiskName,
    generation: Generation,
    /// The disk's table, if the coordinator allocates for it.
    table: Option<Table>,
    asking: Mutex<Asking>,
    /// Why the right is gone.
    lost: OnceLock<String>,
}

struct Asking {
    session: Session,
    ahead: Ahead,
}

/// Which blocks are asked for: for a writer who goes on where the last ones ended, twice as many each time. The more, the rarer
/// is a round to the coordinator.
#[derive(Debug, Default)]
struct Ahead {
    /// The block behind the last ones, and how many they were.
    next: u32,
    run: u32,
}

/// A writer with several requests at once goes on in any order, but not further ahead than so many blocks.
const NEAR: u32 = 16;

impl Ahead {
    /// The blocks to ask for when `block` is needed of an image of `count` blocks.
    fn blocks(&mut self, block: u32, count: u32) -> Range<u32> {
        let most = u32::try_from(MAX_BLOCKS).unwrap_or(u32::MAX);
        if block < self.next && self.next - block <= most {
            // A straggler: whoever goes on does so further ahead.
            return block..block + 1;
        }
        let goes_on = self.run > 0 && block >= self.next && block - self.next < NEAR;
        let (first, run) = match goes_on {
            true => (self.next, (self.run * 2).clamp(block - self.next + 1, most)),
            false => (block, 1),
        };
        let end = first.saturating_add(run).min(count.max(block + 1));
        (self.next, self.run) = (end, run);
        first..end
    }
}

impl Right {
    /// Takes the right to write a disk. A file that is no disk of the volume yet becomes one.
    ///
    /// # Errors
    /// `VHD-E0924`, with the holder's name, if another process has it.
    pub(crate) fn take(disk: &DiskName) -> Result<Arc<Self>, Failure> {
        let machine = Machine::open()?;
        let mut session = Session::begin(&machine, disk)?;
        let taken = session.adopt(disk).and_then(|()| open(&machine, disk, &mut session));
        let generation = match taken {
            Ok(generation) => generation,
            Err(failure) => {
                machine.registry().end_session(session.id().id)?;
                return Err(failure);
            }
        };
        let mut right = Self {
            machine,
            disk: disk.clone(),
            generation,
            table: None,
            asking: Mutex::new(Asking {
                session,
                ahead: Ahead::default(),
            }),
            lost: OnceLock::new(),
        };
        match right.find_table() {
            Ok(table) => right.table = table,
            Err(failure) => {
                // The failure is what matters; a right that stays is free when this process has ended.
                let _ = right.give_back();
                return Err(failure);
            }
        }
        Ok(Arc::new(right))
    }

    /// The disk's table, which the volume must know as it is: what changed the file without the volume may be undone by it.
    fn find_table(&self) -> Result<Option<Table>, Failure> {
        let found = table_of(&self.disk.file())?;
        let disks = self.asking().session.disks(PAUSE)?;
        let known = disks.into_iter().find(|(path, _)| *path == self.disk.path);
        let known = known.and_then(|(_, disk)| disk.table);
        if known == found {
            return Ok(found);
        }
        let (volume, path) = (&self.disk.volume.name, &self.disk.path);
        let message = format!(
            "{volume}:/{path} was changed without the volume: its block table is not the one that the volume knows; \
             convert it to another disk of the volume"
        );
        Err(Failure::new(Kind::VolumeCannot, message))
    }

    /// Gives the right back. The disk's file is closed.
    ///
    /// # Errors
    /// The coordinator did not hear of it: the right is free when this process has ended.
    pub(crate) fn give_back(&self) -> Result<(), Failure> {
        if self.lost.get().is_some() {
            return Ok(());
        }
        let close = Ask::Close {
            path: self.disk.path.clone(),
            generation: self.generation,
        };
        let mut asking = self.asking();
        asking.session.ask(close, PAUSE)?;
        self.lose("it was given back");
        let session = asking.session.id().id;
        Ok(self.machine.registry().end_session(session)?)
    }

    /// The session that has it.
    pub(super) fn session(&self) -> Uuid {
        self.asking().session.id().id
    }

    /// Puts a prepared file in the disk's place, whose own file is closed. The right ends with that.
    pub(super) fn replace(&self, incoming: &str, table: Option<Table>) -> Result<(), CsvError> {
        let replace = Ask::Replace {
            path: self.disk.path.clone(),
            incoming: incoming.to_owned(),
            table,
            generation: Some(self.generation),
        };
        let mut asking = self.asking();
        let asked = asking.session.ask(replace, PAUSE);
        if !matches!(asked, Err(CsvError::Refused(_))) {
            // It is over, or may be: nothing is done with it any more.
            self.lose("its disk was replaced");
        }
        asked?;
        self.machine.registry().end_session(asking.session.id().id)
    }

    fn asking(&self) -> MutexGuard<'_, Asking> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, reason: &str) -> NoBlock {
        let reason = self.lost.get_or_init(|| reason.to_owned()).clone();
        NoBlock::Lost { reason }
    }

    /// What an answer that is none means to a writer.
    fn no_block(&self, error: CsvError) -> NoBlock {
        let kind = match &error {
            CsvError::Refused(Refusal::StaleGeneration { .. } | Refusal::NoSuchDisk { .. } | Refusal::Late) => {
                return self.lose(&error.to_string());
            }
            CsvError::Refused(Refusal::NoSpace { .. }) => io::ErrorKind::StorageFull,
            CsvError::NoCoordinator { .. } => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::Other,
        };
        NoBlock::Failed(io::Error::new(kind, error.to_string()))
    }
}

impl PublishFence for Right {
    fn check(&self) -> Result<(), String> {
        self.lost.get().map_or(Ok(()), |reason| Err(reason.clone()))
    }
}

impl BlockSource for Right {
    fn allocate(&self, block: u32) -> Result<Vec<(u32, u64)>, NoBlock> {
        if let Some(reason) = self.lost.get() {
            return Err(self.lose(reason));
        }
        let Some(table) = &self.table else {
            let error = io::Error::other("the volume knows no block table of the disk");
            return Err(NoBlock::Failed(error));
        };
        let mut asking = self.asking();
        let blocks = asking.ahead.blocks(block, table.entries);
        let ask = Ask::Alloc {
            path: self.disk.path.clone(),
            generation: self.generation,
            blocks: blocks.collect(),
        };
        match asking.session.ask(ask, PAUSE) {
            Ok(Answer::Outcome(Outcome::Blocks(blocks))) => Ok(blocks),
            Ok(_) => Err(NoBlock::Failed(io::Error::other("that is no answer to what was asked"))),
            Err(error) => Err(self.no_block(error)),
        }
    }
}

impl Drop for Right {
    fn drop(&mut self) {
        // Whoever closed the disk in order gave the right back and heard of failures.
        if let Err(failure) = self.give_back() {
            output::warning(failure.message());
        }
    }
}

/// Asks for the right to write; frees it first if the process that has it is gone.
fn open(machine: &Machine, disk: &DiskName, session: &mut Session) -> Result<Generation, Failure> {
    let ask = Ask::Open {
        path: disk.path.clone(),
    };
    let mut freed = false;
    loop {
        match session.ask(ask.clone(), PAUSE) {
            Ok(Answer::Outcome(Outcome::Writer(generation))) => return Ok(generation),
            Err(CsvError::Refused(Refusal::Held { .. })) if !freed && free_if_gone(machine, disk, session)? => {
                freed = true;
            }
            Ok(_) => {
                let reason = "that is no answer to what was asked".into();
                return Err(CsvError::Message { reason }.into());
            }
            Err(error) => return Err(Failure::from(error).about(format_args!("volume {}", disk.volume.name))),
        }
    }
}

/// Frees a disk whose writer is proven to be gone (INV-98); whether it was.
fn free_if_gone(machine: &Machine, disk: &DiskName, session: &mut Session) -> Result<bool, Failure> {
    let disks = session.disks(PAUSE)?;
    let found = disks.into_iter().find(|(path, _)| *path == disk.path);
    let Some(writer) = found.and_then(|(_, disk)| disk.writer) else {
        return Ok(true);
    };
    let Some(known) = machine.registry().session(writer.id)? else {
        return Ok(false);
    };
    let Ok(proof) = HasEnded.fence(&writer.node, &known.process) else {
        return Ok(false);
    };
    let proof = proof.to_string();
    session.fenced(&writer, &proof, PAUSE)?;
    forget(machine, &disk.volume, writer.id)?;
    let text = format!("{}: {proof}", disk.path);
    // It is free, whoever hears of it.
    let _ = peers_of(machine, &disk.volume).map(|peers| peers.note(&writer.node, "freed", &text));
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_goes_on_gets_more_and_more_blocks_and_always_the_one_that_is_needed() {
        let mut ahead = Ahead::default();
        assert_eq!(ahead.blocks(100, 1000), 100..101);
        assert_eq!(ahead.blocks(101, 1000), 101..103);
        // Out of order, and the one before.
        assert_eq!(ahead.blocks(105, 1000), 103..107);
        assert_eq!(ahead.blocks(104, 1000), 104..105);
        assert_eq!(ahead.blocks(107, 1000), 107..115);
        // Somewhere else, ahead and back.
        assert_eq!(ahead.blocks(700, 1000), 700..701);
        assert_eq!(ahead.blocks(3, 1000), 3..4);
        let (mut ahead, mut asked) = (Ahead::default(), 0);
        let mut known = [false; 1000];
        for block in 0..1000 {
            if !known[block as usize] {
                asked += 1;
                let blocks = ahead.blocks(block, 1000);
                assert!(blocks.contains(&block) && blocks.len() <= MAX_BLOCKS && blocks.end <= 1000);
                blocks.for_each(|block| known[block as usize] = true);
            }
        }
        assert!(asked < 25, "{asked}");
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..10_000 {
            let block = random.u32(..1000);
            let blocks = ahead.blocks(block, 1000);
            assert!(blocks.contains(&block) && blocks.len() <= MAX_BLOCKS && blocks.end <= 1000);
        }
    }
}
