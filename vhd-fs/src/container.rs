//! What keeps file systems inside, or is one that is not read here: only its own tools know what is free.

use uuid::{Uuid, uuid};
use vhd_partition::PartitionType;

use crate::Unusable;
use crate::bytes::{count, has};
use crate::window::Window;

const RAID: &str = "part of a RAID";
const LVM: &str = "a volume of LVM";
const DYNAMIC: &str = "part of a dynamic disk of Windows";
const ZFS: &str = "a ZFS";
const HIBERNATION: &str = "a partition for hibernation";

/// Types of partitions in an MBR.
const MBR_TYPES: &[(u8, &str)] = &[
    (0x42, DYNAMIC),
    (0x84, HIBERNATION),
    (0x8E, LVM),
    (0xA5, "a BSD slice"),
    (0xA6, "a BSD slice"),
    (0xA9, "a BSD slice"),
    (0xBF, "a Solaris slice"),
    (0xFB, "a VMFS"),
    (0xFD, RAID),
];

/// Types of partitions in a GPT.
const GPT_TYPES: &[(Uuid, &str)] = &[
    (uuid!("a19d880f-05fc-4d3b-a006-743f0f84911e"), RAID),
    (uuid!("e6d6d379-f507-44c2-a23c-238f2a3df928"), LVM),
    (uuid!("5808c8aa-7e8f-42e0-85d2-e1e90434cfb3"), DYNAMIC),
    (uuid!("af9b60a0-1431-4f62-bc68-3311714a69ad"), DYNAMIC),
    (
        uuid!("e75caf8f-f680-4cee-afa3-b001e56efc2d"),
        "part of a storage pool of Windows",
    ),
    (
        uuid!("558d43c5-a1ac-43c0-aac8-d1472b2923d1"),
        "a log of storage replicas",
    ),
    (uuid!("ca7d7ccb-63ed-4c53-861c-1742536059cc"), "encrypted with LUKS"),
    (uuid!("6a898cc3-1dd2-11b2-99a6-080020736631"), ZFS),
    (uuid!("aa31e02a-400f-11db-9590-000c2911d1b8"), "a VMFS"),
    (uuid!("516e7cb6-6ecf-11d6-8ff8-00022d09712b"), "a UFS"),
    (uuid!("516e7cba-6ecf-11d6-8ff8-00022d09712b"), ZFS),
    (uuid!("52414944-0000-11aa-aa11-00306543ecac"), RAID),
    (uuid!("d3bfe2de-3daf-11df-ba40-e3a556d89593"), HIBERNATION),
];

const MD_MAGIC: [u8; 4] = [0xFC, 0x4E, 0x2B, 0xA9];

/// Signatures: where, what, and of what.
const SIGNATURES: &[(u64, &[u8], &str)] = &[
    (0, b"LUKS\xba\xbe", "encrypted with LUKS"),
    (0x4000, b"SKUL\xba\xbe", "encrypted with LUKS"),
    (3, b"-FVE-FS-", "encrypted with BitLocker"),
    // BitLocker To Go looks like a FAT; this is its GUID.
    (
        424,
        b"\x3b\xd6\x67\x49\x29\x2e\xd8\x4a\x83\x99\xf6\xa3\x39\xe3\xd0\x01",
        "encrypted with BitLocker",
    ),
    (0, b"LABELONE", LVM),
    (512, b"LABELONE", LVM),
    (1024, b"LABELONE", LVM),
    (1536, b"LABELONE", LVM),
    (0, &MD_MAGIC, RAID),
    (4096, &MD_MAGIC, RAID),
    (0x10040, b"_BHRfS_M", "a btrfs"),
    (3, b"ReFS\0\0\0\0", "a ReFS"),
    (0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "a bcache device"),
    (1024, b"\x10\x20\xf5\xf2", "an F2FS"),
    (32, b"NXSB", "an APFS"),
    (0x10_0000, b"\x0d\xd0\x01\xc0", "a VMFS"),
    (0x600, b"PRIVHEAD", DYNAMIC),
    (0xC00, b"PRIVHEAD", DYNAMIC),
];

/// The name of what a type of partition is for, if that is a container.
pub(crate) fn by_type(kind: PartitionType) -> Option<&'static str> {
    match kind {
        PartitionType::Mbr(kind) => named(MBR_TYPES, &kind),
        PartitionType::Gpt(kind) => named(GPT_TYPES, &kind),
    }
}

fn named<T: PartialEq>(names: &[(T, &'static str)], wanted: &T) -> Option<&'static str> {
    names.iter().find(|(kind, _)| kind == wanted).map(|(_, name)| *name)
}

/// The name of the container that a partition, or a whole disk, holds by its signatures.
pub(crate) fn by_signature(window: &Window<'_>) -> Result<Option<&'static str>, Unusable> {
    for &(at, signature, name) in SIGNATURES {
        let found = window.peek(at, count(signature.len()))?;
        if !found.is_empty() && found == signature {
            return Ok(Some(name));
        }
    }
    // RAID members of the versions 0.90 and 1.0 have their superblock at the end.
    let old = (window.len & !0xFFFF).checked_sub(0x1_0000);
    let new = (window.len & !0xFFF).checked_sub(0x2000);
    for at in [old, new].into_iter().flatten() {
        if has(&window.peek(at, 4)?, 0, &MD_MAGIC) {
            return Ok(Some(RAID));
        }
    }
    Ok(None)
}
