//! Clients that create, write, pass on and delete disks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use csv_lock::{
    Answer, Ask, Client, CsvError, Generation, NodeId, OpId, Outcome, Refusal, Session, VolumeFile, VolumeFormat,
    VolumeIo, incoming,
};
use uuid::Uuid;

use crate::history::{Done, Kind, Removal};
use crate::sim_engine::{SimClock, SimEngine};
use crate::sim_net::SimNet;
use crate::sim_volume::{MAGIC, SimFile, SimVolume, TABLE};
use crate::world::{Handle, MILLI};

const PATHS: [&str; 3] = ["a.vhd", "b.vhd", "c.vhd"];
const LIMIT: Duration = Duration::from_secs(10);

/// A client in one life of its node.
pub(crate) struct Worker {
    handle: Handle,
    client: Client<SimClock, SimNet, SimEngine>,
    volume: SimVolume,
    /// The disk that it writes.
    writing: Option<(String, Generation)>,
    /// What it has given back.
    stopped: BTreeSet<(String, Generation)>,
}

fn random_id(handle: &Handle) -> Uuid {
    Uuid::from_u128(handle.world.lock().rng.u128(..))
}

impl Worker {
    /// A client with the place `index` among them. `before` is the session of its last life, which is proven to be over.
    pub(crate) fn new(handle: Handle, format: &VolumeFormat, index: usize) -> Self {
        let id = random_id(&handle);
        let node = NodeId(format!("n{}", handle.node));
        let client = Client::new(
            SimClock(handle.clone()),
            SimNet(handle.clone()),
            SimEngine(handle.clone()),
            format.clone(),
            node,
            id,
        );
        let mut inner = handle.world.lock();
        let sessions = &mut inner.history.sessions;
        if sessions.len() <= index {
            sessions.resize(index + 1, client.session().clone());
        }
        sessions[index] = client.session().clone();
        drop(inner);
        let volume = SimVolume(handle.clone());
        Self {
            handle,
            client,
            volume,
            writing: None,
            stopped: BTreeSet::new(),
        }
    }

    pub(crate) fn session(&self) -> Session {
        self.client.session().clone()
    }

    /// Works until the world ends.
    pub(crate) fn run(&mut self, before: Option<Session>) {
        let mut before = before;
        while !self.handle.world.lock().ending {
            if let Some(session) = before.take() {
                let proof = "killed by the test".to_owned();
                let fenced = self.ask(Ask::Fenced {
                    session: session.clone(),
                    proof,
                });
                before = fenced.err().map(|_| session);
            } else if let Some((path, generation)) = self.writing.clone() {
                self.write(&path, generation);
            } else {
                self.use_names();
            }
            let pause = self.handle.world.lock().rng.u64(5 * MILLI..200 * MILLI);
            drop(self.handle.pass(pause));
        }
    }

    /// `Ok`: answered. `Err(true)`: refused. `Err(false)`: unknown.
    fn ask(&mut self, ask: Ask) -> Result<Answer, bool> {
        let result = self.client.ask(ask, LIMIT);
        let mut inner = self.handle.world.lock();
        match &result {
            Ok(_) => inner.history.answers += 1,
            Err(CsvError::Refused(_)) => inner.history.refusals += 1,
            Err(_) => inner.history.unknown += 1,
        }
        if let Err(CsvError::Refused(
            refusal @ (Refusal::Late | Refusal::ForeignCluster { .. } | Refusal::WrongVolume { .. }),
        )) = &result
        {
            inner
                .history
                .violations
                .push(format!("a good request was refused: {refusal}"));
        }
        result.map_err(|error| matches!(error, CsvError::Refused(_)))
    }

    fn now(&self) -> u64 {
        self.handle.world.lock().now
    }

    fn done(&self, start: u64, id: OpId, path: &str, kind: Kind) {
        let mut inner = self.handle.world.lock();
        let end = inner.now;
        inner.history.done.push(Done {
            start,
            end,
            id,
            path: path.to_owned(),
            kind,
        });
    }

    /// An operation that takes a file away: from its beginning on the file may be gone.
    fn remove(&mut self, path: &str, kind: Kind, ask: Ask) {
        let start = self.now();
        let index = {
            let mut inner = self.handle.world.lock();
            inner.history.removals.push(Removal {
                path: path.to_owned(),
                end: None,
            });
            inner.history.removals.len() - 1
        };
        let answer = self.ask(ask);
        let end = self.now();
        match answer {
            Ok(Answer::Outcome(Outcome::Done(id))) => {
                self.handle.world.lock().history.removals[index].end = Some(end);
                self.done(start, id, path, kind);
            }
            Err(true) => self.handle.world.lock().history.removals[index].end = Some(0),
            _ => {}
        }
    }

    fn use_names(&mut self) {
        let (path, action) = {
            let rng = &mut self.handle.world.lock().rng;
            (PATHS[rng.usize(..PATHS.len())].to_owned(), rng.u32(..10))
        };
        match action {
            0..=2 => {
                let start = self.now();
                let Some(name) = self.prepare() else { return };
                let create = Ask::Create {
                    path: path.clone(),
                    incoming: name,
                    table: Some(TABLE),
                };
                if let Ok(Answer::Outcome(Outcome::Done(id))) = self.ask(create) {
                    self.done(start, id, &path, Kind::Create);
                }
            }
            3 => self.remove(&path, Kind::Delete, Ask::Delete { path: path.clone() }),
            4..=8 => {
                let open = self.ask(Ask::Open { path: path.clone() });
                if let Ok(Answer::Outcome(Outcome::Writer(generation))) = open {
                    self.begins_to_write(path, generation);
                }
            }
            _ => self.list(),
        }
    }

    fn begins_to_write(&mut self, path: String, generation: Generation) {
        let session = self.session();
        self.handle
            .world
            .lock()
            .history
            .becomes_writer(&path, &session, generation);
        self.writing = Some((path, generation));
    }

    /// Lists all disks; takes what was passed on to this session.
    fn list(&mut self) {
        let start = self.now();
        let Ok(Answer::Disks(disks)) = self.ask(Ask::Disks) else {
            return;
        };
        let files: BTreeMap<_, _> = disks.iter().map(|(path, disk)| (path.clone(), disk.file)).collect();
        self.handle.world.lock().history.listed(start, &files);
        let session = self.session();
        // What it gave back may be on its way to the coordinator still: it does not take that again.
        let mine = disks.into_iter().find(|(path, disk)| {
            disk.writer.as_ref() == Some(&session) && !self.stopped.contains(&(path.clone(), disk.generation))
        });
        if let (Some((path, disk)), None) = (mine, &self.writing) {
            self.begins_to_write(path, disk.generation);
        }
    }

    /// A prepared file; `None` if the volume failed.
    fn prepare(&self) -> Option<String> {
        let name = random_id(&self.handle).to_string();
        let file = self.volume.create_new(&incoming(&name)).ok()?;
        let mut bytes = vec![0xff; 1024];
        bytes[..512].fill(0);
        bytes[..4].copy_from_slice(MAGIC);
        file.write_at(&bytes, 0).ok()?;
        file.sync().ok()?;
        Some(name)
    }

    fn write(&mut self, path: &str, generation: Generation) {
        let action = self.handle.world.lock().rng.u32(..8);
        match action {
            0..=4 => self.write_blocks(path, generation),
            5 => {
                self.stop_writing(path);
                let _ = self.ask(Ask::Close {
                    path: path.to_owned(),
                    generation,
                });
            }
            6 => {
                let to = {
                    let inner = &mut *self.handle.world.lock();
                    inner.history.sessions[inner.rng.usize(..inner.history.sessions.len())].clone()
                };
                self.stop_writing(path);
                let _ = self.ask(Ask::Handover {
                    path: path.to_owned(),
                    generation,
                    to,
                });
            }
            _ => {
                let Some(name) = self.prepare() else { return };
                self.stop_writing(path);
                let replace = Ask::Replace {
                    path: path.to_owned(),
                    incoming: name,
                    table: Some(TABLE),
                    generation: Some(generation),
                };
                self.remove(path, Kind::Replace, replace);
            }
        }
    }

    /// Before the right is given back or passed on: the descriptors are closed.
    fn stop_writing(&mut self, path: &str) {
        self.handle.world.lock().history.stops_writing(path);
        self.stopped.extend(self.writing.take());
    }

    fn write_blocks(&mut self, path: &str, generation: Generation) {
        let Some((id, file)) = self.open_file(path) else { return };
        let blocks = {
            let rng = &mut self.handle.world.lock().rng;
            (0..rng.u32(1..4)).map(|_| rng.u32(..TABLE.entries)).collect()
        };
        let alloc = Ask::Alloc {
            path: path.to_owned(),
            generation,
            blocks,
        };
        let places = match self.ask(alloc) {
            Ok(Answer::Outcome(Outcome::Blocks(places))) => places,
            Err(true) => {
                let mut inner = self.handle.world.lock();
                inner
                    .history
                    .violations
                    .push(format!("the writer of {path} ({generation}) was refused blocks"));
                return;
            }
            _ => return,
        };
        for (block, place) in places {
            let tag = {
                let inner = &mut *self.handle.world.lock();
                if inner
                    .history
                    .places
                    .insert((id, block), place)
                    .is_some_and(|before| before != place)
                {
                    inner
                        .history
                        .violations
                        .push(format!("block {block} of {path} moved to {place:#x}"));
                }
                let tag = inner.rng.u64(1..);
                inner
                    .history
                    .data
                    .entry((id, block))
                    .or_insert_with(|| vec![0])
                    .push(tag);
                tag
            };
            if file.write_at(&tag.to_be_bytes(), place + TABLE.bitmap).is_ok() {
                self.handle.world.lock().history.data.insert((id, block), vec![tag]);
            }
        }
    }

    /// The file of the disk that this session writes.
    fn open_file(&mut self, path: &str) -> Option<(OpId, SimFile)> {
        let Ok(Answer::Disks(disks)) = self.ask(Ask::Disks) else {
            return None;
        };
        let (_, disk) = disks.into_iter().find(|(known, _)| known == path)?;
        Some((disk.file, self.volume.open(path).ok()?))
    }
}
