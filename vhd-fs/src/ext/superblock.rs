//! The superblock: what the file system is, whether it is clean, and how its structures are checked.

use crate::Unusable;
use crate::bytes::{byte, le16, le32};
use crate::checksum::{crc16, crc32c, matches};
use crate::probe::known_features;
use crate::window::Window;

const STATE_CLEAN: u16 = 1;
const STATE_ERRORS: u16 = 2;

const COMPAT_JOURNAL: u32 = 0x4;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_CHECKSUM_SEED: u32 = 0x2000;
/// File types, extents, 64 bits, flexible groups, values in inodes, directory data, checksum seed, large
/// directories, inline data, encrypted files, case folding: none of them changes what a block bitmap means.
const INCOMPAT_KNOWN: u32 = 0x2 | 0x40 | INCOMPAT_64BIT | 0x200 | 0x400 | 0x1000 | 0x2000 | 0x4000 | 0x8000 | 0x3_0000;
const RO_SPARSE_SUPER: u32 = 0x1;
const RO_GROUP_CHECKSUMS: u32 = 0x10;
const RO_METADATA_CHECKSUMS: u32 = 0x400;
const RO_BIGALLOC: u32 = 0x200;
const RO_ORPHANS_PRESENT: u32 = 0x1_0000;
/// Sparse superblocks, large files, hashed directories, huge files, checksums, many links, extra inode size,
/// quota, metadata checksums, read-only, project quota, verity.
const RO_KNOWN: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x400 | 0x1000 | 0x2000 | 0x8000;

const CHECKSUM_AT: usize = 1020;
const CRC32C: u8 = 1;
/// Where the checksum of a group's descriptor is in it.
const GROUP_CHECKSUM_AT: usize = 30;
/// The most groups that are read: a disk of 2 TiB with the smallest blocks has a quarter of them.
const MAX_GROUPS: u64 = 1 << 20;

/// How descriptors and bitmaps are checked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Checksums {
    None,
    /// CRC-16 of descriptors, which goes on from this one.
    Groups(u16),
    /// CRC-32C of everything, which goes on from this one.
    All(u32),
}

/// Which groups begin with copies of the superblock.
enum Copies {
    All,
    /// The groups 0 and 1, and the powers of 3, 5 and 7.
    Sparse,
    /// Group 0 and these two.
    Two([u64; 2]),
}

/// What the superblock says, checked.
pub(super) struct Superblock {
    pub(super) block: u64,
    pub(super) blocks: u64,
    pub(super) first_block: u64,
    pub(super) per_group: u64,
    pub(super) groups: u64,
    /// Bytes of a group's descriptor.
    pub(super) descriptor: u64,
    pub(super) checksums: Checksums,
    copies: Copies,
    /// Blocks that a group with a copy of the superblock begins with.
    pub(super) copy_blocks: u64,
    /// Blocks of a group's inode table.
    pub(super) inode_table: u64,
    pub(super) inodes_per_group: u64,
    pub(super) inode_size: u64,
    pub(super) free_blocks: u64,
    pub(super) has_journal: bool,
}

impl Superblock {
    pub(super) fn of(window: &Window<'_>, sb: &[u8]) -> Result<Self, Unusable> {
        let (compat, incompat, ro_compat) = match le32(sb, 76) {
            0 => (0, 0, 0),
            _ => (le32(sb, 92), le32(sb, 96), le32(sb, 100)),
        };
        let checksums = checksums(window, sb, incompat, ro_compat)?;
        check_clean(window, sb, incompat, ro_compat)?;
        check_features(window, incompat, ro_compat)?;
        let log_block = le32(sb, 24);
        if log_block > 6 {
            return Err(window.damaged("its blocks have no possible size"));
        }
        let block = 1024_u64 << log_block;
        let is_wide = incompat & INCOMPAT_64BIT != 0;
        let wide = |low: usize, high: usize| {
            let upper = if is_wide { u64::from(le32(sb, high)) } else { 0 };
            upper << 32 | u64::from(le32(sb, low))
        };
        let descriptor = if is_wide { u64::from(le16(sb, 254)) } else { 32 };
        let (blocks, first_block) = (wide(4, 336), u64::from(le32(sb, 20)));
        let per_group = u64::from(le32(sb, 32));
        let inode_size = match le32(sb, 76) {
            0 => 128,
            _ => u64::from(le16(sb, 88)),
        };
        let fits = blocks.checked_mul(block).is_some_and(|bytes| bytes <= window.len);
        if !fits || first_block >= blocks || first_block > 1 {
            return Err(window.damaged("it is larger than its partition"));
        }
        if per_group < 256
            || per_group > 8 * block
            || !descriptor.is_power_of_two()
            || !(32..=block).contains(&descriptor)
        {
            return Err(window.damaged("its groups have no possible size"));
        }
        let groups = (blocks - first_block).div_ceil(per_group);
        if groups > MAX_GROUPS {
            return Err(window.unsupported("more than a million groups"));
        }
        let reserved = u64::from(le16(sb, 206));
        Ok(Self {
            block,
            blocks,
            first_block,
            per_group,
            groups,
            descriptor,
            checksums,
            copies: match () {
                () if compat & COMPAT_SPARSE_SUPER2 != 0 => Copies::Two([588, 592].map(|at| u64::from(le32(sb, at)))),
                () if ro_compat & RO_SPARSE_SUPER != 0 => Copies::Sparse,
                () => Copies::All,
            },
            copy_blocks: 1 + (groups * descriptor).div_ceil(block) + reserved,
            inode_table: (u64::from(le32(sb, 40)) * inode_size).div_ceil(block),
            inodes_per_group: u64::from(le32(sb, 40)),
            inode_size,
            free_blocks: wide(12, 344),
            has_journal: compat & COMPAT_JOURNAL != 0,
        })
    }

    pub(super) fn has_copies(&self, number: u64) -> bool {
        let is_power = |base: u64| {
            let mut power = base;
            while power < number {
                power = power.saturating_mul(base);
            }
            power == number
        };
        number == 0
            || match self.copies {
                Copies::All => true,
                Copies::Sparse => number == 1 || [3, 5, 7].into_iter().any(is_power),
                Copies::Two(groups) => groups.contains(&number),
            }
    }

    /// Whether a group's descriptor has the checksum that it says.
    pub(super) fn is_descriptor_sound(&self, number: u64, bytes: &[u8]) -> bool {
        let stored = le16(bytes, GROUP_CHECKSUM_AT);
        let number = number.to_le_bytes();
        let number = &number[..4];
        match self.checksums {
            Checksums::None => true,
            Checksums::Groups(seed) => {
                let sum = crc16(crc16(seed, number), &bytes[..GROUP_CHECKSUM_AT]);
                matches(
                    crc16(sum, bytes.get(GROUP_CHECKSUM_AT + 2..).unwrap_or_default()),
                    stored,
                )
            }
            Checksums::All(seed) => {
                let sum = crc32c(crc32c(seed, number), &bytes[..GROUP_CHECKSUM_AT]);
                let sum = crc32c(sum, &[0; 2]);
                let sum = crc32c(sum, bytes.get(GROUP_CHECKSUM_AT + 2..).unwrap_or_default());
                matches(sum & 0xFFFF, u32::from(stored))
            }
        }
    }

    /// Whether a bitmap has the checksum that its group's descriptor has for it: the lower half at `low`, the upper one
    /// at `high` if descriptors are that long.
    pub(super) fn is_bitmap_sound(&self, bitmap: &[u8], descriptor: &[u8], low: usize, high: usize) -> bool {
        let Checksums::All(seed) = self.checksums else {
            return true;
        };
        let sum = crc32c(seed, bitmap);
        let is_low = matches(sum & 0xFFFF, u32::from(le16(descriptor, low)));
        is_low && (descriptor.len() < high + 2 || matches(sum >> 16, u32::from(le16(descriptor, high))))
    }
}

/// How structures are checked, once the superblock itself was.
fn checksums(window: &Window<'_>, sb: &[u8], incompat: u32, ro_compat: u32) -> Result<Checksums, Unusable> {
    let uuid = &sb[104..120];
    if ro_compat & RO_METADATA_CHECKSUMS == 0 {
        return Ok(match ro_compat & RO_GROUP_CHECKSUMS {
            0 => Checksums::None,
            _ => Checksums::Groups(crc16(!0, uuid)),
        });
    }
    if byte(sb, 373) != CRC32C {
        return Err(window.unsupported("an unknown kind of checksum"));
    }
    if !matches(crc32c(!0, &sb[..CHECKSUM_AT]), le32(sb, CHECKSUM_AT)) {
        return Err(window.damaged("the checksum of its superblock is wrong"));
    }
    Ok(Checksums::All(match incompat & INCOMPAT_CHECKSUM_SEED {
        0 => crc32c(!0, uuid),
        _ => le32(sb, 624),
    }))
}

fn check_clean(window: &Window<'_>, sb: &[u8], incompat: u32, ro_compat: u32) -> Result<(), Unusable> {
    let state = le16(sb, 58);
    // INV-13: a journal that is to be replayed changes the bitmaps.
    if incompat & INCOMPAT_RECOVER != 0 {
        return Err(window.dirty("its journal must be replayed"));
    }
    if state & STATE_CLEAN == 0 || state & STATE_ERRORS != 0 {
        return Err(window.dirty("it was not unmounted, or has errors"));
    }
    if ro_compat & RO_ORPHANS_PRESENT != 0 || le32(sb, 232) != 0 {
        return Err(window.dirty("it has files to be deleted"));
    }
    Ok(())
}

fn check_features(window: &Window<'_>, incompat: u32, ro_compat: u32) -> Result<(), Unusable> {
    if incompat & INCOMPAT_META_BG != 0 {
        return Err(window.unsupported("group descriptors in groups of their own (meta_bg)"));
    }
    if ro_compat & RO_BIGALLOC != 0 {
        return Err(window.unsupported("clusters of blocks (bigalloc)"));
    }
    known_features("ext2/3/4", incompat, INCOMPAT_KNOWN)?;
    known_features("ext2/3/4 (read-only set)", ro_compat, RO_KNOWN)
}
