//! Snapshots of a disk in use that are deleted: the leaf goes into the file below it while requests go on.

use std::sync::atomic::AtomicUsize;

use super::*;
use vhd_core::device::{Layer, LeafMerge, LeafMergeEnd};
use vhd_core::ops::merge::{CopyMode, LayerCopy, MergeOptions};

pub(super) fn files_in(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub(super) fn delete(
    disk: &Path,
    device: &LiveDevice,
    name: &str,
) -> Result<vhd_core::snapshot::Settled, vhd_core::snapshot::SnapshotError> {
    delete_with(disk, device, name, work(&()))
}

pub(super) fn delete_with(
    disk: &Path,
    device: &LiveDevice,
    name: &str,
    work: Work<'_>,
) -> Result<vhd_core::snapshot::Settled, vhd_core::snapshot::SnapshotError> {
    let mut tree = SnapshotTree::open_in_use(disk, device, work)?;
    tree.give_up(name, false)?;
    tree.settle_in_use()
}

pub(super) fn content_of(path: &Path) -> Vec<u8> {
    bytes_of(&**open(path, false).chain().unwrap())
}

/// INV-54 to INV-56: under writers and a reader, the chain keeps its depth, and nothing that was written is lost.
#[test]
fn inv_56_the_leaf_goes_into_the_file_below_it_under_writers() {
    const THREADS: usize = 3;
    let cycles = rounds(6) * 2;
    let dir = temp_dir();
    let disk = new_disk(dir.path(), "vm.vhd");
    let device = live(&disk);
    beside_writers(&device, THREADS, || {
        for cycle in 0..cycles {
            let created = take(&disk, &device, "backup");
            let frozen = bytes_of(&*created.frozen);
            thread::sleep(std::time::Duration::from_millis(5));
            assert_same(&bytes_of(&*created.frozen), &frozen, "the snapshot");
            let leaf = created.created.active.clone();
            drop(created);
            let settled = delete(&disk, &device, "backup").unwrap();
            assert_eq!(
                (settled.merged.len(), settled.waiting.len()),
                (1, 0),
                "cycle {cycle}: {settled:?}"
            );
            assert!(!leaf.exists());
            assert_eq!(files_in(dir.path()), ["vm.vhd"], "cycle {cycle}");
        }
    });
    let last = bytes_of(&device);
    device.close().unwrap();
    assert_reads(&disk, &last);
    let opened = open(&disk, false);
    assert!(opened.warnings().is_empty(), "{:?}", opened.warnings());
    assert_eq!(opened.paths().len(), 1);
}

/// A branch that goes is what kept the leaf from its deleted parent: one deletion does both.
#[test]
fn a_branch_that_goes_lets_the_leaf_be_merged() {
    let dir = temp_dir();
    let disk = new_disk(dir.path(), "vm.vhd");
    let device = live(&disk);
    write_number(&device, 5, 1);
    drop(take(&disk, &device, "trunk"));
    write_number(&device, 6, 2);
    drop(take(&disk, &device, "branch"));
    device.close().unwrap();
    let mut tree = SnapshotTree::open(&disk, work(&())).unwrap();
    tree.apply("trunk", vhd_core::snapshot::Unsaved::Refuse).unwrap();
    let leaf = tree.path(&tree.manifest().active.file);
    drop(tree);
    let device = live(&leaf);
    write_number(&device, 7, 3);
    let settled = delete(&disk, &device, "trunk").unwrap();
    assert_eq!((settled.merged.len(), settled.waiting.len()), (0, 1), "{settled:?}");
    let settled = delete(&disk, &device, "branch").unwrap();
    assert!(settled.waiting.is_empty(), "{settled:?}");
    assert_eq!(
        (settled.removed.len(), settled.merged.as_slice()),
        (1, [disk.clone()].as_slice())
    );
    assert_eq!(files_in(dir.path()), ["vm.vhd"]);
    device.close().unwrap();
    let read = content_of(&disk);
    assert_eq!([5, 6, 7].map(|sector| number_at(&read, sector)), [1, 0, 3]);
}

/// INV-54, INV-55: killed at any step, with writes in between, the next command finishes the deletion or goes on with it,
/// and the disk has all that was flushed.
#[test]
fn inv_55_killed_at_any_step_the_next_command_finishes() {
    for with_former in [false, true] {
        let (dir, copies) = (temp_dir(), temp_dir());
        let disk = new_disk(dir.path(), "vm.vhd");
        let device = live(&disk);
        write_number(&device, 5, 1);
        if with_former {
            take(&disk, &device, "former");
        }
        write_number(&device, 6, 2);
        drop(take(&disk, &device, "gone"));
        write_number(&device, 7, 3);
        device.flush().unwrap();
        let written = AtomicUsize::new(0);
        let found = {
            let steps = Copying::new(dir.path(), copies.path(), writes_between(&device, &written));
            let settled = delete_with(&disk, &device, "gone", work(&steps)).unwrap();
            assert!(settled.waiting.is_empty(), "{settled:?}");
            steps.copies.into_inner().unwrap()
        };
        let names: Vec<&str> = found.iter().map(|(step, _)| step.as_str()).collect();
        let all = [
            "snapshots marked as deleted",
            "merge announced",
            "merge recorded",
            "switched",
            "merge finished",
            "file removed",
            "nothing pending",
        ];
        assert_eq!(names, all);
        for (at, (step, copy)) in found.iter().enumerate() {
            let disk = copy.join("vm.vhd");
            let mut tree = SnapshotTree::open(&disk, work(&())).unwrap();
            let recovered = tree.recovered().copied();
            let expected = match step.as_str() {
                "merge announced" | "merge recorded" => Some(Recovered::Merged),
                // The flush of that step has made it known already.
                "switched" | "merge finished" | "file removed" => Some(Recovered::FileRemoved),
                _ => None,
            };
            assert_eq!(recovered, expected, "{step}");
            let settled = tree.settle().unwrap();
            assert_eq!(settled.merged.len(), usize::from(at == 0), "{step}: {settled:?}");
            assert!(settled.waiting.is_empty(), "{step}: {settled:?}");
            assert_eq!(tree.manifest().snapshots.len(), usize::from(with_former), "{step}");
            drop(tree);
            let now = content_of(&resolve(&disk, "now").unwrap());
            assert_eq!(
                [number_at(&now, 5), number_at(&now, 6), number_at(&now, 7)],
                [1, 2, 10 + u64_from(at)],
                "{step}"
            );
            for later in 0..all.len() {
                let number = if later <= at { 9 } else { 0 };
                assert_eq!(number_at(&now, 100 + later), number, "{step}");
            }
            if with_former {
                let former = content_of(&resolve(&disk, "former").unwrap());
                assert_eq!(
                    [number_at(&former, 5), number_at(&former, 6), number_at(&former, 7)],
                    [1, 0, 0],
                    "{step}"
                );
            }
            let expected = 1 + 2 * usize::from(with_former);
            assert_eq!(files_in(copy).len(), expected, "{step}: {:?}", files_in(copy));
            open(&resolve(&disk, "now").unwrap(), true).close().unwrap();
        }
        let now = bytes_of(&device);
        device.close().unwrap();
        assert_reads(&resolve(&disk, "now").unwrap(), &now);
    }
}

#[test]
fn what_can_not_be_merged_now_waits_and_nothing_changes() {
    let dir = temp_dir();
    let disk = new_disk(dir.path(), "vm.vhd");
    let device = live(&disk);
    write_number(&device, 1, 1);
    let created = take(&disk, &device, "one");
    write_number(&device, 2, 2);
    // Somebody in this process reads the snapshot.
    let settled = delete(&disk, &device, "one").unwrap();
    let reason = settled.waiting[0].reason.as_ref().map(|reason| reason.kind());
    assert_eq!((settled.merged.len(), reason), (0, Some(ErrorKind::Locked)));
    assert_eq!([1, 2].map(|at| number_at(&bytes_of(&*created.frozen), at)), [1, 0]);
    drop(created);
    // Another process does.
    let reader = open(&disk, false);
    take(&disk, &device, "two");
    let settled = delete(&disk, &device, "two").unwrap();
    assert_eq!(settled.merged.len(), 1, "the reader has only the first: {settled:?}");
    let reason = settled.waiting[0].reason.as_ref().map(|reason| reason.kind());
    assert_eq!(reason, Some(ErrorKind::Locked));
    drop(reader);
    // An image outside the tree is based on the snapshot.
    let clone = dir.path().join("clone.vhd");
    vhd_core::chain::create_child(&clone, &disk, None, &OpenOptions::new()).unwrap();
    take(&disk, &device, "three");
    let settled = delete(&disk, &device, "three").unwrap();
    let reason = settled.waiting[0].reason.as_ref().map(|reason| reason.kind());
    assert_eq!(
        (settled.merged.len(), reason),
        (1, Some(ErrorKind::HasChildren)),
        "{settled:?}"
    );
    std::fs::remove_file(&clone).unwrap();
    // Told to stop: the next command goes on.
    take(&disk, &device, "four");
    write_number(&device, 3, 3);
    let stop = AtomicBool::new(true);
    let cancelled = Work {
        cancel: &stop,
        ..work(&())
    };
    let stopped = delete_with(&disk, &device, "four", cancelled).unwrap_err();
    assert_eq!(stopped.kind(), ErrorKind::Cancelled);
    let refused = SnapshotTree::open(&disk, work(&())).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Locked, "{refused}");
    write_number(&device, 4, 4);
    let tree = SnapshotTree::open_in_use(&disk, &device, work(&())).unwrap();
    assert_eq!(tree.recovered(), Some(&Recovered::Merged));
    drop(tree);
    take(&disk, &device, "five");
    delete(&disk, &device, "five").unwrap();
    assert_eq!(files_in(dir.path()), ["vm.vhd"]);
    let now = bytes_of(&device);
    assert_eq!([1, 2, 3, 4].map(|at| number_at(&now, at)), [1, 2, 3, 4]);
    device.close().unwrap();
    assert_reads(&disk, &now);
}

/// Two files that lose power together: the leaf, and the base that it is merged into. In some rounds there is a layer
/// between, which goes too, and which nobody writes to.
#[derive(Clone)]
struct Merge {
    base: CrashFile,
    between: Option<CrashFile>,
    leaf: CrashFile,
    model: Arc<Mutex<CrashModel>>,
    /// It is known that the base is the disk.
    committed: Arc<AtomicBool>,
    states: Arc<AtomicU64>,
    seed: u64,
}

impl Merge {
    fn new(seed: u64, with_layer_between: bool) -> Self {
        Self {
            base: CrashFile::from_bytes(&Forge::dynamic(CRASH_SIZE, CRASH_BLOCK).build()),
            between: with_layer_between
                .then(|| CrashFile::from_bytes(&Forge::differencing(CRASH_SIZE, CRASH_BLOCK).build())),
            leaf: CrashFile::from_bytes(&Forge::differencing(CRASH_SIZE, CRASH_BLOCK).build()),
            model: Arc::new(Mutex::new(CrashModel::new(CRASH_SIZE))),
            committed: Arc::default(),
            states: Arc::default(),
            seed,
        }
    }

    fn model(&self) -> MutexGuard<'_, CrashModel> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn layers(&self) -> usize {
        1 + usize::from(self.between.is_some())
    }

    /// The layers below the leaf.
    fn below(&self, base: &CrashFile) -> Vec<Layer> {
        below(self.between.as_ref(), base)
    }

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
        let model = self.model();
        let committed = self.committed.load(Ordering::SeqCst);
        let leaves: Vec<_> = self.leaf.crash_states(&limits).collect();
        for base in self.base.crash_states(&limits) {
            for leaf in &leaves {
                self.states.fetch_add(1, Ordering::Relaxed);
                let files = (&base.file(), self.between.as_ref(), &leaf.file());
                let alone = self.states.load(Ordering::Relaxed) % 2 == 1;
                check_merge(files, committed, alone, &model);
            }
        }
    }

    fn apply(&self, device: &LiveDevice, op: Op) {
        let begun = op.begin(&mut self.model());
        op.run(device).unwrap();
        op.end(&mut self.model(), begun);
        self.look();
    }
}

fn image(file: &CrashFile, mode: &OpenMode) -> Image {
    Image::open(Arc::new(file.clone()), mode).unwrap()
}

fn below(between: Option<&CrashFile>, base: &CrashFile) -> Vec<Layer> {
    let files = between.into_iter().chain([base]);
    files
        .map(|file| Layer::Vhd(Arc::new(image(file, &OpenMode::read_only()))))
        .collect()
}

/// What the disk reads: until the end is known, the leaf; and what the next command makes of it, which copies anew: for a
/// disk in use, or for files that nobody uses.
fn check_merge(
    (base, between, leaf): (&CrashFile, Option<&CrashFile>, &CrashFile),
    committed: bool,
    alone: bool,
    model: &CrashModel,
) {
    let checked = |device: &LayeredDevice, what: &str| {
        let checked = model.check(&read_all(device));
        checked.unwrap_or_else(|violation| panic!("{what}: {violation}"));
    };
    if committed {
        let disk = LayeredDevice::new(image(base, &OpenMode::read_write()), Vec::new());
        return checked(&disk, "the base alone");
    }
    let disk = LayeredDevice::new(image(leaf, &OpenMode::read_only()), below(between, base));
    checked(&disk, "the leaf over the base");
    let now = read_all(&disk);
    drop(disk);
    let sources = [Some(leaf), between];
    match alone {
        true => merge_alone(&sources, base),
        false => merge_in_use(&sources, base),
    }
    let merged = LayeredDevice::new(image(base, &OpenMode::read_only()), Vec::new());
    assert_same(&read_all(&merged), &now, "what the next command makes of it");
}

fn merge_in_use(sources: &[Option<&CrashFile>; 2], base: &CrashFile) {
    let leaf = image(sources[0].unwrap(), &OpenMode::read_write());
    let disk = LayeredDevice::new(leaf, below(sources[1], base));
    let disk = LiveDevice::new(Arc::new(disk));
    let target = Arc::new(image(base, &OpenMode::read_write()));
    let work = LeafMerge {
        layers: sources.iter().flatten().count(),
        ..quiet()
    };
    disk.merge_leaf(&target, &work, Box::new(|| Ok(()))).unwrap();
    disk.flush().unwrap();
    drop(target);
    disk.close().unwrap();
}

fn merge_alone(sources: &[Option<&CrashFile>; 2], base: &CrashFile) {
    let target = Arc::new(LayeredDevice::new(image(base, &OpenMode::read_write()), Vec::new()));
    let disk = Disk::new(Arc::clone(&target) as _);
    let sources = sources.iter().flatten();
    let sources: Vec<Layer> = sources
        .map(|file| Layer::Vhd(Arc::new(image(file, &OpenMode::read_only()))))
        .collect();
    let copy = LayerCopy {
        paths: &vec!["layer".into(); sources.len()],
        sources: &sources,
        target: &disk,
        target_path: "base".as_ref(),
        mode: CopyMode::Compare,
        options: &MergeOptions {
            cancel: &GO_ON,
            threads: 1,
            batch_bytes: MergeOptions::DEFAULT_BATCH,
        },
        progress: &(),
    };
    copy.run(0, &mut |_| Ok(())).unwrap();
    drop(disk);
    Arc::into_inner(target).unwrap().close().unwrap();
}

fn quiet() -> LeafMerge<'static> {
    LeafMerge {
        layers: 1,
        begin: &|_| (),
        advance: &|_| (),
        cancel: &GO_ON,
    }
}

/// INV-54, INV-55, INV-56 in every state that a loss of power can leave of both files together.
#[test]
fn inv_54_56_power_fails_while_a_leaf_is_merged() {
    let mut states = 0;
    for round in 0..rounds(6) {
        let merge = Merge::new(mix(0x3E46E, round), round % 2 == 1);
        let geometry = Geometry::new(CRASH_SIZE, CRASH_BLOCK.into());
        let script = Workload::new(mix(0x3E46F, round), geometry).filter(|op| *op != Op::Reopen);
        let script = Mutex::new(script);
        let next = || script.lock().unwrap().next().unwrap();
        // What is below the leaf is durable.
        let lower = [
            Some((&merge.base, vec![])),
            merge.between.as_ref().map(|file| (file, below(None, &merge.base))),
        ];
        for (file, below) in lower.into_iter().flatten() {
            let device = LayeredDevice::new(image(file, &OpenMode::read_write()), below);
            for _ in 0..4 {
                let op = next();
                let begun = op.begin(&mut merge.model());
                op.run(&device).unwrap();
                op.end(&mut merge.model(), begun);
            }
            device.close().unwrap();
            merge.model().flushed();
        }
        let leaf = image(&merge.leaf, &OpenMode::read_write());
        let device = LayeredDevice::new(leaf, merge.below(&merge.base));
        let device = LiveDevice::new(Arc::new(device));
        for file in [&merge.base, &merge.leaf] {
            let looking = merge.clone();
            file.set_observer(Some(Box::new(move |_| looking.look())));
        }
        (0..6).for_each(|_| merge.apply(&device, next()));
        let target = Arc::new(image(&merge.base, &OpenMode::read_write()));
        let advance = |_| merge.apply(&device, next());
        let work = LeafMerge {
            layers: merge.layers(),
            advance: &advance,
            ..quiet()
        };
        let committing = merge.clone();
        let commit = move || {
            committing.look();
            committing.committed.store(true, Ordering::SeqCst);
            committing.look();
            Ok(())
        };
        let merged = device.merge_leaf(&target, &work, Box::new(commit)).unwrap();
        assert!(matches!(merged.end, LeafMergeEnd::Switched(_)));
        assert!(!merge.committed.load(Ordering::SeqCst), "nothing waits for that");
        merge.look();
        (0..usize_from(round % 4)).for_each(|_| merge.apply(&device, next()));
        merge.apply(&device, Op::Flush);
        assert!(merge.committed.load(Ordering::SeqCst), "INV-54");
        (0..5).for_each(|_| merge.apply(&device, next()));
        drop(target);
        device.close().unwrap();
        merge.model().flushed();
        merge.look();
        merge.base.set_observer(None);
        merge.leaf.set_observer(None);
        states += merge.states.load(Ordering::Relaxed);
    }
    announce(&format!(
        "crash states of a leaf and the base that it is merged into: {states}, 0 violations"
    ));
}

/// Each operation on any file fails in turn, while the leaf, and a layer below it, are merged and written to: nothing that
/// was flushed is lost, no flush succeeds after one that failed for good, and the next command can merge what is left.
#[test]
fn inv_54_each_operation_on_either_file_fails() {
    for with_layer_between in [false, true] {
        each_operation_on_a_file_fails(with_layer_between);
    }
}

/// A layer that holds something of its own, durably; the model knows.
fn layer_between(base: &[u8], model: &mut CrashModel) -> Vec<u8> {
    let (base, between) = (
        CrashFile::from_bytes(base),
        Forge::differencing(CRASH_SIZE, CRASH_BLOCK).build(),
    );
    let between = CrashFile::from_bytes(&between);
    let device = LayeredDevice::new(image(&between, &OpenMode::read_write()), below(None, &base));
    for (offset, fill) in [(0, 21), (14 << 10, 22)] {
        let op = Op::Write {
            offset,
            len: 1536,
            fill,
        };
        let begun = op.begin(model);
        op.run(&device).unwrap();
        op.end(model, begun);
    }
    device.close().unwrap();
    model.flushed();
    let mut bytes = vec![0; usize_from(between.len().unwrap())];
    between.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn each_operation_on_a_file_fails(with_layer_between: bool) {
    let committed_at_all = AtomicU64::new(0);
    let struck = each_operation_fails(Fault::nth, |control, _| {
        let faulty = |bytes: Vec<u8>| Arc::new(FaultFile::new(MemoryFile::from_bytes(bytes)));
        let mut user = User::new();
        let dynamic = Forge::dynamic(CRASH_SIZE, CRASH_BLOCK).build();
        let between = with_layer_between.then(|| faulty(layer_between(&dynamic, &mut user.model)));
        let base = faulty(dynamic);
        let leaf = faulty(Forge::differencing(CRASH_SIZE, CRASH_BLOCK).build());
        let open = |file: &Arc<FaultFile<MemoryFile>>, mode: &OpenMode| {
            let faulty = FaultFile::with_control(Shared(Arc::clone(file)), control);
            Image::open(Arc::new(faulty), mode)
        };
        let user = Mutex::new(user);
        let committed = Arc::new(AtomicBool::new(false));
        let lower = between.iter().chain([&base]);
        let lower = lower.map(|file| open(file, &OpenMode::read_only()).map(|image| Layer::Vhd(Arc::new(image))));
        let lower: Result<Vec<Layer>, _> = lower.collect();
        if let (Ok(below), Ok(image)) = (lower, open(&leaf, &OpenMode::read_write())) {
            let layers = below.len();
            let device = LayeredDevice::new(image, below);
            let device = LiveDevice::new(Arc::new(device));
            let run = |ops: &[Op]| {
                let mut user = user.lock().unwrap();
                ops.iter().for_each(|op| user.run(&device, op));
            };
            let write = |offset, fill| Op::Write {
                offset,
                len: 1024,
                fill,
            };
            run(&[write(0, 1), write(4096, 2), Op::Flush, write(1024, 3)]);
            if let Ok(target) = open(&base, &OpenMode::read_write()) {
                let target = Arc::new(target);
                let advance = |_| run(&[write(512, 4), write(12 << 10, 8)]);
                let work = LeafMerge {
                    layers,
                    advance: &advance,
                    ..quiet()
                };
                let known = Arc::clone(&committed);
                let commit = move || {
                    known.store(true, Ordering::SeqCst);
                    Ok(())
                };
                let _ = device.merge_leaf(&target, &work, Box::new(commit));
            }
            run(&[write(512, 5), write(8192, 6), Op::Flush, write(512, 7)]);
            run(&[Op::Flush, write(0, 9), Op::Flush]);
            drop(device);
        }
        control.heal();
        let plain = |file: &Arc<FaultFile<MemoryFile>>| {
            let mut bytes = vec![0; usize_from(file.inner().len().unwrap())];
            file.inner().read_exact_at(&mut bytes, 0).unwrap();
            CrashFile::from_bytes(&bytes)
        };
        let committed = committed.load(Ordering::SeqCst);
        committed_at_all.fetch_add(u64::from(committed), Ordering::SeqCst);
        let between = between.as_ref().map(plain);
        let files = (&plain(&base), between.as_ref(), &plain(&leaf));
        check_merge(files, committed, with_layer_between, &user.lock().unwrap().model);
    });
    announce(&format!("operations on files that failed during a merge: {struck}"));
    assert!(struck > 40 && committed_at_all.into_inner() > 5);
}

/// A user of a disk whose operations may fail.
pub(super) struct User {
    pub(super) model: CrashModel,
    sync_failed: bool,
    all_written: bool,
}

impl User {
    pub(super) fn new() -> Self {
        Self {
            model: CrashModel::new(CRASH_SIZE),
            sync_failed: false,
            all_written: true,
        }
    }

    pub(super) fn run(&mut self, device: &LiveDevice, op: &Op) {
        let begun = op.begin(&mut self.model);
        match op.run(device) {
            Ok(()) => {
                assert!(
                    !self.sync_failed || *op != Op::Flush,
                    "a flush succeeds after one that failed"
                );
                // Of a write that failed a flush may keep any part, so that it says nothing of that one.
                if self.all_written {
                    op.end(&mut self.model, begun);
                }
            }
            Err(_) if *op != Op::Flush => self.all_written = false,
            Err(error) => self.sync_failed |= ErrorKind::from(error.kind()) == ErrorKind::Poisoned,
        }
    }
}

/// INV-57: a frozen image whose file could not be cut for want of space does not cut it later, when somebody else writes.
#[test]
fn inv_57_a_settled_image_writes_nothing_when_it_is_dropped() {
    let (memory, child) = (
        MemoryFile::new(),
        MemoryFile::from_bytes(Forge::differencing(8 * MIB, 4096).build()),
    );
    create_dynamic(&memory, 8 * MIB, 512 << 10).unwrap();
    let file = Arc::new(FaultFile::new(memory));
    let open = || Image::open(Arc::new(Shared(Arc::clone(&file))), &OpenMode::read_write()).unwrap();
    let device = LiveDevice::new(Arc::new(LayeredDevice::new(open(), Vec::new())));
    write_number(&device, 1, 1);
    let child = Image::open(Arc::new(child), &OpenMode::read_write()).unwrap();
    let next = device.prepare(child);
    LiveDevice::switch(vec![(&device, next)]).unwrap();
    device.flush().unwrap();
    file.control().limit_bytes(0);
    let len = file.inner().len().unwrap();
    device.present().settle().unwrap();
    assert_eq!(file.inner().len().unwrap(), len, "it could not be cut");
    file.control().heal();
    let again = LayeredDevice::new(open(), Vec::new());
    for block in 1..16 {
        write_number(&again, block * 1024, 2);
    }
    again.flush().unwrap();
    drop(device);
    let found = LayeredDevice::new(
        Image::open(Arc::new(Shared(Arc::clone(&file))), &OpenMode::read_only()).unwrap(),
        Vec::new(),
    );
    let found = bytes_of(&found);
    assert_eq!(number_at(&found, 1), 1);
    (1..16).for_each(|block| assert_eq!(number_at(&found, block * 1024), 2));
}
