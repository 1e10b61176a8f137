//! A client of the protocol on a machine: creates, deletes, lists and allocates, and keeps what it was told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use csv_lock::{
    Answer, Ask, Client, CsvError, Generation, LocalEngine, NodeId, NodeNet, OpId, Outcome, Registry, SystemClock,
    Table, incoming, read_format,
};
use fastrand::Rng;
use uuid::Uuid;

use crate::world::{NODES, Site};

/// How long an answer may take: longer than any fault.
const LIMIT: Duration = Duration::from_secs(60);

/// The table of the disks that are asked places for.
pub(crate) const TABLE: Table = Table {
    offset: 512,
    entries: 1 << 16,
    block: 512,
    bitmap: 0,
    footer: 0,
    full: false,
};

/// A change of names that was answered.
pub(crate) struct Done {
    start: Instant,
    end: Instant,
    id: OpId,
    path: String,
    deletes: bool,
}

/// What all clients were told.
#[derive(Default)]
pub(crate) struct History {
    done: Mutex<Vec<Done>>,
    /// Disks of which the deletion began.
    removing: Mutex<BTreeSet<String>>,
    /// The places of blocks by disk.
    places: Mutex<BTreeMap<String, HashMap<u32, u64>>>,
    violations: Mutex<Vec<String>>,
}

impl History {
    fn wrong(&self, text: String) {
        self.violations.lock().unwrap().push(text);
    }

    fn done(&self, start: Instant, id: OpId, path: &str, deletes: bool) {
        self.done.lock().unwrap().push(Done {
            start,
            end: Instant::now(),
            id,
            path: path.to_owned(),
            deletes,
        });
    }

    fn placed(&self, path: &str, blocks: Vec<(u32, u64)>) {
        let mut places = self.places.lock().unwrap();
        let places = places.entry(path.to_owned()).or_default();
        for (block, place) in blocks {
            if places.insert(block, place).is_some_and(|before| before != place) {
                self.wrong(format!("block {block} of {path} moved to {place:#x}"));
            }
        }
    }

    /// A listing that began at `start` knows what was answered before (names are used once).
    pub(crate) fn listed(&self, start: Instant, disks: &BTreeSet<String>) {
        let removing = self.removing.lock().unwrap().clone();
        for done in self.done.lock().unwrap().iter().filter(|done| done.end < start) {
            let is_there = disks.contains(&done.path);
            if done.deletes && is_there {
                self.wrong(format!("a listing has {}, which was deleted", done.path));
            }
            if !done.deletes && !is_there && !removing.contains(&done.path) {
                self.wrong(format!("a listing does not know {}", done.path));
            }
        }
    }

    /// The places that were answered, by disk.
    pub(crate) fn places(&self) -> BTreeMap<String, HashMap<u32, u64>> {
        self.places.lock().unwrap().clone()
    }

    /// What is wrong so far, with the order of answers: the journal is a linearization of what was answered.
    pub(crate) fn violations(&self) -> Vec<String> {
        let mut wrong = self.violations.lock().unwrap().clone();
        let done = self.done.lock().unwrap();
        let (mut by_start, mut by_end): (Vec<_>, Vec<_>) = (done.iter().collect(), done.iter().collect());
        by_start.sort_by_key(|done| done.start);
        by_end.sort_by_key(|done| done.end);
        let mut ended = by_end.into_iter().peekable();
        let mut newest: Option<OpId> = None;
        for later in by_start {
            while let Some(earlier) = ended.next_if(|earlier| earlier.end < later.start) {
                newest = newest.max(Some(earlier.id));
            }
            if newest > Some(later.id) {
                wrong.push(format!(
                    "{} of {} began after {newest:?} was answered",
                    later.id, later.path
                ));
            }
        }
        wrong
    }

    /// How many changes of names and places were answered.
    pub(crate) fn answers(&self) -> (usize, usize) {
        let places = self.places.lock().unwrap().values().map(HashMap::len).sum();
        (self.done.lock().unwrap().len(), places)
    }
}

/// A client on a machine.
struct Asking<'w> {
    site: &'w Site,
    history: &'w History,
    client: Client<SystemClock, NodeNet, LocalEngine>,
    node: &'static str,
    count: usize,
    mine: Vec<String>,
}

/// Asks until it shall end; for a thread of its own.
pub(crate) fn ask_until(site: &Site, index: usize, seed: u64, history: &History, ends: &AtomicBool) {
    site.networks.enter(u8::try_from(index).unwrap());
    let node = NODES[index];
    let registry_path = site.machines[index].state().join("volumes.db");
    let registry = Registry::open(&registry_path).unwrap();
    let net = NodeNet::new(registry.machine().unwrap(), registry.access().unwrap().certificates);
    let (dir, id) = (site.path("v"), NodeId(node.into()));
    let engine = LocalEngine::open(&dir, &registry_path, id.clone(), None).unwrap();
    let format = read_format(&csv_lock::HostVolume::new(&dir)).unwrap();
    let client = Client::new(SystemClock, net, engine, format, id, Uuid::new_v4());
    let mut asking = Asking {
        site,
        history,
        client,
        node,
        count: 0,
        mine: Vec::new(),
    };
    let mut random = Rng::with_seed(seed);
    let path = format!("table-{node}.vhd");
    asking.create(&path, Some(TABLE));
    let Ok(Answer::Outcome(Outcome::Writer(generation))) = asking.ask(Ask::Open { path: path.clone() }) else {
        panic!("{node} gets no right to write its own disk");
    };
    let mut block = 0;
    while !ends.load(Ordering::Relaxed) {
        match random.u32(..8) {
            0 => {
                let path = format!("{node}-{}.vhd", asking.count);
                asking.create(&path, None);
                asking.mine.push(path);
            }
            1 if !asking.mine.is_empty() => {
                let path = asking.mine.swap_remove(random.usize(..asking.mine.len()));
                asking.delete(&path);
            }
            2 => asking.list(),
            _ => {
                let blocks = (block..block + random.u32(1..4)).collect();
                block += 3;
                asking.allocate(&path, generation, blocks);
            }
        }
        thread::sleep(Duration::from_millis(random.u64(1..20)));
    }
}

impl Asking<'_> {
    /// A refusal of what is allowed is wrong; without an answer it is not known whether it took effect.
    fn ask(&mut self, ask: Ask) -> Result<Answer, CsvError> {
        let text = format!("{ask:?}");
        let result = self.client.ask(ask, LIMIT);
        if let Err(error) = &result {
            self.history.wrong(format!("{}: {text}: {error}", self.node));
        }
        result
    }

    fn create(&mut self, path: &str, table: Option<Table>) {
        self.count += 1;
        let name = Uuid::new_v4().to_string();
        let mut bytes = vec![0; 512];
        if let Some(table) = table {
            bytes.resize(512 + 4 * table.entries as usize, 0xff);
        }
        fs::write(self.site.path("v").join(incoming(&name)), bytes).unwrap();
        let start = Instant::now();
        let create = Ask::Create {
            path: path.to_owned(),
            incoming: name,
            table,
        };
        if let Ok(Answer::Outcome(Outcome::Done(id))) = self.ask(create) {
            self.history.done(start, id, path, false);
        }
    }

    fn delete(&mut self, path: &str) {
        self.history.removing.lock().unwrap().insert(path.to_owned());
        let start = Instant::now();
        let delete = Ask::Delete { path: path.to_owned() };
        if let Ok(Answer::Outcome(Outcome::Done(id))) = self.ask(delete) {
            self.history.done(start, id, path, true);
        }
    }

    fn list(&mut self) {
        let start = Instant::now();
        if let Ok(Answer::Disks(disks)) = self.ask(Ask::Disks) {
            self.history
                .listed(start, &disks.into_iter().map(|(path, _)| path).collect());
        }
    }

    fn allocate(&mut self, path: &str, generation: Generation, blocks: Vec<u32>) {
        let alloc = Ask::Alloc {
            path: path.to_owned(),
            generation,
            blocks,
        };
        if let Ok(Answer::Outcome(Outcome::Blocks(places))) = self.ask(alloc) {
            self.history.placed(path, places);
        }
    }
}
