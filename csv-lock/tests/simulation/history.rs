//! What clients were told, and what follows from it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use csv_lock::{Generation, OpId, Session, State};

use crate::sim_volume::{FileSystem, MAGIC, TABLE, entries};
use crate::world::Micros;

/// An operation that was answered.
pub(crate) struct Done {
    pub(crate) start: Micros,
    pub(crate) end: Micros,
    pub(crate) id: OpId,
    pub(crate) path: String,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Create,
    Delete,
    Replace,
}

/// A delete or replace, answered or not.
pub(crate) struct Removal {
    pub(crate) path: String,
    pub(crate) end: Option<Micros>,
}

#[derive(Default)]
pub(crate) struct History {
    pub(crate) done: Vec<Done>,
    pub(crate) removals: Vec<Removal>,
    /// Who may believe to be a disk's writer.
    pub(crate) writers: BTreeMap<String, (Session, Generation)>,
    given: BTreeSet<(String, Generation)>,
    /// What a block of a file may hold: the last tag that was written, and those that may have been since.
    pub(crate) data: HashMap<(OpId, u32), Vec<u64>>,
    pub(crate) places: HashMap<(OpId, u32), u64>,
    /// The present sessions of the clients.
    pub(crate) sessions: Vec<Session>,
    pub(crate) violations: Vec<String>,
    /// Answers of all kinds, refusals, requests without an answer.
    pub(crate) answers: usize,
    pub(crate) refusals: usize,
    pub(crate) unknown: usize,
    /// Takeovers as the volume counts them.
    pub(crate) epochs: u64,
}

impl History {
    pub(crate) fn becomes_writer(&mut self, path: &str, session: &Session, generation: Generation) {
        if !self.given.insert((path.to_owned(), generation)) {
            self.violations
                .push(format!("generation {generation} of {path} was given twice"));
        }
        if let Some((other, theirs)) = self.writers.insert(path.to_owned(), (session.clone(), generation)) {
            self.violations.push(format!(
                "{path} has two writers: {other} ({theirs}) and {session} ({generation})"
            ));
        }
    }

    pub(crate) fn stops_writing(&mut self, path: &str) {
        self.writers.remove(path);
    }

    pub(crate) fn is_dead(&mut self, session: &Session) {
        self.writers.retain(|_, (writer, _)| writer != session);
    }

    /// A listing that began at `start`: it must know all that was answered before.
    pub(crate) fn listed(&mut self, start: Micros, disks: &BTreeMap<String, OpId>) {
        for done in self
            .done
            .iter()
            .filter(|done| done.end < start && done.kind != Kind::Delete)
        {
            let known = disks.get(&done.path).is_some_and(|file| *file >= done.id);
            if !known && !self.may_be_removed(done) {
                self.violations
                    .push(format!("a listing does not know {} of {}", done.id, done.path));
            }
        }
    }

    fn may_be_removed(&self, done: &Done) -> bool {
        let after = |removal: &Removal| removal.end.is_none_or(|end| end > done.start);
        self.removals
            .iter()
            .any(|removal| removal.path == done.path && after(removal))
    }

    /// What must be true of the volume when all is over.
    pub(crate) fn check(&mut self, state: &State, fs: &FileSystem) {
        let mut wrong = fs.violations.clone();
        wrong.extend(self.order());
        let files = fs.root_files();
        for path in files.keys().filter(|path| !state.disks.contains_key(*path)) {
            wrong.push(format!("the file {path} is no disk"));
        }
        for (path, disk) in &state.disks {
            let Some(file) = files.get(path) else {
                wrong.push(format!("the disk {path} has no file"));
                continue;
            };
            if !file.starts_with(MAGIC) {
                wrong.push(format!("the file of {path} is not the one that was prepared"));
                continue;
            }
            wrong.extend(self.check_disk(path, disk.file, file));
            wrong.extend(check_footer(path, disk.end, file));
        }
        for done in &self.done {
            let file = state.disks.get(&done.path).map(|disk| disk.file);
            match done.kind {
                Kind::Delete if file.is_some_and(|file| file < done.id) => {
                    wrong.push(format!("{} was deleted by {} and is there", done.path, done.id));
                }
                Kind::Create | Kind::Replace
                    if file.is_none_or(|file| file < done.id) && !self.may_be_removed(done) =>
                {
                    wrong.push(format!("{} by {} is lost", done.path, done.id));
                }
                _ => {}
            }
        }
        let stages = fs
            .protocol_names()
            .into_iter()
            .filter(|name| name.starts_with("stage."))
            .count();
        if stages != 1 {
            wrong.push(format!("{stages} stage directories"));
        }
        self.violations.append(&mut wrong);
    }

    /// Blocks that were answered have their places, and their places the data that was written last.
    fn check_disk(&self, path: &str, id: OpId, file: &[u8]) -> Vec<String> {
        let mut wrong = Vec::new();
        let table = entries(file);
        for (&(owner, block), &place) in self.places.iter().filter(|((owner, _), _)| *owner == id) {
            let entry = table[block as usize];
            if u64::from(entry) * 512 != place {
                wrong.push(format!(
                    "{path}: block {block} was answered {place:#x}, the table says {entry:#x}"
                ));
                continue;
            }
            let at = usize::try_from(place).unwrap();
            if at + usize::try_from(TABLE.block).unwrap() > file.len() {
                wrong.push(format!("{path}: block {block} lies behind the end"));
                continue;
            }
            let bitmap = usize::try_from(TABLE.bitmap).unwrap();
            if file[at..at + bitmap].iter().any(|&byte| byte != 0xff) {
                wrong.push(format!("{path}: the bitmap of block {block} was overwritten"));
            }
            let at = at + bitmap;
            let found: [u8; 8] = file[at..at + 8].try_into().unwrap();
            // A client that was killed while it wrote leaves a part.
            let fits = |allowed: &[u64], byte: usize| allowed.iter().any(|tag| tag.to_be_bytes()[byte] == found[byte]);
            if let Some(allowed) = self
                .data
                .get(&(owner, block))
                .filter(|allowed| !(0..8).all(|byte| fits(allowed, byte)))
            {
                wrong.push(format!(
                    "{path}: block {block} holds {found:x?}, written was {allowed:x?}"
                ));
            }
        }
        wrong
    }

    /// Operations have the order in which they were answered: the journal is a linearization.
    fn order(&self) -> Vec<String> {
        let late = |a: &Done, b: &Done| a.end < b.start && a.id > b.id;
        let pairs = self.done.iter().flat_map(|a| self.done.iter().map(move |b| (a, b)));
        pairs
            .filter(|(a, b)| late(a, b))
            .map(|(a, b)| format!("{} was answered before {} began", a.id, b.id))
            .collect()
    }
}

/// INV-101: where the file ends with the last block that was given, its beginning is repeated, and nothing lies over that.
fn check_footer(path: &str, end: u64, file: &[u8]) -> Option<String> {
    let footer = usize::try_from(TABLE.footer).unwrap();
    let end = usize::try_from(end).unwrap();
    let has_blocks = entries(file).iter().any(|&entry| entry != u32::MAX);
    let found = file.get(end.checked_sub(footer)?..end);
    (has_blocks && found != file.get(..footer)).then(|| format!("{path}: there is no footer before {end:#x}"))
}
