//! Disks with tables of every kind, written field by field and not by the crate under test.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

pub const SECTOR: usize = 512;
pub const DISK_GUID: [u8; 16] = [0xD1; 16];

/// Number and bytes of the entries of a GPT.
#[derive(Clone, Copy, Debug)]
pub struct Entries {
    pub count: u32,
    pub size: u32,
}

impl Entries {
    pub fn sectors(self) -> u64 {
        (u64::from(self.count) * u64::from(self.size)).div_ceil(512)
    }
}

/// What a GPT header says.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub own: u64,
    pub other: u64,
    pub first_usable: u64,
    pub last_usable: u64,
    pub guid: [u8; 16],
    pub array: u64,
    pub entries: Entries,
    pub array_checksum: u32,
}

impl Header {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR];
        bytes[..8].copy_from_slice(b"EFI PART");
        bytes[8..12].copy_from_slice(&0x1_0000_u32.to_le_bytes());
        bytes[12..16].copy_from_slice(&92_u32.to_le_bytes());
        for (at, value) in [
            (24, self.own),
            (32, self.other),
            (40, self.first_usable),
            (48, self.last_usable),
            (72, self.array),
        ] {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes[56..72].copy_from_slice(&self.guid);
        for (at, value) in [
            (80, self.entries.count),
            (84, self.entries.size),
            (88, self.array_checksum),
        ] {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let sum = crc32fast::hash(&bytes[..92]);
        bytes[16..20].copy_from_slice(&sum.to_le_bytes());
        bytes
    }
}

/// A disk with a GPT; fields may be changed before it is built.
#[derive(Clone, Debug)]
pub struct GptDisk {
    pub sectors: u64,
    pub entries: Entries,
    /// First and last sectors.
    pub parts: Vec<(u64, u64)>,
    pub backup_parts: Vec<(u64, u64)>,
    pub primary_array: u64,
    pub backup_header: u64,
    /// Where the backup says its entries are; they are written there only if nothing else is.
    pub backup_array: Option<u64>,
    pub backup_guid: [u8; 16],
    pub backup_other: u64,
    pub named_backup: Option<u64>,
    pub first_usable: Option<u64>,
}

impl GptDisk {
    pub fn new(sectors: u64, parts: &[(u64, u64)]) -> Self {
        Self {
            sectors,
            entries: Entries { count: 128, size: 128 },
            parts: parts.to_vec(),
            backup_parts: parts.to_vec(),
            primary_array: 2,
            backup_header: sectors - 1,
            backup_array: None,
            backup_guid: DISK_GUID,
            backup_other: 1,
            named_backup: None,
            first_usable: None,
        }
    }

    /// The disk's bytes.
    pub fn build(&self) -> Vec<u8> {
        let mut disk = vec![0; usize::try_from(self.sectors).unwrap() * SECTOR];
        let count = u32::try_from(self.sectors - 1).unwrap();
        mbr_entry(&mut disk, 0, 0, 0xEE, 1, count);
        let array_len = self.entries.sectors().min(4096);
        let own_array = self.backup_header.saturating_sub(array_len);
        let array = entries(self.entries, &self.parts);
        put(&mut disk, self.primary_array, &array);
        let header = Header {
            own: 1,
            other: self.named_backup.unwrap_or(self.backup_header),
            first_usable: self.first_usable.unwrap_or(self.primary_array.max(2) + array_len),
            last_usable: own_array - 1,
            guid: DISK_GUID,
            array: self.primary_array,
            entries: self.entries,
            array_checksum: crc32fast::hash(&array),
        };
        put(&mut disk, 1, &header.encode());
        // Entries elsewhere are what is there: a header that lies has a checksum that matches.
        let backup_array = self.backup_array.unwrap_or(own_array);
        if self.backup_array.is_none() {
            put(&mut disk, own_array, &entries(self.entries, &self.backup_parts));
        }
        let start = usize::try_from(backup_array).unwrap() * SECTOR;
        let there = disk.get(start..start + array.len()).unwrap_or_default();
        let backup = Header {
            own: self.backup_header,
            other: self.backup_other,
            guid: self.backup_guid,
            array: backup_array,
            array_checksum: crc32fast::hash(there),
            ..header
        };
        put(&mut disk, self.backup_header, &backup.encode());
        disk
    }
}

fn entries(form: Entries, parts: &[(u64, u64)]) -> Vec<u8> {
    let len = (u64::from(form.count) * u64::from(form.size)).min(2 << 20);
    let mut array = vec![0; usize::try_from(len).unwrap()];
    for (index, (first, last)) in parts.iter().enumerate() {
        let at = index * form.size as usize;
        if form.size < 128 || at + 128 > array.len() {
            break;
        }
        array[at..at + 16].fill(0xA1);
        array[at + 16..at + 32].fill(u8::try_from(index + 1).unwrap());
        array[at + 32..at + 40].copy_from_slice(&first.to_le_bytes());
        array[at + 40..at + 48].copy_from_slice(&last.to_le_bytes());
        array[at + 56..at + 58].copy_from_slice(&[b'n', 0]);
    }
    array
}

fn put(disk: &mut [u8], lba: u64, bytes: &[u8]) {
    let start = usize::try_from(lba).unwrap() * SECTOR;
    let len = bytes.len().min(disk.len().saturating_sub(start));
    disk[start..start + len].copy_from_slice(&bytes[..len]);
}

/// Writes an entry, and the signature of its sector.
pub fn mbr_entry(disk: &mut [u8], lba: usize, slot: usize, kind: u8, first: u32, count: u32) {
    let at = lba * SECTOR + 446 + slot * 16;
    disk[at + 4] = kind;
    disk[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
    disk[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
    mbr_signature(disk, lba);
}

pub fn mbr_signature(disk: &mut [u8], lba: usize) {
    let at = lba * SECTOR + 510;
    disk[at..at + 2].copy_from_slice(&[0x55, 0xAA]);
}
