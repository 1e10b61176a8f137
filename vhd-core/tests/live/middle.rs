//! Snapshots of a disk in use that are deleted below others: a frozen layer goes into the frozen one below it, and the disk
//! and the snapshots that are read beside it go on without it.

use super::delete::{content_of, delete, delete_with, files_in};
use super::*;
use vhd_core::ops::Progress;
use vhd_core::snapshot::SnapshotError;

/// A snapshot as it was taken: its name, what it read, and those who read it in the disk's open files.
struct Kept {
    name: String,
    content: Vec<u8>,
    view: Arc<LiveDevice>,
}

fn keep(disk: &Path, device: &LiveDevice, name: &str) -> Kept {
    let created = take(disk, device, name);
    Kept {
        name: name.to_owned(),
        content: bytes_of(&*created.frozen),
        view: created.frozen,
    }
}

impl Kept {
    /// It reads what it read, here and through its file.
    fn check(&self, disk: &Path, when: &str) {
        assert_same(
            &bytes_of(&*self.view),
            &self.content,
            &format!("{when}: {} as it is open", self.name),
        );
        let file = resolve(disk, &self.name).unwrap();
        assert_same(
            &content_of(&file),
            &self.content,
            &format!("{when}: {} in its file", self.name),
        );
    }
}

/// INV-73: a backup loop that creates a snapshot, copies it and deletes the oldest but one (or the oldest, which is the base)
/// keeps the chain as deep as it is, under writers, while all other snapshots are read.
#[test]
fn inv_73_rolling_snapshots_keep_the_depth_of_the_chain() {
    const THREADS: usize = 2;
    const KEPT: usize = 3;
    for oldest in [0, 1] {
        let dir = temp_dir();
        let disk = new_disk(dir.path(), "vm.vhd");
        let device = live(&disk);
        let mut kept: Vec<Kept> = Vec::new();
        beside_writers(&device, THREADS, || {
            for cycle in 0..usize_from(rounds(6)) * 2 {
                kept.push(keep(&disk, &device, &format!("s{cycle}")));
                thread::sleep(std::time::Duration::from_millis(3));
                if kept.len() <= KEPT {
                    continue;
                }
                let gone = kept.remove(oldest);
                drop(gone.view);
                let settled = delete(&disk, &device, &gone.name).unwrap();
                assert_eq!(
                    (settled.merged.len(), settled.waiting.len()),
                    (1, 0),
                    "cycle {cycle}: {settled:?}"
                );
                assert_eq!(device.present().layers().len(), KEPT + 1, "cycle {cycle}");
                // The base, the files of the others, the leaf and the manifest.
                assert_eq!(
                    files_in(dir.path()).len(),
                    KEPT + 2,
                    "cycle {cycle}: {:?}",
                    files_in(dir.path())
                );
                kept.iter()
                    .for_each(|kept| kept.check(&disk, &format!("cycle {cycle}")));
            }
        });
        let last = bytes_of(&device);
        kept.iter().for_each(|kept| kept.check(&disk, "in the end"));
        let kept: Vec<_> = kept.into_iter().map(|kept| (kept.name, kept.content)).collect();
        device.close().unwrap();
        let active = resolve(&disk, "now").unwrap();
        assert_reads(&active, &last);
        let opened = open(&active, false);
        assert!(opened.warnings().is_empty(), "{:?}", opened.warnings());
        assert_eq!(opened.paths().len(), KEPT + 1);
        for (name, content) in kept {
            assert_reads(&resolve(&disk, &name).unwrap(), &content);
        }
    }
}

/// Copies the directory at each step, and while sectors are copied.
struct Watching<'a> {
    steps: Copying<'a>,
}

impl Progress for Watching<'_> {
    fn begin(&self, _total: u64) {
        self.steps.done("copying");
    }

    fn advance(&self, _bytes: u64) {
        self.steps.done("copied some");
    }
}

/// INV-73, INV-74: killed at any step, with writes in between, the next command finishes the deletion or goes on with it;
/// the disk has all that was flushed, and the other snapshots read what they read.
#[test]
fn inv_73_killed_at_any_step_the_next_command_finishes() {
    // Which of three snapshots goes: the base, whose child has a frozen child; one whose child the leaf is based on.
    for gone in ["one", "two"] {
        let (dir, copies) = (temp_dir(), temp_dir());
        let disk = new_disk(dir.path(), "vm.vhd");
        let device = live(&disk);
        let mut kept = Vec::new();
        for (number, name) in (1..).zip(["one", "two", "three"]) {
            write_number(&device, 5, number);
            write_number(&device, 10 + usize_from(number), number);
            kept.push(keep(&disk, &device, name));
        }
        kept.retain(|kept| kept.name != gone);
        write_number(&device, 7, 3);
        device.flush().unwrap();
        let written = std::sync::atomic::AtomicUsize::new(0);
        let found = {
            let watching = Watching {
                steps: Copying::new(dir.path(), copies.path(), writes_between(&device, &written)),
            };
            let all = Work {
                steps: &watching.steps,
                progress: &watching,
                cancel: &GO_ON,
            };
            let settled = delete_with(&disk, &device, gone, all).unwrap();
            assert_eq!((settled.merged.len(), settled.waiting.len()), (1, 0), "{settled:?}");
            watching.steps.copies.into_inner().unwrap()
        };
        let names: Vec<&str> = found.iter().map(|(step, _)| step.as_str()).collect();
        assert!(names.contains(&"copied some"), "{names:?}");
        for (at, (step, copy)) in found.iter().enumerate() {
            let disk = copy.join("vm.vhd");
            let when = format!("{gone}, {at}: {step}");
            let mut tree = SnapshotTree::open(&disk, work(&())).unwrap();
            let settled = tree.settle().unwrap();
            assert!(settled.waiting.is_empty(), "{when}: {settled:?}");
            assert_eq!(tree.manifest().snapshots.len(), 2, "{when}");
            drop(tree);
            let now = content_of(&resolve(&disk, "now").unwrap());
            assert_eq!(
                [number_at(&now, 5), number_at(&now, 7)],
                [3, 10 + u64_from(at)],
                "{when}"
            );
            for later in 0..found.len() {
                let number = if later <= at { 9 } else { 0 };
                assert_eq!(number_at(&now, 100 + later), number, "{when}");
            }
            for kept in &kept {
                assert_same(&content_of(&resolve(&disk, &kept.name).unwrap()), &kept.content, &when);
            }
            assert_eq!(files_in(copy).len(), 4, "{when}: {:?}", files_in(copy));
            open(&resolve(&disk, "now").unwrap(), true).close().unwrap();
        }
        kept.iter().for_each(|kept| kept.check(&disk, gone));
        let now = bytes_of(&device);
        drop(kept);
        device.close().unwrap();
        assert_reads(&resolve(&disk, "now").unwrap(), &now);
    }
}

fn waits(settled: &vhd_core::snapshot::Settled) -> Vec<Option<ErrorKind>> {
    let reasons = settled.waiting.iter().map(|waiting| waiting.reason.as_ref());
    reasons.map(|reason| reason.map(SnapshotError::kind)).collect()
}

#[test]
fn who_reads_a_deleted_snapshot_alone_is_waited_for_and_who_reads_a_later_one_is_not() {
    let dir = temp_dir();
    let disk = new_disk(dir.path(), "vm.vhd");
    let device = live(&disk);
    let mut kept = Vec::new();
    for (number, name) in (1..).zip(["one", "two", "three"]) {
        write_number(&device, usize_from(number), number);
        kept.push(keep(&disk, &device, name));
    }
    // A client reads it.
    let gone = kept.remove(0);
    assert_eq!(
        waits(&delete(&disk, &device, "one").unwrap()),
        [Some(ErrorKind::Locked)]
    );
    assert_same(&bytes_of(&*gone.view), &gone.content, "the deleted one");
    drop(gone);
    // So does another program, as the lowest layer of the next.
    let reader = open(&resolve(&disk, "two").unwrap(), false);
    let mut tree = SnapshotTree::open_in_use(&disk, &device, work(&())).unwrap();
    assert_eq!(waits(&tree.settle_in_use().unwrap()), [Some(ErrorKind::Locked)]);
    drop(reader);
    // Told to stop; and once more when everything but the end is done.
    let stop = AtomicBool::new(true);
    drop(tree);
    let cancelled = Work {
        cancel: &stop,
        ..work(&())
    };
    let mut tree = SnapshotTree::open_in_use(&disk, &device, cancelled).unwrap();
    assert_eq!(tree.settle_in_use().unwrap_err().kind(), ErrorKind::Cancelled);
    drop(tree);
    kept.iter().for_each(|kept| kept.check(&disk, "half merged"));
    let refused = SnapshotTree::open(&disk, work(&())).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Locked, "{refused}");
    write_number(&device, 4, 4);
    let tree = SnapshotTree::open_in_use(&disk, &device, work(&())).unwrap();
    assert_eq!(tree.recovered(), Some(&Recovered::Merged));
    drop(tree);
    assert_eq!(device.present().layers().len(), 3);
    kept.iter().for_each(|kept| kept.check(&disk, "merged"));
    // All at once: the layers between go into the base, and then the leaf does.
    let views: Vec<_> = kept.drain(..).map(|kept| drop(kept.view)).collect();
    assert_eq!(views.len(), 2);
    let mut tree = SnapshotTree::open_in_use(&disk, &device, work(&())).unwrap();
    tree.give_up("two", true).unwrap();
    let settled = tree.settle_in_use().unwrap();
    assert!(settled.waiting.is_empty(), "{settled:?}");
    drop(tree);
    assert_eq!(files_in(dir.path()), ["vm.vhd"]);
    let now = bytes_of(&device);
    assert_eq!([1, 2, 3, 4].map(|at| number_at(&now, at)), [1, 2, 3, 4]);
    device.close().unwrap();
    assert_reads(&disk, &now);
}

/// A layer that was marked is found by those above it, in whichever file it is by now.
#[test]
fn a_mark_stays_on_its_layer() {
    let dir = temp_dir();
    let disk = new_disk(dir.path(), "vm.vhd");
    let device = live(&disk);
    for name in ["one", "two", "three"] {
        drop(take(&disk, &device, name));
    }
    let marks: Vec<_> = (1..4).map(|depth| device.mark(depth).unwrap()).collect();
    let depths = |device: &LiveDevice| {
        marks
            .iter()
            .map(|mark| mark.depth_in(&device.present()))
            .collect::<Vec<_>>()
    };
    assert_eq!(depths(&device), [Some(1), Some(2), Some(3)]);
    delete(&disk, &device, "one").unwrap();
    // "two" is in the base's file now, and what was above "one" nobody can tell.
    assert_eq!(depths(&device), [Some(1), Some(2), None]);
    let view = device.view(1).unwrap();
    assert_eq!(marks[1].depth_in(&view.present()), Some(1));
    device.close().unwrap();
}
