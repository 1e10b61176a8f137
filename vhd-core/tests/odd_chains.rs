//! Children as all sorts of programs write them: how the parent is named, what is refused, and what chains of
//! random layers read.

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::build::{FOOTER, HEADER, Laid, Locator, Parent, SECTOR, Space, Sparse, fixed, id, number, put, utf16le};
use common::disk::{assert_reads, assert_same, disk_of, open, random_operation, read_all};
use common::rng::{Rng, chance, random_bytes, seeded};
use common::temp_dir;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vhd_core::ErrorKind;
use vhd_core::chain::{ChainError, ChainWarning, ExplicitOnly, OpenOptions, create_child};
use vhd_core::device::{ByteRange, Layer};
use vhd_core::image::{Image, OpenMode};
use vhd_core::storage::MemoryFile;
use vhd_core::units::u64_from;

const KIB: usize = 1 << 10;
const SIZE: usize = 96 * KIB;
const PARENT: usize = 1;
const CHILD: usize = 2;

/// A directory with a parent in it, and what the parent reads.
struct Family {
    dir: tempfile::TempDir,
    rng: Rng,
    parent: Vec<u8>,
}

impl Family {
    /// The parent lies at `place` in the directory.
    fn new(seed: u64, place: &str) -> Self {
        let mut rng = seeded(seed, place);
        let dir = temp_dir();
        let spec = Sparse::new(u64_from(SIZE), 4 * KIB).fill_randomly(&mut rng, 80);
        let path = dir.path().join(place);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, spec.lay().bytes).unwrap();
        let parent = spec.flat(&[]);
        Self { dir, rng, parent }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a child that says this of its parent, after a change; returns its path and what it must read.
    fn child(&mut self, parent: Parent, change: impl FnOnce(&mut Laid)) -> (PathBuf, Vec<u8>) {
        let spec = Sparse::child(u64_from(SIZE), 8 * KIB, id(CHILD), parent).fill_randomly(&mut self.rng, 60);
        let mut laid = spec.lay();
        change(&mut laid);
        let path = self.path("child.vhd");
        std::fs::write(&path, laid.bytes).unwrap();
        (path, spec.flat(&self.parent))
    }

    /// A child that says this of its parent is read and written.
    fn assert_found(&mut self, parent: Parent, what: &str) {
        println!("{what}");
        let (child, mut content) = self.child(parent, |_| {});
        assert_reads(&child, &content);
        self.write(&child, &mut content);
    }

    fn write(&mut self, child: &Path, content: &mut [u8]) {
        let opened = open(child, true);
        for _ in 0..10 {
            random_operation(&opened.disk(), content, &mut self.rng);
        }
        opened.close().unwrap();
        assert_reads(child, content);
    }

    fn assert_refused(&mut self, parent: Parent, kind: ErrorKind) -> ChainError {
        let (child, _) = self.child(parent, |_| {});
        let error = OpenOptions::new().open(&child).unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        let write = OpenOptions::new().write(true).open(&child).unwrap_err();
        assert_eq!(write.kind(), kind, "{write:?}");
        error
    }
}

fn nameless() -> Parent {
    Parent::name_only(id(PARENT), "")
}

/// A parent that only one locator leads to.
fn located(locator: Locator) -> Parent {
    Parent {
        locators: vec![locator],
        ..nameless()
    }
}

fn windows(code: &[u8; 4], path: &str) -> Parent {
    located(Locator::new(0, code, utf16le(path)))
}

fn bytewise(code: &[u8; 4], path: &str) -> Parent {
    located(Locator::new(0, code, path.as_bytes().to_vec()))
}

#[test]
fn garbage_under_clear_bits_reads_from_the_parent() {
    let mut family = Family::new(1, "base.vhd");
    family.assert_found(Parent::named(id(PARENT), "base.vhd"), "per-sector bitmaps over garbage");
}

#[test]
fn names_and_locators_of_every_program() {
    let mut family = Family::new(2, "base.vhd");
    let absolute = family.path("base.vhd");
    let absolute = absolute.to_str().unwrap();
    let name_only = |name: &str| Parent::name_only(id(PARENT), name);
    let cases = [
        ("W2ru as Windows writes it", windows(b"W2ru", ".\\base.vhd")),
        ("W2ru as VirtualBox writes it", windows(b"W2ru", "base.vhd")),
        ("W2ru with a NUL", windows(b"W2ru", "base.vhd\0")),
        (
            "W2ru with old bytes behind",
            windows(b"W2ru", "base.vhd\0\\old\\name.vhd"),
        ),
        ("W2ku of Windows", windows(b"W2ku", "C:\\virtual machines\\base.vhd")),
        ("W2ku of a server", windows(b"W2ku", "\\\\server\\share\\base.vhd")),
        ("W2ku of VirtualBox on Unix", windows(b"W2ku", absolute)),
        ("W2ku of libvhd", windows(b"W2ku", ".\\base.vhd")),
        ("another case", windows(b"W2ru", ".\\BASE.Vhd")),
        ("MacX of libvhd", bytewise(b"MacX", "file://./base.vhd")),
        (
            "MacX by the book",
            bytewise(b"MacX", &format!("file://localhost{absolute}")),
        ),
        ("MacX with escapes", bytewise(b"MacX", "file://./%62ase%2Evhd")),
        ("Wi2r", bytewise(b"Wi2r", ".\\base.vhd\0")),
        ("Wi2k", bytewise(b"Wi2k", "D:\\base.vhd")),
        ("the name", name_only("base.vhd")),
        ("a full path as the name", name_only("C:\\Users\\Public\\base.vhd")),
        ("a Unix path as the name", name_only(absolute)),
    ];
    for (what, parent) in cases {
        family.assert_found(parent, what);
    }
}

#[test]
fn parents_in_other_directories() {
    let mut below = Family::new(3, "sub/deep/base.vhd");
    below.assert_found(windows(b"W2ru", ".\\sub\\deep\\base.vhd"), "a directory below");
    below.assert_found(
        windows(b"W2ru", ".\\SUB\\Deep\\Base.vhd"),
        "a directory below, another case",
    );
    below.assert_found(
        bytewise(b"MacX", "file://./sub/deep/base.vhd"),
        "a directory below, MacX",
    );
    let error = below.assert_refused(windows(b"W2ru", ".\\base.vhd"), ErrorKind::ParentMissing);
    assert!(error.to_string().contains("base.vhd"), "{error}");
    let named = OpenOptions::new().parent_dirs([below.path("sub/deep")]);
    assert!(named.open(&below.path("child.vhd")).is_ok());

    let mut beside = Family::new(4, "up/base.vhd");
    let (child, content) = beside.child(windows(b"W2ru", "..\\up\\base.vhd"), |_| {});
    std::fs::create_dir(beside.path("down")).unwrap();
    let moved = beside.path("down/child.vhd");
    std::fs::rename(child, &moved).unwrap();
    assert_reads(&moved, &content);
}

#[test]
fn unicode_names() {
    for name in [
        "\u{e4}\u{df} \u{4f60}\u{597d}.vhd",
        "\u{1f4be} \u{3b1}.vhd",
        "with space & more.vhd",
    ] {
        let mut family = Family::new(5, name);
        family.assert_found(windows(b"W2ru", &format!(".\\{name}")), name);
        family.assert_found(Parent::name_only(id(PARENT), name), name);
        family.assert_found(bytewise(b"MacX", &format!("file://./{name}")), name);
    }
}

#[test]
fn locators_in_any_slot_with_space_in_either_unit() {
    let mut family = Family::new(6, "base.vhd");
    for slot in 0..8 {
        for space in [Space::Bytes, Space::Sectors] {
            let locator = Locator {
                slot,
                space,
                ..Locator::new(slot, b"W2ru", utf16le(".\\base.vhd"))
            };
            family.assert_found(located(locator), "slot and unit");
        }
    }
    // DiscUtils: slots 6 and 7; libvhd: MacX, W2ku, W2ru in this order.
    let libvhd = [
        Locator::new(0, b"MacX", b"file://./base.vhd".to_vec()),
        Locator::new(1, b"W2ku", utf16le(".\\base.vhd")),
        Locator::new(2, b"W2ru", utf16le(".\\base.vhd")),
    ];
    let parent = Parent {
        locators: libvhd.to_vec(),
        ..nameless()
    };
    family.assert_found(parent, "all of libvhd");
}

/// A file in the parent's place that is another disk is passed over as long as there is another place.
#[test]
fn the_identity_decides_between_candidates() {
    let mut family = Family::new(7, "right.vhd");
    std::fs::write(family.path("wrong.vhd"), fixed(&[9; SIZE], id(99))).unwrap();
    std::fs::write(family.path("raw.vhd"), [9; SIZE]).unwrap();
    std::fs::create_dir(family.path("directory.vhd")).unwrap();
    let paths = [
        "wrong.vhd",
        "raw.vhd",
        "directory.vhd",
        "missing.vhd",
        "child.vhd",
        "right.vhd",
    ];
    let locators = (0..)
        .zip(paths)
        .map(|(slot, path)| Locator::new(slot, b"W2ru", utf16le(path)));
    let parent = Parent {
        locators: locators.collect(),
        ..nameless()
    };
    family.assert_found(parent, "the last of six places");
}

/// VirtualBox overwrites the locators of a child with ones when it changes its size; other programs leave entries
/// that lead nowhere. The name is still good, and nothing says that the file can't be read.
#[test]
fn useless_locators_do_not_hide_the_useful_ones() {
    let mut family = Family::new(8, "base.vhd");
    let end = u64_from(SIZE) * 4;
    let useless: [(&str, [u8; 4], u32, u64); 5] = [
        ("ones", [0xFF; 4], u32::MAX, u64::MAX),
        ("past the end", *b"W2ru", 40, end),
        ("far past the end", *b"W2ku", 40, 1 << 50),
        ("opaque, past the end", *b"Mac ", 40, 1 << 62),
        ("as long as can be", *b"W2ru", u32::MAX, end),
    ];
    for (what, code, length, offset) in useless {
        println!("{what}");
        let (child, mut content) = family.child(Parent::name_only(id(PARENT), "base.vhd"), |laid| {
            laid.change_header(|header| {
                put(header, 576, &code);
                put(header, 580, &length.to_be_bytes());
                put(header, 584, &length.to_be_bytes());
                put(header, 592, &offset.to_be_bytes());
            });
        });
        assert_reads(&child, &content);
        for _ in 0..3 {
            family.write(&child, &mut content);
        }
    }
}

#[test]
fn missing_and_wrong_parents_are_refused() {
    let mut family = Family::new(9, "base.vhd");
    let error = family.assert_refused(windows(b"W2ru", ".\\other.vhd"), ErrorKind::ParentMissing);
    assert!(error.to_string().contains("other.vhd"), "{error}");
    family.assert_refused(nameless(), ErrorKind::ParentMissing);
    family.assert_refused(windows(b"W2ru", ".\\."), ErrorKind::ParentMissing);
    family.assert_refused(bytewise(b"Mac ", "opaque"), ErrorKind::ParentMissing);
    let stranger = Parent::named(id(77), "base.vhd");
    let error = family.assert_refused(stranger.clone(), ErrorKind::ParentMismatch);
    assert!(error.to_string().contains("base.vhd"), "{error}");
    // Naming the file explicitly does not make it the parent.
    let child = family.child(stranger, |_| {}).0;
    let named = OpenOptions::new().parents([family.path("base.vhd")]);
    assert_eq!(named.open(&child).unwrap_err().kind(), ErrorKind::ParentMismatch);
    // A policy that follows nothing the image names.
    let child = family.child(Parent::named(id(PARENT), "base.vhd"), |_| {}).0;
    let strict = || OpenOptions::new().gate(std::sync::Arc::new(ExplicitOnly));
    assert_eq!(strict().open(&child).unwrap_err().kind(), ErrorKind::ParentMissing);
    assert!(strict().parents([family.path("base.vhd")]).open(&child).is_ok());
}

/// Whoever puts layers together without the chain's checks gets an error too, for exactly what is in the parent.
#[test]
fn a_leaf_without_ancestors_never_reads_zeroes_for_its_parent() {
    let mut rng = seeded(31, "alone");
    let child = Sparse::child(u64_from(SIZE), 8 * KIB, id(CHILD), nameless()).store_whole(&mut rng, 1);
    let open = |bytes: &[u8]| {
        let file = Arc::new(MemoryFile::from_bytes(bytes.to_vec()));
        Image::open(file, &OpenMode::read_only()).unwrap()
    };
    let bytes = child.lay().bytes;
    let below = Layer::Vhd(Arc::new(open(&bytes)));
    for ancestors in [Vec::new(), vec![below]] {
        let disk = disk_of(open(&bytes), ancestors);
        let mut sector = [0; SECTOR];
        assert_eq!(
            disk.read_at(&mut sector, 0).unwrap_err().kind(),
            vhd_block::ErrorKind::ParentMissing
        );
        disk.read_at(&mut sector, u64_from(8 * KIB)).unwrap();
        let all = ByteRange::new(0, disk.size());
        let walked = disk.extents(all, &mut |_| ControlFlow::Continue(()));
        assert_eq!(walked.unwrap_err().kind(), vhd_block::ErrorKind::ParentMissing);
    }
}

#[test]
fn damaged_parents_are_refused() {
    let mut family = Family::new(10, "base.vhd");
    let child = family.child(Parent::named(id(PARENT), "base.vhd"), |_| {}).0;
    let parent = family.path("base.vhd");
    let good = std::fs::read(&parent).unwrap();
    let mut bad = good.clone();
    bad[FOOTER + HEADER - 1] ^= 1;
    std::fs::write(&parent, &bad).unwrap();
    let error = OpenOptions::new().open(&child).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HeaderChecksum, "{error:?}");
    // A parent that lost its footer is recovered from the copy, and is not changed by that.
    let cut = &good[..good.len() - FOOTER];
    std::fs::write(&parent, cut).unwrap();
    let opened = open(&child, true);
    let warned =
        |warning: &ChainWarning| matches!(warning, ChainWarning::FooterRecovered { path, .. } if *path == parent);
    assert!(opened.warnings().iter().any(warned), "{:?}", opened.warnings());
    opened.close().unwrap();
    assert!(std::fs::read(&parent).unwrap() == cut);
}

#[test]
fn circles_are_refused() {
    let dir = temp_dir();
    let write = |name: &str, own: usize, parent: usize, parent_name: &str| {
        let spec = Sparse::child(4096, 4096, id(own), Parent::named(id(parent), parent_name));
        std::fs::write(dir.path().join(name), spec.lay().bytes).unwrap();
    };
    write("self.vhd", 1, 1, "self.vhd");
    write("a.vhd", 2, 3, "b.vhd");
    write("b.vhd", 3, 4, "c.vhd");
    write("c.vhd", 4, 2, "a.vhd");
    write("outside.vhd", 5, 2, "a.vhd");
    std::os::unix::fs::symlink("self.vhd", dir.path().join("link.vhd")).unwrap();
    for name in ["self.vhd", "link.vhd", "a.vhd", "b.vhd", "c.vhd", "outside.vhd"] {
        for write in [false, true] {
            let error = OpenOptions::new()
                .write(write)
                .open(&dir.path().join(name))
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ChainCycle, "{name}: {error:?}");
        }
    }
}

#[test]
fn children_of_another_size_are_read_and_not_written() {
    // The parent ends inside a block of the child.
    let parent_size = SIZE - 3 * SECTOR;
    for difference in [-(8 * 512), -512, 512, 20 * 1024_i64] {
        let mut rng = seeded(11, "sizes");
        let dir = temp_dir();
        let parent = random_bytes(&mut rng, parent_size);
        std::fs::write(dir.path().join("base.vhd"), fixed(&parent, id(PARENT))).unwrap();
        let size = u64_from(parent_size).checked_add_signed(difference).unwrap();
        let spec = Sparse::child(size, 4 * KIB, id(CHILD), Parent::named(id(PARENT), "base.vhd"));
        let spec = spec.fill_randomly(&mut rng, 40);
        let child = dir.path().join("child.vhd");
        std::fs::write(&child, spec.lay().bytes).unwrap();
        let opened = open(&child, false);
        let warned = |warning: &ChainWarning| matches!(warning, ChainWarning::ParentSize { .. });
        assert!(opened.warnings().iter().any(warned), "{:?}", opened.warnings());
        assert_same(&read_all(&opened.disk()), &spec.flat(&parent), "another size");
        drop(opened);
        let error = OpenOptions::new().write(true).open(&child).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SizeMismatch, "{error:?}");
        // A grandchild of the child's own size may be written; the layer that ends early still reads zero there.
        let leaf = dir.path().join("leaf.vhd");
        create_child(&leaf, &child, Some(512 << 10), &OpenOptions::new()).unwrap();
        assert_reads(&leaf, &spec.flat(&parent));
        drop(open(&leaf, true));
    }
}

/// Three conventions for the parent's time are in use, and copies change it: never more than a warning.
#[test]
fn a_time_stamp_never_keeps_a_parent_away() {
    let mut family = Family::new(12, "base.vhd");
    for (timestamp, expected) in [(0, 0), (0x1234_5678, 0), (77, 1)] {
        let parent = Parent {
            timestamp,
            ..Parent::named(id(PARENT), "base.vhd")
        };
        let (child, content) = family.child(parent, |_| {});
        assert_reads(&child, &content);
        let opened = open(&child, false);
        let stamps = opened
            .warnings()
            .iter()
            .filter(|warning| matches!(warning, ChainWarning::ParentTimestamp { .. }));
        assert_eq!(stamps.count(), expected, "{timestamp:#x}");
    }
}

#[test]
fn raw_parents_only_when_named_explicitly() {
    let mut rng = seeded(13, "raw parent");
    let dir = temp_dir();
    let content = random_bytes(&mut rng, SIZE - 100);
    let disks = dir.path().join("disks");
    std::fs::create_dir(&disks).unwrap();
    let raw = disks.join("base.raw");
    std::fs::write(&raw, &content).unwrap();
    let spec = Sparse::child(
        u64_from(SIZE),
        4 * KIB,
        id(CHILD),
        Parent::named([0; 16], "disks\\base.raw"),
    );
    let spec = spec.fill_randomly(&mut rng, 40);
    let child = dir.path().join("child.vhd");
    std::fs::write(&child, spec.lay().bytes).unwrap();
    let error = OpenOptions::new().open(&child).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentMissing, "{error:?}");
    // A directory is not a file: without an identity anything in it could be taken for the parent.
    std::fs::write(disks.join("other.vhd"), &content).unwrap();
    let by_dir = OpenOptions::new().parent_dirs([disks]);
    assert_eq!(by_dir.open(&child).unwrap_err().kind(), ErrorKind::ParentMissing);
    let explicit = OpenOptions::new().parents([raw.clone()]);
    let opened = explicit.clone().open(&child).unwrap();
    assert_same(&read_all(&opened.disk()), &spec.flat(&content), "over a raw file");
    drop(opened);

    // A child that names a parent by identity never gets a raw one.
    let spec = Sparse::child(
        u64_from(SIZE),
        4 * KIB,
        id(CHILD),
        Parent::named(id(PARENT), "base.raw"),
    );
    std::fs::write(&child, spec.lay().bytes).unwrap();
    assert_eq!(explicit.open(&child).unwrap_err().kind(), ErrorKind::ParentMissing);

    // Nor does one without an identity get whatever VHD is there.
    std::fs::write(&raw, fixed(&[1; SIZE], [0; 16])).unwrap();
    let spec = Sparse::child(
        u64_from(SIZE),
        4 * KIB,
        id(CHILD),
        Parent::named([0; 16], "disks\\base.raw"),
    );
    std::fs::write(&child, spec.lay().bytes).unwrap();
    let error = OpenOptions::new().parents([raw]).open(&child).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentMismatch, "{error:?}");
}

#[test]
fn a_child_of_ours_over_a_raw_file() {
    let mut rng = seeded(14, "our child of a raw file");
    let dir = temp_dir();
    let (raw, child) = (dir.path().join("base.raw"), dir.path().join("child.vhd"));
    let mut content = random_bytes(&mut rng, SIZE);
    std::fs::write(&raw, &content).unwrap();
    create_child(&child, &raw, None, &OpenOptions::new()).unwrap();
    assert_eq!(
        OpenOptions::new().open(&child).unwrap_err().kind(),
        ErrorKind::ParentMissing
    );
    let named = OpenOptions::new().parents([raw.clone()]);
    let opened = named.clone().write(true).open(&child).unwrap();
    let before = content.clone();
    for _ in 0..20 {
        random_operation(&opened.disk(), &mut content, &mut rng);
    }
    opened.close().unwrap();
    assert_same(
        &read_all(&named.open(&child).unwrap().disk()),
        &content,
        "over a raw file",
    );
    assert_same(&std::fs::read(&raw).unwrap(), &before, "the raw file itself");
}

/// Random layers of all types and block sizes, against the model; then a session in the leaf.
#[test]
fn mixed_chains_read_what_the_model_reads() {
    for seed in 100..140 {
        let mut rng = seeded(seed, "mixed chain");
        let dir = temp_dir();
        let size = 512 * rng.usize(100..1200);
        let block_sizes = [SECTOR, KIB, 4 * KIB, 8 * KIB, 64 * KIB, 512 * KIB];
        let mut files: Vec<Vec<u8>> = Vec::new();
        let mut content;
        if chance(&mut rng, 40) {
            content = random_bytes(&mut rng, size);
            files.push(fixed(&content, id(0)));
        } else {
            let block_size = rng.choice(block_sizes).unwrap();
            let spec = Sparse::new(u64_from(size), block_size);
            let spec = Sparse { id: id(0), ..spec }.fill_randomly(&mut rng, 70);
            content = spec.flat(&[]);
            files.push(spec.lay().bytes);
        }
        for level in 1..=rng.usize(1..7) {
            let (block_size, share) = (rng.choice(block_sizes).unwrap(), rng.u8(10..90));
            let parent = Parent::named(id(level - 1), &format!("{}.vhd", level - 1));
            let spec = Sparse::child(u64_from(size), block_size, id(level), parent).fill_randomly(&mut rng, share);
            content = spec.flat(&content);
            files.push(spec.lay().bytes);
        }
        let path = |level: usize| dir.path().join(format!("{level}.vhd"));
        for (level, bytes) in files.iter().enumerate() {
            std::fs::write(path(level), bytes).unwrap();
        }
        let leaf = path(files.len() - 1);
        assert_reads(&leaf, &content);
        for _ in 0..2 {
            let opened = open(&leaf, true);
            for _ in 0..30 {
                random_operation(&opened.disk(), &mut content, &mut rng);
            }
            assert_same(&read_all(&opened.disk()), &content, "while open");
            opened.close().unwrap();
            assert_reads(&leaf, &content);
        }
        for (level, bytes) in files.iter().enumerate().take(files.len() - 1) {
            assert_same(
                &std::fs::read(path(level)).unwrap(),
                bytes,
                "an ancestor is never changed",
            );
        }
    }
}

/// Every layer stores two sectors: one that all others store too, and one of its own.
#[test]
fn a_chain_of_a_thousand_layers() {
    const DEPTH: usize = 1000;
    allow_open_files(2 * u64_from(DEPTH));
    let dir = temp_dir();
    let path = |level: usize| dir.path().join(format!("{level}.vhd"));
    let size = (DEPTH + 8) * SECTOR;
    let sector = |level: usize| [number(level), *b"own."].concat().repeat(SECTOR / 8);
    let mut content = vec![0x0B; size];
    std::fs::write(path(0), fixed(&content, id(0))).unwrap();
    let mut contents = vec![content.clone()];
    for level in 1..=DEPTH {
        let parent = Parent::named(id(level - 1), &format!("{}.vhd", level - 1));
        let block_size = [4 * KIB, SECTOR, 16 * KIB][level % 3];
        let spec = Sparse::child(u64_from(size), block_size, id(level), parent);
        let spec = spec
            .store_sector(DEPTH + 5, &sector(level))
            .store_sector(level - 1, &sector(level));
        std::fs::write(path(level), merge_blocks(spec).lay().bytes).unwrap();
        for place in [level - 1, DEPTH + 5] {
            put(&mut content, place * SECTOR, &sector(level));
        }
        contents.push(content.clone());
    }
    for level in [1, 2, 3, DEPTH - 1].into_iter().chain((0..=DEPTH).step_by(100)) {
        let opened = open(&path(level), false);
        assert_eq!(opened.layers().count(), level + 1);
        assert_same(
            &read_all(&opened.disk()),
            &contents[level],
            &format!("at depth {level}"),
        );
    }
    let opened = open(&path(DEPTH), true);
    let mut rng = seeded(15, "a session a thousand layers up");
    for _ in 0..20 {
        random_operation(&opened.disk(), &mut content, &mut rng);
    }
    opened.close().unwrap();
    assert_reads(&path(DEPTH), &content);
    assert_reads(&path(DEPTH - 1), &contents[DEPTH - 1]);
}

/// Joins two stored sectors of one block.
fn merge_blocks(mut spec: Sparse) -> Sparse {
    if let [first, second] = &mut spec.stored[..]
        && first.index == second.index
    {
        for within in (0..second.present.len()).filter(|within| second.present[*within]) {
            let bytes = within * SECTOR..(within + 1) * SECTOR;
            first.present[within] = true;
            first.data[bytes.clone()].copy_from_slice(&second.data[bytes]);
        }
        spec.stored.pop();
    }
    spec
}

fn allow_open_files(wanted: u64) {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    assert!(
        current >= wanted,
        "the system allows {current} open files; {wanted} are needed"
    );
    if limit.current.is_some_and(|now| now < wanted) {
        let raised = Rlimit {
            current: Some(current),
            maximum: limit.maximum,
        };
        setrlimit(Resource::Nofile, raised).unwrap();
    }
}

/// Every layer is small and may have a table of up to 128 MiB of memory: the chain has a budget for all.
#[test]
fn tables_of_a_chain_have_a_budget() {
    let dir = temp_dir();
    let path = |level: usize| dir.path().join(format!("{level}.vhd"));
    let file = vhd_core::storage::StagedFile::create_beside(&path(0)).unwrap();
    vhd_core::image::create_dynamic(&*file.storage(), 64 << 20, 512 << 10).unwrap();
    file.publish(false, false).unwrap();
    for level in 0..8 {
        if level > 0 {
            create_child(&path(level), &path(level - 1), None, &OpenOptions::new()).unwrap();
        }
        let opened = OpenOptions::new().write(true).open(&path(level)).unwrap();
        opened.disk().write_at(&[1; 3 << 19], 0).unwrap();
        opened.close().unwrap();
    }
    // Three blocks of 8 bytes in each of eight layers.
    let open = |bytes| OpenOptions::new().max_table_bytes(bytes).open(&path(7));
    open(8 * 24).unwrap();
    let error = open(8 * 24 - 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TablesTooLarge);
    match error {
        ChainError::TablesTooLarge {
            path: at,
            bytes,
            maximum,
        } => {
            assert_eq!((at, bytes, maximum), (path(0), 8 * 24, 8 * 24 - 1));
        }
        other => panic!("{other:?}"),
    }
}
