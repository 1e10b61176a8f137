//! Operations that stop at each of their steps, as a crash would stop them, and what the next command makes of that.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use vhd_core::chain::OpenOptions;
use vhd_core::format::UniqueId;
use vhd_core::image::create_dynamic;
use vhd_core::snapshot::{SnapshotTree, Steps, Work, resolve};
use vhd_core::storage::StagedFile;

use super::manifest::{Part, Pending, Snapshot};
use super::store::Store;

const DISKS: [&str; 2] = ["one.vhd", "two.vhd"];
const SIZE: u64 = 16 << 20;
const BLOCK: u64 = 2 << 20;

/// Ends the operation, as if the process was killed, after so many steps.
struct Crash {
    left: AtomicUsize,
}

/// What a crash is recognised by.
const CRASH: &str = "the process is killed here";

impl Steps for Crash {
    fn done(&self, _step: &str) {
        let left = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        assert!(left != Ok(1), "{CRASH}");
    }
}

/// Two disks with a state `kept`, and something written since.
struct Lab {
    dir: tempfile::TempDir,
    snapshot: Snapshot,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let parts = DISKS.map(|disk| {
            let base = dir.path().canonicalize().unwrap().join(disk);
            let staged = StagedFile::create_beside(&base).unwrap();
            create_dynamic(&*staged.storage(), SIZE, BLOCK).unwrap();
            staged.publish(false, false).unwrap();
            write(&base, b"kept");
            let snapshot = take(&base, "kept");
            write(&resolve(&base, "now").unwrap(), b"late");
            part(base, snapshot)
        });
        let lab = Self {
            dir,
            snapshot: snapshot(parts),
        };
        std::fs::create_dir(lab.place()).unwrap();
        let mut store = lab.store(usize::MAX);
        std::fs::write(store.memory_of(lab.snapshot.id), "memory").unwrap();
        let mut next = store.manifest.with(None);
        next.snapshots.push(lab.snapshot.clone());
        store.write(next, "taken").unwrap();
        lab
    }

    fn place(&self) -> PathBuf {
        self.dir.path().join("machine")
    }

    /// The snapshots of the machine; the process is killed after so many steps.
    fn store(&self, steps: usize) -> Store {
        let left = AtomicUsize::new(steps);
        Store::in_directory(self.place(), Box::leak(Box::new(Crash { left })), Default::default()).unwrap()
    }

    /// What both disks have now, which must be the same.
    fn now(&self) -> [u8; 4] {
        let [one, two] = DISKS.map(|disk| read(&resolve(&self.dir.path().join(disk), "now").unwrap()));
        assert_eq!(one, two, "half of one state and half of another");
        one
    }

    /// Whether both disks have the state that was kept, or none of them.
    fn has_parts(&self) -> bool {
        let [one, two] = DISKS.map(|disk| resolve(&self.dir.path().join(disk), "kept").is_ok());
        assert_eq!(one, two, "one disk has its part, and the other one has not");
        one
    }

    /// Does something and kills it after each of its steps; the next command must find the disks as `check` says, which is told
    /// whether it was killed. It is itself killed after each step.
    fn crash_everywhere(operation: impl Fn(&Self, &mut Store), check: impl Fn(&Self)) {
        for steps in 1.. {
            let lab = Self::new();
            let was_killed = dies(|| operation(&lab, &mut lab.store(steps)));
            for recovery in 1.. {
                if !dies(|| drop(lab.store(recovery).recover(&[]).unwrap())) {
                    break;
                }
            }
            assert!(lab.store(usize::MAX).manifest.pending.is_none());
            check(&lab);
            for disk in DISKS {
                let tree = SnapshotTree::open(&lab.dir.path().join(disk), work()).unwrap();
                // Those that are deleted and have their files still, too.
                let names: Vec<_> = tree.manifest().snapshots.iter().map(|it| it.name.clone()).collect();
                assert!(names.iter().all(|name| name == "kept"), "{steps}: {names:?}");
            }
            if !was_killed {
                assert!(steps > 6, "it has {steps} steps");
                return;
            }
        }
    }
}

fn work() -> Work<'static> {
    static NEVER: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    Work {
        steps: &(),
        progress: &(),
        cancel: &NEVER,
    }
}

fn part(base: PathBuf, snapshot: UniqueId) -> Part {
    Part {
        slot: 0,
        id: String::new(),
        base,
        snapshot,
    }
}

fn snapshot(parts: [Part; 2]) -> Snapshot {
    Snapshot {
        id: UniqueId::random(),
        name: "kept".to_owned(),
        created: 0,
        paused_us: 0,
        disks: parts.into(),
    }
}

fn take(disk: &Path, name: &str) -> UniqueId {
    let mut tree = SnapshotTree::open(disk, work()).unwrap();
    tree.create(name).unwrap().snapshot.id
}

fn write(image: &Path, bytes: &[u8]) {
    let opened = OpenOptions::new().write(true).open(image).unwrap();
    opened.disk().write_at(bytes, 4096).unwrap();
    opened.close().unwrap();
}

fn read(image: &Path) -> [u8; 4] {
    let mut bytes = [0; 4];
    let opened = OpenOptions::new().open(image).unwrap();
    opened.disk().read_at(&mut bytes, 4096).unwrap();
    bytes
}

/// Whether the process was killed in the middle.
fn dies(operation: impl FnOnce()) -> bool {
    match catch_unwind(AssertUnwindSafe(operation)) {
        Ok(()) => false,
        Err(reason) => {
            let text = reason.downcast_ref::<String>().map(String::as_str);
            assert_eq!(text, Some(CRASH));
            true
        }
    }
}

#[test]
fn inv_89_going_back_that_is_killed_is_undone_or_completed() {
    let apply = |lab: &Lab, store: &mut Store| drop(store.put_back(&lab.snapshot).unwrap());
    let check = |lab: &Lab| {
        assert!(lab.has_parts());
        let now = lab.now();
        assert!(&now == b"kept" || &now == b"late", "{now:?}");
        assert!(lab.store(usize::MAX).manifest.named("kept").is_some());
    };
    Lab::crash_everywhere(apply, check);
    // Without a crash it is there.
    let lab = Lab::new();
    lab.store(usize::MAX).put_back(&lab.snapshot).unwrap();
    assert_eq!(&lab.now(), b"kept");
}

#[test]
fn inv_88_a_deletion_that_is_killed_is_none_or_completed() {
    let delete = |_: &Lab, store: &mut Store| drop(store.delete("kept", &[]).unwrap());
    let check = |lab: &Lab| {
        assert_eq!(&lab.now(), b"late");
        let store = lab.store(usize::MAX);
        let is_there = store.manifest.named("kept").is_some();
        assert_eq!(lab.has_parts(), is_there);
        assert_eq!(store.memory_of(lab.snapshot.id).exists(), is_there);
        assert_eq!(lab.place().exists(), is_there);
    };
    Lab::crash_everywhere(delete, check);
}

/// A process that is killed while it takes a snapshot leaves any of its parts.
#[test]
fn inv_87_what_was_not_completed_is_gone() {
    for parts in 0..4 {
        for steps in 1.. {
            let lab = Lab::new();
            let mut store = lab.store(usize::MAX);
            let mut next = store.manifest.with(Some(Pending::Create {
                snapshot: lab.snapshot.clone(),
            }));
            next.snapshots.clear();
            store.write(next, "snapshot announced").unwrap();
            for (at, part) in lab.snapshot.disks.iter().enumerate() {
                if parts >> at & 1 == 0 {
                    let mut tree = SnapshotTree::open(&part.base, work()).unwrap();
                    tree.delete("kept", false).unwrap();
                }
            }
            let was_killed = dies(|| drop(lab.store(steps).recover(&[]).unwrap()));
            lab.store(usize::MAX).recover(&[]).unwrap();
            assert!(!lab.has_parts() && !lab.place().exists(), "{parts} {steps}");
            assert_eq!(&lab.now(), b"late");
            if !was_killed {
                break;
            }
        }
    }
}

#[test]
fn what_was_written_to_a_disk_since_is_not_lost_by_an_undo() {
    let lab = Lab::new();
    // The process was killed when one disk was back.
    let mut steps = 1;
    while dies(|| drop(lab.store(steps).put_back(&lab.snapshot).unwrap())) {
        let active = DISKS.map(|disk| read(&resolve(&lab.dir.path().join(disk), "now").unwrap()));
        if active == [*b"kept", *b"late"] {
            break;
        }
        lab.store(usize::MAX).recover(&[]).unwrap();
        steps += 1;
    }
    let one = lab.snapshot.disks[0].base.clone();
    write(&resolve(&one, "now").unwrap(), b"mine");
    let refused = lab.store(usize::MAX).recover(&[]).unwrap_err();
    assert!(
        refused.message().contains("take a snapshot first"),
        "{}",
        refused.message()
    );
    assert!(
        lab.store(usize::MAX).recover_before_start().is_err(),
        "a machine would see a mixture"
    );
    // As the message says.
    take(&one, "mine");
    lab.store(usize::MAX).recover(&[]).unwrap();
    assert_eq!(&lab.now(), b"late");
    assert_eq!(&read(&resolve(&one, "mine").unwrap()), b"mine");
}

#[test]
fn a_disk_that_is_gone_keeps_nothing_from_its_end() {
    let lab = Lab::new();
    std::fs::remove_file(&lab.snapshot.disks[0].base).unwrap();
    lab.store(usize::MAX).delete("kept", &[]).unwrap();
    assert!(!lab.place().exists());
    assert!(resolve(&lab.snapshot.disks[1].base, "kept").is_err());
}
