//! File systems that their own checks would reject, and odd ones that they accept.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::path::Path;

use common::{Image, free, have, make, reason};

const MIB: u64 = 1 << 20;

#[test]
fn inv_45_the_shared_cases_are_left_alone() {
    for (name, expected) in [
        ("exfat-bitmap-zero.img", "damaged"),
        ("ext4-bad-descriptor-checksum.img", "damaged"),
        ("ntfs-hiberfil.img", "dirty"),
    ] {
        let Some(image) = Image::shared_case(name) else {
            continue;
        };
        let (code, text) = reason(&image);
        assert_eq!(code, expected, "{name}: {text}");
    }
}

/// What every reader relies on is called free in its own map: no reader believes that.
#[test]
fn inv_45_a_file_system_that_calls_its_own_structures_free_is_left_alone() {
    // The bitmaps of ext4 and exFAT zeroed where nothing counts what is free.
    let Some(mut exfat) = make("mkfs.exfat", &[], 16 * MIB) else {
        return;
    };
    // The first clusters hold the bitmap, the table of upper-case letters and the root directory.
    let bitmap = usize::try_from(exfat.le32(88)).unwrap() * 512;
    for at in 0..exfat.bytes[bitmap].trailing_ones() {
        let before = exfat.bytes[bitmap];
        exfat.bytes[bitmap] &= !(1 << at);
        assert_eq!(reason(&exfat).0, "damaged", "exFAT: cluster {at}");
        exfat.bytes[bitmap] = before;
    }
    let Some(fat) = make("mkfs.vfat", &["-F", "32", "-s", "8"], 300 * MIB) else {
        return;
    };
    let mut lost = fat.clone();
    let table = usize::from(lost.le16(14)) * 512;
    let len = usize::try_from(lost.le32(36)).unwrap() * 512;
    for copy in 0..2 {
        lost.bytes[table + copy * len + 8..table + copy * len + 12].fill(0);
    }
    // FSInfo does not know how many are free.
    lost.bytes[512 + 488..512 + 492].fill(0xFF);
    assert_eq!(reason(&lost).0, "damaged", "FAT32: root directory");
    let mut miscounted = fat;
    miscounted.bytes[512 + 488] ^= 1;
    assert_eq!(reason(&miscounted).0, "damaged", "FAT32: count");
}

#[test]
fn inv_13_checksums_are_verified() {
    if let Some(mut image) = make("mkfs.ext4", &["-q", "-F", "-b", "4096"], 64 * MIB) {
        let descriptor = 4096;
        let bitmap = usize::try_from(image.le32(descriptor)).unwrap() * 4096;
        let inodes = usize::try_from(image.le32(descriptor + 4)).unwrap() * 4096;
        // Free blocks of the superblock are not touched: only the checksums notice.
        for (what, at) in [
            ("superblock: volume name", 1024 + 120),
            ("descriptor: unused inodes", descriptor + 28),
            ("descriptor: checksum", descriptor + 30),
            ("bitmap", bitmap + 100),
            ("inode bitmap", inodes + 10),
        ] {
            image.bytes[at] ^= 1;
            assert_eq!(reason(&image).0, "damaged", "ext4: {what}");
            image.bytes[at] ^= 1;
        }
        free(&image);
    }
    if let Some(mut image) = make(
        "mkfs.ext4",
        &["-q", "-F", "-b", "4096", "-O", "^metadata_csum,uninit_bg"],
        64 * MIB,
    ) {
        image.bytes[4096 + 28] ^= 1;
        assert_eq!(reason(&image).0, "damaged", "ext4: CRC-16 of a descriptor");
        image.bytes[4096 + 28] ^= 1;
        free(&image);
    }
    if let Some(mut image) = make("mkfs.xfs", &["-q", "-f"], 320 * MIB) {
        let group = usize::try_from(image.be32(84)).unwrap() * 4096;
        for (what, at) in [
            ("superblock: name", 108),
            ("AGF", 512 + 200),
            ("AGF of the second group", group + 512 + 200),
            ("list of reserved blocks", 3 * 512 + 40),
            ("tree of free space: sequence", 4096 + 24),
        ] {
            image.bytes[at] ^= 1;
            assert_eq!(reason(&image).0, "damaged", "XFS: {what}");
            image.bytes[at] ^= 1;
        }
        free(&image);
    }
    if let Some(mut image) = make("mkfs.exfat", &[], 16 * MIB) {
        for at in [100, 512 + 7, 11 * 512] {
            image.bytes[at] ^= 1;
            assert_eq!(reason(&image).0, "damaged", "exFAT: boot sector, byte {at}");
            image.bytes[at] ^= 1;
        }
        free(&image);
    }
}

/// Options of mkfs that were refused without a reason.
#[test]
fn odd_layouts_of_ext4_are_read() {
    for (options, size) in [
        (&["-O", "sparse_super2"][..], 200 * MIB),
        (&["-O", "sparse_super2,^resize_inode", "-b", "1024"], 200 * MIB),
        (
            &[
                "-O",
                "sparse_super2,uninit_bg,^metadata_csum",
                "-b",
                "1024",
                "-E",
                "num_backup_sb=1",
            ],
            200 * MIB,
        ),
        (
            &[
                "-O",
                "sparse_super2,^metadata_csum",
                "-b",
                "1024",
                "-E",
                "num_backup_sb=0",
            ],
            200 * MIB,
        ),
        (
            &["-O", "uninit_bg,^metadata_csum", "-E", "packed_meta_blocks=1"],
            200 * MIB,
        ),
        (
            &[
                "-O",
                "uninit_bg,^metadata_csum",
                "-b",
                "1024",
                "-E",
                "packed_meta_blocks=1",
            ],
            400 * MIB,
        ),
        (&["-b", "1024", "-E", "packed_meta_blocks=1"], 400 * MIB),
        (&["-O", "uninit_bg,^metadata_csum,^flex_bg", "-b", "1024"], 300 * MIB),
        (&["-O", "^has_journal", "-b", "2048", "-g", "4096"], 100 * MIB),
        (&["-O", "^sparse_super,^resize_inode", "-b", "1024"], 100 * MIB),
        (&["-O", "metadata_csum_seed,inline_data,quota"], 100 * MIB),
        (&["-O", "^64bit,^extent"], 100 * MIB),
        (&["-O", "64bit", "-E", "desc_size=128"], 100 * MIB),
    ] {
        let all: Vec<&str> = ["-q", "-F"].iter().chain(options).copied().collect();
        let Some(image) = make("mkfs.ext4", &all, size) else {
            return;
        };
        let found = free(&image);
        let said = image.dumpe2fs_free();
        // Pieces below 4 KiB are not counted here.
        assert!(
            found <= said && said - found < 64 * 4096,
            "{options:?}: {found} bytes free, dumpe2fs says {said}"
        );
    }
}

#[test]
fn states_that_are_not_clean_are_left_alone() {
    if let Some(image) = make("mkfs.ext4", &["-q", "-F", "-O", "^metadata_csum"], 64 * MIB) {
        for (what, at, value) in [
            ("needs recovery", 1024 + 96, image.bytes[1024 + 96] | 4),
            ("not unmounted", 1024 + 58, 0),
            ("errors", 1024 + 58, 3),
            ("orphans in the superblock", 1024 + 232, 12),
            ("an orphan file with files", 1024 + 102, 1),
        ] {
            let mut dirty = image.clone();
            dirty.bytes[at] = value;
            assert_eq!(reason(&dirty).0, "dirty", "ext4: {what}");
        }
        // The superblock says that there is nothing to replay, the journal says something else.
        let mut dirty = image.clone();
        let journal = dirty.find(&[0xC0, 0x3B, 0x39, 0x98], MIB);
        dirty.bytes[journal + 31] = 1;
        assert_eq!(reason(&dirty).0, "dirty", "ext4: journal");
        // Where the journal's file begins is not where a journal is.
        let mut lost = image;
        lost.bytes[journal] = 0;
        assert_eq!(reason(&lost).0, "damaged", "ext4: journal");
    }
    for (options, size, code) in [
        (&["-O", "bigalloc"][..], 200 * MIB, "unsupported"),
        (&["-O", "meta_bg,^resize_inode"], 200 * MIB, "unsupported"),
        (&["-O", "mmp"], 64 * MIB, "unknown-features"),
    ] {
        let all: Vec<&str> = ["-q", "-F"].iter().chain(options).copied().collect();
        if let Some(image) = make("mkfs.ext4", &all, size) {
            assert_eq!(reason(&image).0, code, "{options:?}");
        }
    }
    for (program, options, size, at, mask) in [
        ("mkfs.vfat", &["-F", "12"][..], 4 * MIB, 37, 1),
        ("mkfs.vfat", &["-F", "16"], 16 * MIB, 37, 1),
        ("mkfs.vfat", &["-F", "32", "-s", "1"], 40 * MIB, 65, 1),
        ("mkfs.exfat", &[], 16 * MIB, 106, 2),
        ("mkfs.exfat", &[], 16 * MIB, 106, 4),
    ] {
        if let Some(mut image) = make(program, options, size) {
            image.bytes[at] |= mask;
            assert_eq!(reason(&image).0, "dirty", "{program} {options:?}");
        }
    }
    if let Some(mut image) = make("mkswap", &["-q"], 8 * MIB) {
        for asleep in [&b"S1SUSPEND\0"[..], b"ULSUSPEND\0", b"LINHIB0001"] {
            image.bytes[4086..4096].copy_from_slice(asleep);
            assert_eq!(reason(&image).0, "dirty", "swap");
        }
    }
}

/// What other tools keep inside, whatever looks like a file system in it.
#[test]
fn containers_are_left_alone() {
    let Some(image) = make("mkfs.ext4", &["-q", "-F"], 16 * MIB) else {
        return;
    };
    let marks: &[(usize, &[u8])] = &[
        (0, b"LUKS\xba\xbe"),
        (0x4000, b"SKUL\xba\xbe"),
        (512, b"LABELONE"),
        (4096, &[0xFC, 0x4E, 0x2B, 0xA9]),
        ((16 << 20) - 65536, &[0xFC, 0x4E, 0x2B, 0xA9]),
        ((16 << 20) - 8192, &[0xFC, 0x4E, 0x2B, 0xA9]),
        (3, b"-FVE-FS-"),
        (0x10040, b"_BHRfS_M"),
        (0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca"),
    ];
    for (at, mark) in marks {
        let mut inside = image.clone();
        inside.bytes[*at..at + mark.len()].copy_from_slice(mark);
        assert_eq!(reason(&inside).0, "container", "{at:#x}");
    }
    // By the type of the partition, in tables of both kinds.
    if !have("sfdisk", "containers by the type of their partition") {
        return;
    }
    for (label, kinds) in [
        ("dos", &["42", "8e", "fd", "84", "bf"][..]),
        (
            "gpt",
            &[
                "A19D880F-05FC-4D3B-A006-743F0F84911E",
                "E6D6D379-F507-44C2-A23C-238F2A3DF928",
                "AF9B60A0-1431-4F62-BC68-3311714A69AD",
                "E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D",
                "CA7D7CCB-63ED-4C53-861C-1742536059CC",
            ],
        ),
    ] {
        for kind in kinds {
            let disk = image.in_partition(label, kind);
            assert_eq!(reason(&disk).0, "container", "{label} {kind}");
        }
        let plain = if label == "dos" {
            "83"
        } else {
            "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
        };
        free(&image.in_partition(label, plain));
    }
}

/// All that a new NTFS has in use belongs to its own files: whichever cluster its bitmap calls free, it is not believed.
#[test]
fn inv_45_every_cluster_of_a_new_ntfs_is_in_use() {
    if let Some(mut ntfs) = make("mkfs.ntfs", &["-q", "-F", "-Q", "-c", "4096"], 16 * MIB)
        && have("ntfscat", "the bitmap of NTFS")
    {
        let bitmap = ntfs.ntfs_bitmap();
        let place = ntfs.find(&bitmap, 0);
        let mut cleared = 0;
        for cluster in 0..4095 {
            let (at, bit) = (place + cluster / 8, 1 << (cluster % 8));
            if ntfs.bytes[at] & bit != 0 {
                ntfs.bytes[at] ^= bit;
                assert_eq!(reason(&ntfs).0, "damaged", "NTFS: cluster {cluster}");
                ntfs.bytes[at] ^= bit;
                cleared += 1;
            }
        }
        println!("NTFS: {cleared} clusters called free");
        assert!(cleared > 100);
        free(&ntfs);
        let mirror = ntfs.find(b"FILE", 5 * MIB);
        ntfs.bytes[mirror + 16] ^= 1;
        assert_eq!(reason(&ntfs).0, "damaged", "NTFS: the copy of the file table");
    }
}

/// Makes a file of `len` bytes that begins with `start`.
fn file(name: &'static str, start: &'static [u8], len: usize) -> impl Fn(&Path) {
    move |dir| {
        let mut content = vec![0; len];
        content[..start.len()].copy_from_slice(start);
        fs::write(dir.join(name), content).unwrap();
    }
}

#[test]
fn a_windows_that_sleeps_is_noticed() {
    let Some(image) = make("mkfs.ntfs", &["-q", "-F", "-Q"], 24 * MIB) else {
        return;
    };
    if !have("ntfs-3g", "hibernation files") || !common::is_root("hibernation files") {
        return;
    }
    let (yes, no) = ("dirty", "free");
    type Change = Box<dyn Fn(&Path)>;
    let cases: Vec<(&str, &str, Change)> = vec![
        ("asleep", yes, Box::new(file("hiberfil.sys", b"hibr", 9000))),
        (
            "asleep, Windows 8",
            yes,
            Box::new(file("hiberfil.sys", b"HIBR", 1 << 20)),
        ),
        ("waking up", yes, Box::new(file("hiberfil.sys", b"RSTR", 9000))),
        (
            "another case of the name",
            yes,
            Box::new(file("HiberFil.SYS", b"hibr", 9000)),
        ),
        ("too short to tell", yes, Box::new(file("hiberfil.sys", b"", 100))),
        ("never used", no, Box::new(file("hiberfil.sys", b"", 9000))),
        ("awake", no, Box::new(file("hiberfil.sys", b"wake", 9000))),
        ("another name", no, Box::new(file("hiberfil.sys2", b"hibr", 9000))),
        (
            "not in the root directory",
            no,
            Box::new(|dir| {
                fs::create_dir(dir.join("d")).unwrap();
                file("d/hiberfil.sys", b"hibr", 9000)(dir);
            }),
        ),
        (
            "deleted",
            no,
            Box::new(|dir| {
                file("hiberfil.sys", b"hibr", 9000)(dir);
                fs::remove_file(dir.join("hiberfil.sys")).unwrap();
            }),
        ),
        (
            "in a large directory",
            yes,
            Box::new(|dir| {
                for number in 0..400 {
                    fs::write(dir.join(format!("a-rather-long-name-of-a-file-{number}")), b"").unwrap();
                }
                file("hiberfil.sys", b"hibr", 9000)(dir);
            }),
        ),
    ];
    for (what, expected, change) in cases {
        let (found, text) = reason(&image.changed("ntfs-3g", &change));
        assert_eq!(found, expected, "{what}: {text}");
    }
}
