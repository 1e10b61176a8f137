//! Another identity for an image: no child reads over the wrong file at any moment, and what was begun is finished.
//! Test names cite the invariants of docs/reparent.md. VHD_TEST_SEED replaces the first seed.

mod common;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use common::build::{Locator, Parent, Sparse, fixed, id, utf16le};
use common::disk::{assert_reads, assert_same, open, open_alone, parent_id_of, read_all};
use common::rng::{Rng, random_bytes, seeded};
use common::temp_dir;
use tempfile::TempDir;
use vhd_core::ErrorKind;
use vhd_core::chain::{OpenOptions, create_child, parent_link};
use vhd_core::format::UniqueId;
use vhd_core::image::{Amendment, Image, OpenMode, ParentLink};
use vhd_core::ops::new_id::{NewId, NewIdOptions};
use vhd_core::record::RecordKind;
use vhd_core::storage::StorageFile;
use vhd_core::units::usize_from;
use vhd_testkit::{CrashFile, CrashLimits};

/// An original with a child of its own, and a copy of it with another child; all four in one directory.
struct Copied {
    dir: TempDir,
    contents: [Vec<u8>; 4],
}

const RECORD_NAME: &str = "copy.vhd.new-id";
const NAMES: [&str; 4] = ["original.vhd", "copy.vhd", "first.avhd", "second.avhd"];

impl Copied {
    fn new(rng: &mut Rng, differencing: bool) -> Self {
        let dir = temp_dir();
        let base = random_bytes(rng, 64 << 10);
        let (bytes, content) = if differencing {
            fs::write(dir.path().join("base.vhd"), fixed(&base, id(8))).unwrap();
            let image = Sparse::child(64 << 10, 4096, id(1), Parent::named(id(8), "base.vhd")).fill_randomly(rng, 50);
            (image.lay().bytes, image.flat(&base))
        } else {
            (fixed(&base, id(1)), base)
        };
        // The copy of a child says where the original is, as long as its absolute path is the old one.
        let absolute = dir.path().join(NAMES[0]).display().to_string().replace('/', "\\");
        let child = |rng: &mut Rng, own, name| {
            let mut parent = Parent::named(id(1), name);
            parent.locators.push(Locator::new(1, b"W2ku", utf16le(&absolute)));
            Sparse::child(64 << 10, 4096, id(own), parent).fill_randomly(rng, 40)
        };
        let (first, second) = (child(rng, 2, NAMES[0]), child(rng, 3, NAMES[1]));
        for (name, bytes) in NAMES
            .iter()
            .zip([&bytes, &bytes, &first.lay().bytes, &second.lay().bytes])
        {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        let contents = [
            content.clone(),
            content.clone(),
            first.flat(&content),
            second.flat(&content),
        ];
        Self { dir, contents }
    }

    fn path(&self, index: usize) -> PathBuf {
        self.dir.path().join(NAMES[index])
    }

    /// The copy gets its own identity, and the second child goes with it.
    fn options(&self) -> NewIdOptions {
        NewIdOptions {
            children: vec![self.path(3)],
            leave_others: true,
            ..NewIdOptions::default()
        }
    }

    fn assert_done(&self, old: UniqueId, new: UniqueId, changed_original: bool) {
        assert_eq!(
            (
                open_alone(&self.path(0)).unique_id(),
                open_alone(&self.path(1)).unique_id()
            ),
            (old, new)
        );
        assert_eq!((parent_id_of(&self.path(2)), parent_id_of(&self.path(3))), (old, new));
        let same = if changed_original { &[1, 3][..] } else { &[0, 1, 2, 3] };
        for &index in same {
            assert_reads(&self.path(index), &self.contents[index]);
        }
        let opened = open(&self.path(3), false);
        assert_eq!(opened.paths()[1], self.path(1));
        assert_eq!(opened.warnings(), []);
        assert!(!self.dir.path().join(RECORD_NAME).exists());
    }

    /// The child of the copy reads what it should, or is refused: never something else. Whether it is refused.
    fn assert_second_is_not_wrong(&self) -> usize {
        match OpenOptions::new().open(&self.path(3)) {
            Ok(opened) => {
                assert_same(&read_all(&opened.disk()), &self.contents[3], NAMES[3]);
                0
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ParentMismatch);
                1
            }
        }
    }
}

#[test]
fn a_copy_gets_its_own_identity_and_its_child_follows() {
    let mut rng = seeded(0x1D, "new identities");
    for differencing in [false, true] {
        let copied = Copied::new(&mut rng, differencing);
        let before = open_alone(&copied.path(1)).unique_id();
        // Which of two belongs to which file nothing tells: they have to be named.
        let error = NewId::plan(&copied.path(1), &NewIdOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HasChildren);
        assert!(error.to_string().contains("first.avhd") && error.to_string().contains("second.avhd"));
        let plan = NewId::plan(&copied.path(1), &copied.options()).unwrap();
        let (old, new) = (plan.old_id(), plan.new_id());
        assert_eq!(old, before);
        assert_ne!(old, new);
        plan.run().unwrap();
        copied.assert_done(old, new, false);
        // Again: a new change, not the old one.
        let plan = NewId::plan(&copied.path(1), &NewIdOptions::default()).unwrap_err();
        assert_eq!(plan.kind(), ErrorKind::HasChildren);
        let all = NewIdOptions {
            all_children: true,
            ..NewIdOptions::default()
        };
        let plan = NewId::plan(&copied.path(1), &all).unwrap();
        assert_eq!((plan.old_id(), plan.children()), (new, &[copied.path(3)][..]));
        let newer = plan.new_id();
        plan.run().unwrap();
        copied.assert_done(old, newer, false);
    }
}

#[test]
fn wrong_children_are_refused_before_anything_changes() {
    let mut rng = seeded(0x1C, "wrong children");
    let copied = Copied::new(&mut rng, true);
    let before: Vec<Vec<u8>> = (0..4).map(|index| fs::read(copied.path(index)).unwrap()).collect();
    for (child, kind) in [
        (copied.path(1), ErrorKind::ParentMismatch),
        (copied.path(0), ErrorKind::ParentMismatch),
        (copied.dir.path().join("base.vhd"), ErrorKind::ParentMismatch),
        (copied.dir.path().join("nothing.avhd"), ErrorKind::NotFound),
    ] {
        let mut options = copied.options();
        options.children.push(child);
        assert_eq!(NewId::plan(&copied.path(1), &options).unwrap_err().kind(), kind);
    }
    // A child that is in use: all or nothing.
    let plan = NewId::plan(&copied.path(1), &copied.options()).unwrap();
    let held = open(&copied.path(3), false);
    assert_eq!(plan.run().unwrap_err().kind(), ErrorKind::Locked);
    drop(held);
    let after: Vec<Vec<u8>> = (0..4).map(|index| fs::read(copied.path(index)).unwrap()).collect();
    assert!(before == after);
    assert!(!copied.dir.path().join(RECORD_NAME).exists());
}

#[test]
fn inv_46_who_becomes_a_child_after_the_plan_is_seen() {
    let dir = temp_dir();
    let path = |name: &str| dir.path().join(name);
    let content = random_bytes(&mut seeded(0x46, "newcomers"), 64 << 10);
    fs::write(path("base.vhd"), fixed(&content, id(1))).unwrap();
    let make = |name: &str| create_child(&path(name), &path("base.vhd"), None, &OpenOptions::new()).unwrap();
    make("before.avhd");
    let options = NewIdOptions {
        all_children: true,
        ..NewIdOptions::default()
    };
    let plan = NewId::plan(&path("base.vhd"), &options).unwrap();
    make("new.avhd");
    let error = plan.run().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HasChildren, "{error}");
    let text = error.to_string();
    assert!(text.contains("new.avhd") && !text.contains("before.avhd"), "{text}");
    assert!(!path("base.vhd.new-id").exists());
    let assert_same_disks = || {
        for name in ["base.vhd", "before.avhd", "new.avhd"] {
            assert_reads(&path(name), &content);
        }
    };
    assert_same_disks();
    // The same command knows of it now.
    NewId::plan(&path("base.vhd"), &options).unwrap().run().unwrap();
    assert_same_disks();
    // Who was told to leave the others alone does.
    let left = NewIdOptions {
        leave_others: true,
        ..NewIdOptions::default()
    };
    let plan = NewId::plan(&path("base.vhd"), &left).unwrap();
    make("newer.avhd");
    plan.run().unwrap();
}

/// The states that a crash can leave of a file whose footers and header change, and last the one without a crash.
fn crash_states_of(path: &Path, change: impl FnOnce(&mut Amendment)) -> Vec<Vec<u8>> {
    let states = Arc::new(Mutex::new(Vec::new()));
    let found = Arc::clone(&states);
    let file = CrashFile::from_bytes(&fs::read(path).unwrap()).with_observer(Box::new(move |snapshot| {
        let limits = CrashLimits {
            exhaustive_bits: 3,
            random: 4,
            seed: 1,
            newest_only: true,
        };
        let files = snapshot.crash_states(&limits).map(|state| bytes_of(&state.file()));
        found.lock().unwrap().extend(files);
    }));
    let image = Image::open(Arc::new(file.clone()), &OpenMode::read_write()).unwrap();
    let mut amendment = image.amendment();
    change(&mut amendment);
    image.amend(&amendment).unwrap();
    file.set_observer(None);
    let mut states = states.lock().unwrap().clone();
    states.sort_unstable();
    states.dedup();
    states.push(bytes_of(&file));
    states
}

fn bytes_of(file: &CrashFile) -> Vec<u8> {
    let mut bytes = vec![0; usize_from(file.len().unwrap())];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn inv_30_a_change_of_identity_is_finished_from_every_state_of_every_file() {
    let mut rng = seeded(0x30, "interrupted changes");
    let (mut states, mut refused) = (0, 0);
    for round in 0..8 {
        let copied = Copied::new(&mut rng, round % 2 == 0);
        // The original goes on after the copy was made: a child of the copy must never be read over it.
        let changed_original = round % 2 == 1;
        if changed_original {
            let file = fs::OpenOptions::new().write(true).open(copied.path(0)).unwrap();
            file.write_all_at(&[0xAB; 32 << 10], 0).unwrap();
        }
        let (image, child) = (copied.path(1), copied.path(3));
        let (old, new) = (open_alone(&image).unique_id(), UniqueId::random());
        let opened = open(&image, false);
        let link = ParentLink {
            id: new,
            ..parent_link(&child, &image, &opened).unwrap()
        };
        opened.close().unwrap();
        let (image_before, child_before) = (fs::read(&image).unwrap(), fs::read(&child).unwrap());
        let repointed = crash_states_of(&child, |amendment| amendment.parent = Some(link));
        let renamed = crash_states_of(&image, |amendment| amendment.footer.unique_id = new);
        let child_after = repointed[repointed.len() - 1].clone();
        let first = repointed.into_iter().map(|bytes| (image_before.clone(), bytes));
        let second = renamed.into_iter().map(|bytes| (bytes, child_after.clone()));
        let before = (image_before.clone(), child_before);
        for (image_bytes, child_bytes) in std::iter::once(before).chain(first).chain(second) {
            fs::write(&image, image_bytes).unwrap();
            fs::write(&child, child_bytes).unwrap();
            write_record(&copied, old, new);
            states += 1;
            refused += copied.assert_second_is_not_wrong();
            let plan = NewId::plan(&image, &NewIdOptions::default()).unwrap();
            assert!(plan.is_resumed());
            assert_eq!((plan.old_id(), plan.new_id()), (old, new), "never a second identity");
            plan.run().unwrap();
            copied.assert_done(old, new, changed_original);
        }
    }
    common::announce(&format!(
        "new-id: finished from {states} states, a child was refused meanwhile in {refused}"
    ));
    assert!(refused > 0, "no state in between was looked at");
}

/// What the command writes before it changes a file.
fn write_record(copied: &Copied, old: UniqueId, new: UniqueId) {
    let kind = RecordKind {
        name: "new-id",
        version: 1,
    };
    let record = serde_json::json!({
        "old_id": old.to_string(),
        "new_id": new.to_string(),
        "modified": 1_600_000_000,
        "children": [NAMES[3]],
    });
    kind.write(&copied.dir.path().join(RECORD_NAME), &record).unwrap();
}

#[test]
fn a_record_of_something_else_is_refused() {
    let mut rng = seeded(0x31, "records");
    let copied = Copied::new(&mut rng, false);
    write_record(&copied, UniqueId::random(), UniqueId::random());
    let plan = NewId::plan(&copied.path(1), &NewIdOptions::default()).unwrap();
    let error = plan.run().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RecordDamaged);
    assert!(error.to_string().contains(RECORD_NAME), "{error}");
    write_record(&copied, open_alone(&copied.path(1)).unique_id(), UniqueId::random());
    let other = NewIdOptions {
        children: vec![copied.path(2)],
        ..NewIdOptions::default()
    };
    let error = NewId::plan(&copied.path(1), &other).unwrap_err();
    assert!(error.to_string().contains("first.avhd"), "{error}");
    fs::write(copied.dir.path().join(RECORD_NAME), "vhd-record new-id 1 sha256:0\n{}").unwrap();
    let error = NewId::plan(&copied.path(1), &other).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RecordDamaged);
}
