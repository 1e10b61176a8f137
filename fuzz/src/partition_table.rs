//! Any bytes as a disk with a partition table, whose backup is moved.

use vhd_partition::{ReadAt, Table, relocate};

const SECTOR: usize = 512;
/// Sectors that disks are made longer by, and that they grow by, at most.
const MORE: usize = 256;

/// Reads the table of a disk and moves its backup: reading ends, and the first table reads the same after every patch.
///
/// The first byte says how many sectors of zeroes are behind the others, the second one how long the disk is to be;
/// if the third is odd, checksums are corrected before. The rest is the disk.
pub fn partition_table(bytes: &[u8]) {
    let [zeroes, target, correct, content @ ..] = bytes else {
        return;
    };
    let mut disk = content.to_vec();
    disk.resize((content.len().div_ceil(SECTOR) + usize::from(*zeroes)) * SECTOR, 0);
    if correct % 2 == 1 {
        correct_checksums(&mut disk);
    }
    if let Ok(Some(table)) = Table::read(&disk) {
        for partition in &table.partitions {
            assert!(partition.end() >= partition.start);
        }
        assert!(table.partitions.len() <= 8192 && table.oddities.len() <= 4 * 8192);
    }
    let sectors = disk.len() / SECTOR;
    let size = if *target == 0 {
        sectors
    } else {
        (sectors + MORE) * usize::from(*target) / 256
    } * SECTOR;
    let Ok(Some(relocation)) = relocate(&disk, size as u64) else {
        return;
    };
    let before = first_table(&disk).expect("what is moved has a first table");
    disk.resize(disk.len().max(size), 0);
    let old = disk.clone();
    for patch in relocation.patches() {
        let start = usize::try_from(patch.offset).expect("it is inside");
        disk[start..start + patch.bytes.len()].copy_from_slice(&patch.bytes);
        assert_eq!(
            first_table(&disk).as_ref(),
            Some(&before),
            "a patch at {:#x}",
            patch.offset
        );
    }
    // Partitions keep every byte.
    let entry = usize::try_from(word(&old, SECTOR + 84)).expect("it is small");
    for entry in before.chunks_exact(entry).filter(|entry| entry[..16] != [0; 16]) {
        let (first, last) = (number(entry, 32), number(entry, 40));
        for lba in (first..=last).take_while(|lba| lba.saturating_add(1).saturating_mul(512) <= old.size()) {
            let at = usize::try_from(lba).expect("it is inside") * SECTOR;
            assert!(
                old[at..at + SECTOR] == disk[at..at + SECTOR],
                "sector {lba} of a partition"
            );
        }
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The entries that a header leads to.
fn entries<'a>(disk: &'a [u8], header: &[u8]) -> Option<&'a [u8]> {
    let start = usize::try_from(number(header, 72)).ok()?.checked_mul(SECTOR)?;
    let len = usize::try_from(u64::from(word(header, 80)).checked_mul(u64::from(word(header, 84)))?).ok()?;
    disk.get(start..start.checked_add(len)?)
}

/// The entries of the first table, if checksums match.
fn first_table(disk: &[u8]) -> Option<Vec<u8>> {
    let sector = disk.get(SECTOR..2 * SECTOR)?;
    let mut header = sector.get(..usize::try_from(word(sector, 12)).ok()?)?.to_vec();
    let sum = word(&header, 16);
    header[16..20].fill(0);
    let entries = entries(disk, sector)?;
    let is_sound = sector.starts_with(b"EFI PART")
        && crc32fast::hash(&header) == sum
        && number(sector, 24) == 1
        && crc32fast::hash(entries) == word(sector, 88);
    is_sound.then(|| entries.to_vec())
}

/// Gives every header the checksums that it should have.
fn correct_checksums(disk: &mut [u8]) {
    for at in (0..disk.len()).step_by(SECTOR).rev() {
        if !disk[at..].starts_with(b"EFI PART") {
            continue;
        }
        let header = disk[at..at + SECTOR].to_vec();
        if let Some(sum) = entries(disk, &header).map(crc32fast::hash) {
            disk[at + 88..at + 92].copy_from_slice(&sum.to_le_bytes());
        }
        let len = usize::try_from(word(&header, 12)).unwrap_or(SECTOR).min(SECTOR);
        disk[at + 16..at + 20].fill(0);
        let sum = crc32fast::hash(&disk[at..at + len]);
        disk[at + 16..at + 20].copy_from_slice(&sum.to_le_bytes());
    }
}
