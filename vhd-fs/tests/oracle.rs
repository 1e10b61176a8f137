//! A file-system oracle. Real file systems of every kind are made with random options, filled, fragmented and deleted
//! from by their own drivers, and unmounted cleanly or not. Random noise goes into everything that is called free; then
//! the file system's own check must find nothing and every file must be what it was. What was not unmounted must be
//! left alone.
//!
//! `VHD_FS_ROUNDS` sets the number of rounds, `VHD_TEST_SEED` the seed.
#![forbid(unsafe_code)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{command, have};
use fastrand::Rng;
use vhd_fs::{ReadAt, scan};

const MIB: u64 = 1 << 20;
/// Rounds of the test suite: each kind twice, and some more.
const ROUNDS: u32 = 24;

/// A kind of file system and its programs.
struct Kind {
    name: &'static str,
    make: &'static str,
    check: &'static [&'static str],
    /// What mounts it.
    mount: &'static [&'static str],
    /// Groups of options, of which each contributes one to a round, and sizes in MiB.
    options: &'static [&'static [&'static str]],
    sizes: &'static [u64],
}

const EXT: &[&[&str]] = &[
    &["-b 1024", "-b 2048", "-b 4096", ""],
    &[
        "",
        "-O ^metadata_csum",
        "-O ^metadata_csum,uninit_bg",
        "-O metadata_csum_seed",
        "-O ^64bit",
        "-O ^flex_bg",
        "-O ^extent,^64bit",
    ],
    &[
        "",
        "-O sparse_super2",
        "-O ^sparse_super,^resize_inode",
        "-O ^resize_inode",
    ],
    &["", "-E packed_meta_blocks=1", "-G 4", "-I 128", "-O inline_data"],
];

const KINDS: &[Kind] = &[
    Kind {
        name: "ext4",
        make: "mkfs.ext4 -q -F",
        check: &["e2fsck", "-fn"],
        mount: &["mount", "-t", "ext4"],
        options: EXT,
        sizes: &[24, 64, 150],
    },
    Kind {
        name: "ext3",
        make: "mkfs.ext3 -q -F",
        check: &["e2fsck", "-fn"],
        mount: &["mount", "-t", "ext3"],
        options: &[
            &["-b 1024", "-b 4096"],
            &["", "-O ^resize_inode", "-O ^sparse_super,^resize_inode"],
        ],
        sizes: &[24, 64],
    },
    Kind {
        name: "ext2",
        make: "mkfs.ext2 -q -F",
        check: &["e2fsck", "-fn"],
        mount: &["mount", "-t", "ext2"],
        options: &[
            &["-b 1024", "-b 2048", "-b 4096"],
            &["", "-r 0", "-O ^resize_inode", "-O sparse_super2"],
        ],
        sizes: &[10, 64],
    },
    Kind {
        name: "xfs",
        make: "mkfs.xfs -q -f",
        check: &["xfs_repair", "-n", "-f"],
        mount: &["mount", "-t", "xfs"],
        options: &[
            &["", "-b size=1024", "-b size=2048"],
            &[
                "",
                "-m rmapbt=1",
                "-m reflink=0",
                "-m crc=0",
                "-m finobt=0,reflink=0,rmapbt=0,inobtcount=0",
            ],
            &["", "-d agcount=2", "-i sparse=0"],
        ],
        sizes: &[320],
    },
    Kind {
        name: "ntfs",
        make: "mkfs.ntfs -q -F -Q",
        check: &["ntfsfix", "-n"],
        mount: &["ntfs-3g"],
        options: &[&["", "-c 512", "-c 1024", "-c 4096", "-c 65536"]],
        sizes: &[24, 64, 150],
    },
    Kind {
        name: "exfat",
        make: "mkfs.exfat",
        check: &["fsck.exfat", "-n"],
        mount: &["mount.exfat-fuse"],
        options: &[&["", "-c 4K", "-c 32K", "-c 512"]],
        sizes: &[24, 64],
    },
    Kind {
        name: "fat12",
        make: "mkfs.vfat -F 12",
        check: &["fsck.vfat", "-n"],
        mount: &[],
        options: &[&["", "-s 8", "-f 1"]],
        sizes: &[8],
    },
    Kind {
        name: "fat16",
        make: "mkfs.vfat -F 16",
        check: &["fsck.vfat", "-n"],
        mount: &[],
        options: &[&["", "-s 4", "-f 1"]],
        sizes: &[24, 64],
    },
    Kind {
        name: "fat32",
        make: "mkfs.vfat -F 32",
        check: &["fsck.vfat", "-n"],
        mount: &[],
        options: &[&["-s 1", "-s 1 -f 1", "-s 2"]],
        sizes: &[80],
    },
    Kind {
        name: "swap",
        make: "mkswap -q",
        check: &["swaplabel"],
        mount: &[],
        options: &[&["", "-L here", "-p 4096"]],
        sizes: &[8],
    },
];

/// A file as a disk.
struct Disk(File, u64);

impl ReadAt for Disk {
    fn size(&self) -> u64 {
        self.1
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = command(program)
        .args(arguments)
        .env("MTOOLS_SKIP_CHECK", "1")
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (output.status.success(), said.concat())
}

/// What is mounted at `dir`, over a loop device for drivers that want one.
struct Mount {
    image: PathBuf,
    device: String,
    dir: PathBuf,
}

impl Mount {
    fn new(kind: &Kind, image: &Path, dir: &Path) -> Result<Self, String> {
        let (found, device) = run("losetup", &["--find", "--show", image.to_str().unwrap()]);
        assert!(found, "{device}");
        let mount = Self {
            image: image.to_owned(),
            device: device.trim().to_owned(),
            dir: dir.to_owned(),
        };
        let arguments: Vec<&str> = kind.mount[1..]
            .iter()
            .copied()
            .chain([&*mount.device, dir.to_str().unwrap()])
            .collect();
        let (mounted, said) = run(kind.mount[0], &arguments);
        if mounted {
            return Ok(mount);
        }
        mount.detach();
        std::mem::forget(mount);
        Err(said)
    }

    /// Gives the device back. It may be another program's the next moment, so it is asked for once; what is waited for
    /// is that nothing uses the image any more.
    fn detach(&self) {
        let image = self.image.to_str().unwrap();
        drop(run("losetup", &["--detach", &self.device]));
        for _ in 0..500 {
            let attached = !run("losetup", &["--associated", image]).1.is_empty();
            if !attached && !run("fuser", &[image]).0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        for _ in 0..100 {
            if run("umount", &[self.dir.to_str().unwrap()]).0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.detach();
    }
}

type Files = BTreeMap<String, Vec<u8>>;

fn content(rng: &mut Rng, room: u64) -> Vec<u8> {
    let most = (room / 12).clamp(4096, 3 * MIB);
    let len = usize::try_from(match rng.u8(..4) {
        0 => rng.u64(..200),
        1 => rng.u64(..20_000),
        _ => rng.u64(..most),
    });
    let mut bytes = vec![0; len.unwrap()];
    rng.fill(&mut bytes);
    bytes
}

/// What a round does to a mounted file system: files written piecewise and in turns, deleted, extended and cut.
fn churn(dir: &Path, size: u64, rng: &mut Rng) -> Files {
    let mut files = Files::new();
    let steps = rng.u32(10..70);
    for step in 0..steps {
        let names: Vec<String> = files.keys().cloned().collect();
        let used: usize = files.values().map(Vec::len).sum();
        let is_full = used as u64 > size / 3;
        match rng.u8(..10) {
            0..5 if !is_full => {
                let folder = dir.join(format!("d{}", rng.u8(..6)));
                fs::create_dir_all(&folder).unwrap();
                let name = format!(
                    "{}/f{step}-{}",
                    folder.file_name().unwrap().to_str().unwrap(),
                    "n".repeat(rng.usize(..60))
                );
                let bytes = content(rng, size);
                if fs::write(dir.join(&name), &bytes).is_ok() {
                    files.insert(name, bytes);
                } else {
                    drop(fs::remove_file(dir.join(&name)));
                }
            }
            5..7 if !names.is_empty() && !is_full => {
                // Two files grow in turns, so that neither is in one piece.
                for _ in 0..rng.u8(2..12) {
                    let name = &names[rng.usize(..names.len())];
                    let bytes = files.get_mut(name).unwrap();
                    let mut more = vec![0; rng.usize(..30_000)];
                    rng.fill(&mut more);
                    let at = bytes.len() as u64;
                    let file = File::options().write(true).open(dir.join(name)).unwrap();
                    if file.write_all_at(&more, at).is_ok() {
                        bytes.extend(more);
                    } else {
                        file.set_len(at).unwrap();
                    }
                }
            }
            7 if !names.is_empty() => {
                let name = &names[rng.usize(..names.len())];
                let bytes = files.get_mut(name).unwrap();
                bytes.truncate(rng.usize(..=bytes.len()));
                File::options()
                    .write(true)
                    .open(dir.join(name))
                    .unwrap()
                    .set_len(bytes.len() as u64)
                    .unwrap();
            }
            _ if names.len() > 3 => {
                let name = &names[rng.usize(..names.len())];
                fs::remove_file(dir.join(name)).unwrap();
                files.remove(name);
            }
            _ => {}
        }
    }
    files
}

/// The same for FAT, without a mount.
fn churn_by_mtools(image: &Path, scratch: &Path, size: u64, rng: &mut Rng) -> Files {
    let mut files = Files::new();
    let image = image.to_str().unwrap();
    for step in 0..rng.u32(10..40) {
        let used: usize = files.values().map(Vec::len).sum();
        let names: Vec<String> = files.keys().cloned().collect();
        if rng.u8(..3) > 0 && (used as u64) < size / 3 {
            let (name, bytes) = (format!("f{step}"), content(rng, size));
            fs::write(scratch, &bytes).unwrap();
            if run("mcopy", &["-i", image, scratch.to_str().unwrap(), &format!("::{name}")]).0 {
                files.insert(name, bytes);
            }
        } else if names.len() > 3 {
            let name = &names[rng.usize(..names.len())];
            let (gone, said) = run("mdel", &["-i", image, &format!("::{name}")]);
            assert!(gone, "{said}");
            files.remove(name);
        }
    }
    files
}

fn same(name: &str, found: &[u8], expected: &[u8], what: &str) {
    assert!(found == expected, "{what}: {name} is not what was written");
}

/// Fills what is free with noise; answers how many bytes that were, or why it is left alone.
fn poison(image: &Path, rng: &mut Rng) -> Result<u64, String> {
    let file = File::options().read(true).write(true).open(image).unwrap();
    let size = file.metadata().unwrap().len();
    let report = scan(&Disk(file, size)).map_err(|reason| reason.to_string())?;
    assert_eq!(report.partitions.len(), 1);
    let partition = &report.partitions[0];
    if let Err(reason) = &partition.free {
        return Err(format!("{}: {reason}", reason.name()));
    }
    let file = File::options().write(true).open(image).unwrap();
    let (mut at, mut noise) = (0, 0);
    let mut buffer = vec![0; 1 << 16];
    while at < size {
        let (free, len) = report.run(at);
        let len = len.min(size - at).min(buffer.len() as u64);
        if free {
            let part = &mut buffer[..usize::try_from(len).unwrap()];
            rng.fill(part);
            file.write_all_at(part, at).unwrap();
            noise += len;
        }
        at += len;
    }
    Ok(noise)
}

#[derive(Default)]
struct Counts {
    clean: u32,
    dirty: u32,
    noise: u64,
    files: usize,
}

/// One round: a file system made, used, filled with noise and looked at.
fn round(kind: &Kind, rng: &mut Rng, counts: &mut Counts) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (image, mnt) = (dir.path().join("image"), dir.path().join("mnt"));
    fs::create_dir(&mnt).unwrap();
    let size = kind.sizes[rng.usize(..kind.sizes.len())] * MIB;
    let options: Vec<&str> = kind
        .options
        .iter()
        .map(|group| group[rng.usize(..group.len())])
        .collect();
    let line = format!("{} {} {}", kind.make, options.join(" "), image.display());
    let words: Vec<&str> = line.split_whitespace().collect();
    File::create(&image).unwrap().set_len(size).unwrap();
    let (made, said) = run(words[0], &words[1..]);
    let what = format!("{} {} of {} MiB", kind.make, options.join(" "), size / MIB);
    if !made {
        // Some options exclude one another.
        eprintln!("{what}: not made: {}", said.lines().next().unwrap_or_default());
        return;
    }
    // ntfs-3g leaves no mark on the disk while it has it mounted.
    let is_torn = !kind.mount.is_empty() && kind.name != "ntfs" && rng.u8(..5) == 0;
    let files = if kind.name == "swap" {
        Files::new()
    } else if kind.mount.is_empty() {
        churn_by_mtools(&image, &dir.path().join("one"), size, rng)
    } else {
        let mount = match Mount::new(kind, &image, &mnt) {
            Ok(mount) => mount,
            Err(said) => {
                eprintln!("NOT TESTED: {what}: this kernel does not mount it: {}", said.trim());
                return;
            }
        };
        let files = churn(&mnt, size, rng);
        if is_torn {
            // What is on the disk while it is mounted.
            assert!(run("sync", &["-f", mnt.to_str().unwrap()]).0);
            fs::copy(&image, dir.path().join("torn")).unwrap();
        }
        drop(mount);
        files
    };
    let (was_sound, said) = run(kind.check[0], &[&kind.check[1..], &[image.to_str().unwrap()]].concat());
    assert!(was_sound, "{what}: before: {said}");
    if is_torn {
        let torn = dir.path().join("torn");
        let left = poison(&torn, rng).expect_err(&what);
        assert!(
            left.starts_with("dirty") || left.starts_with("damaged"),
            "{what}: {left}"
        );
        counts.dirty += 1;
    }
    counts.noise += poison(&image, rng).unwrap_or_else(|reason| panic!("{what}: left alone: {reason}"));
    let (is_sound, said) = run(kind.check[0], &[&kind.check[1..], &[image.to_str().unwrap()]].concat());
    assert!(is_sound, "{what}: {said}");
    if kind.mount.is_empty() {
        for (name, expected) in &files {
            let output = command("mtype")
                .args(["-i".as_ref(), image.as_os_str(), format!("::{name}").as_ref()])
                .output();
            same(name, &output.unwrap().stdout, expected, &what);
        }
    } else {
        let _mount = Mount::new(kind, &image, &mnt).unwrap_or_else(|said| panic!("{what}: {said}"));
        for (name, expected) in &files {
            same(name, &fs::read(mnt.join(name)).unwrap(), expected, &what);
        }
    }
    counts.clean += 1;
    counts.files += files.len();
}

#[test]
fn noise_in_free_space_harms_no_file_system() {
    if !common::is_root("the file-system oracle") {
        return;
    }
    let rounds = std::env::var("VHD_FS_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let seed = std::env::var("VHD_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("VHD_TEST_SEED={seed}");
    let mut all: BTreeMap<&str, Counts> = BTreeMap::new();
    for number in 0..rounds {
        let kind = &KINDS[number as usize % KINDS.len()];
        // Each round has a seed of its own, which is enough to run it again.
        let mut rng = Rng::with_seed(seed.wrapping_add(u64::from(number)));
        let programs = [
            kind.make.split(' ').next().unwrap(),
            kind.check[0],
            kind.mount.first().copied().unwrap_or("mcopy"),
        ];
        if programs.iter().all(|program| have(program, kind.name)) {
            round(kind, &mut rng, all.entry(kind.name).or_default());
        }
    }
    for (name, counts) in &all {
        println!(
            "{name}: {} file systems, {} files, {} MiB of noise; {} left alone while mounted",
            counts.clean,
            counts.files,
            counts.noise / MIB,
            counts.dirty
        );
    }
}
