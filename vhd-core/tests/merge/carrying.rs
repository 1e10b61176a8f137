//! Other children of the layers are carried along: every leaf reads the same, before, at each moment of the merge, and
//! after it, and so do those that are based on what is carried.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::chains::{Chain, SIZE, assert_sound, options, run};
use crate::common::announce;
use crate::common::disk::{assert_reads, open, parent_id_of, write_session};
use crate::common::rng::{Rng, chance, seeded};
use crate::common::temp_dir;
use crate::refusals::{files, refused};
use vhd_core::ErrorKind;
use vhd_core::chain::{OpenOptions, create_child};
use vhd_core::check::{Severity, check};
use vhd_core::ops::Progress;
use vhd_core::ops::merge::{MergeOptions, MergeRequest, merge, plan};
use vhd_core::storage::{Access, HostFile, Sharing};

/// A chain with other children at every level, of which some have children.
struct Family {
    dir: tempfile::TempDir,
    chain: Chain,
    child: usize,
    target: usize,
    /// Each with what it reads; the number is the level of its parent, or nothing if that is no layer of the chain.
    others: Vec<(PathBuf, Vec<u8>, Option<usize>)>,
}

impl Family {
    fn random(rng: &mut Rng, depth: usize) -> Self {
        let dir = temp_dir();
        let chain = Chain::random(dir.path(), rng, depth);
        let child = rng.usize(1..=depth);
        let target = rng.usize(..child);
        fs::create_dir(dir.path().join("below")).unwrap();
        let mut others = Vec::new();
        for level in 0..=depth {
            for number in 0..rng.usize(1..3) {
                let place = ["", "below/"][rng.usize(..2)];
                let path = dir.path().join(format!("{place}other-{level}-{number}.avhd"));
                let content = other(&path, &chain.paths[level], &chain.contents[level], rng);
                if chance(rng, 40) {
                    let grandchild = path.with_extension("child.avhd");
                    let content = other(&grandchild, &path, &content, rng);
                    others.push((grandchild, content, None));
                }
                others.push((path, content, Some(level)));
            }
        }
        Self {
            dir,
            chain,
            child,
            target,
            others,
        }
    }

    fn request(&self, dir: &Path) -> MergeRequest {
        MergeRequest {
            into: Some(moved(&self.chain.paths[self.target], self.dir.path(), dir)),
            carry: true,
            ..MergeRequest::new(&moved(&self.chain.paths[self.child], self.dir.path(), dir))
        }
    }

    fn is_carried(&self, level: Option<usize>) -> bool {
        level.is_some_and(|level| (self.target..self.child).contains(&level))
    }

    /// Everything above the target that is there reads what it must, in a copy of the directory.
    fn check(&self, dir: &Path) {
        let at = |path: &Path| moved(path, self.dir.path(), dir);
        for (path, content, _) in &self.others {
            assert_reads(&at(path), content);
        }
        for (level, (path, content)) in self.chain.paths.iter().zip(&self.chain.contents).enumerate() {
            let path = at(path);
            if level < self.target || level >= self.child && path.exists() {
                assert_reads(&path, content);
            }
        }
    }

    /// The merge is done: the same, and the range is gone.
    fn check_done(&self, dir: &Path) {
        self.check_ended(dir);
        let target = &self.chain.paths[self.target];
        for path in self.others.iter().map(|(path, ..)| path).chain([target]) {
            // No warning about time stamps either.
            assert_sound(&moved(path, self.dir.path(), dir));
        }
    }

    /// The same after a run that died: space that it had taken and time stamps that it had touched stay so.
    fn check_ended(&self, dir: &Path) {
        self.check(dir);
        let target = moved(&self.chain.paths[self.target], self.dir.path(), dir);
        assert_reads(&target, &self.chain.contents[self.child]);
        for level in self.target + 1..=self.child {
            assert!(!moved(&self.chain.paths[level], self.dir.path(), dir).exists());
        }
        for (path, ..) in &self.others {
            let opened = open(&moved(path, self.dir.path(), dir), false);
            for layer in opened.layers() {
                let worst = check(layer.layer.file()).unwrap().worst();
                assert!(worst <= Some(Severity::Leak), "{}: {worst:?}", layer.path.display());
            }
        }
        let records = files(dir)
            .into_iter()
            .filter(|(path, _)| path.extension().is_some_and(|e| e == "merge"));
        assert_eq!(records.count(), 0);
    }
}

/// A new child of `parent` in which something is written.
fn other(path: &Path, parent: &Path, reads: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut content = reads.to_vec();
    create_child(path, parent, None, &OpenOptions::new()).unwrap();
    let operations = rng.usize(..6);
    write_session(path, &mut content, rng, operations);
    content
}

fn moved(path: &Path, from: &Path, to: &Path) -> PathBuf {
    to.join(path.strip_prefix(from).unwrap())
}

/// A copy as a process that is killed in this moment leaves the files: with their time stamps.
fn copy_dir(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = moved(&path, from, to);
        if path.is_dir() {
            fs::create_dir_all(&copy).unwrap();
            copy_dir(&path, &copy);
        } else {
            fs::copy(&path, &copy).unwrap();
            let modified = path.metadata().unwrap().modified().unwrap();
            fs::File::options()
                .write(true)
                .open(&copy)
                .unwrap()
                .set_modified(modified)
                .unwrap();
        }
    }
}

#[test]
fn inv_22_other_children_are_carried_along() {
    let mut rng = seeded(0xCA22, "families");
    let (mut carried, mut taken, mut most) = (0, 0, 0);
    for round in 0..20 {
        let family = Family::random(&mut rng, 1 + round % 4);
        let dir = family.dir.path();
        family.check(dir);
        let without = MergeRequest {
            carry: false,
            ..family.request(dir)
        };
        assert_eq!(refused(dir, &without).kind(), ErrorKind::HasChildren);
        let planned = plan(&family.request(dir)).unwrap();
        let mut wanted: Vec<_> = family
            .others
            .iter()
            .filter(|(.., level)| family.is_carried(*level))
            .collect();
        wanted.sort();
        let paths: Vec<&Path> = planned.carried().iter().map(|child| &*child.path).collect();
        assert_eq!(paths, wanted.iter().map(|(path, ..)| &**path).collect::<Vec<_>>());
        let before: Vec<u64> = paths.iter().map(|path| path.metadata().unwrap().len()).collect();
        let report = merge(&planned, &options(), &()).unwrap();
        family.check_done(dir);
        // The plan tells the truth: no more is taken over, no file grows more.
        let bound: u64 = planned.carried().iter().map(|child| child.bytes).sum();
        assert!(report.carried_bytes <= bound, "{} of {bound}", report.carried_bytes);
        for (child, before) in planned.carried().iter().zip(before) {
            let growth = child.path.metadata().unwrap().len().saturating_sub(before);
            // A bitmap for each block, and what a changed header takes.
            let bound = child.new_bytes + child.new_bytes / (512 << 10) * 512 + (64 << 10);
            assert!(growth <= bound, "{growth} of {bound}");
        }
        for (path, _, level) in &family.others {
            let target = &family.chain.paths[family.target];
            let opened = open(path, false);
            if family.is_carried(*level) || *level == Some(family.child) {
                assert_eq!(
                    opened.paths()[1].canonicalize().unwrap(),
                    target.canonicalize().unwrap()
                );
            }
        }
        carried += planned.carried().len();
        (taken, most) = (taken + report.carried_bytes, most + bound);
    }
    announce(&format!(
        "{carried} children carried: {taken} bytes taken over, at most {most} planned"
    ));
    assert!(carried > 20 && taken > 0);
}

/// Copies the directory at every step that is told of, as if the process were killed then.
struct CopyAtEachStep<'a> {
    from: &'a Path,
    to: &'a Path,
    states: Mutex<Vec<PathBuf>>,
    skip: u64,
    steps: AtomicU64,
}

impl Progress for CopyAtEachStep<'_> {
    fn begin(&self, _total: u64) {
        self.advance(0);
    }

    fn advance(&self, _bytes: u64) {
        if !self.steps.fetch_add(1, Ordering::Relaxed).is_multiple_of(self.skip) {
            return;
        }
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.to.join(states.len().to_string());
        fs::create_dir(&state).unwrap();
        copy_dir(self.from, &state);
        states.push(state);
    }
}

/// A process that dies while it carries or copies leaves what a copy of the directory in that moment has: everything
/// reads the same, and the merge goes on, in the copy, and only there.
#[test]
fn inv_20_22_a_merge_that_dies_at_any_step_goes_on_in_a_copy_of_the_directory() {
    let mut rng = seeded(0xD1E, "deaths");
    let (mut states, mut resumed_at) = (0, [0; 3]);
    for round in 0..5 {
        let family = Family::random(&mut rng, 2 + round % 2);
        let copies = temp_dir();
        let progress = CopyAtEachStep {
            from: family.dir.path(),
            to: copies.path(),
            states: Mutex::default(),
            skip: 3,
            steps: AtomicU64::new(0),
        };
        let one = MergeOptions {
            threads: 1,
            batch_bytes: 256 << 10,
            ..options()
        };
        merge(&plan(&family.request(family.dir.path())).unwrap(), &one, &progress).unwrap();
        family.check_done(family.dir.path());
        let original = files(family.dir.path());
        for state in progress.states.into_inner().unwrap() {
            states += 1;
            family.check(&state);
            let request = family.request(&state);
            let planned = plan(&request).unwrap();
            let at = planned.resumes_at();
            resumed_at[at.map_or(0, |at| if at == 0 { 1 } else { 2 })] += 1;
            // Half of them die again, in the carrying or in the copying.
            if rng.bool() {
                stop_after(&request, rng.u64(..SIZE));
                family.check(&state);
            }
            if request.child.exists() {
                run(&request).unwrap();
            }
            family.check_ended(&state);
            fs::remove_dir_all(&state).unwrap();
        }
        assert!(
            files(family.dir.path()) == original,
            "the original was changed by its copies"
        );
    }
    announce(&format!(
        "{states} states of merges that carry: {resumed_at:?} before, at the beginning, in the middle"
    ));
    assert!(
        states > 60 && resumed_at[1] > 5 && resumed_at[2] > 5,
        "{states}: {resumed_at:?}"
    );
}

/// Sets a flag after so many bytes.
struct StopAfter<'a> {
    left: AtomicU64,
    flag: &'a AtomicBool,
}

impl Progress for StopAfter<'_> {
    fn begin(&self, _total: u64) {}

    fn advance(&self, bytes: u64) {
        let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            Some(left.saturating_sub(bytes))
        });
        if before.is_ok_and(|left| left <= bytes) {
            self.flag.store(true, Ordering::Relaxed);
        }
    }
}

/// Whether it was stopped after so many bytes.
fn stop_after(request: &MergeRequest, bytes: u64) -> bool {
    let flag = AtomicBool::new(false);
    let progress = StopAfter {
        left: AtomicU64::new(bytes),
        flag: &flag,
    };
    let options = MergeOptions {
        cancel: &flag,
        threads: 1,
        batch_bytes: 64 << 10,
    };
    merge(&plan(request).unwrap(), &options, &progress).unwrap().cancelled
}

/// Machines run on the merged image, on carried children and on new ones between two parts of a merge.
#[test]
fn inv_22_machines_run_between_two_parts_of_a_merge_that_carries() {
    let mut rng = seeded(0x1B, "machines");
    let mut stopped = 0;
    for round in 0..12 {
        let mut family = Family::random(&mut rng, 2 + round % 3);
        let dir = family.dir.path().to_owned();
        // A child of the merged image would not see what is written to that.
        let child = family.child;
        for (path, ..) in family.others.iter().filter(|(.., level)| *level == Some(child)) {
            for path in [path, &path.with_extension("child.avhd")] {
                let _ = fs::remove_file(path);
            }
        }
        family.others.retain(|(path, ..)| path.exists());
        for level in child + 1..family.chain.paths.len() {
            for path in files(&dir)
                .into_iter()
                .chain(files(&dir.join("below")))
                .map(|(path, _)| path)
            {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                if name.starts_with(&format!("{level}.")) || name.starts_with(&format!("other-{level}-")) {
                    fs::remove_file(path).unwrap();
                }
            }
        }
        family.others.retain(|(path, ..)| path.exists());
        family.chain.paths.truncate(child + 1);
        let request = family.request(&dir);
        for part in 1..5 {
            if !family.chain.paths[child].exists() || !stop_after(&request, part * SIZE / 3) {
                break;
            }
            stopped += 1;
            family.check(&dir);
            write_session(
                &family.chain.paths[child],
                &mut family.chain.contents[child],
                &mut rng,
                5,
            );
            for at in 0..family.others.len() {
                let is_parent = family.others[at].0.with_extension("child.avhd").exists();
                if !is_parent {
                    let (path, content, _) = &mut family.others[at];
                    write_session(path, content, &mut rng, 3);
                }
            }
            family.check(&dir);
        }
        if family.chain.paths[child].exists() {
            run(&request).unwrap();
        }
        family.check_done(&dir);
    }
    assert!(stopped > 10, "{stopped}");
}

/// All is copied, and the process dies after any of the steps of the end.
#[test]
fn inv_21_it_dies_at_any_step_of_the_end_and_goes_on() {
    let mut rng = seeded(0x2E, "ends");
    let mut states = 0;
    for _ in 0..4 {
        let mut family = Family::random(&mut rng, 3);
        (family.child, family.target) = (3, rng.usize(..2));
        let dir = family.dir.path();
        // The first child to be pointed is in use, from the moment on in which everything is copied.
        let busy = dir.join("a-busy-child.avhd");
        let content = other(&busy, &family.chain.paths[3], &family.chain.contents[3], &mut rng);
        family.others.push((busy.clone(), content, Some(3)));
        let lock = Mutex::new(None);
        let progress = LockAtEnd {
            left: AtomicU64::new(0),
            path: &busy,
            lock: &lock,
        };
        let request = family.request(dir);
        let error = merge(&plan(&request).unwrap(), &options(), &progress).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
        drop(lock);
        let (all_copied, done, state) = (temp_dir(), temp_dir(), temp_dir());
        copy_dir(dir, all_copied.path());
        copy_dir(dir, done.path());
        family.check(all_copied.path());
        run(&family.request(done.path())).unwrap();
        family.check_done(done.path());
        // So many children are pointed, so many layers are gone.
        let pointed: Vec<&PathBuf> = family.others.iter().map(|(path, ..)| path).collect();
        let gone = 3 - family.target;
        for step in 0..=pointed.len() + gone {
            states += 1;
            fs::remove_dir_all(state.path()).unwrap();
            fs::create_dir(state.path()).unwrap();
            copy_dir(all_copied.path(), state.path());
            for path in pointed.iter().take(step) {
                fs::copy(moved(path, dir, done.path()), moved(path, dir, state.path())).unwrap();
            }
            for level in (0..step.saturating_sub(pointed.len())).map(|gone| 3 - gone) {
                fs::remove_file(state.path().join(format!("{level}.vhd"))).unwrap();
            }
            family.check(state.path());
            let request = family.request(state.path());
            assert_eq!(plan(&request).unwrap().resumes_at(), Some(SIZE));
            run(&request).unwrap();
            family.check_ended(state.path());
        }
    }
    announce(&format!("{states} states of the end of merges that carry"));
}

/// Takes a lock when the last byte is copied; the carrying comes before.
struct LockAtEnd<'a> {
    left: AtomicU64,
    path: &'a Path,
    lock: &'a Mutex<Option<HostFile>>,
}

impl Progress for LockAtEnd<'_> {
    fn begin(&self, total: u64) {
        self.left.store(total, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        if self.left.fetch_sub(bytes, Ordering::Relaxed) == bytes {
            let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            if lock.is_none() {
                *lock = Some(HostFile::open(self.path, Access::ReadWrite, Sharing::Exclusive).unwrap());
            }
        }
    }
}

#[test]
fn a_carried_child_in_use_stops_the_merge_before_it_begins() {
    let mut rng = seeded(0x105E, "children in use");
    let dir = temp_dir();
    let chain = Chain::random(dir.path(), &mut rng, 2);
    let others = [0, 1].map(|level| dir.path().join(format!("other-{level}.avhd")));
    for (level, path) in others.iter().enumerate() {
        create_child(path, &chain.paths[level], None, &OpenOptions::new()).unwrap();
    }
    let request = MergeRequest {
        into: Some(chain.paths[0].clone()),
        carry: true,
        ..MergeRequest::new(&chain.paths[2])
    };
    for path in &others {
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let used = HostFile::open(path, access, Sharing::Exclusive).unwrap();
            assert_eq!(refused(dir.path(), &request).kind(), ErrorKind::Locked);
            drop(used);
        }
    }
    run(&request).unwrap();
    assert_reads(&others[0], &chain.contents[0]);
    assert_reads(&others[1], &chain.contents[1]);
}

#[test]
fn a_carried_child_elsewhere_is_named() {
    let mut rng = seeded(0xE15E, "carried elsewhere");
    let (dir, elsewhere) = (temp_dir(), temp_dir());
    let chain = Chain::random(dir.path(), &mut rng, 3);
    let path = elsewhere.path().join("other.avhd");
    create_child(&path, &chain.paths[1], None, &OpenOptions::new()).unwrap();
    let request = MergeRequest {
        into: Some(chain.paths[0].clone()),
        extra_children: vec![path.clone()],
        ..MergeRequest::new(&chain.paths[3])
    };
    assert_eq!(refused(dir.path(), &request).kind(), ErrorKind::HasChildren);
    run(&MergeRequest { carry: true, ..request }).unwrap();
    assert_reads(&path, &chain.contents[1]);
    let base = open(&chain.paths[0], false).chain().unwrap().leaf().unique_id();
    assert_eq!(parent_id_of(&path), base);
}

/// Between the look and the work another command makes a child: it reads the target's own sectors.
#[test]
fn inv_46_who_comes_to_rely_on_the_target_after_the_plan_is_seen() {
    let mut rng = seeded(0x115, "newcomers");
    for carries in [false, true] {
        let dir = temp_dir();
        let chain = Chain::random(dir.path(), &mut rng, 2);
        let path = |name: &str| dir.path().join(name);
        if carries {
            create_child(&path("before.avhd"), &chain.paths[0], None, &OpenOptions::new()).unwrap();
        }
        let request = MergeRequest {
            into: Some(chain.paths[0].clone()),
            carry: carries,
            ..MergeRequest::new(&chain.paths[2])
        };
        let plan = plan(&request).unwrap();
        create_child(&path("new.avhd"), &chain.paths[0], None, &OpenOptions::new()).unwrap();
        let error = merge(&plan, &options(), &()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HasChildren, "{error}");
        assert!(error.to_string().contains("new.avhd"), "{error}");
        assert!(!error.to_string().contains("before.avhd"), "{error}");
        let check = || {
            assert_reads(&path("new.avhd"), &chain.contents[0]);
            if carries {
                assert_reads(&path("before.avhd"), &chain.contents[0]);
            }
        };
        check();
        for (path, content) in chain.paths.iter().zip(&chain.contents) {
            assert_reads(path, content);
        }
        // The same command knows of it now.
        run(&MergeRequest { carry: true, ..request }).unwrap();
        check();
        assert_reads(&chain.paths[0], &chain.contents[2]);
    }
}
