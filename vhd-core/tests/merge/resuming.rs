//! Merges that end early and go on: cancelled, with the machine running in between, and killed at each step of the
//! end.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::chains::{Chain, assert_sound, options, run};
use crate::common::disk::{assert_reads, open, write_session};
use crate::common::rng::{Rng, seeded};
use crate::common::temp_dir;
use vhd_core::ErrorKind;
use vhd_core::ops::Progress;
use vhd_core::ops::merge::{MergeOptions, MergeReport, MergeRequest, merge, plan};
use vhd_core::storage::{Access, HostFile, Sharing};

/// Sets a flag after so many bytes.
struct StopAfter<'a> {
    bytes: u64,
    done: AtomicU64,
    flag: &'a AtomicBool,
}

impl Progress for StopAfter<'_> {
    fn begin(&self, _total: u64) {}

    fn advance(&self, bytes: u64) {
        if self.done.fetch_add(bytes, Ordering::Relaxed) + bytes >= self.bytes {
            self.flag.store(true, Ordering::Relaxed);
        }
    }
}

/// Begins the merge and stops it after so many bytes.
fn stopped(request: &MergeRequest, bytes: u64) -> MergeReport {
    let flag = AtomicBool::new(false);
    let progress = StopAfter {
        bytes,
        done: AtomicU64::new(0),
        flag: &flag,
    };
    let options = MergeOptions {
        cancel: &flag,
        threads: 1,
        batch_bytes: 64 << 10,
    };
    merge(&plan(request).unwrap(), &options, &progress).unwrap()
}

/// Waits until all files are old enough for a change to be certain.
fn settle() {
    std::thread::sleep(Duration::from_millis(1100));
}

fn whole_range(chain: &Chain, child: usize, target: usize) -> MergeRequest {
    MergeRequest {
        into: Some(chain.paths[target].clone()),
        ..MergeRequest::new(&chain.paths[child])
    }
}

#[test]
fn inv_20_a_cancelled_merge_goes_on_where_it_was() {
    let mut rng = seeded(0xCA, "cancellations");
    let (mut cancelled, mut skipped) = (0, 0);
    for round in 0..10 {
        let dir = temp_dir();
        let depth = 2 + round % 3;
        let chain = Chain::random(dir.path(), &mut rng, depth);
        let (child, target) = (depth - usize::from(round % 2 == 0), rng.usize(..depth - 1));
        settle();
        let request = whole_range(&chain, child, target);
        let whole = plan(&request).unwrap().summary().held_bytes;
        let mut copied = 0;
        for part in 1..4 {
            let report = stopped(&request, whole * part / 8);
            copied += report.copied_bytes + report.zeroed_bytes;
            if !report.cancelled {
                break;
            }
            cancelled += 1;
            let at = plan(&request).unwrap().resumes_at().unwrap();
            skipped += u64::from(at > 0);
            for (path, content) in chain.paths.iter().zip(&chain.contents).skip(child) {
                assert_reads(path, content);
            }
        }
        if chain.paths[child].exists() {
            let report = run(&request).unwrap();
            assert!(report.resumed);
            copied += report.copied_bytes + report.zeroed_bytes;
        }
        // Nothing was copied twice.
        assert_eq!(copied, whole);
        chain.assert(
            target + 1..child + 1,
            |level| if level == target { child } else { level },
        );
    }
    assert!(
        cancelled > 10 && skipped > 5,
        "{cancelled} cancelled, {skipped} gone on in the middle"
    );
}

#[test]
fn inv_22_the_machine_runs_between_two_parts_of_a_merge() {
    let mut rng = seeded(0x4C, "running in between");
    for round in 0..9 {
        let dir = temp_dir();
        let mut chain = Chain::random(dir.path(), &mut rng, 3);
        let target = round % 3;
        if round % 2 == 0 {
            settle();
        }
        let request = whole_range(&chain, 3, target);
        let whole = plan(&request).unwrap().summary().held_bytes;
        for part in [2, 4] {
            if stopped(&request, whole * part / 8).cancelled {
                write_session(&chain.paths[3], &mut chain.contents[3], &mut rng, 6);
                assert_reads(&chain.paths[3], &chain.contents[3]);
            }
        }
        if chain.paths[3].exists() {
            run(&request).unwrap();
        }
        chain.assert(target + 1..4, |level| if level == target { 3 } else { level });
    }
}

/// The files of a directory, to be put back.
struct Snapshot(Vec<(std::path::PathBuf, Vec<u8>)>);

impl Snapshot {
    fn of(dir: &Path) -> Self {
        let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        Self(paths.map(|path| (path.clone(), fs::read(&path).unwrap())).collect())
    }

    fn restore(&self, dir: &Path) {
        for entry in fs::read_dir(dir).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for (path, bytes) in &self.0 {
            fs::write(path, bytes).unwrap();
        }
    }
}

/// A base, three layers that go into it, and two children of the topmost. Everything is copied, and the merge stands
/// before its end because the second child is in use.
struct Finishing {
    dir: tempfile::TempDir,
    chain: Chain,
    children: [std::path::PathBuf; 2],
    content: Vec<u8>,
}

impl Finishing {
    fn new(rng: &mut Rng) -> Self {
        let dir = temp_dir();
        let chain = Chain::random(dir.path(), rng, 3);
        let children = ["child-a.vhd", "child-b.vhd"].map(|name| dir.path().join(name));
        let mut content = chain.contents[3].clone();
        for child in &children {
            vhd_core::chain::create_child(child, &chain.paths[3], None, &vhd_core::chain::OpenOptions::new()).unwrap();
            content.clone_from(&chain.contents[3]);
            let seed = rng.u64(..);
            write_session(child, &mut content, &mut Rng::with_seed(7), 5);
            rng.seed(seed);
        }
        let finishing = Self {
            dir,
            chain,
            children,
            content,
        };
        // A machine takes its disk in the moment in which everything is copied: the first child is done by then.
        let lock = std::sync::Mutex::new(None);
        let progress = LockAtEnd {
            left: AtomicU64::new(0),
            path: &finishing.children[1],
            lock: &lock,
        };
        let planned = plan(&finishing.request()).unwrap();
        let error = merge(&planned, &options(), &progress).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
        drop(lock);
        finishing
    }

    fn request(&self) -> MergeRequest {
        whole_range(&self.chain, 3, 0)
    }

    /// What is left reads what it must.
    fn check(&self) {
        for child in &self.children {
            assert_reads(child, &self.content);
        }
        if self.chain.paths[3].exists() {
            assert_reads(&self.chain.paths[3], &self.chain.contents[3]);
        }
        assert_reads(&self.chain.paths[0], &self.chain.contents[3]);
    }

    fn finish(&self) {
        run(&self.request()).unwrap();
        self.check();
        self.children.iter().for_each(|child| assert_sound(child));
        assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 3);
    }
}

/// Takes a lock when the last byte is copied.
struct LockAtEnd<'a> {
    left: AtomicU64,
    path: &'a Path,
    lock: &'a std::sync::Mutex<Option<HostFile>>,
}

impl Progress for LockAtEnd<'_> {
    fn begin(&self, total: u64) {
        self.left.store(total, Ordering::Relaxed);
        self.advance(0);
    }

    fn advance(&self, bytes: u64) {
        if self.left.fetch_sub(bytes, Ordering::Relaxed) == bytes {
            let file = HostFile::open(self.path, Access::ReadWrite, Sharing::Exclusive).unwrap();
            *self.lock.lock().unwrap() = Some(file);
        }
    }
}

#[test]
fn inv_21_it_ends_at_any_step_of_the_end_and_goes_on() {
    let mut rng = seeded(0x21, "ends");
    let finishing = Finishing::new(&mut rng);
    let dir = finishing.dir.path();
    finishing.check();
    let opened = open(&finishing.children[0], false);
    assert_eq!(opened.paths().len(), 2, "the first child is pointed to the target");
    drop(opened);
    let before = Snapshot::of(dir);
    finishing.finish();
    let pointed = fs::read(&finishing.children[1]).unwrap();
    // Gone so far: nothing, the topmost layer, the two topmost, all of them.
    for gone in 0..4 {
        before.restore(dir);
        if gone > 0 {
            fs::write(&finishing.children[1], &pointed).unwrap();
        }
        for level in 0..gone {
            fs::remove_file(&finishing.chain.paths[3 - level]).unwrap();
        }
        finishing.check();
        assert_eq!(
            plan(&finishing.request()).unwrap().resumes_at(),
            Some(crate::chains::SIZE)
        );
        finishing.finish();
    }
}

#[test]
fn inv_22_a_layer_that_was_written_to_at_the_end_is_not_lost() {
    let mut rng = seeded(0x23, "writes at the end");
    let finishing = Finishing::new(&mut rng);
    let mut content = finishing.chain.contents[3].clone();
    write_session(&finishing.chain.paths[3], &mut content, &mut rng, 30);
    assert_ne!(content, finishing.chain.contents[3]);
    let error = run(&finishing.request()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
    assert_reads(&finishing.chain.paths[3], &content);
    assert_reads(&finishing.children[0], &finishing.content);
}
