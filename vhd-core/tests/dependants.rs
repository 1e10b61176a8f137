//! Who relies on an image is seen, wherever it is and whatever it is called; or it is said that this can't be known.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use common::build::{Parent, Sparse, id};
use common::disk::options_for;
use common::temp_dir;
use vhd_core::ErrorKind;
use vhd_core::chain::dependants::{Dependants, DependantsError, Limits, Search, dependants_of};
use vhd_core::chain::{OpenOptions, create_child};
use vhd_core::format::UniqueId;
use vhd_core::image::create_dynamic;
use vhd_core::snapshot::{SnapshotTree, Steps, Work};
use vhd_core::storage::StagedFile;

const SIZE: u64 = 4 << 20;

fn base(path: &Path) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let staged = StagedFile::create_beside(path).unwrap();
    create_dynamic(&*staged.storage(), SIZE, 2 << 20).unwrap();
    staged.publish(false, true).unwrap();
    path.to_owned()
}

fn child(path: &Path, parent: &Path) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    create_child(path, parent, None, &OpenOptions::new()).unwrap();
    path.to_owned()
}

fn found(path: &Path) -> Dependants {
    dependants_of(path).unwrap()
}

fn children(path: &Path) -> Vec<PathBuf> {
    let found = found(path);
    assert!(found.doubts().is_empty(), "{:?}", found.doubts());
    found.child_paths()
}

fn id_of(path: &Path) -> UniqueId {
    let opened = OpenOptions::new().open(path).unwrap();
    let leaf = opened.layers().next().unwrap();
    leaf.layer.unique_id()
}

/// The image is refused for writing, with the one kind, and nothing in it changes.
fn refused(path: &Path) -> DependantsError {
    let before = fs::read(path).unwrap();
    let error = OpenOptions::new().write(true).open(path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HasChildren, "{error}");
    assert!(fs::read(path).unwrap() == before, "it was changed");
    let opened = OpenOptions::new().write(true).ignore_children(true).open(path).unwrap();
    opened.close().unwrap();
    match error {
        vhd_core::chain::ChainError::Dependants(error) => error,
        other => panic!("{other}"),
    }
}

fn writable(path: &Path) {
    options_for(path).write(true).open(path).unwrap().close().unwrap();
}

#[test]
fn children_are_found_below_beside_above_and_in_directories_beside() {
    let dir = temp_dir();
    let at = |name: &str| dir.path().join("vm").join(name);
    // One place after the other: each alone is enough.
    for place in [
        "images/x.avhd",
        "images/Snapshots/6B29FC40/x.avhd",
        "images/a/b/c/d/e/x.avhd",
        "x.avhd",
        "machines/one/x.avhd",
        "Snapshots/6B29FC40/x.avhd",
        "../x.avhd",
    ] {
        let base = base(&at("images/base.vhd"));
        let child = child(&at(place), &base);
        let found = children(&base);
        assert_eq!(found.len(), 1, "{place}");
        assert!(
            found[0].canonicalize().unwrap() == child.canonicalize().unwrap(),
            "{place}"
        );
        assert!(matches!(refused(&base), DependantsError::Children { .. }), "{place}");
        writable(&child);
        fs::remove_file(child).unwrap();
        writable(&base);
        fs::remove_file(base).unwrap();
    }
}

#[test]
fn names_do_not_matter() {
    let dir = temp_dir();
    let base = base(&dir.path().join("base.vhd"));
    let names = [
        "a.vud",
        "b",
        "c.VHD.bak",
        "d.img",
        "e.avhd",
        "f.txt",
        "leaf with \u{fc}",
        ".hidden",
    ];
    let mut expected: Vec<PathBuf> = names.iter().map(|name| child(&dir.path().join(name), &base)).collect();
    expected.sort();
    assert_eq!(children(&base), expected);
    let DependantsError::Children { children, .. } = refused(&base) else {
        panic!("they are known");
    };
    assert_eq!(children, expected);
}

#[test]
fn several_machines_on_one_base_are_all_listed() {
    let dir = temp_dir();
    let base = base(&dir.path().join("base/base.vhd"));
    let machines: Vec<PathBuf> = (0..20)
        .map(|n| {
            child(
                &dir.path().join(format!("machine {n:02}/Snapshots/{n}/disk.avhd")),
                &base,
            )
        })
        .collect();
    assert_eq!(children(&base), machines);
    let text = refused(&base).to_string();
    assert!(text.contains("machine 00") && text.ends_with("and 4 more"), "{text}");
}

#[test]
fn an_image_in_the_middle_has_dependants_too_and_a_leaf_has_none() {
    let dir = temp_dir();
    let base = base(&dir.path().join("base.vhd"));
    let middle = child(&dir.path().join("Snapshots/1/middle.avhd"), &base);
    let leaf = child(&dir.path().join("Snapshots/2/leaf"), &middle);
    assert_eq!(children(&base), std::slice::from_ref(&middle));
    assert_eq!(children(&middle), std::slice::from_ref(&leaf));
    assert_eq!(children(&leaf), [] as [PathBuf; 0]);
    refused(&middle);
    writable(&leaf);
}

#[test]
fn links_and_several_names_of_one_file() {
    let dir = temp_dir();
    let base = base(&dir.path().join("deep/images/base.vhd"));
    let elsewhere = temp_dir();
    // A child that only a link beside the base leads to.
    let far = child(&elsewhere.path().join("far.avhd"), &base);
    symlink(&far, dir.path().join("deep/images/link")).unwrap();
    assert_eq!(children(&base), [dir.path().join("deep/images/link")]);
    // The base by a link elsewhere: the child is beside the link.
    fs::remove_file(dir.path().join("deep/images/link")).unwrap();
    let link = elsewhere.path().join("base.vhd");
    symlink(&base, &link).unwrap();
    assert_eq!(children(&link), std::slice::from_ref(&far));
    refused(&link);
    // The directory of the children behind a link.
    fs::remove_file(&link).unwrap();
    symlink(elsewhere.path(), dir.path().join("deep/images/Snapshots")).unwrap();
    assert_eq!(children(&base), [dir.path().join("deep/images/Snapshots/far.avhd")]);
    // A circle of links ends.
    symlink("..", dir.path().join("deep/images/circle")).unwrap();
    assert_eq!(children(&base).len(), 1);
    // One child under two names counts once.
    fs::hard_link(&far, elsewhere.path().join("second name")).unwrap();
    assert_eq!(children(&base).len(), 1);
}

#[test]
fn other_names_of_the_image_must_be_in_sight() {
    let dir = temp_dir();
    let base = base(&dir.path().join("base.vhd"));
    fs::create_dir(dir.path().join("other")).unwrap();
    let second = dir.path().join("other/second.vhd");
    fs::hard_link(&base, &second).unwrap();
    writable(&base);
    writable(&second);
    // A child beside one name is seen from the other.
    let one = child(&dir.path().join("child.avhd"), &base);
    refused(&second);
    fs::remove_file(one).unwrap();
    let outside = temp_dir();
    let far = outside.path().join("far.vhd");
    fs::rename(&second, &far).unwrap();
    let error = refused(&base);
    assert!(matches!(error, DependantsError::Unknown { .. }), "{error}");
    assert!(error.to_string().contains("2 names"), "{error}");
    refused(&far);
}

#[test]
fn copies_have_their_own_children() {
    let dir = temp_dir();
    let base = base(&dir.path().join("live/base.vhd"));
    child(&dir.path().join("live/leaf.avhd"), &base);
    fs::create_dir(dir.path().join("backup")).unwrap();
    for name in ["base.vhd", "leaf.avhd"] {
        fs::copy(dir.path().join("live").join(name), dir.path().join("backup").join(name)).unwrap();
    }
    assert_eq!(children(&base), [dir.path().join("live/leaf.avhd")]);
    assert_eq!(
        children(&dir.path().join("backup/base.vhd")),
        [dir.path().join("backup/leaf.avhd")]
    );
    // Its places lead nowhere any more: it may be anybody's.
    fs::remove_file(dir.path().join("backup/base.vhd")).unwrap();
    fs::remove_file(dir.path().join("live/leaf.avhd")).unwrap();
    fs::rename(&base, dir.path().join("live/renamed.vhd")).unwrap();
    assert_eq!(
        children(&dir.path().join("live/renamed.vhd")),
        [dir.path().join("backup/leaf.avhd")]
    );
}

#[test]
fn a_damaged_child_counts_or_makes_the_answer_unknown() {
    let dir = temp_dir();
    let base = base(&dir.path().join("base.vhd"));
    let path = child(&dir.path().join("child.avhd"), &base);
    let good = fs::read(&path).unwrap();
    let end = good.len() - 512;
    type Damage<'a> = &'a dyn Fn(&mut [u8]);
    let damages: &[(&str, Damage<'_>)] = &[
        ("footer at the end", &|bytes| bytes[end..].fill(0)),
        ("footer copy", &|bytes| bytes[..512].fill(0)),
        ("both footers", &|bytes| {
            bytes[..512].fill(0);
            bytes[end..].fill(0);
        }),
        ("checksums of both footers", &|bytes| {
            bytes[300] ^= 1;
            bytes[end + 300] ^= 1;
        }),
        ("header's checksum", &|bytes| bytes[512 + 36] ^= 1),
        ("header's cookie", &|bytes| bytes[512] ^= 1),
        ("parent's name", &|bytes| bytes[512 + 70] ^= 1),
        ("parent's identity", &|bytes| bytes[512 + 40] ^= 1),
        ("header", &|bytes| bytes[512..1536].fill(0)),
        ("everything but the footer", &|bytes| bytes[..end].fill(0)),
        ("types in both footers", &|bytes| {
            bytes[63] = 9;
            bytes[end + 63] = 9;
        }),
    ];
    for (what, damage) in damages {
        let mut bytes = good.clone();
        damage(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let found = found(&base);
        assert!(!found.children().is_empty() || !found.doubts().is_empty(), "{what}");
        refused(&base);
    }
    // Cut off in the middle.
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    refused(&base);
    // Of another parent, and sound: no concern of this one.
    let other = Sparse::child(SIZE, 2 << 20, id(2), Parent::named(id(77), "nowhere.vhd"));
    fs::write(&path, other.lay().bytes).unwrap();
    writable(&base);
}

#[test]
fn children_as_other_programs_write_them() {
    let dir = temp_dir();
    let at = |name: &str| dir.path().join(name);
    let base = at("base.vhd");
    fs::write(&base, common::build::fixed(&vec![3; 1 << 20], id(1))).unwrap();
    let far = format!("C:{}", base.display().to_string().replace('/', "\\"));
    let windows = Parent {
        locators: vec![common::build::Locator::new(3, b"W2ku", common::build::utf16le(&far))],
        ..Parent::name_only(id(1), "BASE.VHD")
    };
    let bytes = |parent| Sparse::child(1 << 20, 64 << 10, id(2), parent).lay().bytes;
    fs::create_dir_all(at("below/.hidden")).unwrap();
    for (name, parent) in [
        ("absolute.vhd", windows),
        ("relative.vhd", Parent::named(id(1), "base.vhd")),
        ("name only.vhd", Parent::name_only(id(1), "base.vhd")),
        ("stale.vhd", Parent::name_only(id(1), "gone.vhd")),
        ("below/stale.vhd", Parent::named(id(1), "base.vhd")),
        ("below/.hidden/stale.vhd", Parent::named(id(1), "base.vhd")),
    ] {
        let child = at(name);
        let mut whole = bytes(parent);
        fs::write(&child, &whole).unwrap();
        assert_eq!(children(&base), std::slice::from_ref(&child));
        // Before 2004 a footer had 511 bytes.
        whole.pop();
        fs::write(&child, &whole).unwrap();
        assert_eq!(children(&base), std::slice::from_ref(&child));
        // Something was appended to it.
        whole.extend([0; 4096]);
        fs::write(&child, &whole).unwrap();
        refused(&base);
        // A fixed disk that holds it is no child.
        let size = whole.len().next_multiple_of(512);
        whole.resize(size, 0);
        fs::write(&child, common::build::fixed(&whole, id(9))).unwrap();
        writable(&base);
        fs::remove_file(child).unwrap();
    }
}

#[test]
fn what_is_no_image_does_not_matter() {
    let dir = temp_dir();
    let base = base(&dir.path().join("base.vhd"));
    let mut random = common::rng::seeded(0xDE9, "files");
    for n in 0..20 {
        let bytes: Vec<u8> = (0..random.usize(0..9000)).map(|_| random.u8(..)).collect();
        fs::write(dir.path().join(format!("{n}.vhd")), bytes).unwrap();
    }
    fs::write(dir.path().join("footer only"), b"conectix").unwrap();
    fs::write(dir.path().join("fixed.vhd"), common::build::fixed(&[7; 8192], id(3))).unwrap();
    assert!(
        std::process::Command::new("mkfifo")
            .arg(dir.path().join("pipe.avhd"))
            .status()
            .unwrap()
            .success()
    );
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket.vhd")).unwrap();
    symlink("/dev/zero", dir.path().join("zero.avhd")).unwrap();
    symlink("pipe.avhd", dir.path().join("to the pipe.avhd")).unwrap();
    symlink("nowhere", dir.path().join("broken.avhd")).unwrap();
    assert_eq!(children(&base), [] as [PathBuf; 0]);
    writable(&base);
}

#[test]
fn limits_make_the_answer_unknown_and_never_absent() {
    let dir = temp_dir();
    let base = base(&dir.path().join("base.vhd"));
    for n in 0..50 {
        fs::write(dir.path().join(format!("file {n}")), [0; 4096]).unwrap();
    }
    let search = |limits| Search::new().image(&base, id_of(&base)).limits(limits).run();
    let unknown = |found: Dependants, what: &str| {
        let error = found.refuse().unwrap_err();
        assert!(matches!(error, DependantsError::Unknown { .. }), "{error}");
        assert!(error.to_string().contains(what), "{error}");
    };
    search(Limits::default()).refuse().unwrap();
    let few = Limits {
        files: 40,
        ..Limits::default()
    };
    unknown(search(few), "more than 40 files");
    fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
    let shallow = Limits {
        depth: 2,
        ..Limits::default()
    };
    unknown(search(shallow), "2 directories deep");
    let hasty = Limits {
        time: Duration::ZERO,
        ..Limits::default()
    };
    unknown(search(hasty), "0 seconds");
    // Around it is looked at as far as it goes.
    let narrow = Limits {
        files_around: 0,
        time_around: Duration::ZERO,
        ..Limits::default()
    };
    search(narrow).refuse().unwrap();
}

#[test]
fn five_thousand_images_in_one_directory_are_all_looked_at() {
    let dir = temp_dir();
    let base = base(&dir.path().join("base.vhd"));
    let other = Sparse::child(SIZE, 2 << 20, id(2), Parent::named(id(77), "nowhere.vhd"));
    let bytes = other.lay().bytes;
    let short = &bytes[..];
    for n in 0..5000 {
        fs::write(dir.path().join(format!("{n:05}.vhd")), short).unwrap();
    }
    writable(&base);
    let last = child(&dir.path().join("zzz.avhd"), &base);
    assert_eq!(children(&base), [last]);
}

#[test]
fn raw_parents_are_told_by_the_way_that_leads_to_them() {
    let dir = temp_dir();
    let raw = dir.path().join("base.raw");
    fs::write(&raw, vec![0; 1 << 20]).unwrap();
    writable(&raw);
    let one = child(&dir.path().join("below/child.avhd"), &raw);
    let error = options_for(&raw).write(true).open(&raw).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HasChildren);
    assert!(error.to_string().contains("below/child.avhd"), "{error}");
    let second = dir.path().join("second.raw");
    fs::write(&second, vec![0; 1 << 20]).unwrap();
    writable(&second);
    fs::remove_file(one).unwrap();
    writable(&raw);
}

/// Copies the files of a directory when a step is done: what a kill right then would leave there.
struct Kill<'a> {
    step: &'a str,
    from: &'a Path,
    to: &'a Path,
}

impl Steps for Kill<'_> {
    fn done(&self, step: &str) {
        if step == self.step {
            for entry in fs::read_dir(self.from).unwrap() {
                let path = entry.unwrap().path();
                fs::copy(&path, self.to.join(path.file_name().unwrap())).unwrap();
            }
        }
    }
}

#[test]
fn the_present_state_is_usable_after_a_killed_snapshot_and_its_parents_are_not() {
    let (dir, left) = (temp_dir(), temp_dir());
    let disk = base(&dir.path().join("vm.vhd"));
    for name in ["one", "two"] {
        let kill = Kill {
            step: "leaf made",
            from: dir.path(),
            to: left.path(),
        };
        let cancel = AtomicBool::new(false);
        let work = Work {
            steps: &kill,
            progress: &(),
            cancel: &cancel,
        };
        SnapshotTree::open(&disk, work).unwrap().create(name).unwrap();
    }
    // Killed while "two" was taken: the leaf over the present state is there, empty, and known to the manifest.
    let disk = left.path().join("vm.vhd");
    let active = vhd_core::snapshot::resolve(&disk, "now").unwrap();
    writable(&active);
    assert!(matches!(refused(&disk), DependantsError::Frozen { .. }));
    // If somebody has used it, it is a child.
    let names = fs::read_dir(left.path()).unwrap().map(|entry| entry.unwrap().path());
    let is_leaf = |path: &PathBuf| path.extension().is_some_and(|name| name == "avhd") && *path != active;
    let leaf = names.into_iter().find(is_leaf).unwrap();
    let opened = OpenOptions::new().write(true).open(&leaf).unwrap();
    opened.disk().write_at(&[1; 512], 0).unwrap();
    opened.close().unwrap();
    assert!(matches!(refused(&active), DependantsError::Children { .. }));
}
