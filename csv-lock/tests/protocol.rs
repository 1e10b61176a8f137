//! The protocol on real directories: each job, each refusal, coordinators that wake up after they were superseded, and damage.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use csv_lock::{
    Answer, Ask, ClusterId, Coordinator, CsvError, Epoch, Generation, HostVolume, NodeId, Outcome, Refusal, Request,
    RequestId, Session, Table, VolumeFormat, VolumeId, VolumeIo, incoming, init_volume, newest_epoch, read_format,
    take_over,
};
use tempfile::TempDir;
use uuid::Uuid;

const TABLE: Table = Table {
    offset: 512,
    entries: 16,
    block: 1024,
    bitmap: 0,
    footer: 0,
    full: false,
};

/// A volume in a directory of its own.
struct Fixture {
    dir: TempDir,
    volume: HostVolume,
    format: VolumeFormat,
    number: u64,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let volume = HostVolume::new(dir.path());
        let format = VolumeFormat::new(VolumeId(Uuid::from_u128(1)), ClusterId(Uuid::from_u128(2)), "v");
        init_volume(&volume, &format).unwrap();
        Self {
            dir,
            volume,
            format,
            number: 0,
        }
    }

    fn coordinator(&self) -> Coordinator<'_, HostVolume> {
        take_over(&self.volume, &self.format, &NodeId("a".into()), 0).unwrap()
    }

    fn session(&self, name: &str) -> Session {
        Session {
            node: NodeId(name.into()),
            id: Uuid::from_u128(u128::from(name.as_bytes()[0])),
        }
    }

    fn request(&self, epoch: Epoch, who: &str, number: u64, ask: Ask) -> Request {
        Request {
            cluster: self.format.cluster,
            volume: self.format.volume,
            epoch,
            id: RequestId {
                session: self.session(who),
                number,
            },
            ask,
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn prepare(&mut self) -> String {
        self.number += 1;
        let name = format!("file-{}", self.number);
        let mut bytes = vec![0; 1024];
        bytes[512..].fill(0xff);
        fs::write(self.path().join(incoming(&name)), bytes).unwrap();
        name
    }

    fn create(&mut self, path: &str) -> Ask {
        Ask::Create {
            path: path.into(),
            incoming: self.prepare(),
            table: Some(TABLE),
        }
    }
}

/// Asks one thing; the next number of the session.
fn ask(
    fixture: &Fixture,
    coordinator: &mut Coordinator<'_, HostVolume>,
    who: &str,
    number: u64,
    ask: Ask,
) -> Result<Answer, Refusal> {
    let request = fixture.request(coordinator.epoch(), who, number, ask);
    let served = coordinator.serve(&[request]);
    assert!(served.ended.is_none(), "{:?}", served.ended);
    served.replies.into_iter().next().unwrap().result
}

fn generation(answer: Result<Answer, Refusal>) -> Generation {
    match answer {
        Ok(Answer::Outcome(Outcome::Writer(generation))) => generation,
        other => panic!("no right to write: {other:?}"),
    }
}

fn open(path: &str) -> Ask {
    Ask::Open { path: path.into() }
}

fn alloc(path: &str, generation: Generation, blocks: &[u32]) -> Ask {
    Ask::Alloc {
        path: path.into(),
        generation,
        blocks: blocks.to_vec(),
    }
}

fn entry(path: &Path, block: u64) -> u32 {
    let mut bytes = [0; 4];
    fs::File::open(path)
        .unwrap()
        .read_exact_at(&mut bytes, TABLE.offset + 4 * block)
        .unwrap();
    u32::from_be_bytes(bytes)
}

#[test]
fn a_disk_is_created_written_passed_on_and_deleted() {
    let mut fixture = Fixture::new();
    let create = fixture.create("a.vhd");
    let replacement = fixture.prepare();
    let fixture = &fixture;
    let disk = fixture.path().join("a.vhd");
    let mut first = fixture.coordinator();
    ask(fixture, &mut first, "a", 1, create).unwrap();
    assert!(disk.is_file());
    let one = generation(ask(fixture, &mut first, "a", 2, open("a.vhd")));
    let places = ask(fixture, &mut first, "a", 3, alloc("a.vhd", one, &[3, 5, 3])).unwrap();
    assert_eq!(places, Answer::Outcome(Outcome::Blocks(vec![(3, 1024), (5, 2048)])));
    assert_eq!((entry(&disk, 3), entry(&disk, 5), entry(&disk, 4)), (2, 4, u32::MAX));
    assert_eq!(disk.metadata().unwrap().len(), 3072);

    // The next coordinator knows all of it, and gives places that exist again.
    first.close().unwrap();
    let mut second = fixture.coordinator();
    let places = ask(fixture, &mut second, "a", 4, alloc("a.vhd", one, &[5, 6])).unwrap();
    assert_eq!(places, Answer::Outcome(Outcome::Blocks(vec![(5, 2048), (6, 3072)])));
    let handover = Ask::Handover {
        path: "a.vhd".into(),
        generation: one,
        to: fixture.session("b"),
    };
    let two = generation(ask(fixture, &mut second, "a", 5, handover));
    assert!(two > one);
    let late = ask(fixture, &mut second, "a", 6, alloc("a.vhd", one, &[7])).unwrap_err();
    assert_eq!(late.code(), "VHD-E0925");
    let replace = Ask::Replace {
        path: "a.vhd".into(),
        incoming: replacement,
        table: Some(TABLE),
        generation: Some(two),
    };
    ask(fixture, &mut second, "b", 1, replace).unwrap();
    assert_eq!(disk.metadata().unwrap().len(), 1024);
    ask(fixture, &mut second, "b", 2, Ask::Delete { path: "a.vhd".into() }).unwrap();
    assert!(!disk.exists());
    // Nothing is left of it but names of epochs.
    second.close().unwrap();
    let third = fixture.coordinator();
    assert!(third.state().disks.is_empty());
    let stages: Vec<_> = fixture
        .volume
        .list(".csv")
        .unwrap()
        .into_iter()
        .filter(|name| name.starts_with("stage"))
        .collect();
    assert_eq!(stages.len(), 1);
    assert!(fixture.volume.list(&format!(".csv/{}", stages[0])).unwrap().is_empty());
}

#[test]
fn inv_98_a_disk_has_one_writer() {
    let mut fixture = Fixture::new();
    let create = fixture.create("a.vhd");
    let fixture = &fixture;
    let mut coordinator = fixture.coordinator();
    ask(fixture, &mut coordinator, "a", 1, create).unwrap();
    let one = generation(ask(fixture, &mut coordinator, "a", 2, open("a.vhd")));
    let refused = ask(fixture, &mut coordinator, "b", 1, open("a.vhd")).unwrap_err();
    assert_eq!(refused.code(), "VHD-E0924");
    assert!(refused.to_string().contains("being written by a "), "{refused}");
    // Nobody else closes it, deletes it, replaces it, or gets blocks.
    let close = |generation| Ask::Close {
        path: "a.vhd".into(),
        generation,
    };
    for (number, (request, code)) in [
        (close(one), "VHD-E0925"),
        (Ask::Delete { path: "a.vhd".into() }, "VHD-E0924"),
        (alloc("a.vhd", one, &[0]), "VHD-E0925"),
    ]
    .into_iter()
    .enumerate()
    {
        let number = 2 + number as u64;
        assert_eq!(
            ask(fixture, &mut coordinator, "b", number, request).unwrap_err().code(),
            code
        );
    }
    // The holder itself with a generation that is not its own.
    assert_eq!(
        ask(fixture, &mut coordinator, "a", 3, close(Generation(9)))
            .unwrap_err()
            .code(),
        "VHD-E0925"
    );
    // Asked twice, the same answer; and an older one is too late.
    let again = ask(fixture, &mut coordinator, "a", 2, open("a.vhd"));
    assert_eq!(generation(again), one);
    ask(fixture, &mut coordinator, "a", 4, close(one)).unwrap();
    assert_eq!(
        ask(fixture, &mut coordinator, "a", 2, open("a.vhd"))
            .unwrap_err()
            .code(),
        "VHD-E0933"
    );
    let two = generation(ask(fixture, &mut coordinator, "b", 9, open("a.vhd")));
    // A session that is proven to be gone holds nothing, and its late messages are refused.
    let fenced = Ask::Fenced {
        session: fixture.session("b"),
        proof: "a test".into(),
    };
    ask(fixture, &mut coordinator, "c", 1, fenced).unwrap();
    assert_eq!(
        ask(fixture, &mut coordinator, "b", 10, open("a.vhd"))
            .unwrap_err()
            .code(),
        "VHD-E0933"
    );
    let three = generation(ask(fixture, &mut coordinator, "c", 2, open("a.vhd")));
    assert!(three > two);
}

#[test]
fn inv_91_a_coordinator_that_was_superseded_does_nothing() {
    let mut fixture = Fixture::new();
    let (create, other) = (fixture.create("a.vhd"), fixture.create("b.vhd"));
    let fixture = &fixture;
    let mut old = fixture.coordinator();
    ask(fixture, &mut old, "a", 1, create).unwrap();
    let one = generation(ask(fixture, &mut old, "a", 2, open("a.vhd")));
    let mut new = fixture.coordinator();
    // What the old one decides now it appends and does not apply.
    let zombie = [
        fixture.request(old.epoch(), "a", 3, alloc("a.vhd", one, &[1])),
        fixture.request(old.epoch(), "b", 1, other),
        fixture.request(old.epoch(), "c", 1, Ask::Disks),
    ];
    let served = old.serve(&zombie);
    assert!(matches!(served.ended, Some(CsvError::Superseded { .. })));
    assert!(served.replies.iter().all(|reply| reply.result == Err(Refusal::Moved)));
    assert_eq!(entry(&fixture.path().join("a.vhd"), 1), u32::MAX);
    assert!(!fixture.path().join("b.vhd").exists());
    // Nor does any successor.
    ask(fixture, &mut new, "a", 3, alloc("a.vhd", one, &[2])).unwrap();
    assert_eq!(
        entry(&fixture.path().join("a.vhd"), 2),
        2,
        "the place that the old one decided on is free"
    );
    drop(new);
    let third = fixture.coordinator();
    assert!(!third.state().disks.contains_key("b.vhd"));
    assert_eq!(entry(&fixture.path().join("a.vhd"), 1), u32::MAX);
}

#[test]
fn inv_94_what_was_appended_in_time_is_done_by_the_successor() {
    let mut fixture = Fixture::new();
    let create = fixture.create("a.vhd");
    let fixture = &fixture;
    let mut first = fixture.coordinator();
    ask(fixture, &mut first, "a", 1, create).unwrap();
    let one = generation(ask(fixture, &mut first, "a", 2, open("a.vhd")));
    ask(fixture, &mut first, "a", 3, alloc("a.vhd", one, &[7])).unwrap();
    drop(first);
    // As if it had died between append and apply: the entry never reached the table, nor the length the file.
    let disk = fixture.path().join("a.vhd");
    let file = fs::OpenOptions::new().write(true).open(&disk).unwrap();
    file.write_all_at(&[0xff; 4], TABLE.offset + 28).unwrap();
    file.set_len(1024).unwrap();
    drop(fixture.coordinator());
    assert_eq!(entry(&disk, 7), 2);
    assert_eq!(disk.metadata().unwrap().len(), 2048);
}

#[test]
fn inv_101_a_footer_has_a_place_of_its_own_behind_aligned_blocks() {
    let mut fixture = Fixture::new();
    let name = fixture.prepare();
    let path = fixture.path().join(incoming(&name));
    let prepared = fs::OpenOptions::new().write(true).open(&path).unwrap();
    prepared.write_all_at(&[7; 512], 0).unwrap();
    let table = Table {
        block: 1536,
        bitmap: 512,
        footer: 512,
        full: true,
        ..TABLE
    };
    let create = Ask::Create {
        path: "a.vhd".into(),
        incoming: name,
        table: Some(table),
    };
    let fixture = &fixture;
    let mut first = fixture.coordinator();
    ask(fixture, &mut first, "a", 1, create).unwrap();
    let one = generation(ask(fixture, &mut first, "a", 2, open("a.vhd")));
    ask(fixture, &mut first, "a", 3, alloc("a.vhd", one, &[0])).unwrap();
    ask(fixture, &mut first, "a", 4, alloc("a.vhd", one, &[0, 5, 6])).unwrap();
    let disk = fixture.path().join("a.vhd");
    let check = || {
        let bytes = fs::read(&disk).unwrap();
        // Data of blocks begins at multiples of 4 KiB, their bitmaps are full, and the file ends in a footer: then, and now.
        assert_eq!([0, 5, 6].map(|block| entry(&disk, block)), [7, 15, 23]);
        assert_eq!(bytes.len(), 24 * 512 + 1024 + 512);
        for place in [7, 15, 23] {
            assert_eq!(bytes[place * 512..][..512], [0xff; 512]);
            assert_eq!(bytes[(place + 1) * 512..][..1024], [0; 1024]);
        }
        assert_eq!(bytes[26 * 512..], [7; 512]);
    };
    check();
    assert_eq!(fs::read(&disk).unwrap()[10 * 512..11 * 512], [7; 512]);
    // Blocks that have a place cost nothing.
    ask(fixture, &mut first, "a", 5, alloc("a.vhd", one, &[5])).unwrap();
    check();
    drop(first);
    // As if all of it had been lost with the machine.
    let file = fs::OpenOptions::new().write(true).open(&disk).unwrap();
    file.write_all_at(&[0xff; 64], TABLE.offset).unwrap();
    file.set_len(1024).unwrap();
    drop(fixture.coordinator());
    check();
}

#[test]
fn inv_97_messages_for_others_are_refused() {
    let fixture = Fixture::new();
    let mut coordinator = fixture.coordinator();
    let good = fixture.request(coordinator.epoch(), "a", 1, Ask::Disks);
    let mut foreign = good.clone();
    foreign.cluster = ClusterId(Uuid::from_u128(9));
    let mut other = good.clone();
    other.volume = VolumeId(Uuid::from_u128(9));
    let mut older = good.clone();
    older.epoch = Epoch(0);
    let mut newer = good.clone();
    newer.epoch = Epoch(7);
    let served = coordinator.serve(&[foreign, other, older, newer, good]);
    assert!(served.ended.is_none());
    let codes: Vec<_> = served
        .replies
        .iter()
        .map(|reply| reply.result.as_ref().map_or_else(Refusal::code, |_| ""))
        .collect();
    assert_eq!(codes, ["VHD-E0920", "VHD-E0921", "VHD-E0922", "VHD-E0922", ""]);
    let newest = served.replies[2].epoch;
    assert_eq!(newest, coordinator.epoch(), "the sender learns the epoch");
}

#[test]
fn bad_requests_are_refused_and_change_nothing() {
    let mut fixture = Fixture::new();
    let (create, prepared) = (fixture.create("a.vhd"), fixture.prepare());
    fs::write(fixture.path().join("there.vhd"), b"x").unwrap();
    let fixture = &fixture;
    let mut coordinator = fixture.coordinator();
    ask(fixture, &mut coordinator, "a", 1, create).unwrap();
    let one = generation(ask(fixture, &mut coordinator, "a", 2, open("a.vhd")));
    let before = coordinator.state().clone();
    let make = |path: &str, name: &str, table| Ask::Create {
        path: path.into(),
        incoming: name.into(),
        table,
    };
    let too_long = Table { entries: 1000, ..TABLE };
    let odd = Table { block: 1000, ..TABLE };
    let all_bitmap = Table { bitmap: 1024, ..TABLE };
    let long_footer = Table { footer: 1024, ..TABLE };
    let many: Vec<u32> = (0..65).collect();
    let cases = [
        (make("../a", &prepared, None), "VHD-E0929"),
        (make(".csv/format", &prepared, None), "VHD-E0929"),
        (make("a.vhd", &prepared, None), "VHD-E0927"),
        (make("there.vhd", &prepared, None), "VHD-E0927"),
        (make("b.vhd", "missing", None), "VHD-E0928"),
        (make("b.vhd", "../format", None), "VHD-E0928"),
        (make("no/dir.vhd", &prepared, None), "VHD-E0932"),
        (make("b.vhd", &prepared, Some(too_long)), "VHD-E0930"),
        (make("b.vhd", &prepared, Some(odd)), "VHD-E0930"),
        (make("b.vhd", &prepared, Some(all_bitmap)), "VHD-E0930"),
        (make("b.vhd", &prepared, Some(long_footer)), "VHD-E0930"),
        (open("b.vhd"), "VHD-E0926"),
        (
            Ask::Delete {
                path: "there.vhd".into(),
            },
            "VHD-E0926",
        ),
        (alloc("a.vhd", one, &[16]), "VHD-E0930"),
        (alloc("a.vhd", one, &many), "VHD-E0930"),
        (
            Ask::Adopt {
                path: "missing.vhd".into(),
                table: None,
            },
            "VHD-E0926",
        ),
    ];
    for (number, (request, code)) in cases.into_iter().enumerate() {
        let text = format!("{request:?}");
        let refused = ask(fixture, &mut coordinator, "a", 3 + number as u64, request).expect_err(&text);
        assert_eq!(refused.code(), code, "{text}: {refused}");
    }
    assert_eq!(*coordinator.state(), before);
    assert!(fixture.path().join(incoming(&prepared)).exists());
    let adopt = Ask::Adopt {
        path: "there.vhd".into(),
        table: None,
    };
    ask(fixture, &mut coordinator, "a", 90, adopt).unwrap();
    assert_eq!(coordinator.state().disks["there.vhd"].end, 512);
}

#[test]
fn inv_92_a_damaged_journal_stops_the_takeover_and_loses_nothing() {
    let mut fixture = Fixture::new();
    let create = fixture.create("a.vhd");
    let fixture = &fixture;
    let mut coordinator = fixture.coordinator();
    ask(fixture, &mut coordinator, "a", 1, create).unwrap();
    let journal = fixture
        .path()
        .join(".csv/epoch")
        .join(format!("{:020}", coordinator.epoch().0));
    drop(coordinator);
    let whole = fs::read(&journal).unwrap();
    let disk = fs::read(fixture.path().join("a.vhd")).unwrap();
    for at in (0..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&journal, bytes).unwrap();
        let refused = take_over(&fixture.volume, &fixture.format, &NodeId("b".into()), 0);
        assert_eq!(refused.err().expect("damage").code(), "VHD-E0901", "byte {at}");
    }
    fs::write(&journal, whole).unwrap();
    let restored = fixture.coordinator();
    assert!(restored.state().disks.contains_key("a.vhd"));
    assert_eq!(fs::read(fixture.path().join("a.vhd")).unwrap(), disk);
    // A journal of another volume.
    let other = VolumeFormat::new(VolumeId(Uuid::from_u128(3)), fixture.format.cluster, "w");
    let refused = take_over(&fixture.volume, &other, &NodeId("b".into()), 0)
        .err()
        .expect("another volume");
    assert!(refused.to_string().contains("another volume"), "{refused}");
}

#[test]
fn journals_that_are_gone_are_not_taken_for_an_empty_volume() {
    let fixture = Fixture::new();
    for _ in 0..4 {
        fixture.coordinator().close().unwrap();
    }
    let epochs = fixture.path().join(".csv/epoch");
    for file in fs::read_dir(&epochs).unwrap() {
        fs::write(file.unwrap().path(), b"").unwrap();
    }
    let refused = take_over(&fixture.volume, &fixture.format, &NodeId("b".into()), 0)
        .err()
        .expect("no seal");
    assert_eq!(refused.code(), "VHD-E0903");
}

#[test]
fn attempts_that_died_before_their_seal_do_no_harm() {
    let mut fixture = Fixture::new();
    let create = fixture.create("a.vhd");
    let fixture = &fixture;
    let die = || {
        let next = newest_epoch(&fixture.volume).unwrap().next();
        fs::write(fixture.path().join(format!(".csv/epoch/{:020}", next.0)), b"CSVj").unwrap();
    };
    die();
    die();
    let mut coordinator = fixture.coordinator();
    ask(fixture, &mut coordinator, "a", 1, create).unwrap();
    drop(coordinator);
    die();
    assert!(fixture.coordinator().state().disks.contains_key("a.vhd"));
}

#[test]
fn a_volume_is_made_once_and_its_format_is_checked() {
    let fixture = Fixture::new();
    assert_eq!(read_format(&fixture.volume).unwrap(), fixture.format);
    let again = init_volume(&fixture.volume, &fixture.format).unwrap_err();
    assert_eq!(again.code(), "VHD-E0906");
    let file = fixture.path().join(".csv/format");
    let whole = fs::read(&file).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&file, bytes).unwrap();
        assert_eq!(
            read_format(&fixture.volume).unwrap_err().code(),
            "VHD-E0905",
            "byte {at}"
        );
    }
    fs::remove_file(&file).unwrap();
    assert_eq!(read_format(&fixture.volume).unwrap_err().code(), "VHD-E0904");
}

/// A file system that lacks one thing.
struct Lacking {
    inner: HostVolume,
    what: &'static str,
}

impl VolumeIo for Lacking {
    type File = fs::File;

    fn create_new(&self, path: &str) -> io::Result<fs::File> {
        if self.what == "exclusive" && self.inner.exists(path)? {
            return self.inner.open(path);
        }
        self.inner.create_new(path)
    }
    fn open(&self, path: &str) -> io::Result<fs::File> {
        self.inner.open(path)
    }
    fn exists(&self, path: &str) -> io::Result<bool> {
        self.inner.exists(path)
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }
    fn make_dir(&self, dir: &str) -> io::Result<()> {
        self.inner.make_dir(dir)
    }
    fn remove_dir(&self, dir: &str) -> io::Result<()> {
        if self.what == "removal" {
            return Ok(());
        }
        self.inner.remove_dir(dir)
    }
    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        self.inner.rename(from, to, replace || self.what == "noreplace")
    }
    fn remove_file(&self, path: &str) -> io::Result<()> {
        self.inner.remove_file(path)
    }
    fn clear(&self, path: &str) -> io::Result<()> {
        self.inner.clear(path)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        if self.what == "sync" {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.inner.sync_dir(dir)
    }
}

#[test]
fn file_systems_that_cannot_carry_a_volume_are_refused() {
    for what in ["exclusive", "removal", "noreplace", "sync"] {
        let dir = tempfile::tempdir().unwrap();
        let volume = Lacking {
            inner: HostVolume::new(dir.path()),
            what,
        };
        let format = VolumeFormat::new(VolumeId(Uuid::from_u128(1)), ClusterId(Uuid::from_u128(2)), "v");
        let refused = init_volume(&volume, &format).expect_err(what);
        assert_eq!(refused.code(), "VHD-E0907", "{what}: {refused}");
        assert_eq!(read_format(&volume).unwrap_err().code(), "VHD-E0904", "{what}");
    }
}
