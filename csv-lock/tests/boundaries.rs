//! Every boundary between two requests to the file system, one after the other: a coordinator that dies there, before the request
//! or just after it, and one that stops there, is superseded, and goes on when its successor has done everything.
//!
//! After each the volume must be, byte by byte, as if nothing had happened.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use csv_lock::{
    Ask, ClusterId, Coordinator, CsvError, Generation, HostVolume, NodeId, Refusal, Request, RequestId, Session, Table,
    VolumeFile, VolumeFormat, VolumeId, VolumeIo, incoming, init_volume, take_over,
};
use tempfile::TempDir;
use uuid::Uuid;

const TABLE: Table = Table {
    offset: 512,
    entries: 16,
    block: 512,
    bitmap: 0,
    footer: 0,
    full: false,
};

/// Of the second coordinator's boundaries every how-manieth is tried; `CSV_EVERY=1` tries all.
const EVERY: usize = 53;

/// What happens at a boundary.
enum Event<'e> {
    Nothing,
    /// The process ends before the request. Nothing that it asks for later happens.
    DieBefore,
    /// It ends when the request is done.
    DieAfter,
    /// The process stops; this happens meanwhile.
    Stop(&'e (dyn Fn() + Sync)),
}

/// A volume with an event at one request.
struct Boundary<'e> {
    inner: HostVolume,
    at: usize,
    count: AtomicUsize,
    event: Event<'e>,
}

struct BoundaryFile<'e> {
    inner: File,
    volume: &'e Boundary<'e>,
}

impl<'e> Boundary<'e> {
    fn new(dir: &Path, at: usize, event: Event<'e>) -> Self {
        Self {
            inner: HostVolume::new(dir),
            at,
            count: AtomicUsize::new(0),
            event,
        }
    }

    fn request<T>(&self, request: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let dead = || io::Error::other("the process has ended");
        match &self.event {
            Event::DieBefore if count >= self.at => return Err(dead()),
            Event::DieAfter if count > self.at => return Err(dead()),
            Event::DieAfter if count == self.at => {
                let _ = request();
                return Err(dead());
            }
            Event::Stop(meanwhile) if count == self.at => meanwhile(),
            _ => {}
        }
        request()
    }
}

/// A reference, so that files can point back.
#[derive(Clone, Copy)]
struct At<'e>(&'e Boundary<'e>);

impl<'e> VolumeIo for At<'e> {
    type File = BoundaryFile<'e>;

    fn create_new(&self, path: &str) -> io::Result<Self::File> {
        let inner = self.0.request(|| self.0.inner.create_new(path))?;
        Ok(BoundaryFile { inner, volume: self.0 })
    }
    fn open(&self, path: &str) -> io::Result<Self::File> {
        let inner = self.0.request(|| self.0.inner.open(path))?;
        Ok(BoundaryFile { inner, volume: self.0 })
    }
    fn exists(&self, path: &str) -> io::Result<bool> {
        self.0.request(|| self.0.inner.exists(path))
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.0.request(|| self.0.inner.list(dir))
    }
    fn make_dir(&self, dir: &str) -> io::Result<()> {
        self.0.request(|| self.0.inner.make_dir(dir))
    }
    fn remove_dir(&self, dir: &str) -> io::Result<()> {
        self.0.request(|| self.0.inner.remove_dir(dir))
    }
    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        self.0.request(|| self.0.inner.rename(from, to, replace))
    }
    fn remove_file(&self, path: &str) -> io::Result<()> {
        self.0.request(|| self.0.inner.remove_file(path))
    }
    fn clear(&self, path: &str) -> io::Result<()> {
        self.0.request(|| self.0.inner.clear(path))
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        // Costs time here and proves nothing: power is not lost.
        self.0.request(|| fs::metadata(self.0.inner.root().join(dir)).map(drop))
    }
}

impl VolumeFile for BoundaryFile<'_> {
    fn len(&self) -> io::Result<u64> {
        self.volume.request(|| VolumeFile::len(&self.inner))
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.volume.request(|| VolumeFile::read_at(&self.inner, buffer, offset))
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.volume.request(|| VolumeFile::write_at(&self.inner, bytes, offset))
    }
    fn extend_to(&self, end: u64) -> io::Result<()> {
        self.volume.request(|| self.inner.extend_to(end))
    }
    fn sync(&self) -> io::Result<()> {
        self.volume.request(|| Ok(()))
    }
}

fn format() -> VolumeFormat {
    VolumeFormat::new(VolumeId(Uuid::from_u128(1)), ClusterId(Uuid::from_u128(2)), "v")
}

/// Everything that is asked for, in order: each name is used by several files, one after the other.
fn script() -> Vec<Ask> {
    let create = |path: &str, name: &str| Ask::Create {
        path: path.into(),
        incoming: name.into(),
        table: Some(TABLE),
    };
    let delete = |path: &str| Ask::Delete { path: path.into() };
    let open = |path: &str| Ask::Open { path: path.into() };
    let alloc = |path: &str, generation, blocks: &[u32]| Ask::Alloc {
        path: path.into(),
        generation: Generation(generation),
        blocks: blocks.to_vec(),
    };
    vec![
        create("a.vhd", "1"),
        open("a.vhd"),
        alloc("a.vhd", 1, &[3, 1]),
        create("b.vhd", "2"),
        delete("b.vhd"),
        create("b.vhd", "3"),
        Ask::Replace {
            path: "a.vhd".into(),
            incoming: "4".into(),
            table: Some(TABLE),
            generation: Some(Generation(1)),
        },
        open("a.vhd"),
        alloc("a.vhd", 2, &[1, 2]),
        delete("b.vhd"),
        create("b.vhd", "5"),
        open("b.vhd"),
        alloc("b.vhd", 3, &[9]),
        alloc("a.vhd", 2, &[2, 3]),
    ]
}

/// Asks for everything from the beginning, as a client does that has heard nothing: what was done is answered and not done again.
/// How many answers there were, and why there were no more.
fn run<V: VolumeIo>(coordinator: &mut Coordinator<'_, V>) -> (usize, Option<CsvError>) {
    for (index, ask) in script().into_iter().enumerate() {
        let request = Request {
            cluster: format().cluster,
            volume: format().volume,
            epoch: coordinator.epoch(),
            id: RequestId {
                // A session for each request: it asks again whatever was asked after it.
                session: Session {
                    node: NodeId("client".into()),
                    id: Uuid::from_u128(if uses_right(&ask) { 100 } else { 1000 + index as u128 }),
                },
                number: index as u64 + 1,
            },
            ask: ask.clone(),
        };
        let served = coordinator.serve(&[request]);
        if served.ended.is_some() {
            assert_eq!(served.replies[0].result, Err(Refusal::Moved), "{ask:?}");
            return (index, served.ended);
        }
        match &served.replies[0].result {
            // The session of the right to write has gone on: it was answered.
            Ok(_) | Err(Refusal::Late) => {}
            Err(refusal) => panic!("request {index}, {ask:?}: {refusal}"),
        }
    }
    (script().len(), None)
}

fn uses_right(ask: &Ask) -> bool {
    matches!(ask, Ask::Open { .. } | Ask::Alloc { .. } | Ask::Replace { .. })
}

/// A volume with all that the script needs prepared.
fn new_volume() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    init_volume(&At(&Boundary::new(dir.path(), 0, Event::Nothing)), &format()).unwrap();
    for number in 1..=5_u8 {
        let mut bytes = vec![number; 512];
        bytes.resize(1024, 0xff);
        fs::write(dir.path().join(incoming(&number.to_string())), bytes).unwrap();
    }
    dir
}

/// The disks, byte by byte.
fn content(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir)
        .unwrap()
        .map(Result::unwrap)
        .filter(|entry| entry.path().is_file());
    entries
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                fs::read(entry.path()).unwrap(),
            )
        })
        .collect()
}

/// A whole life on the volume: takes it over, does everything, ends in order.
fn live(dir: &Path) {
    let boundary = Boundary::new(dir, 0, Event::Nothing);
    let volume = At(&boundary);
    let mut coordinator = take_over(&volume, &format(), &NodeId("whole".into()), 0).unwrap();
    let (answers, ended) = run(&mut coordinator);
    assert_eq!((answers, ended.map(|error| error.to_string())), (script().len(), None));
    coordinator.close().unwrap();
}

/// A life with an event in it; how many requests to the file system it made, and how many answers it gave.
fn live_with(dir: &Path, at: usize, event: Event<'_>) -> (usize, usize) {
    let boundary = Boundary::new(dir, at, event);
    let volume = At(&boundary);
    let answers = match take_over(&volume, &format(), &NodeId("interrupted".into()), 0) {
        Ok(mut coordinator) => {
            let (answers, ended) = run(&mut coordinator);
            if ended.is_none() {
                // As it is closed it may find that it is over.
                let _ = coordinator.close();
            }
            answers
        }
        Err(_) => 0,
    };
    (boundary.count.load(Ordering::Relaxed), answers)
}

/// The volume as it must be, and how many boundaries there are.
fn expected() -> (BTreeMap<String, Vec<u8>>, usize) {
    let dir = new_volume();
    let (boundaries, answers) = live_with(dir.path(), 0, Event::Nothing);
    assert_eq!(answers, script().len());
    let content = content(dir.path());
    assert_eq!(content["a.vhd"][..4], [4; 4]);
    assert_eq!(content["b.vhd"][..4], [5; 4]);
    (content, boundaries)
}

fn check(dir: &Path, expected: &BTreeMap<String, Vec<u8>>, what: &str) {
    let found = content(dir);
    assert!(found.keys().eq(expected.keys()), "{what}: {:?}", found.keys());
    for (name, bytes) in expected {
        assert!(found[name] == *bytes, "{what}: {name} is not as it must be");
    }
    let left = fs::read_dir(dir.join(".csv/incoming")).unwrap().count();
    assert_eq!(left, 0, "{what}: prepared files are left");
}

#[test]
fn inv_94_a_coordinator_dies_at_each_boundary() {
    let (expected, boundaries) = expected();
    assert!(boundaries > 100, "{boundaries} boundaries");
    for at in 0..boundaries {
        for (event, when) in [(Event::DieBefore, "before"), (Event::DieAfter, "after")] {
            let dir = new_volume();
            live_with(dir.path(), at, event);
            live(dir.path());
            check(dir.path(), &expected, &format!("died {when} request {at}"));
        }
    }
}

#[test]
fn inv_96_a_coordinator_stops_at_each_boundary_and_goes_on_too_late() {
    let (expected, boundaries) = expected();
    for at in 0..boundaries {
        let dir = new_volume();
        let meanwhile = || live(dir.path());
        live_with(dir.path(), at, Event::Stop(&meanwhile));
        check(dir.path(), &expected, &format!("stopped before request {at}"));
        // And nobody finds anything else later.
        live(dir.path());
        check(
            dir.path(),
            &expected,
            &format!("stopped before request {at}, then taken over"),
        );
    }
}

#[test]
fn inv_96_two_coordinators_stop_one_in_the_other() {
    let (expected, boundaries) = expected();
    // All boundaries of the first, every few of the second: it begins at another one each time.
    let every = std::env::var("CSV_EVERY").map_or(EVERY, |every| every.parse().expect("CSV_EVERY is a number"));
    println!("{boundaries} boundaries");
    for at in 0..boundaries {
        for inner in (at % every..boundaries).step_by(every) {
            let dir = new_volume();
            let third = || live(dir.path());
            let second = || {
                live_with(dir.path(), inner, Event::Stop(&third));
            };
            live_with(dir.path(), at, Event::Stop(&second));
            live(dir.path());
            check(
                dir.path(),
                &expected,
                &format!("stopped before request {at}, the second before {inner}"),
            );
        }
    }
}
