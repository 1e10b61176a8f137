//! Snapshots: whatever is created, applied, reverted and deleted, in whatever order and wherever it is interrupted,
//! each snapshot and the present state read what they must. Names of tests cite docs/snapshots.md.
//!
//! A failure prints its seed; VHD_TEST_SEED replaces it. VHD_SNAPSHOT_ROUNDS says how many random histories there
//! are (default 12).

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use common::announce;
use common::disk::{assert_reads, assert_same, create, open, write_session};
use common::rng::{Rng, chance, seeded};
use common::tools::{have, seven_zip_reads};
use tempfile::TempDir;
use vhd_core::ErrorKind;
use vhd_core::chain::{OpenOptions, create_child};
use vhd_core::check::{Severity, check};
use vhd_core::image::create_dynamic;
use vhd_core::ops::Progress;
use vhd_core::snapshot::{
    Manifest, Recovered, SnapshotTree, Steps, Unsaved, Work, export, frozen_base, import, rescan, resolve, survey,
};
use vhd_core::storage::{Access, HostFile, Sharing};
use vhd_core::units::{u64_from, usize_from};
use vhd_testkit::bytes::is_zero;

const SIZE: u64 = (600 << 10) + 1536;
const BLOCK: u64 = 512 << 10;
/// Zeroes of this length are not written when a file is copied.
const PIECE: usize = 4096;

static GO_ON: AtomicBool = AtomicBool::new(false);
const WORK: Work<'static> = Work {
    steps: &(),
    progress: &(),
    cancel: &GO_ON,
};

/// A directory for small images, in memory where there is one: what is tested here is not what the host makes of a
/// sync, and there are thousands of them.
fn temp_dir() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        return tempfile::tempdir_in(memory).unwrap();
    }
    tempfile::tempdir().unwrap()
}

/// What a disk must read.
#[derive(Clone, Debug, Default)]
struct Model {
    snapshots: BTreeMap<String, Vec<u8>>,
    now: Vec<u8>,
}

/// A disk in a directory of its own, and what it must read.
struct Lab {
    dir: TempDir,
    model: Model,
    rng: Rng,
}

impl Lab {
    fn new(seed: u64) -> Self {
        let dir = temp_dir();
        create(&dir.path().join("vm.vhd"), |file| create_dynamic(file, SIZE, BLOCK));
        let mut lab = Self {
            dir,
            model: Model {
                now: vec![0; usize_from(SIZE)],
                ..Model::default()
            },
            rng: seeded(seed, "snapshots"),
        };
        lab.write();
        lab
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join("vm.vhd")
    }

    fn tree(&self) -> SnapshotTree<'static> {
        SnapshotTree::open(&self.disk(), WORK).unwrap()
    }

    /// Random writes to the present state.
    fn write(&mut self) {
        let active = resolve(&self.disk(), "now").unwrap();
        let operations = self.rng.usize(1..6);
        write_session(&active, &mut self.model.now, &mut self.rng, operations);
        // A child remembers its parent's time: one that is changed afterwards is to be noticed.
        let file = std::fs::File::options().write(true).open(&active).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3600))
            .unwrap();
    }

    /// Writes, and keeps the state.
    fn snapshot(&mut self, name: &str) {
        self.write();
        self.tree().create(name).unwrap();
        self.model.snapshots.insert(name.to_owned(), self.model.now.clone());
    }

    fn apply(&mut self, name: &str, unsaved: Unsaved<'_>) {
        self.tree().apply(name, unsaved).unwrap();
        if let Unsaved::Snapshot(kept) = unsaved {
            self.model.snapshots.insert(kept.to_owned(), self.model.now.clone());
        }
        self.model.now = self.model.snapshots[name].clone();
    }

    fn check(&self) {
        check_disk(self.dir.path(), &self.model);
    }

    fn files(&self) -> Vec<String> {
        names_in(self.dir.path())
    }
}

/// Each snapshot and the present state read what they must, through images that are in order.
fn check_disk(dir: &Path, model: &Model) {
    let disk = dir.join("vm.vhd");
    let listed = manifest_of(&disk)
        .listed()
        .map(|one| one.name.clone())
        .collect::<Vec<_>>();
    let mut expected: Vec<String> = model.snapshots.keys().cloned().collect();
    let mut found = listed.clone();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    for (name, content) in &model.snapshots {
        check_file(&resolve(&disk, name).unwrap(), content);
    }
    check_file(&resolve(&disk, "now").unwrap(), &model.now);
}

fn check_file(path: &Path, content: &[u8]) {
    assert_reads(path, content);
    let opened = open(path, false);
    assert!(opened.warnings().is_empty(), "{:?}", opened.warnings());
    for layer in opened.layers() {
        let report = check(layer.layer.file()).unwrap();
        let bad =
            |finding: &&vhd_core::check::Finding| matches!(finding.severity, Severity::Corrupt | Severity::Repairable);
        let bad: Vec<_> = report.findings.iter().filter(bad).collect();
        assert!(bad.is_empty(), "{}: {bad:?}", layer.path.display());
    }
}

fn manifest_of(disk: &Path) -> Manifest {
    survey(disk).unwrap().manifest
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = dir.read_dir().unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Nothing is left that the manifest does not mention.
fn assert_nothing_left(dir: &Path) {
    let manifest = manifest_of(&dir.join("vm.vhd"));
    assert_eq!(manifest.pending, None);
    let mut expected: Vec<String> = manifest.files().map(|file| file.name.clone()).collect();
    if !manifest.snapshots.is_empty() {
        expected.push("vm.vhd.snapshots".to_owned());
    }
    expected.sort();
    assert_eq!(names_in(dir), expected);
}

/// What there is of a tree but its names: which files, which below which, which is written to.
fn shape(manifest: &Manifest) -> Vec<(String, Option<String>)> {
    let file = |id| manifest.snapshot(id).unwrap().file.name.clone();
    let snapshots = manifest.snapshots.iter();
    let mut shape: Vec<_> = snapshots
        .map(|one| (one.file.name.clone(), one.parent.map(file)))
        .collect();
    shape.sort();
    shape.push((manifest.active.file.name.clone(), manifest.active.parent.map(file)));
    shape
}

#[test]
fn snapshots_are_taken_applied_and_reverted() {
    let mut lab = Lab::new(0x51);
    lab.check();
    assert_eq!(lab.files(), ["vm.vhd"]);
    lab.snapshot("one");
    lab.check();
    assert!(resolve(&lab.disk(), "one").unwrap().ends_with("vm.vhd"));
    lab.snapshot("two");
    lab.write();
    lab.check();

    let error = lab.tree().apply("one", Unsaved::Refuse).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SnapshotsUnsaved);
    lab.check();
    lab.apply("one", Unsaved::Snapshot("kept"));
    lab.check();
    // An empty leaf is nothing to lose.
    lab.apply("two", Unsaved::Refuse);
    lab.check();
    lab.write();
    lab.apply("kept", Unsaved::Discard);
    lab.check();
    lab.write();
    lab.write();
    let reverted = lab.tree().revert().unwrap();
    assert_eq!(reverted.snapshot.name, "kept");
    assert!(reverted.discarded_bytes > 0);
    lab.model.now = lab.model.snapshots["kept"].clone();
    lab.check();
    assert_nothing_left(lab.dir.path());
}

#[test]
fn a_snapshot_is_reached_by_any_file_of_the_tree() {
    let mut lab = Lab::new(0x52);
    lab.snapshot("one");
    lab.snapshot("two");
    let file = resolve(&lab.disk(), "two").unwrap();
    let tree = SnapshotTree::open(&file, WORK).unwrap();
    assert_eq!(tree.disk(), lab.disk());
    drop(tree);
    let link = lab.dir.path().join("link");
    std::os::unix::fs::symlink(lab.disk(), &link).unwrap();
    assert_eq!(resolve(&link, "two").unwrap(), file.canonicalize().unwrap());
    let frozen = frozen_base(&lab.disk()).unwrap();
    assert_eq!(frozen.snapshot.as_deref(), Some("one"));
    assert_eq!(frozen.active, resolve(&lab.disk(), "NOW").unwrap());
}

#[test]
fn names_are_unique_and_can_be_changed() {
    let mut lab = Lab::new(0x53);
    lab.snapshot("one");
    lab.snapshot("two");
    let mut tree = lab.tree();
    assert_eq!(tree.create("one").unwrap_err().kind(), ErrorKind::SnapshotExists);
    assert_eq!(tree.rename("one", "two").unwrap_err().kind(), ErrorKind::SnapshotExists);
    assert_eq!(
        tree.rename("no", "three").unwrap_err().kind(),
        ErrorKind::SnapshotMissing
    );
    assert_eq!(tree.create("a@b").unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(
        tree.apply("no", Unsaved::Discard).unwrap_err().kind(),
        ErrorKind::SnapshotMissing
    );
    tree.rename("one", "first").unwrap();
    drop(tree);
    let content = lab.model.snapshots.remove("one").unwrap();
    lab.model.snapshots.insert("first".to_owned(), content);
    lab.check();
    assert_eq!(
        resolve(&lab.disk(), "one").unwrap_err().kind(),
        ErrorKind::SnapshotMissing
    );
}

#[test]
fn a_leaf_in_use_is_not_frozen_and_not_dropped() {
    let mut lab = Lab::new(0x54);
    lab.snapshot("one");
    lab.write();
    let active = resolve(&lab.disk(), "now").unwrap();
    let writer = HostFile::open(&active, Access::ReadWrite, Sharing::Exclusive).unwrap();
    assert_eq!(lab.tree().create("two").unwrap_err().kind(), ErrorKind::Locked);
    assert_eq!(lab.tree().revert().unwrap_err().kind(), ErrorKind::Locked);
    drop(writer);
    lab.check();
    // A reader does not mind that nothing is written any more.
    let reader = HostFile::open(&active, Access::ReadOnly, Sharing::Exclusive).unwrap();
    lab.tree().create("two").unwrap();
    lab.model.snapshots.insert("two".to_owned(), lab.model.now.clone());
    drop(reader);
    lab.check();
    // One command at a time.
    let first = lab.tree();
    let second = SnapshotTree::open(&lab.disk(), WORK).err().unwrap();
    assert_eq!(second.kind(), ErrorKind::Locked);
    drop(first);
}

#[test]
fn images_outside_the_tree_keep_their_parents() {
    let mut lab = Lab::new(0x55);
    lab.snapshot("one");
    lab.write();
    let active = resolve(&lab.disk(), "now").unwrap();
    let clone = lab.dir.path().join("clone.vhd");
    create_child(&clone, &active, None, &OpenOptions::new()).unwrap();
    let content = lab.model.now.clone();
    assert_eq!(lab.tree().revert().unwrap_err().kind(), ErrorKind::HasChildren);
    assert_reads(&clone, &content);
    lab.apply("one", Unsaved::Snapshot("two"));
    lab.tree().delete("two", false).unwrap();
    assert_reads(&clone, &content);
    let settled = lab.tree().settle().unwrap();
    let [waiting] = settled.waiting.as_slice() else {
        panic!("{settled:?}");
    };
    assert_eq!(waiting.reason.as_ref().unwrap().kind(), ErrorKind::HasChildren);
    lab.model.snapshots.remove("two");
    lab.check();
    std::fs::remove_file(&clone).unwrap();
    assert_eq!(lab.tree().settle().unwrap().removed, [active]);
    lab.check();
    assert_nothing_left(lab.dir.path());
}

#[test]
fn a_manifest_that_is_not_true_is_refused_and_made_anew() {
    let mut lab = Lab::new(0x56);
    lab.snapshot("one");
    lab.snapshot("two");
    lab.write();
    lab.apply("one", Unsaved::Snapshot("three"));
    lab.write();
    let before = manifest_of(&lab.disk());
    let manifest = lab.dir.path().join("vm.vhd.snapshots");
    let text = std::fs::read(&manifest).unwrap();

    // Damaged: names are lost but for the files', the damaged one is kept.
    std::fs::write(&manifest, &text[..text.len() / 2]).unwrap();
    let error = SnapshotTree::open(&lab.disk(), WORK).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::RecordDamaged);
    let error = rescan(&lab.disk(), None, WORK).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::ManifestStale);
    let (tree, found) = rescan(&lab.disk(), Some(Path::new(&before.active.file.name)), WORK).unwrap();
    assert_eq!(shape(tree.manifest()), shape(&before));
    assert_eq!(found.named_by_file.len(), 3);
    drop(tree);

    // There, but not of these files.
    std::fs::write(&manifest, &text).unwrap();
    let lost = resolve(&lab.disk(), "three").unwrap();
    std::fs::rename(&lost, lab.dir.path().join("elsewhere")).unwrap();
    let error = SnapshotTree::open(&lab.disk(), WORK).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::ManifestStale);
    let (tree, found) = rescan(&lab.disk(), None, WORK).unwrap();
    assert_eq!(found.lost, ["three"]);
    drop(tree);
    lab.model.snapshots.remove("three");
    lab.check();
    // It is back: known by nobody.
    std::fs::rename(lab.dir.path().join("elsewhere"), &lost).unwrap();
    let (tree, found) = rescan(&lost, None, WORK).unwrap();
    assert_eq!(found.named_by_file, [lost.file_stem().unwrap().to_str().unwrap()]);
    assert_eq!(shape(tree.manifest()), shape(&before));
}

#[test]
fn a_disk_with_children_and_no_manifest_is_not_taken_for_a_plain_one() {
    let mut lab = Lab::new(0x57);
    lab.snapshot("one");
    let active = resolve(&lab.disk(), "now").unwrap();
    std::fs::remove_file(lab.dir.path().join("vm.vhd.snapshots")).unwrap();
    for disk in [&lab.disk(), &active] {
        let error = SnapshotTree::open(disk, WORK).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::ManifestStale, "{error}");
    }
    let (tree, _) = rescan(&active, None, WORK).unwrap();
    assert_eq!(tree.manifest().snapshots[0].name, "vm");
    assert_eq!(tree.path(&tree.manifest().active.file), active);
}

/// The directory as it is after each step, and at each sign of progress of a merge: what a process that is killed there
/// leaves.
struct Crashes<'a> {
    dir: &'a Path,
    taken: Mutex<Vec<(String, TempDir)>>,
}

impl Crashes<'_> {
    fn of(dir: &Path) -> Crashes<'_> {
        let crashes = Crashes {
            dir,
            taken: Mutex::default(),
        };
        crashes.done("before");
        crashes
    }

    fn work(&self) -> Work<'_> {
        Work {
            steps: self,
            progress: self,
            ..WORK
        }
    }

    fn take(&self) -> Vec<(String, TempDir)> {
        std::mem::take(&mut self.taken.lock().unwrap())
    }
}

impl Steps for Crashes<'_> {
    fn done(&self, step: &str) {
        let copy = temp_dir();
        copy_files(self.dir, copy.path());
        self.taken.lock().unwrap().push((step.to_owned(), copy));
    }
}

impl Progress for Crashes<'_> {
    fn begin(&self, _total: u64) {
        self.done("merge begins");
    }

    fn advance(&self, _bytes: u64) {
        self.done("merge goes on");
    }
}

/// The files of a directory become those of another, with their times: children remember them. They stay where they
/// are, because records of merges have whole paths.
fn copy_files(from: &Path, to: &Path) {
    for name in names_in(to) {
        std::fs::remove_file(to.join(name)).unwrap();
    }
    for name in names_in(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        let bytes = std::fs::read(&from).unwrap();
        let file = std::fs::File::create(&to).unwrap();
        file.set_len(u64_from(bytes.len())).unwrap();
        for (number, piece) in bytes.chunks(PIECE).enumerate().filter(|(_, piece)| !is_zero(piece)) {
            file.write_all_at(piece, u64_from(number * PIECE)).unwrap();
        }
        file.set_modified(from.metadata().unwrap().modified().unwrap()).unwrap();
    }
}

/// Does `operation` and looks at what each interruption of it would leave: after recovery the disk is as before or as
/// after, and nothing is left over. Returns how many interruptions there were, those of recoveries included.
fn enumerate(lab: &mut Lab, operation: impl Fn(&mut SnapshotTree<'_>), after: Model) -> usize {
    let before = std::mem::replace(&mut lab.model, after);
    let (dir, disk) = (lab.dir.path(), lab.disk());
    let crashes = Crashes::of(dir);
    operation(&mut SnapshotTree::open(&disk, crashes.work()).unwrap());
    lab.check();
    let end = temp_dir();
    copy_files(dir, end.path());
    let taken = crashes.take();
    let mut count = taken.len();
    for (step, crashed) in &taken {
        copy_files(crashed.path(), dir);
        // Before anything is recovered: what is listed reads right, and so does the present state.
        let listed = manifest_of(&disk);
        let models = [&before, &lab.model];
        for name in listed.listed().map(|one| &one.name) {
            let mut contents = models.iter().filter_map(|model| model.snapshots.get(name));
            let found = reads(&disk, name);
            assert!(contents.any(|content| *content == found), "{step}: {name}");
        }
        assert!(
            models.iter().any(|model| model.now == reads(&disk, "now")),
            "{step}: now"
        );
        let nested = Crashes::of(dir);
        let mut tree = SnapshotTree::open(&disk, nested.work()).unwrap_or_else(|error| panic!("{step}: {error}"));
        tree.settle().unwrap_or_else(|error| panic!("{step}: {error}"));
        drop(tree);
        check_either(dir, models, step);
        // The first is the crash itself.
        let nested = nested.take().split_off(1);
        count += nested.len();
        for (again, crashed) in &nested {
            copy_files(crashed.path(), dir);
            SnapshotTree::open(&disk, WORK).unwrap().settle().unwrap();
            check_either(dir, models, &format!("{step}, {again}"));
        }
    }
    copy_files(end.path(), dir);
    lab.check();
    count
}

fn reads(disk: &Path, name: &str) -> Vec<u8> {
    common::disk::read_all(&open(&resolve(disk, name).unwrap(), false).disk())
}

fn check_either(dir: &Path, models: [&Model; 2], step: &str) {
    let disk = dir.join("vm.vhd");
    let now = reads(&disk, "now");
    let manifest = manifest_of(&disk);
    let mut names: Vec<&String> = manifest.listed().map(|one| &one.name).collect();
    names.sort();
    let is_it = |model: &&&Model| model.now == now && model.snapshots.keys().collect::<Vec<_>>() == names;
    let Some(model) = models.iter().find(is_it) else {
        panic!("{step}: neither as before nor as after: {names:?}");
    };
    check_disk(dir, model);
    assert_nothing_left(dir);
}

#[test]
fn inv_24_25_an_interrupted_creation() {
    let mut lab = Lab::new(0x58);
    for name in ["first", "second"] {
        lab.write();
        let mut after = lab.model.clone();
        after.snapshots.insert(name.to_owned(), after.now.clone());
        let crashes = enumerate(&mut lab, |tree| drop(tree.create(name).unwrap()), after);
        announce(&format!("creation: {crashes} interruptions"));
        assert!(crashes > 4);
    }
}

#[test]
fn inv_23_24_25_an_interrupted_application() {
    let mut lab = Lab::new(0x59);
    lab.snapshot("one");
    lab.snapshot("two");
    lab.write();
    let mut after = lab.model.clone();
    after.snapshots.insert("kept".to_owned(), after.now.clone());
    after.now = after.snapshots["one"].clone();
    let keep = |tree: &mut SnapshotTree<'_>| drop(tree.apply("one", Unsaved::Snapshot("kept")).unwrap());
    let crashes = enumerate(&mut lab, keep, after);
    lab.write();
    let mut after = lab.model.clone();
    after.now = after.snapshots["kept"].clone();
    let discard = |tree: &mut SnapshotTree<'_>| drop(tree.apply("kept", Unsaved::Discard).unwrap());
    let crashes = crashes + enumerate(&mut lab, discard, after);
    announce(&format!("application: {crashes} interruptions"));
    assert!(crashes > 10);
}

#[test]
fn a_dropped_leaf_that_a_guest_was_started_on_stays_while_he_uses_it() {
    let mut lab = Lab::new(0x5F);
    lab.snapshot("one");
    lab.write();
    let dropped = resolve(&lab.disk(), "now").unwrap();
    let crashes = Crashes::of(lab.dir.path());
    SnapshotTree::open(&lab.disk(), crashes.work())
        .unwrap()
        .revert()
        .unwrap();
    let taken = crashes.take();
    let (_, crashed) = taken.iter().find(|(step, _)| step == "snapshot applied").unwrap();
    copy_files(crashed.path(), lab.dir.path());
    let guest = HostFile::open(&dropped, Access::ReadWrite, Sharing::Exclusive).unwrap();
    let error = SnapshotTree::open(&lab.disk(), WORK).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(dropped.exists());
    drop(guest);
    assert_eq!(lab.tree().recovered(), Some(&Recovered::FileRemoved));
    lab.model.now = lab.model.snapshots["one"].clone();
    lab.check();
    assert_nothing_left(lab.dir.path());
}

/// one - two - three - Now, and below one and two a branch each.
fn grown(seed: u64) -> Lab {
    let mut lab = Lab::new(seed);
    for name in ["one", "two", "three"] {
        lab.snapshot(name);
    }
    lab.write();
    lab.apply("two", Unsaved::Snapshot("leaf"));
    lab.snapshot("branch");
    lab.write();
    lab.apply("one", Unsaved::Snapshot("other"));
    lab.write();
    lab.apply("three", Unsaved::Snapshot("third"));
    lab.write();
    lab
}

/// Deletes a snapshot, with each interruption of that.
fn delete(lab: &mut Lab, name: &str) -> usize {
    let mut after = lab.model.clone();
    after.snapshots.remove(name);
    let operation = |tree: &mut SnapshotTree<'_>| drop(tree.delete(name, false).unwrap());
    enumerate(lab, operation, after)
}

/// The deleted snapshots whose files are still there.
fn waiting(lab: &Lab) -> Vec<String> {
    let manifest = manifest_of(&lab.disk());
    let deleted = manifest.snapshots.iter().filter(|one| one.deleted);
    deleted.map(|one| one.name.clone()).collect()
}

/// The table of what deleting does, row by row, each interrupted everywhere.
#[test]
fn inv_23_24_25_the_table_of_deletions() {
    let mut lab = grown(0x5A);
    let mut crashes = 0;
    let file = |lab: &Lab, name: &str| resolve(&lab.disk(), name).unwrap();

    // A leaf: its file goes.
    let leaf = file(&lab, "leaf");
    crashes += delete(&mut lab, "leaf");
    assert!(!leaf.exists());

    // The snapshot under the active leaf, which has nothing else: what was Now's file goes, its own survives.
    let (three, now) = (file(&lab, "three"), file(&lab, "now"));
    crashes += delete(&mut lab, "three");
    assert_eq!(file(&lab, "now"), three);
    assert!(!now.exists());

    // A branch point: nothing happens to its file yet.
    let two = file(&lab, "two");
    crashes += delete(&mut lab, "two");
    assert!(two.exists());
    assert_eq!(waiting(&lab), ["two"]);

    // Its second dependant goes: now it takes in the other one, which is Now.
    crashes += delete(&mut lab, "branch");
    assert_eq!(waiting(&lab), ["two"], "the file of \"other\" is based on it");
    crashes += delete(&mut lab, "other");
    assert_eq!(file(&lab, "now"), two);
    assert_eq!(waiting(&lab), [""; 0]);

    // One in the middle, whose dependant is a snapshot with dependants.
    lab.snapshot("four");
    lab.snapshot("five");
    lab.write();
    let (four, five) = (file(&lab, "four"), file(&lab, "five"));
    crashes += delete(&mut lab, "four");
    assert_eq!(file(&lab, "five"), four);
    assert!(!five.exists());

    announce(&format!("deletions: {crashes} interruptions"));
    lab.check();
    if have(&["7zz"], "snapshots as 7-Zip reads them") {
        for (name, content) in &lab.model.snapshots {
            assert_same(&seven_zip_reads(&file(&lab, name)), content, name);
        }
        assert_same(&seven_zip_reads(&file(&lab, "now")), &lab.model.now, "now");
    }
}

#[test]
fn a_subtree_is_deleted_and_the_present_state_stays() {
    let mut lab = grown(0x5B);
    let mut after = lab.model.clone();
    after
        .snapshots
        .retain(|name, _| ["one", "third"].contains(&name.as_str()));
    let operation = |tree: &mut SnapshotTree<'_>| drop(tree.delete("two", true).unwrap());
    let crashes = enumerate(&mut lab, operation, after);
    announce(&format!("deletion of a subtree: {crashes} interruptions"));
    assert_eq!(
        lab.files().len(),
        4,
        "one, third, Now and the manifest: {:?}",
        lab.files()
    );
    let mut after = lab.model.clone();
    after.snapshots.clear();
    let operation = |tree: &mut SnapshotTree<'_>| drop(tree.delete("one", true).unwrap());
    enumerate(&mut lab, operation, after);
    assert_eq!(lab.files(), ["vm.vhd"]);
}

#[test]
fn a_file_in_use_is_merged_when_it_is_not_any_more() {
    let mut lab = Lab::new(0x5C);
    lab.snapshot("one");
    lab.snapshot("two");
    lab.write();
    let active = resolve(&lab.disk(), "now").unwrap();
    for access in [Access::ReadWrite, Access::ReadOnly] {
        let user = HostFile::open(&active, access, Sharing::Exclusive).unwrap();
        let mut tree = lab.tree();
        let settled = if access == Access::ReadWrite {
            tree.delete("two", false).unwrap()
        } else {
            tree.settle().unwrap()
        };
        let [waiting] = settled.waiting.as_slice() else {
            panic!("{settled:?}");
        };
        assert_eq!(waiting.reason.as_ref().unwrap().kind(), ErrorKind::Locked);
        assert_eq!(tree.manifest().pending, None);
        drop(user);
    }
    lab.model.snapshots.remove("two");
    lab.check();
    // The next deletion does both.
    lab.tree().delete("one", false).unwrap();
    lab.model.snapshots.clear();
    lab.check();
    assert_eq!(lab.files(), ["vm.vhd"]);
}

#[test]
fn a_merge_that_is_told_to_stop_goes_on_later() {
    let mut lab = Lab::new(0x5D);
    lab.snapshot("one");
    lab.write();
    let stop = AtomicBool::new(true);
    let work = Work { cancel: &stop, ..WORK };
    let error = SnapshotTree::open(&lab.disk(), work)
        .unwrap()
        .delete("one", false)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    lab.model.snapshots.clear();
    lab.check();
    // A guest writes in between.
    lab.write();
    lab.check();
    let tree = lab.tree();
    assert_eq!(tree.recovered(), Some(&Recovered::Merged));
    drop(tree);
    lab.check();
    assert_eq!(lab.files(), ["vm.vhd"]);
}

#[test]
fn inv_36_a_merge_that_was_killed_among_its_last_markers_leaves_nothing() {
    let mut lab = Lab::new(0x60);
    lab.snapshot("one");
    lab.write();
    let stop = AtomicBool::new(true);
    let work = Work { cancel: &stop, ..WORK };
    let stopped = SnapshotTree::open(&lab.disk(), work).unwrap().delete("one", false);
    assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Cancelled);
    lab.model.snapshots.clear();
    let is_job = |name: &String| name.ends_with(".merge") || name.ends_with(".job");
    let job: Vec<(String, Vec<u8>)> = (lab.files().into_iter().filter(is_job))
        .map(|name| (name.clone(), std::fs::read(lab.dir.path().join(&name)).unwrap()))
        .collect();
    assert_eq!(job.len(), 3, "a record and two markers: {job:?}");

    let crashes = Crashes::of(lab.dir.path());
    drop(SnapshotTree::open(&lab.disk(), crashes.work()).unwrap());
    let taken = crashes.take();
    let (_, merged) = taken.iter().find(|(step, _)| step == "merged").unwrap();
    for markers in [2, 1, 0] {
        copy_files(merged.path(), lab.dir.path());
        let mut left = markers;
        for (name, bytes) in &job {
            if name.ends_with(".merge") {
                std::fs::write(lab.dir.path().join(format!("{name}.done")), bytes).unwrap();
            } else if left > 0 {
                left -= 1;
                std::fs::write(lab.dir.path().join(name), bytes).unwrap();
            }
        }
        assert_eq!(lab.tree().recovered(), Some(&Recovered::Merged));
        lab.check();
        assert_eq!(lab.files(), ["vm.vhd"], "{markers} markers");
    }
}

#[test]
fn trees_are_exported_and_imported() {
    let mut lab = grown(0x5E);
    let (out, back) = (temp_dir(), temp_dir());
    let exported = export(&lab.disk(), "branch", out.path(), &()).unwrap();
    assert_eq!(exported.snapshots, 3);
    let line = ["one", "two", "branch"].map(str::to_owned);
    let mut expected = Model {
        snapshots: lab.model.snapshots.clone(),
        now: lab.model.snapshots["branch"].clone(),
    };
    expected.snapshots.retain(|name, _| line.contains(name));
    check_disk(out.path(), &expected);
    // Nothing leads back: the copies are children of copies.
    let opened = open(&exported.active, false);
    assert!(
        opened.paths().iter().all(|path| path.starts_with(out.path())),
        "{opened:?}"
    );
    drop(opened);
    lab.check();

    // All of it, the present state included.
    let imported = import(lab.dir.path(), &back.path().join("new"), &()).unwrap();
    assert_eq!(imported.snapshots, lab.model.snapshots.len());
    check_disk(&back.path().join("new"), &lab.model);
    // It is a disk like any other.
    SnapshotTree::open(&imported.disk, WORK)
        .unwrap()
        .delete("two", true)
        .unwrap();
    lab.check();
    lab.write();
    lab.check();

    let error = export(&lab.disk(), "one", out.path(), &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
    let error = export(&lab.disk(), "no", back.path(), &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SnapshotMissing);
    assert_eq!(
        import(back.path(), out.path(), &()).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    check_disk(out.path(), &expected);
}

/// Random histories: whatever is done in whatever order, everything reads as the model says, and the images alone tell
/// the same tree.
#[test]
fn random_histories() {
    let asked = std::env::var("VHD_SNAPSHOT_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let mut operations = 0;
    for round in 0..asked.unwrap_or(12) {
        let mut lab = Lab::new(0x600 + round);
        for number in 0..lab.rng.usize(8..30) {
            random_change(&mut lab, number);
            operations += 1;
            if chance(&mut lab.rng, 30) {
                lab.check();
                rescan_alone(&mut lab);
            }
        }
        lab.check();
        lab.tree().settle().unwrap();
        assert_nothing_left(lab.dir.path());
    }
    announce(&format!("random histories: {operations} operations"));
}

fn random_change(lab: &mut Lab, number: usize) {
    let names: Vec<String> = lab.model.snapshots.keys().cloned().collect();
    let what = lab.rng.u8(..100);
    if names.is_empty() || what < 35 {
        lab.snapshot(&format!("s{number}"));
        return;
    }
    let name = names[lab.rng.usize(..names.len())].clone();
    if chance(&mut lab.rng, 60) {
        lab.write();
    }
    match what {
        35..45 => lab.apply(&name, Unsaved::Discard),
        45..60 => lab.apply(&name, Unsaved::Snapshot(&format!("kept{number}"))),
        60..68 => {
            let reverted = lab.tree().revert().map(|applied| applied.snapshot.name);
            match reverted {
                Ok(name) => lab.model.now = lab.model.snapshots[&name].clone(),
                Err(error) => assert_eq!(error.kind(), ErrorKind::SnapshotMissing),
            }
        }
        68..95 => {
            lab.tree().delete(&name, false).unwrap();
            lab.model.snapshots.remove(&name);
        }
        _ => {
            let manifest = manifest_of(&lab.disk());
            let gone = manifest.descendants(manifest.named(&name).unwrap().id);
            lab.tree().delete(&name, true).unwrap();
            for snapshot in manifest.listed().filter(|one| gone.contains(&one.id)) {
                lab.model.snapshots.remove(&snapshot.name);
            }
        }
    }
}

/// The tree is found again from the images, once without the manifest and once with it.
fn rescan_alone(lab: &mut Lab) {
    let before = manifest_of(&lab.disk());
    let path = lab.dir.path().join("vm.vhd.snapshots");
    let Ok(text) = std::fs::read(&path) else { return };
    std::fs::remove_file(&path).unwrap();
    let active = lab.dir.path().join(&before.active.file.name);
    let (tree, _) = rescan(&lab.disk(), Some(&active), WORK).unwrap();
    assert_eq!(shape(tree.manifest()), shape(&before));
    drop(tree);
    std::fs::write(&path, text).unwrap();
    let (tree, found) = rescan(&active, None, WORK).unwrap();
    assert_eq!(shape(tree.manifest()), shape(&before));
    assert!(found.lost.is_empty() && found.named_by_file.is_empty());
    drop(tree);
    lab.check();
}

#[test]
fn what_a_deleted_snapshot_holds_below_the_present_state_is_not_dropped_unasked() {
    let mut lab = Lab::new(0x90);
    lab.snapshot("first");
    lab.snapshot("second");
    // Another branch on it, so that its file must wait; then the present state is again a child of it.
    lab.snapshot("third");
    lab.apply("second", Unsaved::Refuse);
    lab.tree().delete("second", false).unwrap();
    lab.model.snapshots.remove("second");
    lab.check();
    // The leaf is empty: what the deleted snapshot holds is what would be lost.
    let error = lab.tree().apply("first", Unsaved::Refuse).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SnapshotsUnsaved, "{error}");
    lab.check();
    let before = lab.model.now.clone();
    lab.tree().create("kept").unwrap();
    lab.model.snapshots.insert("kept".to_owned(), before);
    lab.apply("first", Unsaved::Refuse);
    lab.check();
}

#[test]
fn a_revert_says_what_a_deleted_snapshot_held() {
    let mut lab = Lab::new(0x91);
    lab.snapshot("first");
    lab.snapshot("second");
    lab.snapshot("third");
    lab.apply("second", Unsaved::Refuse);
    lab.tree().delete("second", false).unwrap();
    let reverted = lab.tree().revert().unwrap();
    assert_eq!(reverted.snapshot.name, "first");
    assert!(reverted.discarded_bytes > 0);
}

#[test]
fn the_present_state_is_no_frozen_base_while_a_deletion_is_unfinished() {
    let mut lab = Lab::new(0x92);
    lab.snapshot("first");
    lab.write();
    let steps = Crashes::of(lab.dir.path());
    SnapshotTree::open(&lab.disk(), steps.work())
        .unwrap()
        .delete("first", false)
        .unwrap();
    let mut merged = 0;
    for (step, dir) in steps.take() {
        let disk = dir.path().join("vm.vhd");
        let now = resolve(&disk, "now").unwrap();
        assert_reads(&now, &lab.model.now);
        // A guest may go on with it before any command has finished the deletion.
        open(&now, true).close().unwrap();
        if now == disk {
            merged += 1;
            assert!(frozen_base(&disk).is_none(), "{step}");
        }
    }
    assert!(
        merged > 0,
        "no state was looked at in which the base is the present state"
    );
}
