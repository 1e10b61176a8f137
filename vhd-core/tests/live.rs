//! Snapshots of a disk that is in use: they are what the disk read at one instant, whatever its users do meanwhile,
//! wherever it is interrupted, and whatever a loss of power leaves of all files together.
//!
//! VHD_LIVE_ROUNDS says how many random histories lose power (default 6).

mod common;
#[path = "live/delete.rs"]
mod delete;
#[path = "live/grow.rs"]
mod grow;
#[path = "live/grow_space.rs"]
mod grow_space;
#[path = "live/leaf.rs"]
mod leaf;
#[path = "live/middle.rs"]
mod middle;
#[path = "live/middle_crash.rs"]
mod middle_crash;
mod support;

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use common::disk::{assert_reads, assert_same, create, open};
use common::{announce, temp_dir};
use support::forge::Forge;
use vhd_core::ErrorKind;
use vhd_core::chain::OpenOptions;
use vhd_core::device::{BlockDevice, ByteRange, Disk, LayeredDevice, LiveDevice};
use vhd_core::format::UniqueId;
use vhd_core::image::{Image, OpenMode, create_dynamic};
use vhd_core::snapshot::{
    CreatedInUse, Recovered, SnapshotTree, Steps, WantedSnapshot, Work, create_together, resolve, survey,
};
use vhd_core::storage::{Access, HostFile, MemoryFile, Sharing, StorageFile};
use vhd_core::units::{u64_from, usize_from};
use vhd_testkit::conformance::read_all;
use vhd_testkit::rng::mix;
use vhd_testkit::workload::Geometry;
use vhd_testkit::{
    CrashFile, CrashLimits, CrashModel, Fault, FaultFile, Op, StopOnDrop, Workload, each_operation_fails,
};

const MIB: u64 = 1 << 20;
const SECTOR: usize = 512;

static GO_ON: AtomicBool = AtomicBool::new(false);

fn work(steps: &dyn Steps) -> Work<'_> {
    Work {
        steps,
        progress: &(),
        cancel: &GO_ON,
    }
}

fn rounds(default: u64) -> u64 {
    let set = std::env::var("VHD_LIVE_ROUNDS").ok();
    set.map_or(default, |rounds| rounds.parse().expect("a number"))
}

/// A disk in a file of a directory, in use.
fn live(path: &Path) -> LiveDevice {
    open(path, true).into_live().expect("a chain that is written to")
}

fn new_disk(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    create(&path, |file| create_dynamic(file, 8 * MIB, 512 << 10));
    path
}

fn take(disk: &Path, device: &LiveDevice, name: &str) -> CreatedInUse {
    let mut tree = SnapshotTree::open_in_use(disk, device, work(&())).unwrap();
    tree.create_in_use(name).unwrap()
}

fn bytes_of(device: &dyn BlockDevice) -> Vec<u8> {
    read_all(device)
}

/// The number in a sector.
fn number_at(content: &[u8], sector: usize) -> u64 {
    let at = sector * SECTOR;
    u64::from_le_bytes(content[at..at + 8].try_into().unwrap())
}

fn write_number(device: &dyn BlockDevice, sector: usize, number: u64) {
    let mut bytes = [0; SECTOR];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[SECTOR - 8..].copy_from_slice(&number.to_le_bytes());
    let at = u64_from(sector * SECTOR);
    device.write_vectored_at(&[IoSlice::new(&bytes)], at, false).unwrap();
}

/// Sectors that each thread writes to.
const SECTORS: usize = 3000;

/// Writes numbers to the sectors of a thread in turn until it is `over`, with a flush now and then; `then` is called after
/// each write has returned, with its sector and number.
fn write_numbers(
    device: &dyn BlockDevice,
    thread: usize,
    written: &AtomicU64,
    over: &AtomicBool,
    then: impl Fn(usize, u64),
) {
    for number in 1.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let sector = thread * SECTORS + usize_from(number) % SECTORS;
        write_number(device, sector, number);
        written.store(number, Ordering::SeqCst);
        then(sector, number);
        if number % 97 == 0 {
            device.flush().unwrap();
        }
    }
}

/// Does something while threads write numbers and read each back. What each has written last is there then.
fn beside_writers(device: &LiveDevice, threads: usize, work: impl FnOnce()) {
    let written: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&over);
        for (thread, written) in written.iter().enumerate() {
            let over = &over;
            scope.spawn(move || {
                write_numbers(device, thread, written, over, |sector, number| {
                    // What was written is read, whoever has it by now.
                    let mut bytes = [0; SECTOR];
                    device.read_at(&mut bytes, u64_from(sector * SECTOR)).unwrap();
                    assert_eq!(number_at(&bytes, 0), number);
                });
            });
        }
        work();
    });
    let mut last = vec![0; threads * SECTORS * SECTOR];
    device.read_at(&mut last, 0).unwrap();
    for (thread, written) in written.iter().enumerate() {
        let newest = written.load(Ordering::SeqCst);
        for number in newest.saturating_sub(u64_from(SECTORS) - 1).max(1)..=newest {
            let sector = thread * SECTORS + usize_from(number) % SECTORS;
            assert_eq!(number_at(&last, sector), number, "thread {thread}");
        }
    }
}

/// INV-50: each thread numbers its writes, to sectors of its own in turn. What was kept has all of them up to some number
/// and none behind it; what had returned before is kept, and what began afterwards is not.
#[test]
fn inv_50_a_snapshot_is_a_cut_through_the_writes_of_all_threads() {
    const THREADS: usize = 3;
    const SNAPSHOTS: usize = 12;
    let dir = temp_dir();
    let disk = new_disk(dir.path(), "vm.vhd");
    let device = live(&disk);
    let written: Vec<AtomicU64> = (0..THREADS).map(|_| AtomicU64::new(0)).collect();
    let over = AtomicBool::new(false);
    let mut taken = Vec::new();
    thread::scope(|scope| {
        let _stop = StopOnDrop(&over);
        for (thread, written) in written.iter().enumerate() {
            let (device, over) = (&device, &over);
            scope.spawn(move || {
                write_numbers(device, thread, written, over, |_, _| ());
            });
        }
        scope.spawn(|| {
            let mut last = 0;
            while !over.load(Ordering::Relaxed) {
                // Nothing that was read once is lost again by a switch.
                let mut bytes = [0; SECTOR];
                device.read_at(&mut bytes, u64_from(SECTOR)).unwrap();
                let number = number_at(&bytes, 0);
                assert_eq!(number, number_at(&bytes[SECTOR - 8..], 0));
                assert!(number >= last, "{number} after {last}");
                last = number;
            }
        });
        for round in 0..SNAPSHOTS {
            let now = || written.iter().map(|written| written.load(Ordering::SeqCst)).collect();
            let before: Vec<u64> = now();
            let created = take(&disk, &device, &format!("s{round}"));
            let after: Vec<u64> = now();
            taken.push((created, before, after));
            thread::sleep(std::time::Duration::from_millis(5));
        }
    });
    let last = bytes_of(&device);
    for (round, (created, before, after)) in taken.iter().enumerate() {
        let content = bytes_of(&*created.frozen);
        for thread in 0..THREADS {
            let newest = (0..SECTORS)
                .map(|at| number_at(&content, thread * SECTORS + at))
                .max()
                .unwrap();
            assert!(newest >= before[thread], "snapshot {round} lost what had returned");
            assert!(
                newest <= after[thread] + 1,
                "snapshot {round} has what began afterwards"
            );
            for number in newest.saturating_sub(u64_from(SECTORS) - 1).max(1)..=newest {
                let sector = thread * SECTORS + usize_from(number) % SECTORS;
                assert_eq!(number_at(&content, sector), number, "snapshot {round} has a gap");
            }
        }
        assert_reads(&resolve(&disk, &format!("s{round}")).unwrap(), &content);
    }
    announce(&format!(
        "pauses of {SNAPSHOTS} snapshots under {THREADS} writers: {:?}",
        taken.iter().map(|(created, ..)| created.paused).collect::<Vec<_>>()
    ));
    drop(taken);
    device.close().unwrap();
    let active = resolve(&disk, "now").unwrap();
    assert_reads(&active, &last);
    // Each child remembers its parent's time, which no later write has changed.
    let opened = open(&active, false);
    assert_eq!(opened.paths().len(), SNAPSHOTS + 1);
    assert!(opened.warnings().is_empty(), "{:?}", opened.warnings());
}

/// INV-50 for several disks: what is written to one after the other is kept in that order.
#[test]
fn inv_50_disks_are_switched_at_one_instant() {
    let dir = temp_dir();
    let paths = [new_disk(dir.path(), "a.vhd"), new_disk(dir.path(), "b.vhd")];
    let devices = [live(&paths[0]), live(&paths[1])];
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&over);
        scope.spawn(|| {
            for number in 1.. {
                devices.iter().for_each(|device| write_number(device, 7, number));
                if over.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        for round in 0..20 {
            let name = format!("s{round}");
            let mut trees: Vec<_> = (paths.iter().zip(&devices))
                .map(|(path, device)| SnapshotTree::open_in_use(path, device, work(&())).unwrap())
                .collect();
            if round % 2 == 1 {
                trees.reverse();
            }
            let mut wanted: Vec<_> = trees
                .iter_mut()
                .map(|tree| WantedSnapshot {
                    tree,
                    name: &name,
                    id: UniqueId::random(),
                })
                .collect();
            let ids: Vec<_> = wanted.iter().map(|wanted| wanted.id).collect();
            let created = create_together(&mut wanted).unwrap();
            let taken: Vec<_> = created.iter().map(|one| one.created.snapshot.id).collect();
            assert_eq!(taken, ids);
            let [mut first, mut second] = [0, 1].map(|at: usize| number_at(&bytes_of(&*created[at].frozen), 7));
            if round % 2 == 1 {
                (first, second) = (second, first);
            }
            assert!(first == second || first == second + 1, "{first} {second}");
        }
    });
    // One that can't be taken keeps the others from being taken.
    let former = paths.each_ref().map(|path| survey(path).unwrap().manifest);
    let mut tree = SnapshotTree::open_in_use(&paths[1], &devices[1], work(&())).unwrap();
    tree.create_in_use("only b").unwrap();
    drop(tree);
    let mut trees: Vec<_> = (paths.iter().zip(&devices))
        .map(|(path, device)| SnapshotTree::open_in_use(path, device, work(&())).unwrap())
        .collect();
    let mut wanted: Vec<_> = trees
        .iter_mut()
        .map(|tree| WantedSnapshot {
            tree,
            name: "only b",
            id: UniqueId::random(),
        })
        .collect();
    assert_eq!(
        create_together(&mut wanted).err().unwrap().kind(),
        ErrorKind::SnapshotExists
    );
    drop(trees);
    assert_eq!(survey(&paths[0]).unwrap().manifest, former[0]);
    let files = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(files, 2 * 21 + 1 + 2, "no file of the snapshot that was not taken");
}

/// Copies the directory at each step, which is what a killed process leaves there.
struct Copying<'a> {
    from: &'a Path,
    to: PathBuf,
    copies: Mutex<Vec<(String, PathBuf)>>,
    before_copy: Box<dyn Fn(&str) + Sync + 'a>,
}

impl<'a> Copying<'a> {
    fn new(from: &'a Path, to: &Path, before_copy: impl Fn(&str) + Sync + 'a) -> Self {
        Self {
            from,
            to: to.to_owned(),
            copies: Mutex::default(),
            before_copy: Box::new(before_copy),
        }
    }
}

/// At each step a write of its own that is flushed, and one over what has been copied; counted.
fn writes_between<'a>(device: &'a LiveDevice, written: &'a AtomicUsize) -> impl Fn(&str) + Sync + 'a {
    |_| {
        let at = written.fetch_add(1, Ordering::SeqCst);
        write_number(device, 100 + at, 9);
        write_number(device, 7, 10 + u64_from(at));
        device.flush().unwrap();
    }
}

impl Steps for Copying<'_> {
    fn done(&self, step: &str) {
        (self.before_copy)(step);
        let mut copies = self.copies.lock().unwrap();
        let copy = self.to.join(format!("{}-{step}", copies.len()));
        std::fs::create_dir(&copy).unwrap();
        for entry in std::fs::read_dir(self.from).unwrap() {
            let entry = entry.unwrap();
            let target = copy.join(entry.file_name());
            std::fs::copy(entry.path(), &target).unwrap();
            // A child knows when its parent was changed last: what a crash leaves has those times.
            let modified = entry.metadata().unwrap().modified().unwrap();
            let target = std::fs::File::options().write(true).open(&target).unwrap();
            target.set_modified(modified).unwrap();
        }
        copies.push((step.to_owned(), copy));
    }
}

/// INV-52, INV-53: killed at any step, with or without writes behind the switch, the next command finishes or undoes the
/// snapshot, and the disk reads what it read.
#[test]
fn inv_53_killed_at_any_step_the_snapshot_is_taken_or_not() {
    for (with_former, writes) in [(false, false), (false, true), (true, false), (true, true)] {
        let (dir, copies) = (temp_dir(), temp_dir());
        let disk = new_disk(dir.path(), "vm.vhd");
        let device = live(&disk);
        if with_former {
            write_number(&device, 5, 1);
            take(&disk, &device, "former");
        }
        write_number(&device, 5, 2);
        device.flush().unwrap();
        let before_copy = |step: &str| {
            if writes && step == "switched" {
                write_number(&device, 6, 3);
                device.flush().unwrap();
            }
        };
        let steps = Copying::new(dir.path(), copies.path(), before_copy);
        let mut tree = SnapshotTree::open_in_use(&disk, &device, work(&steps)).unwrap();
        tree.create_in_use("new").unwrap();
        drop(tree);
        let found = steps.copies.into_inner().unwrap();
        let names: Vec<&str> = found.iter().map(|(step, _)| step.as_str()).collect();
        let all = [
            "leaf announced",
            "leaf made",
            "switch announced",
            "switched",
            "snapshot taken",
        ];
        assert_eq!(names, all);
        for (step, copy) in &found {
            let disk = copy.join("vm.vhd");
            let tree = SnapshotTree::open(&disk, work(&())).unwrap();
            let expected = match step.as_str() {
                "leaf announced" | "leaf made" => Some(Recovered::LeafRemoved),
                "switch announced" => Some(Recovered::SnapshotUndone),
                "switched" if writes => Some(Recovered::SnapshotKept),
                "switched" => Some(Recovered::SnapshotUndone),
                _ => None,
            };
            assert_eq!(tree.recovered(), expected.as_ref(), "{step}");
            let kept = matches!(expected, None | Some(Recovered::SnapshotKept));
            assert_eq!(tree.manifest().named("new").is_some(), kept, "{step}");
            assert_eq!(tree.manifest().named("former").is_some(), with_former);
            drop(tree);
            let now = bytes_of(&*open(&resolve(&disk, "now").unwrap(), false).chain().unwrap().clone());
            let last = if writes && ["switched", "snapshot taken"].contains(&step.as_str()) {
                3
            } else {
                0
            };
            assert_eq!([number_at(&now, 5), number_at(&now, 6)], [2, last], "{step}");
            if kept {
                let frozen = bytes_of(&*open(&resolve(&disk, "new").unwrap(), false).chain().unwrap().clone());
                assert_eq!([number_at(&frozen, 5), number_at(&frozen, 6)], [2, 0], "{step}");
            }
            let files = std::fs::read_dir(copy).unwrap().count();
            let (images, manifest) = (1 + usize::from(with_former) + usize::from(kept), with_former || kept);
            assert_eq!(files, images + usize::from(manifest), "{step}: nothing is left over");
            let opened = open(&resolve(&disk, "now").unwrap(), true);
            assert!(opened.warnings().is_empty() || !kept, "{:?}", opened.warnings());
            opened.close().unwrap();
        }
    }
}

#[test]
fn a_disk_in_use_keeps_other_commands_away_and_lets_readers_to_what_is_frozen() {
    let dir = temp_dir();
    let disk = new_disk(dir.path(), "vm.vhd");
    let device = live(&disk);
    write_number(&device, 1, 1);
    let error = SnapshotTree::open(&disk, work(&()))
        .unwrap()
        .create("offline")
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    let created = take(&disk, &device, "one");
    // The frozen file is the one that was open all the time; others may read it now, and nobody may write.
    let writer = HostFile::open(&disk, Access::ReadWrite, Sharing::Exclusive);
    assert_eq!(writer.err().unwrap().kind(), ErrorKind::Locked);
    assert_eq!(number_at(&bytes_of(&**open(&disk, false).chain().unwrap()), 1), 1);
    let active = created.created.active.clone();
    assert_eq!(OpenOptions::new().open(&active).unwrap_err().kind(), ErrorKind::Locked);
    let mut tree = SnapshotTree::open_in_use(&disk, &device, work(&())).unwrap();
    assert_eq!(
        tree.create_in_use("one").err().unwrap().kind(),
        ErrorKind::SnapshotExists
    );
    assert_eq!(
        tree.create_in_use("a@b").err().unwrap().kind(),
        ErrorKind::InvalidArgument
    );
    drop(tree);
    // Of another disk.
    let other = new_disk(dir.path(), "other.vhd");
    let refused = SnapshotTree::open_in_use(&other, &device, work(&())).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::ManifestStale);
    // The frozen layer refuses writes, whoever has it.
    assert!(!created.frozen.info().capabilities.write);
    let refused = created
        .frozen
        .write_vectored_at(&[IoSlice::new(&[0; SECTOR])], 0, false);
    assert_eq!(ErrorKind::from(refused.unwrap_err().kind()), ErrorKind::ReadOnly);
}

#[test]
fn a_live_disk_keeps_the_contract() {
    vhd_testkit::conformance::conformance(&|size, content| {
        let file = MemoryFile::new();
        create_dynamic(&file, size, 512 << 10).unwrap();
        let image = Image::open(Arc::new(file), &OpenMode::read_write()).unwrap();
        let device = LiveDevice::new(Arc::new(LayeredDevice::new(image, Vec::new())));
        device.write_vectored_at(&[IoSlice::new(content)], 0, false).unwrap();
        // The content is below, and what the suite writes in a new leaf.
        let child = MemoryFile::from_bytes(Forge::differencing(size, 4096).build());
        let child = Image::open(Arc::new(child), &OpenMode::read_write()).unwrap();
        let next = device.prepare(child);
        LiveDevice::switch(vec![(&device, next)]).unwrap();
        Arc::new(device)
    });
}

/// What a disk of two files must hold after a loss of power.
struct Expected {
    model: CrashModel,
    /// The manifest names the switch.
    announced: bool,
    /// What was kept, from when it is durable.
    frozen: Option<Vec<u8>>,
}

/// Two files that lose power together.
#[derive(Clone)]
struct Pair {
    leaf: CrashFile,
    child: CrashFile,
    expected: Arc<Mutex<Expected>>,
    states: Arc<AtomicU64>,
    seed: u64,
}

const CRASH_SIZE: u64 = 16 << 10;
const CRASH_BLOCK: u32 = 2048;

impl Pair {
    fn new(seed: u64) -> Self {
        Self {
            leaf: CrashFile::from_bytes(&Forge::dynamic(CRASH_SIZE, CRASH_BLOCK).build()),
            child: CrashFile::from_bytes(&Forge::differencing(CRASH_SIZE, CRASH_BLOCK).build()),
            expected: Arc::new(Mutex::new(Expected {
                model: CrashModel::new(CRASH_SIZE),
                announced: false,
                frozen: None,
            })),
            states: Arc::default(),
            seed,
        }
    }

    fn expected(&self) -> MutexGuard<'_, Expected> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the files after each operation on either.
    fn observe(&self) {
        for file in [&self.leaf, &self.child] {
            let pair = self.clone();
            file.set_observer(Some(Box::new(move |_| pair.look())));
        }
    }

    /// Each combination of states of both files, within the limits.
    fn look(&self) {
        if thread::panicking() {
            return;
        }
        let limits = CrashLimits {
            exhaustive_bits: 3,
            random: 3,
            seed: mix(self.seed, self.states.load(Ordering::Relaxed)),
            newest_only: false,
        };
        let expected = self.expected();
        let leaves: Vec<_> = self.leaf.crash_states(&limits).collect();
        let children: Vec<_> = self.child.crash_states(&limits).collect();
        for leaf in &leaves {
            for child in &children {
                self.states.fetch_add(1, Ordering::Relaxed);
                check_crashed(leaf.file(), child.file(), &expected);
            }
        }
    }

    fn apply(&self, device: &LiveDevice, op: Op) {
        let begun = op.begin(&mut self.expected().model);
        op.run(device).unwrap();
        op.end(&mut self.expected().model, begun);
        self.look();
    }
}

/// INV-53: the rule of recovery, and what the disk reads then.
fn check_crashed(leaf: CrashFile, child: CrashFile, expected: &Expected) {
    let image = |file: CrashFile, mode| Image::open(Arc::new(file), &mode).unwrap();
    let new_leaf = image(child, OpenMode::read_write());
    let holds_data = new_leaf.allocated_bytes() > 0;
    assert!(
        expected.announced || !holds_data,
        "INV-52: a write before the manifest names the switch"
    );
    if !holds_data {
        let device = LayeredDevice::new(image(leaf, OpenMode::read_write()), Vec::new());
        let checked = expected.model.check(&read_all(&device));
        checked.unwrap_or_else(|violation| panic!("without the new leaf: {violation}"));
        return;
    }
    let below = image(leaf, OpenMode::read_only());
    if let Some(frozen) = &expected.frozen {
        let kept = LayeredDevice::new(below, Vec::new());
        assert_same(&read_all(&kept), frozen, "the snapshot");
        let device = LayeredDevice::new(new_leaf, kept.layers().to_vec());
        expected
            .model
            .check(&read_all(&device))
            .unwrap_or_else(|violation| panic!("{violation}"));
        return;
    }
    let device = LayeredDevice::new(new_leaf, vec![vhd_core::device::Layer::Vhd(Arc::new(below))]);
    expected
        .model
        .check(&read_all(&device))
        .unwrap_or_else(|violation| panic!("{violation}"));
}

/// INV-51, INV-52, INV-53 in every state that a loss of power can leave of both files together.
#[test]
fn inv_51_53_power_fails_over_both_files_at_once() {
    let mut states = 0;
    for round in 0..rounds(6) {
        let pair = Pair::new(mix(0x11FE, round));
        let image = Image::open(Arc::new(pair.leaf.clone()), &OpenMode::read_write()).unwrap();
        let device = LiveDevice::new(Arc::new(LayeredDevice::new(image, Vec::new())));
        pair.observe();
        let geometry = Geometry::new(CRASH_SIZE, CRASH_BLOCK.into());
        let mut script = Workload::new(mix(0x11FF, round), geometry).filter(|op| *op != Op::Reopen);
        script.by_ref().take(7).for_each(|op| pair.apply(&device, op));
        let child = Image::open(Arc::new(pair.child.clone()), &OpenMode::read_write()).unwrap();
        let next = device.prepare(child);
        pair.expected().announced = true;
        LiveDevice::switch(vec![(&device, next)]).unwrap();
        let present = device.present();
        let frozen = read_all(&present.below().unwrap());
        pair.look();
        // The users go on before, while and after the frozen leaf becomes durable.
        script
            .by_ref()
            .take(usize_from(round % 4) + 2)
            .for_each(|op| pair.apply(&device, op));
        present.settle().unwrap();
        pair.expected().frozen = Some(frozen.clone());
        pair.look();
        script.by_ref().take(5).for_each(|op| pair.apply(&device, op));
        assert_same(&read_all(&present.below().unwrap()), &frozen, "the snapshot");
        drop(present);
        device.close().unwrap();
        pair.expected().model.flushed();
        pair.look();
        pair.leaf.set_observer(None);
        pair.child.set_observer(None);
        states += pair.states.load(Ordering::Relaxed);
    }
    announce(&format!("crash states of two files together: {states}, 0 violations"));
}

/// Each operation on either file fails in turn: nothing that was flushed is lost, and after a failed sync no flush
/// succeeds (INV-05).
#[test]
fn inv_51_each_operation_on_either_file_fails() {
    let struck = each_operation_fails(Fault::nth, |control, _| {
        let leaf = Arc::new(FaultFile::new(MemoryFile::from_bytes(
            Forge::dynamic(CRASH_SIZE, CRASH_BLOCK).build(),
        )));
        let child = MemoryFile::from_bytes(Forge::differencing(CRASH_SIZE, CRASH_BLOCK).build());
        let child = Arc::new(FaultFile::new(child));
        let open = |file: &Arc<FaultFile<MemoryFile>>| {
            let faulty = FaultFile::with_control(Shared(Arc::clone(file)), control);
            Image::open(Arc::new(faulty), &OpenMode::read_write())
        };
        let mut expected = Expected {
            model: CrashModel::new(CRASH_SIZE),
            announced: true,
            frozen: None,
        };
        if let (Ok(image), Ok(next)) = (open(&leaf), open(&child)) {
            let device = LiveDevice::new(Arc::new(LayeredDevice::new(image, Vec::new())));
            let (mut sync_failed, mut all_written) = (false, true);
            let mut run = |op: Op| {
                let begun = op.begin(&mut expected.model);
                match op.run(&device) {
                    Ok(()) => {
                        assert!(
                            !sync_failed || op != Op::Flush,
                            "a flush succeeds after one that failed"
                        );
                        // Of a write that failed a flush may keep any part, so that it says nothing of that one.
                        if all_written {
                            op.end(&mut expected.model, begun);
                        }
                    }
                    Err(_) if op != Op::Flush => all_written = false,
                    Err(error) => sync_failed |= ErrorKind::from(error.kind()) == ErrorKind::Poisoned,
                }
            };
            let write = |offset, fill| Op::Write {
                offset,
                len: 1024,
                fill,
            };
            [write(0, 1), write(4096, 2), Op::Flush, write(1024, 3)]
                .into_iter()
                .for_each(&mut run);
            LiveDevice::switch(vec![(&device, device.prepare(next))]).unwrap();
            [write(512, 4), write(8192, 5), Op::Flush, write(512, 6)]
                .into_iter()
                .for_each(&mut run);
            let _ = device.present().settle();
            [Op::Flush, write(0, 7), Op::Flush].into_iter().for_each(&mut run);
            drop(device);
        }
        control.heal();
        let plain = |file: &Arc<FaultFile<MemoryFile>>| {
            let len = usize_from(file.inner().len().unwrap());
            let mut bytes = vec![0; len];
            file.inner().read_exact_at(&mut bytes, 0).unwrap();
            CrashFile::from_bytes(&bytes)
        };
        check_crashed(plain(&leaf), plain(&child), &expected);
    });
    announce(&format!("operations on two files that failed: {struck}"));
    assert!(struck > 20);
}

/// A file that two wrappers have.
#[derive(Debug)]
struct Shared(Arc<FaultFile<MemoryFile>>);

impl StorageFile for Shared {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
    fn read_exact_vectored_at(&self, bufs: &mut [std::io::IoSliceMut<'_>], offset: u64) -> std::io::Result<()> {
        self.0.read_exact_vectored_at(bufs, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> std::io::Result<()> {
        self.0.write_all_at(buf, offset)
    }
    fn write_all_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> std::io::Result<()> {
        self.0.write_all_vectored_at(bufs, offset)
    }
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }
    fn sync(&self) -> std::io::Result<()> {
        self.0.sync()
    }
    fn punch_hole(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.0.punch_hole(offset, len)
    }
    fn zero_range(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.0.zero_range(offset, len)
    }
    fn allocate(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.0.allocate(offset, len)
    }
    fn segment_at(&self, offset: u64) -> std::io::Result<(vhd_core::storage::Segment, u64)> {
        self.0.segment_at(offset)
    }
    fn share_range_from(&self, source: &dyn StorageFile, from: u64, offset: u64, len: u64) -> std::io::Result<()> {
        self.0.share_range_from(source, from, offset, len)
    }
}

/// A visitor of extents may use the disk while it is switched; what it sees is the disk of some moment.
#[test]
fn extents_are_walked_while_the_disk_is_switched() {
    let dir = temp_dir();
    let disk = new_disk(dir.path(), "vm.vhd");
    let device = live(&disk);
    (0..16).for_each(|block| write_number(&device, block * 1024, 1));
    let handle = Disk::new(Arc::new(device));
    let mut seen = 0;
    let all = ByteRange::new(0, handle.size());
    handle
        .extents(all, &mut |extent| {
            handle.read_at(&mut [0; SECTOR], extent.range.start).unwrap();
            seen += extent.range.len;
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, handle.size());
}
