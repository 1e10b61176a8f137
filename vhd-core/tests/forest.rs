//! The forest of a directory: every relation, every damage, many files.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use common::build::{HEADER_SUM, Parent, SECTOR, Sparse, fixed, id, put, seal};
use common::rng::{chance, seeded};
use common::temp_dir;
use vhd_core::ErrorKind;
use vhd_core::chain::forest::{Forest, Limits, Link};
use vhd_core::chain::{ChainWarning, OpenOptions, ParentOutcome};
use vhd_core::units::usize_from;

const SIZE: u64 = 1 << 20;
const BLOCK: usize = 512 << 10;

fn scan(dir: &Path) -> Forest {
    Forest::scan(dir, Limits::default()).unwrap()
}

fn base(number: usize) -> Vec<u8> {
    Sparse::new(SIZE, BLOCK).with_id(number).lay().bytes
}

fn child(number: usize, parent: usize, parent_name: &str) -> Vec<u8> {
    let parent = Parent::named(id(parent), parent_name);
    Sparse::child(SIZE, BLOCK, id(number), parent).lay().bytes
}

trait WithId {
    fn with_id(self, number: usize) -> Self;
}

impl WithId for Sparse {
    fn with_id(mut self, number: usize) -> Self {
        self.id = id(number);
        self
    }
}

/// The member with this path below the directory.
fn at(forest: &Forest, dir: &Path, name: &str) -> usize {
    let path = dir.join(name);
    let found = forest.members().iter().position(|member| member.path == path);
    found.unwrap_or_else(|| panic!("{name} in {:?}", forest.members()))
}

fn parent_of<'a>(forest: &'a Forest, dir: &Path, name: &str) -> Option<&'a Path> {
    let parent = forest.link(at(forest, dir, name)).parent();
    parent.map(|parent| forest.members()[parent].path.strip_prefix(dir).unwrap())
}

#[test]
fn random_forests_are_told_as_the_opener_has_them() {
    let mut rng = seeded(0xF0_2E57, "forest");
    for _ in 0..12 {
        let dir = temp_dir();
        let mut parents: Vec<Option<usize>> = Vec::new();
        for number in 0..60 {
            let parent = (number > 0 && !chance(&mut rng, 10)).then(|| rng.usize(..number));
            let bytes = match parent {
                Some(parent) => child(number, parent, &format!("{parent}.vhd")),
                None if chance(&mut rng, 50) => base(number),
                None => fixed(&vec![7; usize_from(SIZE)], id(number)),
            };
            fs::write(dir.path().join(format!("{number}.vhd")), bytes).unwrap();
            parents.push(parent);
        }
        let forest = scan(dir.path());
        for (number, parent) in parents.iter().enumerate() {
            let name = format!("{number}.vhd");
            let expected = parent.map(|parent| format!("{parent}.vhd"));
            assert_eq!(
                parent_of(&forest, dir.path(), &name),
                expected.as_ref().map(Path::new),
                "{name}"
            );
            let opened = OpenOptions::new().open(&dir.path().join(&name)).unwrap();
            let second = opened.paths().get(1).map(|path| path.file_name().unwrap().to_owned());
            assert_eq!(second, expected.map(Into::into), "{name}");
        }
        let bases = parents.iter().filter(|parent| parent.is_none()).count();
        assert_eq!(forest.roots().len(), bases);
    }
}

#[test]
fn orphans_say_what_they_miss_and_where_they_looked() {
    let dir = temp_dir();
    fs::write(dir.path().join("orphan.avhd"), child(2, 1, "gone.vhd")).unwrap();
    fs::write(dir.path().join("other.vhd"), base(3)).unwrap();
    let forest = scan(dir.path());
    let Link::Broken { wanted, holders, tried } = forest.link(at(&forest, dir.path(), "orphan.avhd")) else {
        panic!("{forest:?}");
    };
    assert_eq!((wanted.0, holders.len()), (id(1), 0));
    assert!(
        tried
            .iter()
            .any(|tried| tried.path == dir.path().join("gone.vhd") && matches!(tried.outcome, ParentOutcome::NotFound))
    );
    assert_eq!(forest.roots().len(), 2);
}

#[test]
fn a_parent_that_was_moved_is_a_broken_link_and_not_an_orphan() {
    let dir = temp_dir();
    fs::create_dir(dir.path().join("moved")).unwrap();
    fs::write(dir.path().join("moved/base.vhd"), base(1)).unwrap();
    fs::write(dir.path().join("child.avhd"), child(2, 1, "base.vhd")).unwrap();
    // Another disk has taken the name.
    fs::write(dir.path().join("base.vhd"), base(9)).unwrap();
    let forest = scan(dir.path());
    let Link::Broken { holders, tried, .. } = forest.link(at(&forest, dir.path(), "child.avhd")) else {
        panic!("{forest:?}");
    };
    assert_eq!(*holders, [at(&forest, dir.path(), "moved/base.vhd")]);
    assert!(matches!(tried[0].outcome, ParentOutcome::OtherDisk(other) if other.0 == id(9)));
}

#[test]
fn of_copies_the_one_is_the_parent_that_the_child_would_use() {
    let dir = temp_dir();
    for place in ["a", "b"] {
        fs::create_dir(dir.path().join(place)).unwrap();
        fs::write(dir.path().join(place).join("base.vhd"), base(1)).unwrap();
    }
    fs::write(dir.path().join("b/child.avhd"), child(2, 1, "base.vhd")).unwrap();
    let forest = scan(dir.path());
    assert_eq!(
        parent_of(&forest, dir.path(), "b/child.avhd"),
        Some(Path::new("b/base.vhd"))
    );
    let copies = [
        at(&forest, dir.path(), "a/base.vhd"),
        at(&forest, dir.path(), "b/base.vhd"),
    ];
    assert_eq!(forest.copies(copies[0]), copies);
    assert!(forest.children(copies[0]).is_empty());
    assert!(forest.copies(at(&forest, dir.path(), "b/child.avhd")).is_empty());
}

#[test]
fn circles_are_told_and_have_a_root() {
    let dir = temp_dir();
    fs::write(dir.path().join("a.vhd"), child(1, 3, "c.vhd")).unwrap();
    fs::write(dir.path().join("b.vhd"), child(2, 1, "a.vhd")).unwrap();
    fs::write(dir.path().join("c.vhd"), child(3, 2, "b.vhd")).unwrap();
    fs::write(dir.path().join("d.vhd"), child(4, 2, "b.vhd")).unwrap();
    fs::write(dir.path().join("self.vhd"), child(5, 5, "self.vhd")).unwrap();
    let forest = scan(dir.path());
    let cyclic = |name| forest.is_cyclic(at(&forest, dir.path(), name));
    assert!(cyclic("a.vhd") && cyclic("b.vhd") && cyclic("c.vhd") && cyclic("self.vhd"));
    assert!(!cyclic("d.vhd"));
    assert_eq!(forest.roots().len(), 2);
}

#[test]
fn damaged_files_keep_their_reason_and_their_place() {
    let dir = temp_dir();
    let whole = Sparse::new(SIZE, BLOCK)
        .with_id(1)
        .store_sector(3, &[1; SECTOR])
        .store_sector(1500, &[2; SECTOR])
        .lay();
    let damage = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.bytes.clone();
        change(&mut bytes);
        fs::write(dir.path().join(name), bytes).unwrap();
    };
    damage("header.vhd", &|bytes| bytes[512 + 40] ^= 1);
    damage("cookie.vhd", &|bytes| bytes[512] = 0);
    damage("past-end.vhd", &|bytes| put(bytes, whole.table, &[0, 1, 0, 0]));
    damage("overlap.vhd", &|bytes| {
        bytes.copy_within(whole.table..whole.table + 4, whole.table + 4);
    });
    damage("cut.vhd", &|bytes| bytes.truncate(1000));
    damage("block-size.vhd", &|bytes| {
        put(bytes, 512 + 32, &[0, 3, 0, 0]);
        seal(&mut bytes[512..1536], HEADER_SUM);
    });
    fs::write(dir.path().join("empty.vhd"), b"").unwrap();
    fs::write(dir.path().join("text.vhd"), b"no image\n".repeat(100)).unwrap();
    fs::write(dir.path().join("lost.vhd"), [7; 4096]).unwrap();
    fs::write(dir.path().join("child.avhd"), child(2, 1, "header.vhd")).unwrap();
    let forest = scan(dir.path());
    let kind = |name: &str| {
        let member = &forest.members()[at(&forest, dir.path(), name)];
        member.state.as_ref().unwrap_err().kind()
    };
    assert_eq!(kind("header.vhd"), ErrorKind::HeaderChecksum);
    assert_eq!(kind("cookie.vhd"), ErrorKind::HeaderMissing);
    assert_eq!(kind("past-end.vhd"), ErrorKind::BlockPastEnd);
    assert_eq!(kind("overlap.vhd"), ErrorKind::BlockOverlap);
    assert_eq!(kind("cut.vhd"), ErrorKind::HeaderLocation);
    assert_eq!(kind("block-size.vhd"), ErrorKind::BlockSize);
    assert_eq!(kind("empty.vhd"), ErrorKind::TooSmall);
    assert_eq!(kind("text.vhd"), ErrorKind::ForeignFormat);
    assert_eq!(kind("lost.vhd"), ErrorKind::FooterMissing);
    assert_eq!(
        parent_of(&forest, dir.path(), "child.avhd"),
        Some(Path::new("header.vhd"))
    );
}

/// Whatever byte of the metadata is damaged: the forest is told, nothing else changes, no file is written.
#[test]
fn no_damaged_byte_disturbs_the_other_files() {
    let dir = temp_dir();
    fs::write(dir.path().join("base.vhd"), base(1)).unwrap();
    fs::write(dir.path().join("sound.avhd"), child(3, 1, "base.vhd")).unwrap();
    let sound = child(2, 1, "base.vhd");
    let path = dir.path().join("bad.avhd");
    for at in (0..sound.len()).step_by(7) {
        for change in [0xFF, 0x01] {
            let mut bytes = sound.clone();
            bytes[at] ^= change;
            if (512..1536).contains(&at) {
                seal(&mut bytes[512..1536], HEADER_SUM);
            }
            fs::write(&path, &bytes).unwrap();
            let forest = scan(dir.path());
            assert_eq!(forest.members().len(), 3, "{at}");
            assert_eq!(
                parent_of(&forest, dir.path(), "sound.avhd"),
                Some(Path::new("base.vhd"))
            );
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }
}

#[test]
fn links_and_loops_end() {
    let dir = temp_dir();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/base.vhd"), base(1)).unwrap();
    fs::write(dir.path().join("not-an-image.txt"), base(7)).unwrap();
    symlink(dir.path(), dir.path().join("sub/up.vhd")).unwrap();
    symlink(dir.path(), dir.path().join("sub/up")).unwrap();
    symlink("loop.vhd", dir.path().join("loop.vhd")).unwrap();
    symlink("sub/base.vhd", dir.path().join("link.vhd")).unwrap();
    fs::hard_link(dir.path().join("sub/base.vhd"), dir.path().join("hard.vhd")).unwrap();
    let forest = scan(dir.path());
    let paths: Vec<_> = forest.members().iter().map(|member| &member.path).collect();
    assert_eq!(paths, [&dir.path().join("hard.vhd"), &dir.path().join("loop.vhd")]);
    let mut aliases = forest.members()[0].aliases.clone();
    aliases.sort();
    assert_eq!(aliases, [dir.path().join("link.vhd"), dir.path().join("sub/base.vhd")]);
    assert!(forest.members()[1].state.is_err());
}

#[test]
fn parents_elsewhere_are_shown_with_theirs() {
    let dir = temp_dir();
    fs::create_dir_all(dir.path().join("vm/snaps")).unwrap();
    fs::write(dir.path().join("base.vhd"), base(1)).unwrap();
    fs::write(dir.path().join("vm/mid.vhd"), child(2, 1, "..\\base.vhd")).unwrap();
    fs::write(dir.path().join("vm/snaps/leaf.avhd"), child(3, 2, "..\\mid.vhd")).unwrap();
    let forest = scan(&dir.path().join("vm/snaps"));
    assert_eq!(forest.members().len(), 3);
    let leaf = at(&forest, dir.path(), "vm/snaps/leaf.avhd");
    let mid = forest.link(leaf).parent().unwrap();
    let base = forest.link(mid).parent().unwrap();
    assert!(!forest.members()[leaf].outside && forest.members()[mid].outside && forest.members()[base].outside);
    assert_eq!(forest.members()[base].id().unwrap().0, id(1));
}

#[test]
fn sizes_and_times_that_disagree_are_told() {
    let dir = temp_dir();
    let base = dir.path().join("base.vhd");
    fs::write(&base, self::base(1)).unwrap();
    let file = fs::File::options().write(true).open(&base).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3600))
        .unwrap();
    let mut parent = Parent::named(id(1), "base.vhd");
    parent.timestamp = 77;
    let longer = Sparse::child(2 * SIZE, BLOCK, id(2), parent).lay().bytes;
    fs::write(dir.path().join("child.avhd"), longer).unwrap();
    let forest = scan(dir.path());
    let warnings = forest.warnings(at(&forest, dir.path(), "child.avhd"));
    assert!(
        matches!(
            warnings,
            [ChainWarning::ParentSize { .. }, ChainWarning::ParentTimestamp { .. }]
        ),
        "{warnings:?}"
    );
}

#[test]
fn limits_are_kept_and_told() {
    let dir = temp_dir();
    for number in 0..20 {
        fs::write(dir.path().join(format!("{number}.vhd")), base(number)).unwrap();
    }
    let forest = Forest::scan(dir.path(), Limits { files: 5, depth: 1 }).unwrap();
    assert!(forest.members().len() == 5 && forest.skipped().truncated);
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    fs::write(dir.path().join("a/b/deep.vhd"), base(99)).unwrap();
    let forest = Forest::scan(dir.path(), Limits { files: 50, depth: 1 }).unwrap();
    assert!(forest.members().len() == 20 && forest.skipped().truncated);
    assert!(Forest::scan(&dir.path().join("none"), Limits::default()).is_err());
}

#[test]
fn ten_thousand_files_take_seconds() {
    let dir = temp_dir();
    fs::write(dir.path().join("0.vhd"), base(0)).unwrap();
    for number in 1..10_000 {
        // Deep in the first thousand, broad in the rest.
        let parent = if number < 1000 { number - 1 } else { number % 1000 };
        let bytes = child(number, parent, &format!("{parent}.vhd"));
        fs::write(dir.path().join(format!("{number}.vhd")), bytes).unwrap();
    }
    let begun = Instant::now();
    let forest = scan(dir.path());
    let took = begun.elapsed();
    assert_eq!((forest.members().len(), forest.roots().len()), (10_000, 1));
    common::announce(&format!("forest of 10000 files: {took:?}"));
    assert!(took < Duration::from_secs(20), "{took:?}");
}
