//! Another parent for a child: the child reads the same before, during and after,
//! wherever power fails and whatever the file system refuses. Test names cite the invariants of docs/reparent.md.
//!
//! VHD_REPARENT_FAMILIES says on how many random families the crash enumeration runs (default 60); a failure prints
//! its seed, VHD_TEST_SEED replaces the first one.

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::build::{Laid, Parent, SECTOR, Sparse, TablePlace, fixed, id};
use common::disk::{assert_reads, assert_same, open, open_alone, parent_id_of, read_all};
use common::rng::{Rng, chance, random_bytes, seeded};
use common::temp_dir;
use common::tree::random_tree;
use tempfile::TempDir;
use vhd_core::ErrorKind;
use vhd_core::chain::{OpenOptions, OpenedDisk, parent_link};
use vhd_core::check::{FindingCode, Severity, check};
use vhd_core::device::{ByteRange, Layer, LayeredDevice};
use vhd_core::image::{Image, OpenMode, ParentLink};
use vhd_core::ops::new_id::{NewId, NewIdOptions};
use vhd_core::ops::reparent::{Rebase, RebaseOptions, RebaseReport, Relink, ReparentError, rebase, relink};
use vhd_core::storage::{Access, HostFile, MemoryFile, Sharing, StorageFile};
use vhd_core::units::{u64_from, usize_from};
use vhd_testkit::{CrashFile, CrashLimits, CrashSnapshot, Fault, FaultError, FaultFile, each_operation_fails};

static GO_ON: AtomicBool = AtomicBool::new(false);

fn options(cancel: &AtomicBool) -> RebaseOptions<'_> {
    RebaseOptions {
        cancel,
        threads: 1,
        flush_bytes: 4000,
    }
}

/// Rebases as the command does, having planned first.
fn rebase_files(child: &Path, parent: &Path) -> RebaseReport {
    let examine = || Rebase::examine(child, parent, &OpenOptions::new(), &OpenOptions::new()).unwrap();
    let several = RebaseOptions {
        threads: 3,
        ..options(&GO_ON)
    };
    let before = fs::read(child).unwrap();
    let planned = examine().plan(&several, &()).unwrap();
    assert_eq!(fs::read(child).unwrap(), before, "a plan changes nothing");
    let done = examine().run(&several, &()).unwrap();
    // Which stored zeroes the host has as holes may change from one look to the next.
    let compared_bytes = done.compared_bytes;
    assert_eq!(
        RebaseReport {
            compared_bytes,
            ..planned
        },
        done
    );
    done
}

/// For each sector whether the file itself has it.
fn held(path: &Path, size: usize) -> Vec<bool> {
    let mut held = Vec::new();
    let disk = open(path, false).disk();
    disk.extents(ByteRange::new(0, u64_from(size)), &mut |extent| {
        let sectors = usize_from(extent.range.len) / SECTOR;
        held.extend(std::iter::repeat_n(extent.depth == 0, sectors));
        ControlFlow::Continue(())
    })
    .unwrap();
    held
}

#[test]
fn inv_29_children_read_the_same_over_any_other_image_of_their_tree() {
    let mut rng = seeded(0x29, "rebase in trees");
    let seven_zip = common::tools::have(&["7zz"], "rebased chains against 7-Zip");
    let (mut deeper, mut shallower, mut taken) = (0, 0, 0);
    for _ in 0..12 {
        let dir = temp_dir();
        let nodes = random_tree(dir.path(), &mut rng, 6);
        for _ in 0..4 {
            let (child, parent) = (&nodes[rng.usize(1..nodes.len())], &nodes[rng.usize(..nodes.len())]);
            let paths = open(&parent.path, false).paths().to_vec();
            if paths.contains(&child.path) {
                let error = Rebase::examine(&child.path, &parent.path, &OpenOptions::new(), &OpenOptions::new());
                assert_eq!(error.err().unwrap().kind(), ErrorKind::ChainCycle);
                continue;
            }
            let before = held(&child.path, child.content.len());
            let depth = open(&child.path, false).paths().len();
            let report = rebase_files(&child.path, &parent.path);
            // Exactly what has to be there is taken over.
            let differs = child.content.chunks(SECTOR).zip(parent.content.chunks(SECTOR));
            let needed = differs.zip(before).filter(|((a, b), held)| a != b && !held);
            assert_eq!(report.taken_bytes, u64_from(needed.count() * SECTOR));
            assert_eq!(parent_id_of(&child.path), open_alone(&parent.path).unique_id());
            let now = open(&child.path, false).paths().len();
            deeper += usize::from(now > depth);
            shallower += usize::from(now < depth);
            taken += report.taken_bytes;
            nodes.iter().for_each(|node| assert_reads(&node.path, &node.content));
            assert_eq!(
                rebase_files(&child.path, &parent.path).compared_bytes,
                0,
                "nothing is left"
            );
            if seven_zip {
                assert_same(&common::tools::seven_zip_reads(&child.path), &child.content, "7-Zip");
            }
        }
    }
    assert!(
        deeper > 2 && shallower > 2 && taken > 1 << 20,
        "{deeper} {shallower} {taken}"
    );
}

#[test]
fn what_both_parents_read_from_one_place_is_not_read() {
    let mut rng = seeded(0x2A, "shared places");
    let dir = temp_dir();
    let base = random_bytes(&mut rng, 1 << 20);
    fs::write(dir.path().join("base.vhd"), fixed(&base, id(1))).unwrap();
    let write = |name: &str, own, below, below_name: &str, sector: usize| {
        let parent = Parent::named(id(below), below_name);
        let image = Sparse::child(1 << 20, 4096, id(own), parent).store_sector(sector, &[7; SECTOR]);
        fs::write(dir.path().join(name), image.lay().bytes).unwrap();
    };
    write("middle.vhd", 3, 1, "base.vhd", 9);
    write("child.vhd", 2, 3, "middle.vhd", 20);
    let (child, base) = (dir.path().join("child.vhd"), dir.path().join("base.vhd"));
    let content = read_all(&open(&child, false).disk());
    let report = rebase_files(&child, &base);
    assert_eq!(
        (report.compared_bytes, report.taken_bytes, report.new_blocks),
        (512, 512, 1)
    );
    fs::remove_file(dir.path().join("middle.vhd")).unwrap();
    assert_reads(&child, &content);
}

/// A child, what it is based on, and what it is to be based on.
struct Family {
    /// Goes with the files in it.
    _dir: TempDir,
    child: Laid,
    flat: Vec<u8>,
    /// The files of the present parents and of the new ones, nearest first.
    old: Vec<(PathBuf, Arc<MemoryFile>)>,
    new: Vec<(PathBuf, Arc<MemoryFile>)>,
    opened: OpenedDisk,
    link: ParentLink,
    layout: String,
}

fn with_content(paths: Vec<PathBuf>) -> Vec<(PathBuf, Arc<MemoryFile>)> {
    let read = |path: PathBuf| {
        let bytes = fs::read(&path).unwrap();
        (path, Arc::new(MemoryFile::from_bytes(bytes)))
    };
    paths.into_iter().map(read).collect()
}

/// Something like `content`: some sectors are others, some are zero.
fn variant(rng: &mut Rng, content: &[u8]) -> Vec<u8> {
    let mut bytes = content.to_vec();
    for sector in bytes.chunks_mut(SECTOR) {
        match rng.u8(..6) {
            0 => sector.fill(0),
            1 => rng.fill(sector),
            _ => {}
        }
    }
    bytes
}

impl Family {
    fn random(rng: &mut Rng) -> Self {
        let dir = temp_dir();
        let block_size = 512 << rng.u32(0..6);
        let blocks = rng.u64(1..10);
        let size = blocks * block_size - rng.u64(0..block_size / 512) * 512;
        let base = random_bytes(rng, usize_from(size));
        let base = variant(rng, &base);
        let path = |name: &str| dir.path().join(name);
        fs::write(path("base.vhd"), fixed(&base, id(1))).unwrap();
        let (mut old, mut below) = (vec![path("base.vhd")], base.clone());
        let (mut parent, has_middle) = (Parent::named(id(1), "base.vhd"), chance(rng, 60));
        if has_middle {
            let middle = 512 << rng.usize(0..5);
            let image = Sparse::child(size, middle, id(3), parent).fill_randomly(rng, 60);
            fs::write(path("middle.vhd"), image.lay().bytes).unwrap();
            below = image.flat(&base);
            old.insert(0, path("middle.vhd"));
            parent = Parent::named(id(3), "middle.vhd");
        }
        if chance(rng, 30) {
            // Longer than the new paths, or shorter, or not there.
            parent.locators[0].data.resize(rng.usize(0..900) * 2, 0x41);
        }
        let mut image = Sparse::child(size, usize_from(block_size), id(2), parent).fill_randomly(rng, 50);
        image.gap = if chance(rng, 50) { 0 } else { rng.usize(1..6) };
        if chance(rng, 30) {
            image.table = TablePlace::AtEnd;
        }
        let new = match rng.u8(..3) {
            0 if has_middle => vec![path("base.vhd")],
            1 => {
                let parent = Parent::named(id(1), "base.vhd");
                let sibling = Sparse::child(size, 512 << rng.usize(0..5), id(5), parent).fill_randomly(rng, 60);
                fs::write(path("new.vhd"), sibling.lay().bytes).unwrap();
                vec![path("new.vhd"), path("base.vhd")]
            }
            _ => {
                fs::write(path("new.vhd"), fixed(&variant(rng, &base), id(4))).unwrap();
                vec![path("new.vhd")]
            }
        };
        let opened = OpenOptions::new().open(&new[0]).unwrap();
        Self {
            child: image.lay(),
            flat: image.flat(&below),
            link: parent_link(&path("child.vhd"), &new[0], &opened).unwrap(),
            layout: format!("{blocks} blocks of {block_size} over {old:?}, to {new:?}"),
            _dir: dir,
            old: with_content(old),
            new: with_content(new),
            opened,
        }
    }

    /// The image over the parents that it names.
    fn open(&self, file: Arc<dyn StorageFile>, write: bool) -> LayeredDevice {
        let mode = if write {
            OpenMode::read_write()
        } else {
            OpenMode::read_only()
        };
        let image = Image::open(file, &mode).unwrap_or_else(|error| panic!("{}: {error:?}", self.layout));
        let names_new = image.header().unwrap().parent_id == self.link.id;
        let parents = if names_new { &self.new } else { &self.old };
        let layers = parents.iter().map(|(path, in_memory)| {
            // For a look the copy will do; the places that two chains share are told by their files.
            let file: Arc<dyn StorageFile> = match write {
                true => Arc::new(HostFile::open(path, Access::ReadOnly, Sharing::Unlocked).unwrap()),
                false => Arc::clone(in_memory) as _,
            };
            Layer::Vhd(Arc::new(Image::open(file, &OpenMode::ancestor()).unwrap()))
        });
        LayeredDevice::new(image, layers.collect())
    }

    fn run(&self, file: Arc<dyn StorageFile>, cancel: &AtomicBool) -> Result<RebaseReport, ReparentError> {
        let device = self.open(file, true);
        rebase(device, &self.opened, &self.link, &options(cancel), &())
    }

    /// The image reads the same, and nothing is corrupt.
    fn check(&self, file: Arc<dyn StorageFile>, what: &str) {
        let report = check(&*file).unwrap();
        let bad = |finding: &&vhd_core::check::Finding| {
            finding.severity == Severity::Corrupt
                || finding.severity == Severity::Repairable
                    && !matches!(
                        finding.code,
                        FindingCode::StaleSectors | FindingCode::FooterDamaged | FindingCode::FootersDiffer
                    )
        };
        assert_eq!(report.findings.iter().find(bad), None, "{what}, {}", self.layout);
        let device = self.open(file, false);
        let read = read_all(&vhd_core::device::Disk::new(Arc::new(device)));
        assert_same(&read, &self.flat, &format!("{what}, {}", self.layout));
    }

    /// It has the new parent, and everything is in order.
    fn check_done(&self, file: Arc<dyn StorageFile>, what: &str) {
        let image = Image::open(Arc::clone(&file), &OpenMode::read_only()).unwrap();
        assert_eq!(image.header().unwrap().parent_id, self.link.id, "{what}");
        let paths: Vec<String> = image
            .parent_paths()
            .unwrap()
            .into_iter()
            .map(|path| path.path)
            .collect();
        let (relative, absolute, name) = (&self.link.relative_path, &self.link.absolute_path, &self.link.name);
        assert_eq!(paths, [relative.clone(), absolute.clone(), name.clone()]);
        self.check(file, what);
    }
}

fn family_count() -> usize {
    let asked = std::env::var("VHD_REPARENT_FAMILIES");
    asked.ok().and_then(|count| count.parse().ok()).unwrap_or(60)
}

/// Crashes at each operation; in some of the crashed images the rebase goes on, and crashes again.
fn crash_everywhere(family: &Arc<Family>, file: CrashFile, depth: u32, counts: &Arc<Counts>) {
    let (watched, counter) = (Arc::clone(family), Arc::clone(counts));
    let one = Mutex::new(());
    file.set_observer(Some(Box::new(move |snapshot: &CrashSnapshot| {
        let _one = one.lock();
        let limits = CrashLimits {
            exhaustive_bits: 6,
            random: 10,
            seed: counter.states.load(Ordering::Relaxed),
            newest_only: true,
        };
        for state in snapshot.crash_states(&limits) {
            let number = counter.states.fetch_add(1, Ordering::Relaxed);
            watched.check(Arc::new(state.file()), &state.to_string());
            if depth > 0 && number.is_multiple_of(499) {
                counter.continued.fetch_add(1, Ordering::Relaxed);
                crash_everywhere(&watched, state.file(), depth - 1, &counter);
            }
        }
    })));
    family.run(Arc::new(file.clone()), &GO_ON).unwrap();
    file.set_observer(None);
    family.check_done(Arc::new(file), "at the end");
}

#[derive(Default)]
struct Counts {
    states: AtomicU64,
    continued: AtomicU64,
}

#[test]
fn inv_29_power_fails_at_every_operation() {
    let mut rng = seeded(0x2929, "crashes");
    let counts = Arc::new(Counts::default());
    for _ in 0..family_count() {
        let family = Arc::new(Family::random(&mut rng));
        let file = CrashFile::from_bytes(&family.child.bytes);
        crash_everywhere(&family, file, 1, &counts);
    }
    let states = counts.states.load(Ordering::Relaxed);
    let continued = counts.continued.load(Ordering::Relaxed);
    common::announce(&format!(
        "rebase: {states} crash states checked, work went on in {continued}"
    ));
}

#[test]
fn each_operation_fails_and_the_next_run_finishes() {
    let mut rng = seeded(0x2F, "faults");
    let mut struck = 0;
    for error in [FaultError::EIO, FaultError::ENOSPC] {
        for _ in 0..15 {
            let family = Family::random(&mut rng);
            let fault = |n| Fault {
                error,
                ..Fault::nth(n).with_short(700)
            };
            struck += each_operation_fails(fault, |control, n| {
                let crash = CrashFile::from_bytes(&family.child.bytes);
                let file = Arc::new(FaultFile::with_control(crash.clone(), control));
                let result = family.run(file, &GO_ON);
                // A file that can't grow by much grows by less.
                let needs_none = error == FaultError::ENOSPC && result.is_ok();
                assert!(
                    result.is_err() == (control.hits() > 0) || needs_none,
                    "{}, operation {n}: {result:?}",
                    family.layout
                );
                if result.is_ok() {
                    family.check_done(Arc::new(crash.clone()), "in spite of a fault");
                }
                if let Err(failure) = &result {
                    let wanted = match error {
                        FaultError::ENOSPC => ErrorKind::NoSpace,
                        _ => ErrorKind::Io,
                    };
                    assert_eq!(failure.kind(), wanted, "{failure:?}");
                }
                family.check(Arc::new(crash.clone()), "after a fault");
                family.run(Arc::new(crash.clone()), &GO_ON).unwrap();
                family.check_done(Arc::new(crash), "done again");
            });
        }
    }
    common::announce(&format!("rebase: {struck} faults"));
    assert!(struck > 300, "{struck}");
}

#[test]
fn what_was_taken_over_before_a_cancellation_stays() {
    let mut rng = seeded(0x2C, "cancellations");
    let mut cancelled = 0;
    for n in 0..80 {
        let family = Family::random(&mut rng);
        let flag = Arc::new(AtomicBool::new(false));
        let (setter, seen) = (Arc::clone(&flag), AtomicU64::new(0));
        let file = CrashFile::from_bytes(&family.child.bytes).with_observer(Box::new(move |_| {
            setter.fetch_or(seen.fetch_add(1, Ordering::Relaxed) == n % 9, Ordering::Relaxed);
        }));
        let report = family.run(Arc::new(file.clone()), &flag).unwrap();
        if report.cancelled {
            cancelled += 1;
            let image = Image::open(Arc::new(file.clone()), &OpenMode::read_only()).unwrap();
            assert_ne!(image.header().unwrap().parent_id, family.link.id);
        }
        family.check(Arc::new(file.clone()), "cancelled");
        let rest = family.run(Arc::new(file.clone()), &GO_ON).unwrap();
        let whole = family.run(Arc::new(MemoryFile::from_bytes(family.child.bytes.clone())), &GO_ON);
        if report.cancelled {
            assert_eq!(report.taken_bytes + rest.taken_bytes, whole.unwrap().taken_bytes);
        }
        family.check_done(Arc::new(file), "finished");
    }
    assert!(cancelled > 20, "{cancelled}");
}

#[test]
fn inv_29_zeroes_over_a_parent_that_is_not_zero_are_stored() {
    let mut rng = seeded(0x2E, "zeroes");
    let dir = temp_dir();
    let path = |name: &str| dir.path().join(name);
    let size = 256 << 10;
    fs::write(path("old.vhd"), fixed(&vec![0; size], id(1))).unwrap();
    fs::write(path("new.vhd"), fixed(&random_bytes(&mut rng, size), id(4))).unwrap();
    let child = Sparse::child(u64_from(size), 64 << 10, id(2), Parent::named(id(1), "old.vhd"));
    fs::write(path("child.vhd"), child.lay().bytes).unwrap();
    let report = rebase_files(&path("child.vhd"), &path("new.vhd"));
    assert_eq!(
        (report.taken_bytes, report.zero_bytes),
        (u64_from(size), u64_from(size))
    );
    assert_eq!(report.new_blocks, 4);
    assert_reads(&path("child.vhd"), &vec![0; size]);
}

/// A tree of three in one directory, and what each reads: base <- middle <- leaf.
fn three(dir: &Path, rng: &mut Rng) -> Vec<Vec<u8>> {
    let base = random_bytes(rng, 128 << 10);
    fs::write(dir.join("base.vhd"), fixed(&base, id(1))).unwrap();
    let mut contents = vec![base];
    for (own, below, name, parent) in [(2, 1, "middle.vhd", "base.vhd"), (3, 2, "leaf.vhd", "middle.vhd")] {
        let image = Sparse::child(128 << 10, 8 << 10, id(own), Parent::named(id(below), parent)).fill_randomly(rng, 50);
        fs::write(dir.join(name), image.lay().bytes).unwrap();
        contents.push(image.flat(&contents[contents.len() - 1]));
    }
    contents
}

fn examine(child: &Path, parent: &Path) -> Result<Relink, ReparentError> {
    Relink::examine(child, parent, &OpenOptions::new())
}

#[test]
fn an_orphan_finds_its_parent_elsewhere() {
    let mut rng = seeded(0x1E, "orphans");
    let dir = temp_dir();
    let contents = three(dir.path(), &mut rng);
    let elsewhere = dir.path().join("another place \u{00E4}");
    fs::create_dir(&elsewhere).unwrap();
    let (leaf, moved) = (dir.path().join("leaf.vhd"), elsewhere.join("renamed.vhd"));
    fs::rename(dir.path().join("middle.vhd"), &moved).unwrap();
    assert_eq!(
        OpenOptions::new().open(&leaf).unwrap_err().kind(),
        ErrorKind::ParentMissing
    );
    // The moved one is an orphan itself now: nothing can be based on a broken chain.
    let before = fs::read(&leaf).unwrap();
    assert_eq!(examine(&leaf, &moved).unwrap_err().kind(), ErrorKind::ParentMissing);
    assert_eq!(fs::read(&leaf).unwrap(), before);
    examine(&moved, &dir.path().join("base.vhd"))
        .unwrap()
        .run(false)
        .unwrap();
    assert_reads(&moved, &contents[1]);
    let relink = examine(&leaf, &moved).unwrap();
    let relation = relink.relation();
    assert!(relation.id.agrees && relation.disk_size.agrees && !relation.path_agrees());
    relink.run(false).unwrap();
    assert_reads(&leaf, &contents[2]);
    let relation = examine(&leaf, &moved).unwrap().relation().clone();
    assert!(relation.path_agrees() && relation.modified.agrees);
    let opened = open(&leaf, false);
    assert!(opened.warnings().is_empty(), "{:?}", opened.warnings());
}

#[test]
fn seven_zip_reads_a_relinked_chain() {
    if !common::tools::have(&["7zz"], "relinked chains against 7-Zip") {
        return;
    }
    let mut rng = seeded(0x72, "7-Zip");
    let dir = temp_dir();
    let contents = three(dir.path(), &mut rng);
    let (leaf, renamed) = (dir.path().join("leaf.vhd"), dir.path().join("renamed.vhd"));
    assert_same(&common::tools::seven_zip_reads(&leaf), &contents[2], "before");
    fs::rename(dir.path().join("middle.vhd"), &renamed).unwrap();
    examine(&leaf, &renamed).unwrap().run(false).unwrap();
    assert_same(&common::tools::seven_zip_reads(&leaf), &contents[2], "after");
}

#[test]
fn other_disks_other_sizes_and_circles_are_refused_untouched() {
    let mut rng = seeded(0x0E, "refusals");
    let dir = temp_dir();
    let contents = three(dir.path(), &mut rng);
    let path = |name: &str| dir.path().join(name);
    fs::write(path("other.vhd"), fixed(&contents[1], id(9))).unwrap();
    fs::write(path("small.vhd"), fixed(&contents[1][512..], id(2))).unwrap();
    fs::write(path("raw.img"), &contents[1]).unwrap();
    let before: Vec<Vec<u8>> = ["base.vhd", "middle.vhd", "leaf.vhd"]
        .map(|name| fs::read(path(name)).unwrap())
        .into();
    for (child, parent, kind) in [
        ("leaf.vhd", "other.vhd", ErrorKind::ParentMismatch),
        ("leaf.vhd", "base.vhd", ErrorKind::ParentMismatch),
        ("leaf.vhd", "small.vhd", ErrorKind::SizeMismatch),
        ("leaf.vhd", "raw.img", ErrorKind::ParentMismatch),
        ("leaf.vhd", "missing.vhd", ErrorKind::NotFound),
        ("leaf.vhd", "leaf.vhd", ErrorKind::ChainCycle),
        ("middle.vhd", "leaf.vhd", ErrorKind::ChainCycle),
        ("base.vhd", "other.vhd", ErrorKind::InvalidArgument),
    ] {
        let refused = examine(&path(child), &path(parent)).and_then(|relink| relink.run(false));
        assert_eq!(refused.unwrap_err().kind(), kind, "{child} to {parent}");
    }
    let rebased = Rebase::examine(
        &path("leaf.vhd"),
        &path("small.vhd"),
        &OpenOptions::new(),
        &OpenOptions::new(),
    );
    assert_eq!(rebased.err().unwrap().kind(), ErrorKind::SizeMismatch);
    let after: Vec<Vec<u8>> = ["base.vhd", "middle.vhd", "leaf.vhd"]
        .map(|name| fs::read(path(name)).unwrap())
        .into();
    assert_eq!(before, after);
    // By force it is what the caller says it is.
    examine(&path("leaf.vhd"), &path("other.vhd"))
        .unwrap()
        .run(true)
        .unwrap();
    assert_reads(&path("leaf.vhd"), &contents[2]);
    assert_eq!(open(&path("leaf.vhd"), false).paths()[1], path("other.vhd"));
}

#[test]
fn damaged_files_are_refused_and_stay_as_they_are() {
    let mut rng = seeded(0xBA, "damage");
    let (mut refused, mut done) = (0, 0);
    for round in 0..400 {
        let dir = temp_dir();
        three(dir.path(), &mut rng);
        let paths = ["base.vhd", "middle.vhd", "leaf.vhd"].map(|name| dir.path().join(name));
        // A byte of a footer or a header, or an end that is missing.
        let victim = &paths[rng.usize(..3)];
        let mut bytes = fs::read(victim).unwrap();
        match rng.u8(..4) {
            0 => bytes.truncate(rng.usize(..bytes.len())),
            1 => {
                let at = rng.usize(..bytes.len().min(2048));
                bytes[at] ^= 1 << rng.u8(..8);
            }
            2 => {
                let at = bytes.len() - 1 - rng.usize(..512);
                bytes[at] ^= 1 << rng.u8(..8);
            }
            _ => {
                let end = bytes.len() - 512;
                bytes[..512].fill(0);
                bytes[end..].fill(0);
            }
        }
        fs::write(victim, bytes).unwrap();
        let before = paths.clone().map(|path| fs::read(path).unwrap());
        let result = match round % 3 {
            0 => examine(&paths[2], &paths[1])
                .and_then(|relink| relink.run(false))
                .map_err(|error| error.kind()),
            1 => Rebase::examine(&paths[2], &paths[0], &OpenOptions::new(), &OpenOptions::new())
                .and_then(|rebase| rebase.run(&options(&GO_ON), &()))
                .map(drop)
                .map_err(|error| error.kind()),
            _ => {
                let options = NewIdOptions {
                    children: vec![paths[2].clone()],
                    ..NewIdOptions::default()
                };
                NewId::plan(&paths[1], &options)
                    .and_then(NewId::run)
                    .map_err(|error| error.kind())
            }
        };
        match result {
            Ok(()) => done += 1,
            Err(_) => {
                refused += 1;
                let after = paths.clone().map(|path| fs::read(path).unwrap());
                assert!(before == after, "round {round}: something changed");
                assert_eq!(
                    fs::read_dir(dir.path()).unwrap().count(),
                    3,
                    "round {round}: a record is left"
                );
            }
        }
    }
    assert!(refused > 50 && done > 50, "{refused} refused, {done} done");
}

#[test]
fn inv_18_29_a_relink_is_the_old_one_or_the_new_one() {
    let mut rng = seeded(0x18, "relink crashes");
    let mut states = 0;
    for _ in 0..60 {
        let family = Arc::new(Family::random(&mut rng));
        let old = Image::open(
            Arc::new(MemoryFile::from_bytes(family.child.bytes.clone())),
            &OpenMode::read_only(),
        );
        let old = old.unwrap().parent_paths().unwrap();
        let crash = CrashFile::from_bytes(&family.child.bytes);
        let (watched, seen) = (Arc::clone(&family), Arc::new(AtomicU64::new(0)));
        let counter = Arc::clone(&seen);
        let child = crash.with_observer(Box::new(move |snapshot: &CrashSnapshot| {
            let limits = CrashLimits {
                exhaustive_bits: 6,
                random: 10,
                seed: counter.load(Ordering::Relaxed),
                newest_only: true,
            };
            for state in snapshot.crash_states(&limits) {
                counter.fetch_add(1, Ordering::Relaxed);
                let image = Image::open(Arc::new(state.file()), &OpenMode::read_only()).unwrap();
                let paths = image.parent_paths().unwrap();
                let new = image.header().unwrap().parent_id == watched.link.id;
                match new {
                    true => assert_eq!(paths[0].path, watched.link.relative_path, "{state}"),
                    false => assert_eq!(paths, old, "{state}"),
                }
            }
        }));
        let image = Image::open(Arc::new(child.clone()), &OpenMode::read_write()).unwrap();
        relink(image, &family.link).unwrap();
        child.set_observer(None);
        let image = Image::open(Arc::new(child), &OpenMode::read_only()).unwrap();
        assert_eq!(image.header().unwrap().parent_id, family.link.id);
        states += seen.load(Ordering::Relaxed);
    }
    common::announce(&format!("relink: {states} crash states checked"));
}
