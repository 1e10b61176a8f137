//! What a raw disk begins with, as far as it is known: for messages, and to tell a disk from an optical disc that was
//! made to be written to one.

use super::sample::Sample;
use crate::units::{SECTOR_SIZE, usize_from};

/// What is known at the start of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DiskContent(&'static str);

/// Bytes at an offset that tell a content.
struct Known {
    name: &'static str,
    marks: &'static [(usize, &'static [u8])],
}

const fn known(name: &'static str, marks: &'static [(usize, &'static [u8])]) -> Known {
    Known { name, marks }
}

/// Where a boot sector has its signature.
const BOOT_SIGNATURE: usize = 510;
/// Where the four entries of an MBR are, of 16 bytes each.
const MBR_ENTRIES: usize = 446;
const MBR_ENTRY: usize = 16;
/// Where the header of a GPT is, and in it the sector of the other one: the last of the disk.
const GPT_HEADER: usize = 512;
const GPT_ALTERNATE: usize = 32;

/// What has a mark of its own; a partition table is looked at last, as boot sectors of file systems look like one.
#[rustfmt::skip]
const CONTENTS: &[Known] = &[
    known("an NTFS file system", &[(3, b"NTFS    ")]),
    known("an exFAT file system", &[(3, b"EXFAT   ")]),
    known("a ReFS file system", &[(3, b"ReFS\0")]),
    known("a BitLocker volume", &[(3, b"-FVE-FS-")]),
    known("a FAT file system", &[(82, b"FAT32   "), (54, b"FAT12   "), (54, b"FAT16   ")]),
    known("a LUKS volume", &[(0, b"LUKS\xBA\xBE")]),
    known("an LVM physical volume", &[(512, b"LABELONE"), (0, b"LABELONE"), (1024, b"LABELONE")]),
    known("a member of a software RAID", &[(0, b"\xFC\x4E\x2B\xA9"), (4096, b"\xFC\x4E\x2B\xA9")]),
    known("an XFS file system", &[(0, b"XFSB")]),
    known("an ext2, ext3 or ext4 file system", &[(0x438, b"\x53\xEF")]),
    known("a btrfs file system", &[(0x1_0040, b"_BHRfS_M")]),
    known("swap space", &[(4086, b"SWAPSPACE2"), (4086, b"SWAP-SPACE")]),
    known("an HFS+ file system", &[(1024, b"H+\0\x04"), (1024, b"HX\0\x05")]),
    known("an APFS container", &[(32, b"NXSB")]),
    known("an F2FS file system", &[(1024, b"\x10\x20\xF5\xF2")]),
    known("a ReiserFS file system", &[(0x1_0034, b"ReIsEr")]),
    known("a JFS file system", &[(0x8000, b"JFS1")]),
    known("a squashfs file system", &[(0, b"hsqs")]),
    known("an EROFS file system", &[(1024, b"\xE2\xE1\xF5\xE0")]),
    known("a GUID partition table", &[(512, b"EFI PART"), (4096, b"EFI PART")]),
];

impl DiskContent {
    /// What a file begins with, if that is known.
    pub(super) fn of(sample: &Sample<'_>) -> Option<Self> {
        let found = CONTENTS.iter().find(|known| {
            let mut marks = known.marks.iter();
            marks.any(|(offset, bytes)| sample.has(*offset, bytes))
        });
        match found {
            Some(known) => Some(Self(known.name)),
            None if has_mbr(sample) => Some(Self("an MBR partition table")),
            None => None,
        }
    }

    /// For a sentence, with an article.
    pub(super) fn name(self) -> &'static str {
        self.0
    }
}

/// Where the disk, or its last partition, ends by the partition table in its first sectors. It is no more than a place to
/// look at: nothing of the table is checked.
pub(super) fn partitioned_end(sample: &Sample<'_>) -> Option<u64> {
    let last_sector = if sample.has(GPT_HEADER, b"EFI PART") {
        sample.number::<8>(GPT_HEADER + GPT_ALTERNATE)?.checked_add(1)?
    } else if has_mbr(sample) {
        let ends = (0..4).filter_map(|index| {
            let entry = MBR_ENTRIES + index * MBR_ENTRY;
            Some(sample.number::<4>(entry + 8)? + sample.number::<4>(entry + 12)?)
        });
        ends.max()?
    } else {
        return None;
    };
    last_sector.checked_mul(SECTOR_SIZE)
}

/// Whether the disk in a file ends where the file does: the backup of a GPT is there, and the first one says so. Then no
/// other end needs to be looked for.
pub(super) fn ends_with_partition_table(sample: &Sample<'_>) -> bool {
    sample.ends_with(usize_from(SECTOR_SIZE), b"EFI PART") && partitioned_end(sample) == Some(sample.file_len())
}

/// Whether the first sector is a master boot record with at least one partition, and nothing in the place of an entry
/// that can't be one.
fn has_mbr(sample: &Sample<'_>) -> bool {
    let Some(entries) = sample.head().get(MBR_ENTRIES..BOOT_SIGNATURE) else {
        return false;
    };
    let (entries, _) = entries.as_chunks::<MBR_ENTRY>();
    let is_entry = |entry: &[u8; MBR_ENTRY]| entry[0] & 0x7F == 0;
    let is_used = |entry: &[u8; MBR_ENTRY]| entry[4] != 0 && entry[12..] != [0; 4];
    sample.has(BOOT_SIGNATURE, b"\x55\xAA") && entries.iter().all(is_entry) && entries.iter().any(is_used)
}
