//! The leaf of a disk in use is merged by `merge`: the disk goes on in a file below it, in a chain without snapshots.

use super::delete::{content_of, files_in};
use super::*;
use vhd_core::chain::create_child;
use vhd_core::ops::Progress;
use vhd_core::ops::merge::{
    MergeError, MergeOptions, MergePlan, MergeReport, MergeRequest, merge, merge_in_use, plan, plan_in_use,
};

const OPTIONS: MergeOptions<'static> = MergeOptions {
    cancel: &GO_ON,
    threads: 1,
    batch_bytes: MergeOptions::DEFAULT_BATCH,
};

/// base <- low <- high <- leaf, each with a sector of its own and one that all write to.
fn chain(dir: &Path) -> [PathBuf; 4] {
    let paths = ["base", "low", "high", "leaf"].map(|name| dir.join(format!("{name}.vhd")));
    new_disk(dir, "base.vhd");
    for (number, path) in (0..).zip(&paths) {
        if number > 0 {
            create_child(path, &paths[number - 1], None, &OpenOptions::new()).unwrap();
        }
        let disk = open(path, true);
        write_number(&**disk.chain().unwrap(), 10 + number, 1 + u64_from(number));
        write_number(&**disk.chain().unwrap(), 5, 1 + u64_from(number));
        disk.close().unwrap();
    }
    paths
}

fn request(child: &Path, into: Option<&Path>) -> MergeRequest {
    MergeRequest {
        into: into.map(Path::to_owned),
        ..MergeRequest::new(child)
    }
}

fn merge_live(request: &MergeRequest, device: &LiveDevice, progress: &dyn Progress) -> Result<MergeReport, MergeError> {
    merge_in_use(&plan_in_use(request, device)?, &OPTIONS, progress, device)
}

/// INV-76, INV-78: under writers a leaf goes into its parent, and then the whole range above the base into that.
#[test]
fn inv_76_the_disk_goes_on_in_a_file_below_its_leaf_under_writers() {
    const THREADS: usize = 3;
    for _ in 0..rounds(6).div_ceil(2) {
        let dir = temp_dir();
        let [base, low, high, leaf] = chain(dir.path());
        let device = live(&leaf);
        beside_writers(&device, THREADS, || {
            thread::sleep(std::time::Duration::from_millis(5));
            let report = merge_live(&request(&leaf, None), &device, &()).unwrap();
            assert_eq!((&report.target, &report.removed[..]), (&high, &[leaf.clone()][..]));
            assert!(report.copied_bytes > 0 && !report.cancelled && !report.resumed);
            assert_eq!(files_in(dir.path()), ["base.vhd", "high.vhd", "low.vhd"]);
            assert_eq!(device.leaf_path(), Some(high.clone()));
            thread::sleep(std::time::Duration::from_millis(5));
            let report = merge_live(&request(&high, Some(&base)), &device, &()).unwrap();
            assert_eq!((&report.target, &report.removed[..]), (&base, &[high, low][..]));
            assert_eq!(files_in(dir.path()), ["base.vhd"]);
            thread::sleep(std::time::Duration::from_millis(5));
        });
        let last = bytes_of(&device);
        device.close().unwrap();
        assert_reads(&base, &last);
        let opened = open(&base, true);
        assert!(opened.warnings().is_empty(), "{:?}", opened.warnings());
        assert_eq!(opened.paths().len(), 1);
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

    fn step(&self, step: &str) {
        self.steps.done(step);
    }
}

/// INV-76, INV-77: killed at any step, with writes in between, the disk has all that was flushed in the file that counts; no
/// other file of it can be written to; and the same command finishes.
#[test]
fn inv_77_killed_at_any_step_the_same_command_finishes() {
    for whole_range in [false, true] {
        let (dir, copies) = (temp_dir(), temp_dir());
        let [base, _, high, leaf] = chain(dir.path());
        let target = if whole_range { base } else { high };
        let device = live(&leaf);
        let written = std::sync::atomic::AtomicUsize::new(0);
        let found = {
            let watching = Watching {
                steps: Copying::new(dir.path(), copies.path(), writes_between(&device, &written)),
            };
            merge_live(&request(&leaf, Some(&target)), &device, &watching).unwrap();
            watching.steps.copies.into_inner().unwrap()
        };
        let names: Vec<&str> = found.iter().map(|(step, _)| step.as_str()).collect();
        for step in [
            "announced",
            "copied some",
            "switched",
            "committed",
            "layer removed",
            "record removed",
        ] {
            assert!(names.contains(&step), "{step} of {names:?}");
        }
        for (at, (step, copy)) in found.iter().enumerate() {
            let [leaf, target] = [&leaf, &target].map(|path| copy.join(path.file_name().unwrap()));
            let when = format!("{at}: {step}");
            let check = |path: &Path| {
                let now = content_of(path);
                assert_eq!(
                    [number_at(&now, 5), number_at(&now, 7)],
                    [4, 10 + u64_from(at)],
                    "{when}"
                );
                (0..4).for_each(|layer| assert_eq!(number_at(&now, 10 + layer), 1 + u64_from(layer), "{when}"));
                for later in 0..found.len() {
                    let number = if later <= at { 9 } else { 0 };
                    assert_eq!(number_at(&now, 100 + later), number, "{when}");
                }
            };
            let writable = |path: &Path| OpenOptions::new().write(true).open(path).map(drop);
            let refused = |path: &Path| assert_eq!(writable(path).unwrap_err().kind(), ErrorKind::JobPending, "{when}");
            match step.as_str() {
                // The flush of that step has made it known already.
                "switched" | "committed" => {
                    check(&target);
                    refused(&leaf);
                    refused(&target);
                }
                "layer removed" => check(&target),
                "record removed" => assert!(writable(&target).is_ok(), "{when}"),
                _ => {
                    check(&leaf);
                    writable(&leaf).unwrap();
                    refused(&target);
                }
            }
            if step != "record removed" {
                let planned = plan(&request(&leaf, Some(&target))).unwrap();
                assert!(planned.resumes_at().is_some(), "{when}");
                let report = merge(&planned, &OPTIONS, &()).unwrap();
                assert!(report.resumed && !report.cancelled, "{when}");
            }
            assert_eq!(
                files_in(copy).len(),
                if whole_range { 1 } else { 3 },
                "{when}: {:?}",
                files_in(copy)
            );
            check(&target);
            writable(&target).unwrap();
            let gone = plan(&request(&leaf, Some(&target))).err().unwrap();
            assert_eq!(gone.kind(), ErrorKind::NotFound, "{when}");
        }
        device.close().unwrap();
    }
}

fn refusal(planned: Result<MergePlan, MergeError>) -> ErrorKind {
    planned.err().expect("it is refused").kind()
}

/// INV-78: who relies on the target or on what goes stands in the way, with `carry` too; nothing changes.
#[test]
fn inv_78_a_leaf_is_not_merged_where_others_would_read_what_is_written() {
    for parent in 0..4 {
        let dir = temp_dir();
        let paths = chain(dir.path());
        let other = dir.path().join("other.vhd");
        create_child(&other, &paths[parent], None, &OpenOptions::new()).unwrap();
        let device = OpenOptions::new()
            .write(true)
            .ignore_children(true)
            .open(&paths[3])
            .unwrap();
        let device = device.into_live().unwrap();
        let before = files_in(dir.path());
        for carry in [false, true] {
            let wanted = MergeRequest {
                carry,
                ..request(&paths[3], Some(&paths[1]))
            };
            match parent {
                // What is below the target has any children.
                0 => drop(plan_in_use(&wanted, &device).unwrap()),
                _ => {
                    let error = plan_in_use(&wanted, &device).err().unwrap();
                    assert_eq!(error.kind(), ErrorKind::HasChildren);
                    assert!(
                        error.to_string().contains("other.vhd") && !error.to_string().contains("carry"),
                        "{error}"
                    );
                }
            }
        }
        // One that comes between the look and the lock.
        if parent == 2 {
            std::fs::remove_file(&other).unwrap();
            let planned = plan_in_use(&request(&paths[3], Some(&paths[1])), &device).unwrap();
            create_child(&other, &paths[parent], None, &OpenOptions::new()).unwrap();
            let late = merge_in_use(&planned, &OPTIONS, &(), &device).unwrap_err();
            assert_eq!(late.kind(), ErrorKind::HasChildren);
        }
        assert_eq!(files_in(dir.path()), before);
        device.close().unwrap();
    }
}

/// Readers of the target, or of a layer that goes, in this process and in others; frozen files; files of other jobs.
#[test]
fn a_leaf_is_not_merged_into_what_others_use() {
    let dir = temp_dir();
    let [base, low, high, leaf] = chain(dir.path());
    let device = live(&leaf);
    let before = (files_in(dir.path()), bytes_of(&device));
    let planned = plan_in_use(&request(&leaf, Some(&low)), &device).unwrap();
    assert_eq!((planned.child(), planned.target()), (leaf.as_path(), low.as_path()));
    assert_eq!(planned.removed().collect::<Vec<_>>(), [&leaf, &high]);
    assert_eq!(planned.summary().held_bytes, 3 * u64_from(SECTOR));
    let refused = |why: &str| {
        let error = merge_in_use(&planned, &OPTIONS, &(), &device).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Locked, "{why}: {error}");
        assert_eq!(files_in(dir.path()), before.0, "{why}");
    };
    let reader = open(&low, false);
    refused("another program");
    drop(reader);
    for depth in [1, 2] {
        let view = device.view(depth).unwrap();
        refused("a view");
        assert_eq!(number_at(&bytes_of(&*view), 5), 4 - u64_from(depth));
    }
    // A layer below the target may be read.
    let view = device.view(3).unwrap();
    assert_eq!(
        refusal(plan_in_use(&request(&leaf, Some(&leaf)), &device)),
        ErrorKind::NotRelated
    );
    // Another job is open on the target.
    let marked = merge_stopped(&low, &base);
    assert_eq!(
        refusal(plan_in_use(&request(&leaf, Some(&low)), &device)),
        ErrorKind::JobPending
    );
    marked();
    merge_in_use(&planned, &OPTIONS, &(), &device).unwrap();
    assert_eq!(number_at(&bytes_of(&*view), 5), 1);
    drop(view);
    assert_same(&bytes_of(&device), &before.1, "the disk");
    // Snapshots of it are merged by the commands for snapshots.
    drop(take(&low, &device, "one"));
    let active = device.leaf_path().unwrap();
    assert_eq!(
        refusal(plan_in_use(&request(&active, None), &device)),
        ErrorKind::HasChildren
    );
    device.close().unwrap();
}

/// Leaves a job open on a file; what is returned ends it.
fn merge_stopped(image: &Path, base: &Path) -> impl FnOnce() {
    let record = image.with_file_name("low.vhd.merge");
    let marker = image.with_file_name("low.vhd.job");
    let files = [record.clone(), marker.clone()];
    let head = serde_json::json!({ "images": [{ "path": "low.vhd", "guest": false }] });
    let kind = vhd_core::record::RecordKind {
        name: "merge",
        version: 1,
    };
    kind.write(&record, &head).unwrap();
    let kind = vhd_core::record::RecordKind {
        name: "job",
        version: 1,
    };
    kind.write(
        &marker,
        &serde_json::json!({ "kind": "merge", "record": "low.vhd.merge" }),
    )
    .unwrap();
    assert!(base.exists());
    move || files.iter().for_each(|file| std::fs::remove_file(file).unwrap())
}

#[test]
fn a_raw_disk_does_not_become_a_leaf() {
    let dir = temp_dir();
    let raw = dir.path().join("base.raw");
    std::fs::write(&raw, vec![1; 1 << 20]).unwrap();
    let leaf = dir.path().join("leaf.vhd");
    let options = OpenOptions::new().raw_parents([raw.clone()]);
    create_child(&leaf, &raw, None, &options).unwrap();
    let device = options.write(true).open(&leaf).unwrap().into_live().unwrap();
    write_number(&device, 1, 1);
    let refused = plan_in_use(&request(&leaf, None), &device).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::InUse, "{refused}");
    device.close().unwrap();
}

/// Stopped while it copies, gone on with in use and offline.
#[test]
fn a_merge_of_the_leaf_that_is_stopped_goes_on() {
    for offline in [false, true] {
        let dir = temp_dir();
        let [base, low, high, leaf] = chain(dir.path());
        let device = live(&leaf);
        (1..8).for_each(|block| write_number(&device, block * 1024, 1));
        let stop = AtomicBool::new(false);
        let stopping = Stopping(&stop);
        let options = MergeOptions {
            cancel: &stop,
            ..OPTIONS
        };
        let planned = plan_in_use(&request(&leaf, Some(&base)), &device).unwrap();
        let report = merge_in_use(&planned, &options, &stopping, &device).unwrap();
        assert!(report.cancelled && report.removed.is_empty(), "{report:?}");
        assert!([&low, &high, &leaf].iter().all(|path| path.exists()));
        // The disk goes on; what is written now is merged too.
        write_number(&device, 8, 8);
        let now = bytes_of(&device);
        assert_eq!(
            refusal(plan_in_use(&request(&leaf, None), &device)),
            ErrorKind::JobPending
        );
        let again = request(&leaf, Some(&base));
        if offline {
            device.close().unwrap();
            let report = merge(&plan(&again).unwrap(), &OPTIONS, &()).unwrap();
            assert!(report.resumed);
        } else {
            let report = merge_live(&again, &device, &()).unwrap();
            assert!(report.resumed);
            assert_same(&bytes_of(&device), &now, "the disk");
            device.close().unwrap();
        }
        assert_eq!(files_in(dir.path()), ["base.vhd"]);
        assert_reads(&base, &now);
    }
}

struct Stopping<'a>(&'a AtomicBool);

impl Progress for Stopping<'_> {
    fn begin(&self, _total: u64) {}

    fn advance(&self, _bytes: u64) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Puts a directory in the place of the record when the disk has gone on in the target, so that nobody can say so.
struct Obstructing<'a>(&'a Path);

impl Progress for Obstructing<'_> {
    fn begin(&self, _total: u64) {}

    fn advance(&self, _bytes: u64) {}

    fn step(&self, step: &str) {
        if step == "switched" {
            std::fs::rename(self.0, self.0.with_extension("kept")).unwrap();
            std::fs::create_dir_all(self.0.join("obstacle")).unwrap();
        }
    }
}

/// INV-76: no flush succeeds before it is known which file is the disk; the same command makes it known, and finishes.
#[test]
fn inv_76_no_flush_succeeds_before_the_record_says_where_the_disk_is() {
    let dir = temp_dir();
    let [_, _, high, leaf] = chain(dir.path());
    let device = live(&leaf);
    let record = dir.path().join("leaf.vhd.merge");
    let failed = merge_live(&request(&leaf, None), &device, &Obstructing(&record)).unwrap_err();
    assert!(matches!(failed, MergeError::Device { .. }), "{failed}");
    assert_eq!(device.leaf_path(), Some(high.clone()));
    write_number(&device, 8, 8);
    device.flush().unwrap_err();
    assert!(leaf.exists());
    std::fs::remove_dir_all(&record).unwrap();
    std::fs::rename(record.with_extension("kept"), &record).unwrap();
    let report = merge_live(&request(&leaf, None), &device, &()).unwrap();
    assert_eq!((report.resumed, &report.removed[..]), (true, &[leaf][..]));
    device.flush().unwrap();
    assert_eq!(files_in(dir.path()), ["base.vhd", "high.vhd", "low.vhd"]);
    let now = bytes_of(&device);
    device.close().unwrap();
    assert_eq!([5, 8].map(|at| number_at(&now, at)), [4, 8]);
    assert_reads(&high, &now);
}
