//! File systems and partition tables with every byte of their structures changed: reading them ends, in bounded
//! time, and what it calls free is inside the partition. The images are made by the file systems' own programs.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use vhd_fs::{ReadAt, scan};

const PAGE: usize = 4096;
const MIB: u64 = 1 << 20;
/// Bytes that are changed wherever they stand.
const SAMPLE: usize = 3000;

/// A disk that is mostly zero.
struct Sparse {
    size: u64,
    pages: std::collections::BTreeMap<u64, Box<[u8; PAGE]>>,
}

impl Sparse {
    fn load(path: &Path) -> Self {
        let mut file = File::open(path).unwrap();
        let size = file.metadata().unwrap().len();
        let mut pages = std::collections::BTreeMap::new();
        let mut page = Box::new([0; PAGE]);
        for number in 0..size / 4096 {
            file.read_exact(&mut page[..]).unwrap();
            if page.iter().any(|&byte| byte != 0) {
                pages.insert(number, page.clone());
            }
        }
        Self { size, pages }
    }

    fn byte(&mut self, at: u64) -> &mut u8 {
        let page = self.pages.entry(at / 4096).or_insert_with(|| Box::new([0; PAGE]));
        &mut page[usize::try_from(at % 4096).unwrap()]
    }
}

impl ReadAt for Sparse {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        assert!(
            offset + u64::try_from(buf.len()).unwrap() <= self.size,
            "a read leaves the disk"
        );
        buf.fill(0);
        let end = offset + u64::try_from(buf.len()).unwrap();
        for (number, page) in self.pages.range(offset / 4096..end.div_ceil(4096)) {
            let (start, stop) = ((number * 4096).max(offset), ((number + 1) * 4096).min(end));
            let to = usize::try_from(start - offset).unwrap()..usize::try_from(stop - offset).unwrap();
            let from = usize::try_from(start % 4096).unwrap();
            buf[to.clone()].copy_from_slice(&page[from..from + to.len()]);
        }
        Ok(())
    }
}

/// Makes an image by a command line in which FILE stands for it; `None`, said loudly, where that can't be.
fn made(command: &str, size: u64) -> Option<Sparse> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("image");
    File::create(&path).unwrap().set_len(size).unwrap();
    let command = format!(
        "PATH=$PATH:/usr/sbin:/sbin; {}",
        command.replace("FILE", &path.display().to_string())
    );
    let output = Command::new("sh").args(["-c", &command]).output().unwrap();
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(std::env::var_os("CI").is_none(), "{command}: {complaint}");
        eprintln!("NOT TESTED: {command}: {complaint}");
        return None;
    }
    Some(Sparse::load(&path))
}

/// Reads a disk whatever it holds; answers the free bytes.
fn look(disk: &Sparse, what: &str) -> u64 {
    let started = Instant::now();
    let mut free = 0;
    if let Ok(report) = scan(disk) {
        for partition in &report.partitions {
            let Ok(map) = &partition.free else { continue };
            assert!(map.start() >= partition.start && map.end() <= partition.end(), "{what}");
            assert!(map.memory() <= disk.size / 4096 / 8 + 8, "{what}");
            free += map.free_bytes();
        }
    }
    assert!(free <= disk.size, "{what}");
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{what}: {:?}",
        started.elapsed()
    );
    free
}

/// Changes each byte of the ranges in three ways.
fn flip(name: &str, mut disk: Sparse, ranges: &[(u64, u64)]) {
    let whole = look(&disk, name);
    assert!(whole > disk.size / 4, "{name}: {whole} bytes free of {}", disk.size);
    let mut looked = 0;
    for at in ranges.iter().flat_map(|&(start, len)| start..start + len) {
        let old = *disk.byte(at);
        for new in [old ^ 0xFF, 0, old ^ 1] {
            if new != old {
                *disk.byte(at) = new;
                look(&disk, &format!("{name}, byte {at:#x} = {new:#x}"));
                looked += 1;
            }
        }
        *disk.byte(at) = old;
    }
    // Wherever something stands, bitmaps and tables included: each byte, or a sample of them.
    let used = disk.pages.iter().flat_map(|(number, page)| {
        let bytes = (0..).zip(page.iter()).filter(|(_, byte)| **byte != 0);
        bytes.map(move |(at, _): (u64, _)| number * 4096 + at)
    });
    let used: Vec<u64> = used.collect();
    for &at in used.iter().step_by(used.len() / SAMPLE + 1) {
        *disk.byte(at) ^= 0xFF;
        look(&disk, &format!("{name}, byte {at:#x} inverted"));
        *disk.byte(at) ^= 0xFF;
        looked += 1;
    }
    assert_eq!(look(&disk, name), whole);
    println!("{name}: {looked} changes");
}

#[test]
fn ext() {
    for options in [
        "-t ext4",
        "-t ext2 -b 1024 -O ^resize_inode",
        "-t ext4 -b 1024 -O ^metadata_csum,^64bit",
    ] {
        let command = format!("mkfs.ext4 -q -F {options} FILE");
        let Some(disk) = made(&command, 16 * MIB) else { continue };
        // The superblock, the descriptors (of 4 KiB and 1 KiB blocks), and where bitmaps are in either.
        flip(options, disk, &[(1024, 512), (2048, 128), (4096, 128), (0x4000, 64)]);
    }
}

#[test]
fn ntfs() {
    let Some(mut disk) = made("mkfs.ntfs -q -F -Q -c 4096 FILE", 16 * MIB) else {
        return;
    };
    let mft = (0..8).fold(0, |sum, index| sum | u64::from(*disk.byte(48 + index)) << (8 * index)) * 4096;
    // The boot sector, and the records of the table itself, the log, the volume and the bitmap.
    let record = |number: u64| (mft + number * 1024, 512);
    flip("ntfs", disk, &[(0, 96), record(0), record(2), record(3), record(6)]);
}

#[test]
fn fat_and_exfat() {
    for (name, command, size) in [
        ("fat12", "mkfs.vfat -F 12 FILE", 4 * MIB),
        ("fat16", "mkfs.vfat -F 16 FILE", 16 * MIB),
        ("fat32", "mkfs.vfat -F 32 -s 1 FILE", 40 * MIB),
    ] {
        if let Some(disk) = made(command, size) {
            flip(name, disk, &[(0, 96), (512, 32), (510, 2)]);
        }
    }
    if let Some(disk) = made("mkfs.exfat FILE", 16 * MIB) {
        let root = 2 * MIB;
        flip("exfat", disk, &[(0, 128), (MIB, 64), (root, 256), (root + 0x1000, 256)]);
    }
}

#[test]
fn xfs() {
    let Some(disk) = made("mkfs.xfs -q -f FILE", 320 * MIB) else {
        return;
    };
    // A look reads the whole log: fewer bytes than elsewhere, those that mean something.
    flip(
        "xfs",
        disk,
        &[(0, 16), (48, 8), (84, 24), (124, 3), (208, 16), (512, 72), (4096, 72)],
    );
}

#[test]
fn partition_tables_and_swap() {
    let gpt = "printf 'label: gpt\\nstart=2048,size=4096\\nstart=8192,size=16384\\n' | sfdisk -q FILE \
               && head -c 8M /dev/urandom > FILE.s && mkswap -q FILE.s && dd if=FILE.s of=FILE bs=1M seek=4 conv=notrunc";
    if let Some(disk) = made(gpt, 16 * MIB) {
        flip(
            "gpt and swap",
            disk,
            &[(440, 72), (512, 92), (1024, 256), (4 * MIB, 16), (4 * MIB + 1024, 16)],
        );
    }
    let mbr = "printf 'label: dos\\nstart=2048,size=24576,type=5\\nstart=4096,size=16384,type=82\\n' | sfdisk -q FILE \
               && head -c 8M /dev/urandom > FILE.s && mkswap -q FILE.s && dd if=FILE.s of=FILE bs=1M seek=2 conv=notrunc";
    if let Some(disk) = made(mbr, 16 * MIB) {
        flip("mbr and swap", disk, &[(440, 72), (MIB + 440, 72)]);
    }
}

#[test]
fn anything_at_all() {
    for size in [0, 1, 511, 512, 4096, 70_000] {
        for fill in [0, 0xFF, 0x55] {
            let bytes = vec![fill; size];
            let _ = scan(&bytes).map(|report| report.run(0));
        }
    }
}
