//! Files inside real file systems: made and filled by their own programs, and compared with what the kernel, ntfs-3g and
//! exfat-fuse show of them.

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use support::{Mounted, have, run};
use vhd_fs::files::{FileErrorKind, FileType, Files, Node, OpenFiles, SharedDisk};

const MIB: u64 = 1 << 20;

/// A kind of file system, and what its programs are.
struct Kind {
    name: &'static str,
    make: &'static [&'static str],
    /// The program that mounts it, and the options of the mount.
    mount: &'static [&'static str],
    size: u64,
    /// Whether it keeps owners, modes, links and devices.
    posix: bool,
    /// The coarsest time it keeps, in nanoseconds.
    time_step: i64,
}

const KINDS: &[Kind] = &[
    Kind {
        name: "ext4",
        make: &["mkfs.ext4", "-q", "-F"],
        mount: &["mount"],
        size: 96 * MIB,
        posix: true,
        time_step: 1,
    },
    Kind {
        name: "ext4",
        make: &[
            "mkfs.ext4",
            "-q",
            "-F",
            "-b",
            "1024",
            "-O",
            "^64bit,^metadata_csum",
            "-I",
            "512",
        ],
        mount: &["mount"],
        size: 96 * MIB,
        posix: true,
        time_step: 1,
    },
    Kind {
        name: "ext3",
        make: &["mkfs.ext3", "-q", "-F"],
        mount: &["mount"],
        size: 96 * MIB,
        posix: true,
        time_step: 1,
    },
    Kind {
        name: "ext2",
        make: &["mkfs.ext2", "-q", "-F", "-b", "1024", "-I", "128"],
        mount: &["mount"],
        size: 96 * MIB,
        posix: true,
        time_step: 1_000_000_000,
    },
    Kind {
        name: "XFS",
        make: &["mkfs.xfs", "-q", "-f"],
        mount: &["mount"],
        size: 512 * MIB,
        posix: true,
        time_step: 1,
    },
    Kind {
        name: "XFS",
        make: &[
            "mkfs.xfs",
            "-q",
            "-f",
            "-b",
            "size=1024",
            "-n",
            "size=8192",
            "-d",
            "agcount=7",
            "-m",
            "bigtime=1,reflink=0",
        ],
        mount: &["mount"],
        size: 512 * MIB,
        posix: true,
        time_step: 1,
    },
    Kind {
        name: "NTFS",
        make: &["mkfs.ntfs", "-q", "-F", "-Q"],
        mount: &["ntfs-3g"],
        size: 96 * MIB,
        posix: false,
        time_step: 100,
    },
    Kind {
        name: "NTFS",
        make: &["mkfs.ntfs", "-q", "-F", "-Q", "-C", "-c", "4096"],
        mount: &["ntfs-3g", "-o", "compression"],
        size: 96 * MIB,
        posix: false,
        time_step: 100,
    },
    Kind {
        name: "NTFS",
        make: &["mkfs.ntfs", "-q", "-F", "-Q", "-c", "65536"],
        mount: &["ntfs-3g"],
        size: 256 * MIB,
        posix: false,
        time_step: 100,
    },
    Kind {
        name: "FAT",
        make: &["mkfs.vfat", "-F", "12"],
        mount: &["mcopy"],
        size: 8 * MIB,
        posix: false,
        time_step: 2_000_000_000,
    },
    Kind {
        name: "FAT",
        make: &["mkfs.vfat", "-F", "16"],
        mount: &["mcopy"],
        size: 96 * MIB,
        posix: false,
        time_step: 2_000_000_000,
    },
    Kind {
        name: "FAT",
        make: &["mkfs.vfat", "-F", "32"],
        mount: &["mcopy"],
        size: 96 * MIB,
        posix: false,
        time_step: 2_000_000_000,
    },
    Kind {
        name: "exFAT",
        make: &["mkfs.exfat"],
        mount: &["mount.exfat-fuse"],
        size: 96 * MIB,
        posix: false,
        time_step: 2_000_000_000,
    },
];

/// A disk in a file.
struct Image(File, u64);

impl vhd_fs::ReadAt for Image {
    fn size(&self) -> u64 {
        self.1
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

fn disk(path: &Path) -> SharedDisk {
    let file = File::open(path).unwrap();
    let len = file.metadata().unwrap().len();
    Arc::new(Image(file, len))
}

fn open(path: &Path) -> Files {
    OpenFiles::new().open(&disk(path), 0, u64::MAX).unwrap()
}

/// Bytes that differ from place to place.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Fills a file system so that its files are in many pieces, and some names are long, odd or deep.
fn fill(root: &Path, kind: &Kind) {
    let small = kind.size < 32 * MIB;
    let scale = if small { 1 } else { 16 };
    fs::create_dir_all(root.join("a/b/c/d/e")).unwrap();
    fs::write(root.join("a/b/c/d/e/deep"), b"deep").unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("tiny"), b"x").unwrap();
    fs::write(
        root.join("A Longer Name With Spaces and \u{e4}\u{f6}\u{20ac}.text"),
        b"odd name",
    )
    .unwrap();
    fs::write(root.join("large"), noise(20_000 * scale + 77, 1)).unwrap();
    // Text packs well: on a file system that compresses, this is compressed.
    fs::write(root.join("text"), "the same line again\n".repeat(4_000 * scale)).unwrap();
    fs::create_dir(root.join("many")).unwrap();
    for number in 0..(20 * scale) {
        let bytes = noise(number * 37 % 9000, 1000 + u64::try_from(number).unwrap());
        fs::write(root.join(format!("many/file number {number:05}")), bytes).unwrap();
    }
    // Two files that grow in turns, where others were deleted, are in pieces.
    for number in (0..(20 * scale)).step_by(2) {
        fs::remove_file(root.join(format!("many/file number {number:05}"))).unwrap();
    }
    let (left, right) = (
        File::create(root.join("left")).unwrap(),
        File::create(root.join("right")).unwrap(),
    );
    for step in 0..40u64 {
        left.write_all_at(&noise(5000, step + 5), step * 5000).unwrap();
        right.write_all_at(&noise(3000, step + 500), step * 3000).unwrap();
        left.sync_all().unwrap();
        right.sync_all().unwrap();
    }
    fs::write(root.join("read-only"), b"no writing").unwrap();
    fs::set_permissions(root.join("read-only"), fs::Permissions::from_mode(0o444)).unwrap();
    if kind.name != "exFAT" {
        let sparse = File::create(root.join("sparse")).unwrap();
        sparse.set_len(MIB).unwrap();
        sparse.write_all_at(b"in the middle", 500_000).unwrap();
    }
    if kind.posix {
        fill_posix(root, kind);
    }
}

fn fill_posix(root: &Path, kind: &Kind) {
    symlink("a/b/c", root.join("relative")).unwrap();
    symlink("/large", root.join("absolute")).unwrap();
    symlink("x".repeat(200), root.join("long-link")).unwrap();
    symlink("y".repeat(900), root.join("longest-link")).unwrap();
    symlink("../../../../../../etc/passwd", root.join("a/out")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    fs::hard_link(root.join("large"), root.join("a/same")).unwrap();
    fs::set_permissions(root.join("tiny"), fs::Permissions::from_mode(0o4751)).unwrap();
    run("chown", &["1234:70000", root.join("tiny").to_str().unwrap()]);
    run("mknod", &[root.join("device").to_str().unwrap(), "b", "8", "300"]);
    run("mknod", &[root.join("pipe").to_str().unwrap(), "p"]);
    run(
        "touch",
        &["-d", "1965-03-04 05:06:07.89 UTC", root.join("empty").to_str().unwrap()],
    );
    // Space that was never written reads as zeroes, whatever it held before.
    if kind.name == "ext4" || kind.name == "XFS" {
        run("fallocate", &["-l", "300000", root.join("unwritten").to_str().unwrap()]);
    }
}

/// What was seen of a file: the same whoever looks.
#[derive(Debug, PartialEq)]
struct Seen {
    kind: FileType,
    content: Vec<u8>,
    mode: u32,
    owner: (u32, u32),
    links: u32,
    modified: (i64, i64),
    device: Option<(u32, u32)>,
}

fn seen_by_mount(root: &Path, kind: &Kind) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(root.join(&directory)).unwrap() {
            let path = directory.join(entry.unwrap().file_name());
            if path == Path::new("lost+found") {
                continue;
            }
            let meta = fs::symlink_metadata(root.join(&path)).unwrap();
            let seen = match meta.mode() & 0o170_000 {
                0o040_000 => (FileType::Directory, Vec::new()),
                0o120_000 => {
                    let target = fs::read_link(root.join(&path)).unwrap();
                    (FileType::Symlink, target.into_os_string().into_encoded_bytes())
                }
                0o100_000 => (FileType::Regular, fs::read(root.join(&path)).unwrap()),
                0o060_000 => (FileType::BlockDevice, Vec::new()),
                0o010_000 => (FileType::Fifo, Vec::new()),
                other => panic!("{path:?}: {other:o}"),
            };
            let device = u32::try_from(meta.rdev()).unwrap();
            let device = (device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00);
            found.insert(
                path.clone(),
                Seen {
                    kind: seen.0,
                    content: seen.1,
                    mode: if kind.posix {
                        meta.mode() & 0o7777
                    } else {
                        meta.mode() & 0o200
                    },
                    owner: if kind.posix { (meta.uid(), meta.gid()) } else { (0, 0) },
                    links: if kind.posix {
                        u32::try_from(meta.nlink()).unwrap()
                    } else {
                        1
                    },
                    modified: (meta.mtime(), meta.mtime_nsec() / kind.time_step.min(1_000_000_000)),
                    device: (seen.0 == FileType::BlockDevice).then_some(device),
                },
            );
            if meta.is_dir() {
                waiting.push(path);
            }
        }
    }
    found
}

fn seen_by_us(files: &Files, kind: &Kind) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![(files.root(), PathBuf::new())];
    while let Some((directory, path)) = waiting.pop() {
        for entry in files.list(directory).unwrap() {
            let path = path.join(String::from_utf8(entry.name).unwrap());
            if path == Path::new("lost+found") {
                continue;
            }
            let meta = files
                .metadata(entry.node)
                .unwrap_or_else(|error| panic!("{path:?}: {error}"));
            assert!(
                entry.kind.is_none_or(|kind| kind == meta.kind),
                "{path:?}: {:?} {:?}",
                entry.kind,
                meta.kind
            );
            let content = match meta.kind {
                FileType::Regular => read_all(files, entry.node, meta.size),
                FileType::Symlink => files.read_link(entry.node).unwrap(),
                _ => Vec::new(),
            };
            if meta.kind == FileType::Directory {
                waiting.push((entry.node, path.clone()));
            }
            found.insert(
                path,
                Seen {
                    kind: meta.kind,
                    content,
                    mode: if kind.posix { meta.mode } else { meta.mode & 0o200 },
                    owner: (meta.uid, meta.gid),
                    links: if kind.posix { meta.links } else { 1 },
                    modified: (
                        meta.modified.seconds,
                        i64::from(meta.modified.nanos) / kind.time_step.min(1_000_000_000),
                    ),
                    device: meta.device,
                },
            );
        }
    }
    found
}

/// Reads in pieces of odd sizes.
fn read_all(files: &Files, node: Node, size: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let piece = files
            .read_at(node, u64::try_from(bytes.len()).unwrap(), 61_441)
            .unwrap();
        if piece.is_empty() {
            break;
        }
        bytes.extend(piece);
    }
    assert_eq!(u64::try_from(bytes.len()).unwrap(), size);
    // A piece from the middle is the same.
    let middle = bytes.len() / 3;
    let len = (bytes.len() - middle).min(5000);
    let piece = files.read_at(node, u64::try_from(middle).unwrap(), len).unwrap();
    assert_eq!(piece, bytes[middle..middle + len]);
    bytes
}

/// A file system of this kind in a file, filled; its content as its own driver shows it.
fn made(directory: &Path, kind: &Kind) -> (PathBuf, BTreeMap<PathBuf, Seen>) {
    let image = directory.join("disk.img");
    File::create(&image).unwrap().set_len(kind.size).unwrap();
    let (program, options) = kind.make.split_first().unwrap();
    let mut arguments = options.to_vec();
    arguments.push(image.to_str().unwrap());
    run(program, &arguments);
    if kind.mount == ["mcopy"] {
        return copied(directory, image, kind);
    }
    let mounted = Mounted::new(&image, &directory.join("mnt"), kind.mount);
    if kind.make.contains(&"-C") {
        // Everything made below a directory with this attribute (0x800) is compressed.
        run(
            "setfattr",
            &[
                "-h",
                "-v",
                "0x00000800",
                "-n",
                "system.ntfs_attrib",
                mounted.path().to_str().unwrap(),
            ],
        );
    }
    fill(mounted.path(), kind);
    drop(mounted);
    let mounted = Mounted::new(&image, &directory.join("mnt"), kind.mount);
    let seen = seen_by_mount(mounted.path(), kind);
    drop(mounted);
    (image, seen)
}

/// Where nothing mounts it: files of a directory here, copied by mtools.
fn copied(directory: &Path, image: PathBuf, kind: &Kind) -> (PathBuf, BTreeMap<PathBuf, Seen>) {
    let source = directory.join("source");
    fs::create_dir(&source).unwrap();
    fill(&source, kind);
    let top = fs::read_dir(&source).unwrap().map(|entry| entry.unwrap().path());
    let top: Vec<String> = top.map(|path| path.to_str().unwrap().to_owned()).collect();
    let mut arguments = vec!["-s", "-m", "-Q", "-i", image.to_str().unwrap()];
    arguments.extend(top.iter().map(String::as_str));
    arguments.push("::");
    run("mcopy", &arguments);
    let mut seen = seen_by_mount(&source, kind);
    for seen in seen.values_mut() {
        // Two seconds are what FAT keeps, and mcopy keeps no times and modes of directories.
        seen.modified = (seen.modified.0 & !1, 0);
        seen.mode = 0o200;
    }
    (image, seen)
}

#[test]
fn every_file_is_what_the_file_systems_own_driver_shows() {
    for kind in KINDS {
        if !have(&[kind.make[0], kind.mount[0], "setfattr"]) {
            continue;
        }
        let directory = support::temporary();
        let (image, expected) = made(directory.path(), kind);
        let files = open(&image);
        assert_eq!(files.format(), kind.name, "{:?}", kind.make);
        assert!(files.notes().is_empty(), "{:?}: {:?}", kind.make, files.notes());
        let found = seen_by_us(&files, kind);
        let names = |seen: &BTreeMap<PathBuf, Seen>| seen.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected), "{:?}", kind.make);
        for (path, seen) in &found {
            let expected = &expected[path];
            if kind.name == "FAT" {
                assert!(
                    seen.kind == FileType::Directory || seen.modified == expected.modified,
                    "{path:?}"
                );
                assert!(
                    seen.content == expected.content,
                    "{:?}: {path:?} has other bytes",
                    kind.make
                );
                continue;
            }
            assert!(
                seen.content == expected.content,
                "{:?}: {path:?} has other bytes",
                kind.make
            );
            let facts = |seen: &Seen| (seen.kind, seen.mode, seen.owner, seen.links, seen.modified, seen.device);
            assert_eq!(facts(seen), facts(expected), "{:?}: {path:?}", kind.make);
        }
        println!("{:?}: {} files", kind.make, found.len());
    }
}

#[test]
fn paths_are_followed_inside_the_file_system_and_never_out_of_it() {
    if !have(&["mkfs.ext4", "mount"]) {
        return;
    }
    let directory = support::temporary();
    let (image, _) = made(directory.path(), &KINDS[0]);
    let files = open(&image);
    let node = |path: &str| files.resolve(path.as_bytes(), true);
    let kind_of = |path: &str| node(path).unwrap_err().kind();
    assert_eq!(node("/relative/d/e/deep").unwrap(), node("a/b/c/d/e/deep").unwrap());
    assert_eq!(node("absolute").unwrap(), node("/a/../large").unwrap());
    assert_eq!(node("../../..").unwrap(), files.root());
    assert_ne!(files.resolve(b"absolute", false).unwrap(), node("absolute").unwrap());
    // Not /etc/passwd of this machine, and the image has none.
    assert_eq!(kind_of("a/out"), FileErrorKind::NotFound);
    assert_eq!(kind_of("loop"), FileErrorKind::TooManyLinks);
    assert_eq!(kind_of("tiny/x"), FileErrorKind::WrongType);
    assert_eq!(kind_of("nothing"), FileErrorKind::NotFound);
    assert!(matches!(files.list(node("tiny").unwrap()), Err(error) if error.kind() == FileErrorKind::WrongType));
}

/// The kernel here does not mount it, so mkfs fills it from a list.
#[test]
fn xfs_of_version_4_is_read() {
    if !have(&["mkfs.xfs"]) {
        return;
    }
    let directory = support::temporary();
    let large = directory.path().join("large");
    fs::write(&large, noise(300_000, 3)).unwrap();
    let mut list = String::from("boot\n0 0\nd--755 0 0\n");
    for number in 0..400 {
        list += &format!("file-{number:04} ---640 7 8 {}\n", large.display());
    }
    list += "link l--777 0 0 file-0001\n$\n$\n";
    let protofile = directory.path().join("list");
    fs::write(&protofile, list).unwrap();
    for ftype in ["ftype=0", "ftype=1"] {
        let image = directory.path().join("disk.img");
        File::create(&image).unwrap().set_len(512 * MIB).unwrap();
        let (list, image_name) = (protofile.to_str().unwrap(), image.to_str().unwrap());
        run(
            "mkfs.xfs",
            &["-q", "-f", "-m", "crc=0", "-n", ftype, "-p", list, image_name],
        );
        let files = open(&image);
        assert_eq!(files.list(files.root()).unwrap().len(), 401);
        let node = files.resolve(b"file-0399", true).unwrap();
        let meta = files.metadata(node).unwrap();
        assert_eq!((meta.mode, meta.uid, meta.gid, meta.links), (0o640, 7, 8, 1));
        assert_eq!(read_all(&files, node, meta.size), noise(300_000, 3));
        assert_eq!(
            files.resolve(b"link", true).unwrap(),
            files.resolve(b"file-0001", true).unwrap()
        );
    }
}

#[test]
fn features_that_are_not_known_are_refused_and_not_guessed_at() {
    if !have(&["mkfs.ext4", "mkfs.xfs"]) {
        return;
    }
    let directory = support::temporary();
    let image = directory.path().join("disk.img");
    let refused = |program: &str, arguments: &[&str]| {
        File::create(&image).unwrap().set_len(64 * MIB).unwrap();
        run(program, &[arguments, &[image.to_str().unwrap()]].concat());
        let disk = disk(&image);
        let error = OpenFiles::new().open(&disk, 0, u64::MAX).err().unwrap();
        assert_eq!(error.kind(), FileErrorKind::Unsupported, "{error}");
        error.to_string()
    };
    assert!(refused("mkfs.ext4", &["-q", "-F", "-O", "inline_data"]).contains("0x00008000"));
    assert!(refused("mkfs.ext4", &["-q", "-F", "-O", "encrypt"]).contains("0x00010000"));
    assert!(refused("mkfs.btrfs", &["-q", "-f", "--mixed"]).contains("btrfs"));
    assert!(refused("mkswap", &["-q"]).contains("swap"));
    // One bit that no reader knows.
    File::create(&image).unwrap().set_len(512 * MIB).unwrap();
    run("mkfs.xfs", &["-q", "-f", image.to_str().unwrap()]);
    let file = File::options().write(true).open(&image).unwrap();
    file.write_all_at(&[0x80, 0], 216).unwrap();
    let error = OpenFiles::new().open(&disk(&image), 0, u64::MAX).err().unwrap();
    assert!(error.to_string().contains("features 0x80000000"), "{error}");
}

#[test]
fn a_journal_that_was_not_replayed_is_said_and_can_be() {
    if !have(&["mkfs.ext4", "mount", "debugfs"]) {
        return;
    }
    let directory = support::temporary();
    let (image, _) = made(directory.path(), &KINDS[0]);
    let mounted = Mounted::new(&image, &directory.path().join("mnt"), &["mount"]);
    fs::write(mounted.path().join("late"), b"in the journal only").unwrap();
    File::open(mounted.path().join("late")).unwrap().sync_all().unwrap();
    // What a loss of power leaves: the bytes as they are while it is mounted.
    let cut = directory.path().join("cut.img");
    run(
        "cp",
        &["--sparse=always", image.to_str().unwrap(), cut.to_str().unwrap()],
    );
    drop(mounted);
    let disk = disk(&cut);
    let as_it_is = OpenFiles::new().open(&disk, 0, u64::MAX).unwrap();
    assert!(as_it_is.notes()[0].contains("not replayed"), "{:?}", as_it_is.notes());
    let replayed = OpenFiles::new().replay(true).open(&disk, 0, u64::MAX).unwrap();
    assert!(
        replayed.notes()[0].contains("are replayed in memory"),
        "{:?}",
        replayed.notes()
    );
    let late = replayed.resolve(b"late", true).unwrap();
    assert_eq!(replayed.read_at(late, 0, 100).unwrap(), b"in the journal only");
}

#[test]
fn damage_anywhere_is_an_error_or_nothing_and_never_the_end() {
    for kind in KINDS.iter().filter(|kind| kind.size <= 96 * MIB) {
        if !have(&[kind.make[0], kind.mount[0], "setfattr"]) {
            continue;
        }
        let directory = support::temporary();
        let (image, _) = made(directory.path(), kind);
        let file = File::options().read(true).write(true).open(&image).unwrap();
        let seed = support::seed();
        let mut random = seed;
        let mut errors = 0;
        for round in 0..20 {
            let mut undo = Vec::new();
            for _ in 0..2000 {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                // Structures are mostly near the start.
                let span = if round % 2 == 0 { 2 * MIB } else { kind.size };
                let at = (random >> 20) % (span - 8);
                let mut old = [0; 4];
                file.read_exact_at(&mut old, at).unwrap();
                // Most of a disk is empty, and damage there shows nothing.
                if old == [0; 4] {
                    continue;
                }
                undo.push((at, old));
                file.write_all_at(&random.to_le_bytes()[3..7], at).unwrap();
            }
            errors += walk_damaged(&image);
            for (at, old) in undo.into_iter().rev() {
                file.write_all_at(&old, at).unwrap();
            }
        }
        println!("{:?}: seed {seed}, {errors} errors", kind.make);
    }
}

/// Reads all that can be read; the number of errors.
fn walk_damaged(image: &Path) -> usize {
    let Ok(files) = OpenFiles::new().open(&disk(image), 0, u64::MAX) else {
        return 1;
    };
    let (mut errors, mut visited) = (0, 0);
    let mut seen = std::collections::HashSet::new();
    let mut waiting = vec![files.root()];
    while let Some(directory) = waiting.pop() {
        if !seen.insert(directory) || visited > 2000 {
            continue;
        }
        let Ok(entries) = files.list(directory) else {
            errors += 1;
            continue;
        };
        for entry in entries {
            visited += 1;
            match files.metadata(entry.node) {
                Ok(meta) if meta.kind == FileType::Directory => waiting.push(entry.node),
                Ok(_) => errors += usize::from(files.read_at(entry.node, 0, 20_000).is_err()),
                Err(_) => errors += 1,
            }
        }
    }
    errors
}
