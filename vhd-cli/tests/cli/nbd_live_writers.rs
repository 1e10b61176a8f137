//! Snapshots of a served disk that clients write to all the time: what is backed up from the server is what an independent
//! reader finds in the frozen file and what the disk was at one moment; and nothing is lost when the server is killed.
//!
//! VHD_LIVE_CYCLES says how many snapshots are backed up and deleted (default 4, rolling 3), VHD_KILL_ROUNDS how often the server is
//! killed (default 12):
//! `VHD_LIVE_CYCLES=200 VHD_KILL_ROUNDS=200 cargo test --release -p vhd-cli --test cli nbd_live_writers -- --nocapture`

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use rustix::process::Signal;
use vhd_core::chain::OpenOptions;
use vhd_core::device::BlockDevice as _;
use vhd_core::snapshot::{resolve, survey};
use vhd_nbd::client::{ClientOptions, NbdDevice};
use vhd_testkit::StopOnDrop;

use crate::announce;
use crate::kills::kill_rounds;
use crate::nbd::Serving;
use crate::nbd_kill::{CELL, CELLS, CLIENTS, Cells, SECTOR, STRIDE, content, create_dynamic, verify, write_on};
use crate::support::{Lab, stderr};
use crate::tools::{have, run};

const DISK: &str = "disk.vhd";

/// The disk is made anew after so many kills.
const ROUNDS_OF_A_DISK: u32 = 6;

/// The server's writers. They end with it.
pub(crate) fn write_in_scope<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    lab: &Lab,
    cells: &'scope Cells,
    rng: &mut Rng,
) {
    for client in 0..CLIENTS {
        let stream = UnixStream::connect(lab.path("s.sock")).unwrap();
        let rng = rng.fork();
        scope.spawn(move || write_on(stream, cells, client, rng));
    }
}

/// How many snapshots are backed up, if nothing else is said.
fn cycles(default: usize) -> usize {
    let cycles = std::env::var("VHD_LIVE_CYCLES");
    cycles.map_or(default, |cycles| cycles.parse().expect("a number of cycles"))
}

/// The server of the disk's present state.
fn serve(lab: &Lab) -> Serving {
    let image = if lab.exists("disk.vhd.snapshots") {
        "disk.vhd@now"
    } else {
        DISK
    };
    Serving::start(lab, &["--unix", "s.sock", image])
}

fn file_of(lab: &Lab, snapshot: &str) -> PathBuf {
    resolve(&lab.path(DISK), snapshot).unwrap()
}

/// A snapshot that was taken while clients wrote.
struct Taken {
    /// The writes that it must have, and the newest that it may have.
    between: (Vec<u64>, Vec<u64>),
}

impl Taken {
    /// Each cell holds one write: a request is in the snapshot as a whole or not at all.
    fn check(&self, name: &str, numbers: &[u64]) {
        let (oldest, newest) = &self.between;
        for (cell, number) in numbers.iter().enumerate() {
            let (oldest, newest) = (oldest[cell], newest[cell]);
            assert!(
                (oldest..=newest).contains(number),
                "{name}, cell {cell}: {number}, not {oldest} to {newest}"
            );
        }
    }
}

/// The numbers of the writes that a disk holds.
fn numbers(read: impl Fn(&mut [u8], u64)) -> Vec<u64> {
    let mut found = vec![0; CELL];
    let number = |cell| {
        read(&mut found, cell * STRIDE);
        let number = u64::from_le_bytes(found[8..16].try_into().unwrap());
        let expected = if number == 0 {
            vec![0; CELL]
        } else {
            content(cell, number)
        };
        assert!(
            found == expected,
            "cell {cell} is no write as a whole: {:?}",
            &found[..SECTOR.min(32)]
        );
        number
    };
    (0..CELLS).map(number).collect()
}

fn numbers_of_image(path: &Path) -> Vec<u64> {
    let opened = OpenOptions::new().open(path).unwrap();
    numbers(|found, at| opened.disk().read_at(found, at).unwrap())
}

/// All files of the disk are sound.
fn check_files(lab: &Lab) {
    let files = survey(&lab.path(DISK)).unwrap().manifest;
    for file in files.files() {
        let checked = lab.vhd(&["check", &file.name, "--json"]).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&checked.stdout).unwrap();
        let verdict = report["verdict"].as_str();
        assert!(matches!(verdict, Some("clean" | "leaks")), "{report}");
    }
}

/// Compares a copy with what `scripts/soaking/plain_vhd.py` reads in an image, which shares nothing with the code here.
fn compare_independently(image: &Path, copy: &Path) {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/soaking");
    let program = "import sys; sys.path.insert(0, sys.argv[1]); import plain_vhd; \
                   copy = open(sys.argv[3], 'rb').read(); sys.exit(plain_vhd.read(sys.argv[2]) != copy)";
    let paths = [&*scripts, image, copy].map(|path| path.to_str().unwrap());
    run("python3", ["-B", "-c", program].into_iter().chain(paths));
}

#[test]
fn backups_of_a_disk_that_is_written_to() {
    if !have(&["nbdcopy", "python3"], "backups of a served disk") {
        return;
    }
    let cycles = cycles(4);
    let lab = Lab::new();
    create_dynamic(&lab, DISK);
    let cells = Cells::new(0);
    let mut rng = vhd_testkit::rng::rng(vhd_testkit::rng::seed(0xBACC));
    let mut server = serve(&lab);
    let uri = format!("nbd+unix:///disk@backup?socket={}", lab.path("s.sock").display());
    let (copy, mut newest, mut kept) = (lab.path("copy.raw"), 0, None);
    thread::scope(|scope| {
        // Whatever happens here, the writers end.
        let server = KillOnDrop(&mut server);
        write_in_scope(scope, &lab, &cells, &mut rng);
        for cycle in 0..cycles {
            if cycle == cycles / 2 {
                // From here on the disk has a snapshot that stays.
                lab.run(&["snapshot", "create", DISK, "--name", "kept"], 0);
                kept = Some(numbers_of_image(&file_of(&lab, "kept")));
            }
            let before = cells.answered();
            lab.run(&["snapshot", "create", DISK, "--name", "backup"], 0);
            let taken = Taken {
                between: (before, cells.sent()),
            };
            run("nbdcopy", [uri.as_str(), copy.to_str().unwrap()]);
            let copied = File::open(&copy).unwrap();
            let found = numbers(|found, at| copied.read_exact_at(found, at).unwrap());
            taken.check(&format!("backup {cycle}"), &found);
            compare_independently(&file_of(&lab, "backup"), &copy);
            newest = found.iter().sum();
            lab.run(&["snapshot", "delete", DISK, "backup"], 0);
            assert_depth(&lab, usize::from(kept.is_some()));
        }
        server.0.signal(Signal::TERM);
        assert_eq!(server.0.child.wait().unwrap().code(), Some(0));
    });
    assert!(newest > 0, "nothing was written: the test tested nothing");
    let last = numbers_of_image(&file_of(&lab, "now"));
    Taken {
        between: (cells.answered(), cells.sent()),
    }
    .check("the present state", &last);
    check_files(&lab);
    assert_eq!(Some(numbers_of_image(&file_of(&lab, "kept"))), kept);
    lab.run(&["snapshot", "delete", DISK, "kept"], 0);
    assert_depth(&lab, 0);
    assert_eq!(numbers_of_image(&lab.path(DISK)), last);
    lab.run(&["check", DISK], 0);
    announce(&format!("{cycles} backups of a disk under {CLIENTS} writers"));
}

/// A backup loop that creates NEW, copies it and deletes the oldest but one has a chain that does not grow; what a client
/// reads of a snapshot that stays does not change meanwhile.
#[test]
fn rolling_backups_keep_the_depth_of_the_chain() {
    if !have(&["nbdcopy", "python3"], "rolling backups of a served disk") {
        return;
    }
    let lab = Lab::new();
    create_dynamic(&lab, DISK);
    let cells = Cells::new(0);
    let mut rng = vhd_testkit::rng::rng(vhd_testkit::rng::seed(0x2011));
    let mut server = serve(&lab);
    let socket = lab.path("s.sock");
    let copy = lab.path("copy.raw");
    let mut kept: Vec<(String, Vec<u64>)> = Vec::new();
    thread::scope(|scope| {
        let server = KillOnDrop(&mut server);
        write_in_scope(scope, &lab, &cells, &mut rng);
        let mut oldest = None;
        for cycle in 0..cycles(ROLLING + 1) {
            let name = format!("s{cycle}");
            lab.run(&["snapshot", "create", DISK, "--name", &name], 0);
            let uri = format!("nbd+unix:///disk@{name}?socket={}", socket.display());
            run("nbdcopy", [uri.as_str(), copy.to_str().unwrap()]);
            compare_independently(&file_of(&lab, &name), &copy);
            let copied = File::open(&copy).unwrap();
            kept.push((name, numbers(|found, at| copied.read_exact_at(found, at).unwrap())));
            if oldest.is_none() {
                oldest = Some(NbdDevice::open(&uri.parse().unwrap(), ClientOptions::default()).unwrap());
            }
            if kept.len() > ROLLING {
                let (gone, _) = kept.remove(1);
                lab.run(&["snapshot", "delete", DISK, &gone], 0);
            }
            assert_depth(&lab, kept.len());
            let device = oldest.as_ref().unwrap();
            assert_eq!(
                numbers(|found, at| device.read_at(found, at).unwrap()),
                kept[0].1,
                "cycle {cycle}"
            );
        }
        drop(oldest);
        server.0.signal(Signal::TERM);
        assert_eq!(server.0.child.wait().unwrap().code(), Some(0));
    });
    for (name, found) in &kept {
        assert_eq!(&numbers_of_image(&file_of(&lab, name)), found, "{name}");
    }
    check_files(&lab);
}

/// The disk has so many snapshots, and no other file.
fn assert_depth(lab: &Lab, snapshots: usize) {
    let entries = std::fs::read_dir(lab.path("")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut leaves: Vec<String> = names
        .filter(|name| name.starts_with("disk") && name != DISK && name != "disk.vhd.snapshots")
        .collect();
    leaves.sort();
    assert_eq!(leaves.len(), snapshots, "{leaves:?}");
    assert_eq!(lab.exists("disk.vhd.snapshots"), snapshots > 0);
}

/// A server that ends with the test, however that ends: so do the clients that write to it.
pub(crate) struct KillOnDrop<'a>(pub(crate) &'a mut Serving);

impl Drop for KillOnDrop<'_> {
    fn drop(&mut self) {
        let _ = self.0.child.kill();
    }
}

/// Takes snapshots until the server is gone; what was said to be taken.
fn take_on(lab: &Lab, cells: &Cells, over: &AtomicBool, first: &AtomicBool, round: u32) -> Vec<(String, Taken)> {
    let mut taken = Vec::new();
    for at in 0.. {
        if over.load(Ordering::SeqCst) {
            break;
        }
        let (name, before, kept) = (format!("s{round}.{at}"), cells.answered(), cells.kept());
        let created = lab.vhd(&["snapshot", "create", DISK, "--name", &name]).assert();
        match created.get_output().status.code() {
            Some(0) => {
                // One that was taken after the server was killed has what was flushed, and no more for certain.
                let oldest = if over.load(Ordering::SeqCst) { kept } else { before };
                let between = (oldest, cells.sent());
                taken.push((name, Taken { between }));
                first.store(true, Ordering::SeqCst);
            }
            // The server went in the middle, or is about to: it has the disk and answers no more.
            _ => {
                let said = stderr(&created);
                assert!(said.contains("VHD-E0325") || said.contains("VHD-E0304"), "{said}");
            }
        }
    }
    taken
}

#[test]
fn a_killed_server_whose_disk_gets_snapshots() {
    let mut rng = vhd_testkit::rng::rng(vhd_testkit::rng::seed(0x5EED));
    let (mut lab, mut cells) = (Lab::new(), Cells::new(0));
    let mut kept = BTreeMap::new();
    let (mut count, mut recovered) = (0, 0);
    // More of them where each one is killed before its first deletion is done.
    for round in 0..4 * kill_rounds() {
        if round >= kill_rounds() && count > 0 {
            break;
        }
        if round % ROUNDS_OF_A_DISK == 0 {
            (lab, cells, kept) = (Lab::new(), Cells::new(0), BTreeMap::new());
            create_dynamic(&lab, DISK);
        }
        let mut server = serve(&lab);
        let (over, first) = (AtomicBool::new(false), AtomicBool::new(false));
        let taken = thread::scope(|scope| {
            let stop = StopOnDrop(&over);
            let server = KillOnDrop(&mut server);
            write_in_scope(scope, &lab, &cells, &mut rng);
            let taker = scope.spawn(|| take_on(&lab, &cells, &over, &first, round));
            // In some rounds there is one at least, however busy the machine is.
            while round % 2 == 0 && !first.load(Ordering::SeqCst) && !taker.is_finished() {
                thread::sleep(Duration::from_millis(1));
            }
            thread::sleep(Duration::from_millis(rng.u64(20..300)));
            // Before the kill: what is said to be taken until then was taken by the server.
            drop(stop);
            if rng.u8(..4) == 0 {
                server.0.signal(Signal::TERM);
                thread::sleep(Duration::from_micros(rng.u64(..8000)));
            }
            drop(server);
            taker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        server.kill();
        // The next command finishes what was open, or undoes it.
        let after = format!("after {round}");
        let created = lab.run(&["snapshot", "create", DISK, "--name", &after], 0);
        recovered += u32::from(stderr(&created).contains("an interrupted command was found"));
        for (name, taken) in taken {
            let found = numbers_of_image(&file_of(&lab, &name));
            taken.check(&name, &found);
            kept.insert(name, found);
            count += 1;
        }
        let active = file_of(&lab, "now");
        verify(&lab, active.to_str().unwrap(), &cells);
        check_files(&lab);
        // What is kept stays as it is, also while others go.
        let oldest = kept.pop_first().map(|(oldest, _)| oldest);
        for name in oldest.iter().map(String::as_str).chain([after.as_str()]) {
            lab.run(&["snapshot", "delete", DISK, name], 0);
        }
        for (name, found) in &kept {
            assert_eq!(&numbers_of_image(&file_of(&lab, name)), found, "{name}");
        }
        verify(&lab, file_of(&lab, "now").to_str().unwrap(), &cells);
    }
    announce(&format!(
        "{} kills of a server: {count} snapshots taken, {recovered} in the middle of a command that had to be brought to its end",
        kill_rounds()
    ));
    assert!(count > 0, "no snapshot was taken: the test tested nothing");
}

/// How snapshots come and go.
#[derive(Clone, Copy, PartialEq)]
enum Cycle {
    /// Each is deleted before the next one is taken.
    Single,
    /// The last ones are kept, and the oldest but one of them goes.
    Rolling,
}

/// Snapshots that a cycle of [`Cycle::Rolling`] keeps.
const ROLLING: usize = 2;

/// Takes and deletes snapshots until the server is gone; how many were deleted, and what those hold that are there.
fn cycle_on(
    lab: &Lab,
    over: &AtomicBool,
    first: &AtomicBool,
    round: u32,
    cycle: Cycle,
) -> (u32, Vec<(String, Vec<u64>)>) {
    let (mut deleted, mut at, mut taken) = (0, 0, Vec::new());
    while !over.load(Ordering::SeqCst) {
        let name = format!("b{round}.{at}");
        at += 1;
        let done = |args: &[&str]| {
            let command = lab.vhd(args).assert();
            let said = stderr(&command);
            let done = command.get_output().status.code() == Some(0);
            // The server went in the middle, or is about to.
            assert!(
                done || said.contains("VHD-E0325") || said.contains("VHD-E0304"),
                "{said}"
            );
            done
        };
        if !done(&["snapshot", "create", DISK, "--name", &name]) {
            continue;
        }
        first.store(true, Ordering::SeqCst);
        let keeps = match cycle {
            Cycle::Single => {
                taken.push((name, Vec::new()));
                0
            }
            Cycle::Rolling => {
                let found = numbers_of_image(&file_of(lab, &name));
                taken.push((name, found));
                ROLLING
            }
        };
        if taken.len() > keeps {
            let (oldest_but_one, _) = taken.remove(usize::from(keeps > 0));
            deleted += u32::from(done(&["snapshot", "delete", DISK, &oldest_but_one]));
        }
    }
    (deleted, taken)
}

/// INV-54 to INV-57, and the same with a snapshot below that stays; INV-73, INV-74 where snapshots above stay.
#[test]
fn a_killed_server_whose_snapshots_are_deleted() {
    let mut rng = vhd_testkit::rng::rng(vhd_testkit::rng::seed(0xDE1E));
    let (mut lab, mut cells, mut kept) = (Lab::new(), Cells::new(0), None);
    let (mut count, mut recovered) = (0, 0);
    for round in 0..kill_rounds() {
        if round % ROUNDS_OF_A_DISK == 0 {
            (lab, cells, kept) = (Lab::new(), Cells::new(0), None);
            create_dynamic(&lab, DISK);
        }
        if round % ROUNDS_OF_A_DISK == ROUNDS_OF_A_DISK / 2 {
            lab.run(&["snapshot", "create", DISK, "--name", "kept"], 0);
            kept = Some(numbers_of_image(&file_of(&lab, "kept")));
        }
        let mut server = serve(&lab);
        let (over, first) = (AtomicBool::new(false), AtomicBool::new(false));
        let cycle = if round % 2 == 0 { Cycle::Rolling } else { Cycle::Single };
        let (deleted, stay) = thread::scope(|scope| {
            let stop = StopOnDrop(&over);
            let server = KillOnDrop(&mut server);
            write_in_scope(scope, &lab, &cells, &mut rng);
            let cycler = scope.spawn(|| cycle_on(&lab, &over, &first, round, cycle));
            while !first.load(Ordering::SeqCst) && !cycler.is_finished() {
                thread::sleep(Duration::from_millis(1));
            }
            let longest = if cycle == Cycle::Rolling { 1500 } else { 700 };
            thread::sleep(Duration::from_millis(rng.u64(1..longest)));
            drop(stop);
            if rng.u8(..4) == 0 {
                server.0.signal(Signal::TERM);
                thread::sleep(Duration::from_micros(rng.u64(..8000)));
            }
            drop(server);
            cycler.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        server.kill();
        count += deleted;
        // The next command finishes what was open, or undoes it.
        let after = lab.run(&["snapshot", "create", DISK, "--name", "after"], 0);
        recovered += u32::from(stderr(&after).contains("an interrupted command was found"));
        verify(&lab, file_of(&lab, "now").to_str().unwrap(), &cells);
        check_files(&lab);
        let listed = survey(&lab.path(DISK)).unwrap().manifest;
        for (name, found) in stay.iter().filter(|(_, found)| !found.is_empty()) {
            // The last deletion may have happened, though nobody was told.
            if listed.named(name).is_some() {
                assert_eq!(&numbers_of_image(&file_of(&lab, name)), found, "{name}");
            }
        }
        for snapshot in listed.listed().filter(|snapshot| snapshot.name != "kept") {
            lab.run(&["snapshot", "delete", DISK, &snapshot.name], 0);
        }
        assert_depth(&lab, usize::from(kept.is_some()));
        verify(&lab, file_of(&lab, "now").to_str().unwrap(), &cells);
        if let Some(kept) = &kept {
            assert_eq!(&numbers_of_image(&file_of(&lab, "kept")), kept);
        }
    }
    announce(&format!(
        "{} kills of a server: {count} snapshots deleted, {recovered} commands that had to be brought to their end",
        kill_rounds()
    ));
    assert!(count > 0, "no snapshot was deleted: the test tested nothing");
}
