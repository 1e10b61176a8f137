use std::path::Path;

use super::*;
use crate::ErrorKind;
use crate::format::{Footer, Timestamp, UniqueId};
use crate::storage::MemoryFile;

const MIB: usize = 1 << 20;

fn detect(bytes: &[u8], name: &str) -> Result<ImageFormat, ChainError> {
    ImageFormat::detect(&file(bytes), Path::new(name))
}

fn file(bytes: &[u8]) -> MemoryFile {
    let file = MemoryFile::new();
    file.write_all_at(bytes, 0).unwrap();
    file
}

/// A disk of zeroes with bytes in some places.
fn disk(len: usize, marks: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (offset, mark) in marks {
        bytes[*offset..*offset + mark.len()].copy_from_slice(mark);
    }
    bytes
}

/// The image of a fixed disk.
fn fixed(disk: &[u8]) -> Vec<u8> {
    let footer = Footer::new(
        DiskType::Fixed,
        u64_from(disk.len()),
        UniqueId::random(),
        Timestamp::now(),
    );
    [disk, &footer.encode()].concat()
}

/// Bytes without any pattern, the same for one seed.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let words = std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB)
    });
    words.flat_map(u64::to_le_bytes).take(len).collect()
}

fn tar_header(name: &[u8], magic: &[u8]) -> Vec<u8> {
    let mut header = disk(512, &[(0, name), (100, b"0000644\0"), (148, b"        "), (257, magic)]);
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// A specimen of every row: the marks in a file of zeroes, or more where a row asks for more.
fn specimens() -> Vec<(&'static str, Vec<u8>)> {
    let special: Vec<(&str, Vec<u8>)> = vec![
        ("iso9660", disk(MIB, &[(0x8001, b"CD001")])),
        ("iso9660", disk(MIB, &[(0x8801, b"CD001")])),
        (
            "udf",
            disk(MIB, &[(0x8001, b"BEA01"), (0x8801, b"NSR03"), (512 << 10, &[2, 0])]),
        ),
        ("ghost", disk(MIB, &[(0, b"\xFE\xEF\x01\x02")])),
        ("gzip", disk(MIB, &[(0, b"\x1F\x8B\x08\x00")])),
        (
            "zstd",
            disk(MIB, &[(0, b"\x50\x2A\x4D\x18\x04\0\0\0abcd\x28\xB5\x2F\xFD")]),
        ),
        ("bzip2", disk(MIB, &[(0, b"BZh91AY&SY")])),
        ("bzip2", disk(MIB, &[(0, b"BZh1\x17\x72\x45\x38\x50\x90")])),
        (
            "lzma",
            disk(MIB, &[(0, b"\x5D\0\0\x80\0\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF")]),
        ),
        ("compress", disk(MIB, &[(0, b"\x1F\x9D\x90")])),
        ("ova", disk(MIB, &[(0, &tar_header(b"vm.ovf", b"ustar\0"))])),
        ("tar", disk(MIB, &[(0, &tar_header(b"disk.vhd", b"ustar  \0"))])),
        ("tar", disk(MIB, &[(0, &tar_header(b"old", b""))])),
        ("pe", disk(MIB, &[(0, b"MZ"), (0x3C, &[0x80]), (0x80, b"PE\0\0")])),
        ("text", b"Just a few words.\n".repeat(100)),
        ("text", "Grüße aus Zürich, ärgerlich größer\n".repeat(5000).into_bytes()),
        (
            "text",
            [
                &[0xFF, 0xFE][..],
                &"Windows text\r\n"
                    .repeat(90)
                    .encode_utf16()
                    .flat_map(u16::to_le_bytes)
                    .collect::<Vec<_>>(),
            ]
            .concat(),
        ),
        ("text", b"{\"json\": true}".repeat(50)),
    ];
    let mut all = special;
    for known in KNOWN_TABLE {
        for mark in known.marks {
            all.push(match mark {
                known::Mark::At(offset, bytes) => (known.format.id, disk(MIB, &[(*offset, bytes)])),
                known::Mark::BeforeEnd(from_end, bytes) => (known.format.id, disk(MIB, &[(MIB - from_end, bytes)])),
                known::Mark::If(_) => continue,
            });
        }
    }
    all
}

const KNOWN_TABLE: &[known::Known] = known::KNOWN;

#[test]
fn every_foreign_format_is_recognised_whatever_its_name() {
    let specimens = specimens();
    for known in KNOWN_TABLE {
        let id = known.format.id;
        assert!(specimens.iter().any(|(other, _)| *other == id), "no specimen of {id}");
    }
    for (id, bytes) in specimens {
        for name in ["x", "x.vhd", "x.raw", "x.AVHDX"] {
            match detect(&bytes, name) {
                Err(ChainError::Foreign { format, .. }) => assert_eq!(format.id(), id, "{name}"),
                Ok(format) if is_read(id) => assert_eq!(format.name(), id, "{name}"),
                other => panic!("{id} as {name}: {other:?}"),
            }
        }
        let needs_vhd = require_vhd(&file(&bytes), Path::new("x.vhd")).unwrap_err();
        let kind = match is_read(id) {
            true => ErrorKind::ReadOnlyFormat,
            false => ErrorKind::ForeignFormat,
        };
        assert_eq!(needs_vhd.kind(), kind, "{id}");
        // As the disk of a fixed image anything is fine.
        assert_eq!(detect(&fixed(&bytes), "x").unwrap(), ImageFormat::Vhd, "{id}");
    }
}

/// Whether images in a format are read here.
fn is_read(id: &str) -> bool {
    KNOWN_TABLE
        .iter()
        .any(|known| known.format.id == id && known.format.readable().is_some())
}

#[test]
fn rows_have_names_of_their_own() {
    let ids: std::collections::HashSet<_> = KNOWN_TABLE.iter().map(|known| known.format.id).collect();
    assert_eq!(ids.len(), KNOWN_TABLE.len());
    for known in KNOWN_TABLE {
        assert!(known.format.name.is_ascii() && !known.marks.is_empty());
    }
    assert_eq!(
        ForeignFormat::of_disk_extension("AVHDX").map(|format| format.label()),
        Some("VHDX")
    );
    assert_eq!(ForeignFormat::of_disk_extension("raw"), None);
}

/// An MBR with one partition.
fn mbr() -> Vec<u8> {
    let entry = [0x80, 0, 2, 0, 7, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0];
    disk(512, &[(446, &entry), (510, b"\x55\xAA")])
}

fn disk_contents() -> Vec<(&'static str, Vec<u8>)> {
    let mbr = mbr();
    vec![
        ("zeroes", disk(MIB, &[])),
        ("one byte", vec![0x5A; MIB]),
        ("MBR", disk(MIB, &[(0, &mbr)])),
        (
            "GPT",
            disk(MIB, &[(510, b"\x55\xAA"), (450, &[0xEE]), (512, b"EFI PART")]),
        ),
        ("NTFS", disk(MIB, &[(0, b"\xEB\x52\x90NTFS    "), (510, b"\x55\xAA")])),
        ("exFAT", disk(MIB, &[(0, b"\xEB\x76\x90EXFAT   "), (510, b"\x55\xAA")])),
        ("BitLocker", disk(MIB, &[(0, b"\xEB\x58\x90-FVE-FS-")])),
        (
            "FAT",
            disk(
                MIB,
                &[(0, b"\xEB\x58\x90mkfs.fat"), (82, b"FAT32   "), (510, b"\x55\xAA")],
            ),
        ),
        ("LUKS", disk(MIB, &[(0, b"LUKS\xBA\xBE\0\x02")])),
        ("LVM", disk(MIB, &[(512, b"LABELONE")])),
        ("RAID", disk(MIB, &[(4096, b"\xFC\x4E\x2B\xA9")])),
        ("XFS", disk(MIB, &[(0, b"XFSB")])),
        ("ext", disk(MIB, &[(0x438, b"\x53\xEF")])),
        ("btrfs", disk(MIB, &[(0x1_0040, b"_BHRfS_M")])),
        ("swap", disk(MIB, &[(4086, b"SWAPSPACE2")])),
        ("squashfs", disk(MIB, &[(0, b"hsqs")])),
        (
            "UDF of a hard disk",
            disk(MIB, &[(0x8001, b"BEA01"), (0x8801, b"NSR03"), (128 << 10, &[2, 0])]),
        ),
        ("hybrid ISO", disk(MIB, &[(0, &mbr), (0x8001, b"CD001")])),
        (
            "old ISO below LVM",
            disk(MIB, &[(512, b"LABELONE"), (0x8001, b"CD001")]),
        ),
        ("text and zeroes", disk(MIB, &[(0, b"text")])),
        (
            "text at the start only",
            [b"text\n".repeat(2000), noise(MIB, 5)].concat(),
        ),
        ("a short magic number alone", disk(MIB, &[(0, b"BZh9")])),
        ("MZ alone", disk(MIB, &[(0, b"MZ")])),
        (
            "gzip's magic number with reserved flags",
            disk(MIB, &[(0, b"\x1F\x8B\x08\xE0")]),
        ),
    ]
}

#[test]
fn what_belongs_on_a_disk_is_raw() {
    for (what, bytes) in disk_contents() {
        match detect(&bytes, "disk.raw") {
            Ok(format) => assert_eq!(format, ImageFormat::Raw, "{what}"),
            Err(error) => panic!("{what}: {error}"),
        }
    }
    for seed in 0..500 {
        assert_eq!(
            detect(&noise(8192, seed), "disk.raw").unwrap(),
            ImageFormat::Raw,
            "seed {seed}"
        );
    }
}

#[test]
fn a_name_that_promises_a_vhd_is_not_raw_without_one() {
    for (what, bytes) in disk_contents() {
        for name in ["a.vhd", "b.VHD", "c.avhd", "d.Vud", "e.vhdx", "dir.raw/f.AVHDX"] {
            let error = detect(&bytes, name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::FooterLost, "{what} as {name}");
            assert!(error.to_string().contains(&format!("vhd repair {name}")), "{error}");
            require_vhd(&file(&bytes), Path::new(name)).unwrap();
        }
        let error = require_vhd(&file(&bytes), Path::new("a.img")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotVhd, "{what}");
        // The name of an export says nothing.
        let remote = ImageFormat::detect_remote(&file(&bytes), Path::new("nbd://host/a.vhd"));
        assert_eq!(remote.unwrap(), ImageFormat::Raw, "{what}");
    }
    for name in ["vhd", ".vhd", "a.vhd.raw", "avhd.img"] {
        assert_eq!(detect(&disk(MIB, &[]), name).unwrap(), ImageFormat::Raw, "{name}");
    }
    let dir = tempfile::tempdir().unwrap();
    let [target, link] = ["cut.vhd", "link.raw"].map(|name| dir.path().join(name));
    std::fs::write(&target, vec![7; 8192]).unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let error = ImageFormat::detect(&file(&[7; 8192]), &link).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FooterLost);
}

#[test]
fn what_is_said_of_a_lost_footer() {
    for (content, words) in [
        (disk(MIB, &[(0, &mbr())]), "an MBR partition table"),
        (disk(MIB, &[]), "zeroes"),
        (noise(MIB, 1), "data of no known kind"),
        (disk(MIB, &[(3, b"NTFS    ")]), "an NTFS file system"),
    ] {
        let said = detect(&content, "cut.vhd").unwrap_err().to_string();
        assert!(said.contains(&format!("begins with {words}")), "{said}");
        assert!(said.contains("1048576 bytes") && said.contains("--from raw"), "{said}");
    }
}

#[test]
fn less_than_a_sector_is_no_disk() {
    for len in [0, 1, 100, 510, 511] {
        for name in ["a", "a.vhd"] {
            assert_eq!(
                detect(&noise(len, 3), name).unwrap_err().kind(),
                ErrorKind::TooSmall,
                "{len}"
            );
        }
    }
    // No test of a format reads past the end.
    for (id, bytes) in specimens() {
        for len in (0..=600).filter(|len| *len <= bytes.len()) {
            // The reader of a format that is read says what is missing.
            let found = detect(&bytes[..len], "a");
            let is_disk = matches!(found, Ok(ImageFormat::Raw | ImageFormat::Vhd));
            assert!(!is_disk || len >= 512, "{id} {len}");
        }
    }
    for few in [&b"a word"[..], b"\x1F\x8B\x08\0\0", b"PK\x05\x06"] {
        assert_eq!(
            detect(few, "a").unwrap_err().kind(),
            ErrorKind::ForeignFormat,
            "{few:?}"
        );
    }
    for len in [512, 513, 1000] {
        assert_eq!(detect(&noise(len, 3), "a").unwrap(), ImageFormat::Raw, "{len}");
    }
}

#[test]
fn a_fixed_image_with_bytes_behind_it_is_not_raw() {
    let content = noise(2 * MIB, 11);
    let image = fixed(&content);
    let tails = [
        1,
        511,
        512,
        4096,
        65_023,
        65_024,
        65_025,
        65_536,
        70_001,
        100_000,
        131_072,
        MIB,
        MIB + 1,
        5 * MIB,
        15 * MIB,
    ];
    for tail in tails {
        for filler in [noise(tail, 12), vec![0; tail], vec![0xFF; tail]] {
            let bytes = [&image[..], &filler].concat();
            let error = detect(&bytes, "copy.img").unwrap_err();
            match error {
                ChainError::Ambiguous { offset, file_len, .. } => {
                    assert_eq!((offset, file_len), (u64_from(content.len()), u64_from(bytes.len())));
                }
                other => panic!("{tail} bytes behind: {other}"),
            }
        }
    }
}

#[test]
fn a_footer_far_from_the_end_is_found_where_disks_end() {
    // Holes behind it are skipped, of any length.
    let grown = file(&fixed(&noise(MIB, 1)));
    grown.set_len(100 << 30).unwrap();
    // Data behind it: the size is a usual one.
    let covered = file(&fixed(&noise(4 * MIB, 2)));
    covered.write_all_at(&noise(MIB, 3), 200 << 20).unwrap();
    // An odd size: the partition table says where the disk ends.
    let mut partitioned = noise(3 * MIB + 5 * 512, 4);
    partitioned[..512].copy_from_slice(&mbr());
    let partitioned = file(&fixed(&partitioned));
    partitioned.write_all_at(&noise(MIB, 5), 900 << 20).unwrap();
    for file in [grown, covered, partitioned] {
        let found = ImageFormat::detect(&file, Path::new("disk.img"));
        assert_eq!(found.unwrap_err().kind(), ErrorKind::Ambiguous);
    }
}

#[test]
fn a_disk_whose_partition_table_ends_with_the_file_has_no_other_end() {
    // A smaller fixed image was here before.
    let mut bytes = fixed(&noise(MIB, 6));
    bytes.resize(4 * MIB, 0);
    let header = disk(
        512,
        &[(0, b"EFI PART"), (32, &u64_from(4 * MIB / 512 - 1).to_le_bytes())],
    );
    bytes[512..1024].copy_from_slice(&header);
    let error = detect(&bytes, "disk.img").unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Ambiguous,
        "the table says so, and there is none"
    );
    bytes[4 * MIB - 512..].copy_from_slice(&header);
    assert_eq!(detect(&bytes, "disk.img").unwrap(), ImageFormat::Raw);
    // The table of a disk that was larger, or smaller, says nothing about this file.
    for sector in [0, 2047, 2048, 8190, 8192, u64::MAX - 1, u64::MAX] {
        bytes[512 + 32..512 + 40].copy_from_slice(&sector.to_le_bytes());
        let error = detect(&bytes, "disk.img").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Ambiguous, "{sector}");
    }
}

#[test]
fn footers_of_images_inside_a_disk_are_nothing_to_it() {
    let mut bytes = vec![0; 8 * MIB];
    bytes[..512].copy_from_slice(&mbr());
    let inner = fixed(&noise(MIB, 21));
    for at in [MIB, 2 * MIB, 5 * MIB] {
        bytes[at..at + inner.len()].copy_from_slice(&inner);
    }
    assert_eq!(detect(&bytes, "disk.raw").unwrap(), ImageFormat::Raw);
}

#[test]
fn a_container_that_ends_with_a_disk_that_ends_with_a_footer_is_a_container() {
    let mut bytes = disk(MIB, &[(0, b"QFI\xFB\0\0\0\x03")]);
    let inner = fixed(&noise(2 * MIB, 31));
    bytes.extend(inner);
    assert_eq!(detect(&bytes, "disk.qcow2").unwrap(), ImageFormat::Qcow2);
}
