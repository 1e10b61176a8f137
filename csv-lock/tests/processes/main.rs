//! Nodes and clients as real processes on one machine, with the local engine: killed, stopped, and elected all at once.
//!
//! A process of the test is this program again, with its part in the environment.

#[cfg(feature = "etcd")]
mod etcd;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use csv_lock::{
    Answer, Ask, Client, ClusterId, CsvError, Engine, Generation, HostVolume, Leader, LocalEngine, Node, NodeId,
    Outcome, SystemClock, Table, Term, UnixNet, VolumeFormat, VolumeId, incoming, init_volume, read_format, take_over,
};
use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;

const PART: &str = "CSV_TEST_PART";
const DIR: &str = "CSV_TEST_DIR";
const NAME: &str = "CSV_TEST_NAME";
#[cfg(feature = "etcd")]
const ENDPOINT: &str = "CSV_TEST_ENDPOINT";
const TABLE: Table = Table {
    offset: 512,
    entries: 4096,
    block: 512,
    bitmap: 0,
    footer: 0,
    full: false,
};
const LIMIT: Duration = Duration::from_secs(30);
/// How long a coordinator may be silent before it is killed.
const PATIENCE: Duration = Duration::from_secs(2);

/// An engine that elects everybody who asks, at any time. What it cannot break no engine can.
struct Anarchy(LocalEngine);

impl Engine for Anarchy {
    fn campaign(&self, _: VolumeId) -> Result<Option<Term>, CsvError> {
        Ok(Some(Term {
            revision: 0,
            until: Duration::MAX,
            renew_at: Duration::MAX,
        }))
    }
    fn renew(&self, _: VolumeId, term: &Term) -> Result<Option<Term>, CsvError> {
        Ok(Some(term.clone()))
    }
    fn resign(&self, _: VolumeId, _: &Term) -> Result<(), CsvError> {
        Ok(())
    }
    fn publish(&self, volume: VolumeId, term: &Term, leader: &Leader) -> Result<(), CsvError> {
        self.0.publish(volume, term, leader)
    }
    fn leader(&self, volume: VolumeId) -> Result<Option<Leader>, CsvError> {
        self.0.leader(volume)
    }
}

/// What a process of the test does. Not a test by itself.
#[test]
fn part() {
    let Ok(part) = env::var(PART) else { return };
    let dir = PathBuf::from(env::var(DIR).unwrap());
    let name = env::var(NAME).unwrap();
    match part.as_str() {
        "node" => node(&dir, &name, engine(&dir, &name), Duration::from_millis(20)),
        "anarchist" => node(&dir, &name, Anarchy(engine(&dir, &name)), Duration::from_millis(300)),
        "client" => client(&dir, &name, engine(&dir, &name)),
        #[cfg(feature = "etcd")]
        "etcd-node" => node(&dir, &name, etcd::part_engine(&name), Duration::from_millis(50)),
        #[cfg(feature = "etcd")]
        "etcd-client" => client(&dir, &name, etcd::part_engine(&name)),
        other => panic!("no part {other}"),
    }
}

fn volume(dir: &Path) -> HostVolume {
    HostVolume::new(&dir.join("volume"))
}

fn engine(dir: &Path, name: &str) -> LocalEngine {
    let registry = dir.join("registry.db");
    LocalEngine::open(&dir.join("volume"), &registry, NodeId(name.into()), Some(PATIENCE)).unwrap()
}

fn node<E: Engine>(dir: &Path, name: &str, engine: E, patience: Duration) {
    let node = Node {
        clock: SystemClock,
        net: UnixNet::default(),
        volume: volume(dir),
        engine,
        format: read_format(&volume(dir)).unwrap(),
        node: NodeId(name.into()),
        address: dir.join(format!("{name}.sock")).to_str().unwrap().to_owned(),
        patience,
    };
    node.run(&|| false);
}

fn new_client<E: Engine>(dir: &Path, name: &str, engine: E) -> Client<SystemClock, UnixNet, E> {
    let format = read_format(&volume(dir)).unwrap();
    let id = Uuid::from_u128(u128::from(std::process::id()) << 64 | u128::from(name.as_bytes()[0]));
    Client::new(SystemClock, UnixNet::default(), engine, format, NodeId(name.into()), id)
}

fn prepare(dir: &Path, name: &str) {
    let mut bytes = vec![0; 512];
    bytes.resize(512 + 4 * TABLE.entries as usize, 0xff);
    fs::write(volume(dir).root().join(incoming(name)), bytes).unwrap();
}

fn writer(answer: Result<Answer, CsvError>) -> Generation {
    match answer {
        Ok(Answer::Outcome(Outcome::Writer(generation))) => generation,
        other => panic!("no right to write: {other:?}"),
    }
}

/// Creates a disk and gets place after place for it; says each one that was answered.
fn client<E: Engine>(dir: &Path, name: &str, engine: E) {
    let mut client = new_client(dir, name, engine);
    let path = format!("{name}.vhd");
    prepare(dir, name);
    let create = Ask::Create {
        path: path.clone(),
        incoming: name.into(),
        table: Some(TABLE),
    };
    client.ask(create, LIMIT).unwrap();
    let generation = writer(client.ask(Ask::Open { path: path.clone() }, LIMIT));
    for block in 0..TABLE.entries {
        let alloc = Ask::Alloc {
            path: path.clone(),
            generation,
            blocks: vec![block],
        };
        let answer = client.ask(alloc, LIMIT).unwrap();
        let Answer::Outcome(Outcome::Blocks(places)) = answer else {
            panic!("{answer:?}")
        };
        println!("\nplace {} {}", places[0].0, places[0].1);
        std::io::stdout().flush().unwrap();
        thread::sleep(Duration::from_millis(1));
    }
}

/// A process that is killed when the test ends, however it does.
struct Part(Child);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Part {
    fn start(part: &str, dir: &Path, name: &str) -> Self {
        Self::start_with(part, dir, name, &[])
    }

    fn start_with(part: &str, dir: &Path, name: &str, more: &[(&str, &str)]) -> Self {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "part", "--nocapture"])
            .env(PART, part)
            .env(DIR, dir)
            .env(NAME, name)
            .envs(more.iter().copied())
            .stdout(Stdio::piped())
            .spawn();
        Self(child.unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.0.id().cast_signed()).unwrap(), signal).unwrap();
    }

    /// The lines `place BLOCK PLACE` that it says.
    fn places(&mut self) -> Receiver<(u32, u64)> {
        let output = self.0.stdout.take().unwrap();
        let (sender, receiver) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let mut words = line.split(' ');
                if words.next() == Some("place") {
                    let (block, place) = (words.next().unwrap(), words.next().unwrap());
                    let _ = sender.send((block.parse().unwrap(), place.parse().unwrap()));
                }
            }
        });
        receiver
    }
}

fn volume_id() -> VolumeId {
    VolumeId(Uuid::from_u128(1))
}

fn new_volume() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("volume")).unwrap();
    let format = VolumeFormat::new(volume_id(), ClusterId(Uuid::from_u128(2)), "v");
    init_volume(&volume(dir.path()), &format).unwrap();
    dir
}

/// The coordinator among the nodes, once there is one whose epoch is newer than `after`.
fn leader(dir: &Path, after: u64) -> Leader {
    leader_of(&engine(dir, "test"), after)
}

fn leader_of<E: Engine>(engine: &E, after: u64) -> Leader {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(60) {
        // An engine that does not answer in time is asked again.
        let leader = engine.leader(volume_id()).ok().flatten();
        if let Some(leader) = leader.filter(|leader| leader.epoch.0 > after) {
            return leader;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("no coordinator after epoch {after}");
}

/// Waits for `count` more answers, and keeps them; the longest time without one.
fn gather(places: &Receiver<(u32, u64)>, known: &mut BTreeMap<u32, u64>, count: usize) -> Duration {
    let mut longest = Duration::ZERO;
    for _ in 0..count {
        let begin = Instant::now();
        let (block, place) = places
            .recv_timeout(Duration::from_secs(60))
            .expect("the client goes on");
        longest = longest.max(begin.elapsed());
        assert_eq!(known.insert(block, place), None);
    }
    longest
}

/// After all processes are gone: each place that was answered is in the table, none is there twice, and the state is readable.
fn check(dir: &Path, disks: &[(&str, &BTreeMap<u32, u64>)]) {
    let volume = volume(dir);
    let format = read_format(&volume).unwrap();
    let coordinator = take_over(&volume, &format, &NodeId("test".into()), 0).unwrap();
    for (name, known) in disks {
        let path = format!("{name}.vhd");
        assert!(coordinator.state().disks.contains_key(&path));
        let mut table = vec![0; 4 * TABLE.entries as usize];
        let file = fs::File::open(volume.root().join(&path)).unwrap();
        file.read_exact_at(&mut table, TABLE.offset).unwrap();
        let entries: Vec<u32> = table
            .chunks(4)
            .map(|entry| u32::from_be_bytes(entry.try_into().unwrap()))
            .collect();
        for (&block, &place) in *known {
            assert_eq!(u64::from(entries[block as usize]) * 512, place, "{path}, block {block}");
        }
        let mut used: Vec<u32> = entries.into_iter().filter(|&entry| entry != u32::MAX).collect();
        let count = used.len();
        used.sort_unstable();
        used.dedup();
        assert_eq!(used.len(), count, "{path}: a place was given twice");
        let last = used.last().map_or(0, |&entry| u64::from(entry) * 512 + TABLE.block);
        assert!(file.metadata().unwrap().len() >= last);
    }
}

fn three<'n>(part: &str, dir: &Path) -> BTreeMap<&'n str, Part> {
    ["a", "b", "c"]
        .into_iter()
        .map(|name| (name, Part::start(part, dir, name)))
        .collect()
}

#[test]
fn a_killed_coordinator_is_followed_by_another_and_no_answer_is_lost() {
    let dir = new_volume();
    let mut nodes = three("node", dir.path());
    let mut client = Part::start("client", dir.path(), "x");
    let (places, mut known) = (client.places(), BTreeMap::new());
    gather(&places, &mut known, 20);
    let mut epoch = 0;
    for _ in 0..5 {
        let found = leader(dir.path(), epoch);
        epoch = found.epoch.0;
        let name = nodes.keys().copied().find(|&name| name == found.node.0).unwrap();
        nodes[name].signal(Signal::KILL);
        let gap = gather(&places, &mut known, 60);
        println!("killed {name} of epoch {epoch}: {gap:?} without an answer");
        nodes.insert(name, Part::start("node", dir.path(), name));
    }
    drop((nodes, client));
    check(dir.path(), &[("x", &known)]);
}

#[test]
fn a_stopped_coordinator_is_killed_with_proof_and_followed_by_another() {
    let dir = new_volume();
    let nodes = three("node", dir.path());
    let mut client = Part::start("client", dir.path(), "x");
    let (places, mut known) = (client.places(), BTreeMap::new());
    gather(&places, &mut known, 20);
    let first = leader(dir.path(), 0);
    nodes[first.node.0.as_str()].signal(Signal::STOP);
    let second = leader(dir.path(), first.epoch.0);
    assert_ne!(first.node, second.node);
    gather(&places, &mut known, 50);
    // It was killed, not only passed over: continuing it has nobody to continue.
    let mut nodes = nodes;
    let status = nodes.get_mut(first.node.0.as_str()).unwrap().0.try_wait().unwrap();
    assert!(status.is_some_and(|status| status.code().is_none()), "{status:?}");
    drop((nodes, client));
    check(dir.path(), &[("x", &known)]);
}

#[test]
fn inv_91_coordinators_that_are_all_elected_and_stopped_at_random_do_no_harm() {
    let dir = new_volume();
    let nodes = three("anarchist", dir.path());
    let mut clients: Vec<_> = ["x", "y"]
        .iter()
        .map(|name| Part::start("client", dir.path(), name))
        .collect();
    let places: Vec<_> = clients.iter_mut().map(Part::places).collect();
    let mut known = [BTreeMap::new(), BTreeMap::new()];
    let seed = env::var("VHD_TEST_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("VHD_TEST_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let view = engine(dir.path(), "test");
    let mut rounds = 0;
    // A coordinator that nobody asks does not hear that others have taken over. Where the engine ends no term, as here, all
    // of them can come to that, and then no more takeovers follow: that is safe, and not waited for.
    while rounds < 20 || leader_of(&view, 0).epoch.0 < 12 && rounds < 80 {
        // Longer than the others wait before they take over, and continued at any step.
        let name = ["a", "b", "c"][rng.usize(..3)];
        nodes[name].signal(Signal::STOP);
        thread::sleep(Duration::from_millis(rng.u64(50..500)));
        nodes[name].signal(Signal::CONT);
        rounds += 1;
    }
    assert!(
        leader_of(&view, 0).epoch.0 >= 3,
        "they do not take over from each other"
    );
    for (places, known) in places.iter().zip(&mut known) {
        known.extend(places.try_iter());
        // One that has a place for every block has nothing more to ask for.
        let left = TABLE.entries as usize - known.len();
        gather(places, known, left.min(5));
    }
    drop((nodes, clients));
    println!("{rounds} stops, {} and {} answers", known[0].len(), known[1].len());
    check(dir.path(), &[("x", &known[0]), ("y", &known[1])]);
}

#[test]
fn inv_98_of_two_processes_one_writes_and_the_other_hears_who() {
    let dir = new_volume();
    let _node = Part::start("node", dir.path(), "a");
    let mut holder = Part::start("client", dir.path(), "x");
    let mut known = BTreeMap::new();
    gather(&holder.places(), &mut known, 1);
    let mut second = new_client(dir.path(), "y", engine(dir.path(), "y"));
    let open = || Ask::Open { path: "x.vhd".into() };
    let refused = second.ask(open(), LIMIT).expect_err("it has a writer");
    assert_eq!(refused.code(), "VHD-E0924");
    assert!(
        refused.to_string().contains("is being written by x (session"),
        "{refused}"
    );
    // Its death alone gives nothing away: the proof does.
    drop(holder);
    assert_eq!(second.ask(open(), LIMIT).expect_err("no proof yet").code(), "VHD-E0924");
    let Ok(Answer::Disks(disks)) = second.ask(Ask::Disks, LIMIT) else {
        panic!("no list")
    };
    let session = disks[0].1.writer.clone().unwrap();
    let fenced = Ask::Fenced {
        session,
        proof: "the process has ended".into(),
    };
    second.ask(fenced, LIMIT).unwrap();
    writer(second.ask(open(), LIMIT));
}
