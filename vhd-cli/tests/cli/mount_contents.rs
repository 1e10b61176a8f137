//! `vhd mount`: what it shows is what other commands, and the drivers of other programs, make of the same bytes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::mounted::{Driver, Loop, Mounted, fuse, hash, sha256sum};
use crate::mounts::{self, Mount};
use crate::support::{Lab, MIB, stdout};
use crate::tools::{have, run};

/// Samples larger than this are empty disks, and only looked at where their bytes would be.
const HASHED: u64 = 1 << 30;

#[test]
fn every_sample_reads_as_it_hashes() {
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/samples");
    if !packed.is_dir() {
        crate::announce("NOT TESTED: mounts of sample images, which are not beside the repository");
        return;
    }
    if !fuse() || !have(&["zstd", "sha256sum"], "mounts of sample images") {
        return;
    }
    let lab = Lab::new();
    let mut images = Vec::new();
    for family in fs::read_dir(&packed).unwrap().map(|entry| entry.unwrap().path()) {
        for file in family
            .read_dir()
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
        {
            let name = format!(
                "{}-{}",
                family.file_name().unwrap().display(),
                file.file_stem().unwrap().display()
            );
            // Children find their parents in the same directory.
            let directory = lab.path(&format!("samples/{}", family.file_name().unwrap().display()));
            fs::create_dir_all(&directory).unwrap();
            let image = directory.join(file.file_stem().unwrap());
            run(
                "zstd",
                ["-dqf".as_ref(), "-o".as_ref(), image.as_os_str(), file.as_os_str()],
            );
            images.push((name, image));
        }
    }
    assert!(images.len() >= 12, "{images:?}");
    let (mut read, mut refused) = (0, 0);
    for (name, image) in &images {
        let image = image.to_str().unwrap();
        let info = lab.vhd(&["info", image]).assert().get_output().status.code();
        if info != Some(0) {
            // What cannot be opened is not mounted, for the same reason.
            fs::create_dir_all(lab.path("mnt")).unwrap();
            lab.run(&["mount", "--foreground", image, "mnt"], info.unwrap());
            refused += 1;
            continue;
        }
        let mounted = Mounted::new(&lab, &[image]);
        let raw = mounted.path("disk.raw");
        let size = lab.json(&["info", image], 0)["virtual_size"].as_u64().unwrap();
        assert_eq!(raw.metadata().unwrap().len(), size, "{name}");
        if size <= HASHED {
            assert_eq!(sha256sum(&raw), hash(&lab, image), "{name}");
        } else {
            assert_eq!(raw.metadata().unwrap().blocks(), 0, "{name}");
            let data = rustix::fs::seek(File::open(&raw).unwrap(), rustix::fs::SeekFrom::Data(0));
            assert_eq!(data, Err(rustix::io::Errno::NXIO), "{name}");
        }
        mounted.unmount();
        read += 1;
    }
    assert_eq!((read, refused), (10, 2));
}

#[test]
fn every_kind_of_image_reads_as_it_hashes() {
    let lab = Lab::new();
    if !fuse() {
        return;
    }
    let odd = 5 * MIB + 512;
    lab.fixed("fixed.vhd", odd);
    lab.dynamic("dynamic.vhd", odd);
    for (name, at) in [("fixed.vhd", 7 * 512), ("dynamic.vhd", 4 * MIB - 512)] {
        lab.write(name, at, &[3; 70_144]);
        lab.write(name, odd - 512, &[4; 512]);
    }
    // Sectors of every layer, next to one another.
    lab.run(&["create", "child.avhd", "--parent", "dynamic.vhd"], 0);
    lab.run(&["create", "grandchild.avhd", "--parent", "child.avhd"], 0);
    for sector in 0..200u64 {
        let name = ["child.avhd", "grandchild.avhd"][usize::try_from(sector % 2).unwrap()];
        lab.write(name, sector * 1536, &[u8::try_from(sector).unwrap(); 512]);
    }
    fs::write(lab.path("disk.raw"), [9; 12_288]).unwrap();
    lab.run(
        &[
            "convert",
            "--from",
            "raw",
            "disk.raw",
            "converted.vhd",
            "--to",
            "dynamic",
        ],
        0,
    );
    for image in [
        "fixed.vhd",
        "dynamic.vhd",
        "child.avhd",
        "grandchild.avhd",
        "converted.vhd",
    ] {
        let mounted = Mounted::new(&lab, &[image]);
        assert_eq!(sha256sum(&mounted.path("disk.raw")), hash(&lab, image), "{image}");
        // Past the page cache too, and in pieces that end within sectors.
        let direct = mounted.path("direct.copy");
        let copy = lab.path(direct.file_name().unwrap().to_str().unwrap());
        run(
            "dd",
            [
                format!("if={}", mounted.path("disk.raw").display()),
                format!("of={}", copy.display()),
                "bs=12289".into(),
                "iflag=direct".into(),
                "status=none".into(),
            ],
        );
        assert_eq!(sha256sum(&copy), hash(&lab, image), "{image}");
        mounted.unmount();
    }
}

/// What is seen of a file, whoever looks.
#[derive(Debug, PartialEq)]
struct Seen {
    kind: u32,
    content: Vec<u8>,
    /// Where the file system has them.
    mode: Option<u32>,
    owner: Option<(u32, u32)>,
    /// Of files: programs that copy do not agree on directories.
    modified: Option<(i64, i64)>,
}

/// How a partition is looked at.
struct Part {
    number: u32,
    posix: bool,
    /// What of a second the format and its driver keep.
    keeps_nanos: bool,
}

fn walk(root: &Path, part: &Part) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(root.join(&directory)).unwrap() {
            let path = directory.join(entry.unwrap().file_name());
            if path == Path::new("lost+found") {
                continue;
            }
            let meta = fs::symlink_metadata(root.join(&path)).unwrap();
            let content = match meta.file_type() {
                kind if kind.is_dir() => {
                    waiting.push(path.clone());
                    Vec::new()
                }
                kind if kind.is_symlink() => fs::read_link(root.join(&path)).unwrap().into_os_string().into_vec(),
                _ => fs::read(root.join(&path)).unwrap(),
            };
            let nanos = if part.keeps_nanos { meta.mtime_nsec() / 100 } else { 0 };
            let seen = Seen {
                kind: meta.mode() & 0o170_000,
                content,
                mode: part.posix.then_some(meta.mode() & 0o7777),
                owner: part.posix.then(|| (meta.uid(), meta.gid())),
                modified: meta
                    .is_file()
                    .then(|| (meta.mtime() & !i64::from(!part.keeps_nanos), nanos)),
            };
            found.insert(path, seen);
        }
    }
    found
}

fn assert_same(one: &BTreeMap<PathBuf, Seen>, other: &BTreeMap<PathBuf, Seen>, what: &str) {
    let names = |seen: &BTreeMap<PathBuf, Seen>| seen.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(one), names(other), "{what}");
    for (path, seen) in one {
        let other = &other[path];
        assert!(seen.content == other.content, "{what}: {path:?} has other bytes");
        let facts = |seen: &Seen| (seen.kind, seen.mode, seen.owner, seen.modified);
        assert_eq!(facts(seen), facts(other), "{what}: {path:?}");
    }
}

fn fill(root: &Path, posix: bool) {
    fs::create_dir_all(root.join("a/b/c/d")).unwrap();
    fs::write(root.join("a/b/c/d/deep"), b"deep").unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("A Longer Name With Spaces \u{e4}\u{20ac}.text"), b"odd name").unwrap();
    // Files that grow in turns are in pieces.
    let files = ["left", "right"].map(|name| File::create(root.join(name)).unwrap());
    for step in 0..30u8 {
        for (file, len) in files.iter().zip([5000u64, 3000]) {
            let bytes = vec![step + 1; usize::try_from(len).unwrap()];
            file.write_all_at(&bytes, u64::from(step) * len).unwrap();
            file.sync_data().unwrap();
        }
    }
    fs::create_dir(root.join("many")).unwrap();
    for number in 0..120usize {
        fs::write(root.join(format!("many/file {number:04}")), vec![b'x'; number * 41]).unwrap();
    }
    if posix {
        symlink("a/b", root.join("relative")).unwrap();
        symlink("/etc/passwd", root.join("outside")).unwrap();
        fs::hard_link(root.join("left"), root.join("a/same")).unwrap();
        fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o4751)).unwrap();
        std::os::unix::fs::chown(root.join("right"), Some(1234), Some(70_000)).unwrap();
        fs::write(root.join(std::ffi::OsStr::from_bytes(b"no \xff\xfe text")), b"bytes").unwrap();
        let old = root.join("left");
        run(
            "touch",
            ["-d".as_ref(), "1965-03-04 05:06:07.89 UTC".as_ref(), old.as_os_str()],
        );
    }
}

/// A disk with a GPT: ext4, NTFS, FAT, XFS and exFAT, made and filled by their own programs.
fn disk_of_five(lab: &Lab) -> bool {
    let programs = ["mcopy", "mkfs.vfat", "sfdisk", "touch", "losetup", "env", "cp", "dd"];
    if !have(&programs, "partitions beside their own drivers") {
        return false;
    }
    let mut parts = Vec::new();
    for kind in [mounts::EXT4, mounts::NTFS, mounts::XFS, mounts::EXFAT] {
        let directory = lab.path(kind.name);
        fs::create_dir(&directory).unwrap();
        let Some(mount) = Mount::new(kind, &directory, "partitions beside their own drivers") else {
            return false;
        };
        fill(&mount.dir, matches!(kind.name, "ext4" | "xfs"));
        drop(mount);
        parts.push(directory.join("file-system"));
    }
    let fat = lab.path("fat.img");
    File::create(&fat).unwrap().set_len(40 * MIB).unwrap();
    run("mkfs.vfat", ["-n".as_ref(), "DATA".as_ref(), fat.as_os_str()]);
    fs::create_dir(lab.path("source")).unwrap();
    fill(&lab.path("source"), false);
    let names = fs::read_dir(lab.path("source"))
        .unwrap()
        .map(|entry| entry.unwrap().path().into_os_string());
    let copy = ["TZ=UTC", "mcopy", "-s", "-m", "-Q", "-i"]
        .map(Into::into)
        .into_iter()
        .chain([fat.clone().into()]);
    run("env", copy.chain(names).chain(["::".into()]));
    parts.push(fat);

    let mut layout = String::from("label: gpt\n");
    let mut at = MIB;
    let disk = File::create(lab.path("disk.raw")).unwrap();
    for part in &parts {
        let len = part.metadata().unwrap().len();
        layout += &format!("start={},size={}\n", at / 512, len / 512);
        disk.set_len(at + len + 2 * MIB).unwrap();
        let to = lab.path("disk.raw");
        run(
            "dd",
            [
                format!("if={}", part.display()),
                format!("of={}", to.display()),
                "bs=1M".into(),
                format!("seek={}", at / MIB),
                "conv=notrunc,sparse".into(),
                "status=none".into(),
            ],
        );
        fs::remove_file(part).unwrap();
        at += len;
    }
    fs::write(lab.path("layout"), layout).unwrap();
    let script = format!(
        "sfdisk -q {} < {}",
        lab.path("disk.raw").display(),
        lab.path("layout").display()
    );
    run("sh", ["-c", &script]);
    lab.run(
        &["convert", "--from", "raw", "disk.raw", "disk.vhd", "--to", "dynamic"],
        0,
    );
    fs::remove_file(lab.path("disk.raw")).unwrap();
    lab.run(&["create", "leaf.avhd", "--parent", "disk.vhd"], 0);
    true
}

/// What the file system's own driver shows of a partition that is mounted.
fn by_its_driver(lab: &Lab, partition: &Path, part: &Part) -> BTreeMap<PathBuf, Seen> {
    let place = lab.path("driver");
    let driver = match part.number {
        1 => Driver::new(&["mount", "-o", "ro,loop"], partition, &place, None),
        2 => Driver::new(&["ntfs-3g", "-o", "ro"], partition, &place, None),
        3 => Driver::new(&["mount", "-o", "ro,loop,norecovery"], partition, &place, None),
        4 => {
            let device = Loop::new(partition, &["--read-only"]);
            let source = PathBuf::from(&device.0);
            Driver::new(&["mount.exfat-fuse", "-o", "ro"], &source, &place, Some(device))
        }
        _ => {
            let copy = lab.path("mtools");
            fs::create_dir(&copy).unwrap();
            let image = [partition.as_os_str(), "::*".as_ref(), copy.as_os_str()];
            let options = ["TZ=UTC", "mcopy", "-s", "-m", "-p", "-n", "-i"].map(AsRef::as_ref);
            run("env", options.into_iter().chain(image));
            return walk(&copy, part);
        }
    };
    walk(&driver.place, part)
}

#[test]
fn partitions_and_files_are_what_their_own_drivers_show() {
    let lab = Lab::new();
    if !fuse() || !disk_of_five(&lab) {
        return;
    }
    let mounted = Mounted::new(&lab, &["leaf.avhd"]);
    for number in 1..=5 {
        let part = Part {
            number,
            posix: matches!(number, 1 | 3),
            keeps_nanos: number < 4,
        };
        let expected = by_its_driver(&lab, &mounted.path(&format!("partitions/p{number}.raw")), &part);
        assert!(expected.len() > 125, "p{number}: {}", expected.len());
        let shown = walk(&mounted.path(&format!("files/p{number}")), &part);
        assert_same(&shown, &expected, &format!("files/p{number}"));
        let copied = lab.path(&format!("copied-{number}"));
        lab.run(
            &[
                "cp",
                "--owners",
                &format!("leaf.avhd:/p{number}"),
                copied.to_str().unwrap(),
            ],
            0,
        );
        assert_same(&walk(&copied, &part), &expected, &format!("vhd cp of p{number}"));
        listed_and_printed(&lab, number, &expected);
    }
    mounted.unmount();
}

/// `vhd ls` and `vhd cat` say the same of the files of a partition.
fn listed_and_printed(lab: &Lab, number: u32, expected: &BTreeMap<PathBuf, Seen>) {
    for directory in ["", "many", "a/b/c/d"] {
        let listed = lab.json(&["ls", &format!("leaf.avhd:/p{number}/{directory}")], 0);
        let mut names: Vec<&str> = listed["entries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["name"].as_str().unwrap())
            .collect();
        names.retain(|name| *name != "lost+found");
        let here = expected
            .keys()
            .filter(|path| path.parent() == Some(Path::new(directory)));
        let lossy: Vec<String> = here
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, lossy, "p{number}/{directory}");
        for entry in listed["entries"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|entry| entry["type"] == "file")
        {
            let path = Path::new(directory).join(entry["name"].as_str().unwrap());
            // Names that are no UTF-8 are compared by their mount.
            if let Some(seen) = expected.get(&path) {
                assert_eq!(entry["size"], seen.content.len(), "p{number}/{path:?}");
            }
        }
    }
    for (path, seen) in expected.iter().filter(|(_, seen)| seen.kind == 0o100_000).step_by(12) {
        let Some(path) = path.to_str() else { continue };
        let printed = lab.run(&["cat", &format!("leaf.avhd:/p{number}/{path}")], 0);
        assert!(printed.get_output().stdout == seen.content, "p{number}/{path}");
    }
}

/// Files that the last snapshots have and the first have not.
const SNAPSHOTS: u8 = 20;

#[test]
fn twenty_snapshots_of_three_partitions_are_read_at_once() {
    let lab = Lab::new();
    let programs = ["mkfs.vfat", "mcopy", "mkfs.ext4", "mkfs.ntfs", "ntfscp", "sfdisk"];
    if !fuse() || !have(&programs, "snapshots with partitions") {
        return;
    }
    let sizes = [4 * MIB, 8 * MIB, 4 * MIB];
    let starts = [MIB, 5 * MIB, 13 * MIB];
    let parts = ["fat.img", "ext.img", "ntfs.img"].map(|name| lab.path(name));
    for (part, size) in parts.iter().zip(sizes) {
        File::create(part).unwrap().set_len(size).unwrap();
    }
    run("mkfs.vfat", [parts[0].as_os_str()]);
    run(
        "mkfs.ext4",
        [
            "-q".as_ref(),
            "-F".as_ref(),
            "-O".as_ref(),
            "^has_journal".as_ref(),
            parts[1].as_os_str(),
        ],
    );
    run(
        "mkfs.ntfs",
        ["-q".as_ref(), "-F".as_ref(), "-Q".as_ref(), parts[2].as_os_str()],
    );
    lab.dynamic("disk.vhd", 20 * MIB);
    File::create(lab.path("table.raw")).unwrap().set_len(20 * MIB).unwrap();
    let lines = starts
        .iter()
        .zip(sizes)
        .map(|(start, size)| format!("start={},size={},type=83\n", start / 512, size / 512));
    fs::write(
        lab.path("layout"),
        String::from("label: dos\n") + &lines.collect::<String>(),
    )
    .unwrap();
    run(
        "sh",
        [
            "-c",
            &format!(
                "sfdisk -q {} < {}",
                lab.path("table.raw").display(),
                lab.path("layout").display()
            ),
        ],
    );
    let table = fs::read(lab.path("table.raw")).unwrap();
    lab.write("disk.vhd", 0, &table[..512]);
    for day in 0..SNAPSHOTS {
        let file = lab.path(&format!("day-{day}"));
        fs::write(&file, vec![day + 1; 3000 + usize::from(day) * 100]).unwrap();
        run(
            "mcopy",
            ["-i".as_ref(), parts[0].as_os_str(), file.as_os_str(), "::".as_ref()],
        );
        run(
            "debugfs",
            [
                "-w".as_ref(),
                "-R".as_ref(),
                format!("write {} day-{day}", file.display()).as_ref(),
                parts[1].as_os_str(),
            ],
        );
        run(
            "ntfscp",
            [
                "-q".as_ref(),
                parts[2].as_os_str(),
                file.as_os_str(),
                format!("day-{day}").as_ref(),
            ],
        );
        let leaf = leaf(&lab);
        for (part, start) in parts.iter().zip(starts) {
            lab.write(&leaf, start, &fs::read(part).unwrap());
        }
        lab.run(&["snapshot", "create", "disk.vhd", "--name", &format!("day-{day}")], 0);
    }
    let mounted = Mounted::new(&lab, &["disk.vhd@now"]);
    let readers: Vec<_> = (0..SNAPSHOTS)
        .flat_map(|day| (1..=3).map(move |number| (day, number)))
        .collect();
    std::thread::scope(|scope| {
        for (day, number) in readers {
            let snapshot = mounted.path(&format!("snapshots/day-{day}"));
            scope.spawn(move || {
                let root = snapshot.join(format!("files/p{number}"));
                for other in 0..SNAPSHOTS {
                    let read = fs::read(root.join(format!("day-{other}")));
                    assert_eq!(read.is_ok(), other <= day, "{other} in {root:?}");
                    let expected = vec![other + 1; 3000 + usize::from(other) * 100];
                    assert!(read.is_err() || read.unwrap() == expected, "{other} in {root:?}");
                }
                assert!(
                    fs::read(snapshot.join(format!("partitions/p{number}.raw")))
                        .unwrap()
                        .iter()
                        .any(|&byte| byte != 0)
                );
            });
        }
    });
    for day in [0, SNAPSHOTS - 1] {
        let raw = mounted.path(&format!("snapshots/day-{day}/disk.raw"));
        assert_eq!(sha256sum(&raw), hash(&lab, &format!("disk.vhd@day-{day}")));
    }
    mounted.unmount();
}

/// The file that a disk with snapshots is written to.
fn leaf(lab: &Lab) -> String {
    if !lab.exists("disk.vhd.snapshots") {
        return "disk.vhd".to_owned();
    }
    let listed = stdout(&lab.run(&["snapshot", "list", "disk.vhd", "--json"], 0));
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    listed["now"]["file"].as_str().unwrap().to_owned()
}
