//! INV-44: moving the backup of a GPT touches only what is proven to be the old backup, and never what the first table
//! uses. Tables that lie are refused or lose nothing; after every patch an independent reader finds the same table.
#![forbid(unsafe_code)]

mod build;

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use build::{Entries, GptDisk, SECTOR, mbr_entry};
use fastrand::Rng;
use vhd_partition::{Patch, TableError, relocate};

const SECTORS: u64 = 4096;

fn size(sectors: u64) -> u64 {
    sectors * 512
}

fn field(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// The entries of the first table, by a reader that shares nothing with the one under test; `None` if a checksum is
/// wrong.
fn first_table(disk: &[u8]) -> Option<Vec<u8>> {
    let mut header = disk.get(512..604)?.to_vec();
    let sum = word(&header, 16);
    header[16..20].fill(0);
    if &header[..8] != b"EFI PART" || crc32fast::hash(&header) != sum || field(&header, 24) != 1 {
        return None;
    }
    let start = usize::try_from(field(&header, 72)).ok()?.checked_mul(SECTOR)?;
    let len = usize::try_from(u64::from(word(&header, 80)) * u64::from(word(&header, 84))).ok()?;
    let array = disk.get(start..start.checked_add(len)?)?;
    (crc32fast::hash(array) == word(&header, 88)).then(|| array.to_vec())
}

fn apply(disk: &mut [u8], patch: &Patch) {
    let start = usize::try_from(patch.offset).unwrap();
    disk[start..start + patch.bytes.len()].copy_from_slice(&patch.bytes);
}

/// The disk with all patches applied; the first table is the same after each of them.
fn moved(disk: &[u8], sectors: u64) -> Result<Vec<u8>, TableError> {
    let relocation = relocate(&disk.to_vec(), size(sectors))?.expect("a GPT");
    let table = first_table(disk).expect("what is moved can be read");
    let mut after = disk.to_vec();
    after.resize(disk.len().max(usize::try_from(size(sectors)).unwrap()), 0);
    let before = after.clone();
    for patch in relocation.patches() {
        apply(&mut after, patch);
        assert_eq!(
            first_table(&after).as_ref(),
            Some(&table),
            "a patch at {:#x}",
            patch.offset
        );
    }
    unharmed(&before, &after, sectors, &table);
    Ok(after)
}

/// What was written: MBR and first header, the new backup into what was empty or entries of the same table, and zeroes
/// over a header that names sector 1 and over copies of the entries.
fn unharmed(before: &[u8], after: &[u8], sectors: u64, table: &[u8]) {
    let place = field(after, 512 + 32);
    assert_eq!(place, sectors - 1, "the first header leads to the new end");
    let padded = table.len().next_multiple_of(SECTOR);
    let mut entries = table.to_vec();
    entries.resize(padded, 0);
    for (lba, (old, new)) in before.chunks(SECTOR).zip(after.chunks(SECTOR)).enumerate().skip(2) {
        if old == new || old.iter().all(|&byte| byte == 0) {
            continue;
        }
        let is_header = old.starts_with(b"EFI PART") && field(old, 32) == 1;
        let is_entries = entries.chunks(SECTOR).any(|part| part == old);
        assert!(is_header || is_entries, "sector {lba} was overwritten");
    }
}

fn refused(disk: &GptDisk, sectors: u64) -> TableError {
    match moved(&disk.build(), sectors) {
        Err(error) => error,
        Ok(_) => panic!("moved: {disk:?}"),
    }
}

#[test]
fn inv_44_the_backup_follows_the_end() {
    for (old, new) in [
        (4096, 8192),
        (4096, 4097),
        (4096, 4100),
        (4096, 4096),
        (4096, 2048),
        (4096, 4090),
    ] {
        let disk = GptDisk::new(old, &[(100, 999)]).build();
        let after = moved(&disk, new).unwrap();
        let again = moved(&after[..usize::try_from(size(new)).unwrap()], new).unwrap();
        assert!(after.starts_with(&again), "{old} {new}");
        // Nothing of the old backup is left, behind a new smaller end neither.
        let headers: Vec<usize> = (0..after.len() / SECTOR)
            .filter(|lba| after[lba * SECTOR..].starts_with(b"EFI PART"))
            .collect();
        assert_eq!(headers, [1, usize::try_from(new - 1).unwrap()], "{old} {new}");
    }
}

#[test]
fn inv_44_a_backup_that_names_the_first_tables_own_sectors_is_refused() {
    let parts = [(100, 999), (2000, 2999)];
    for array in [2, 3, 33, 34 - 32, 100, 500, 968, 1999, 2990] {
        let mut disk = GptDisk::new(SECTORS, &parts);
        disk.backup_array = Some(array);
        let error = refused(&disk, 8192);
        assert!(
            matches!(error, TableError::NotABackup { lba: 4095, .. }),
            "{array}: {error}"
        );
    }
    // Entries at the MBR or the first header are not possible at all: no backup, and nothing there is touched.
    for array in [0, 1] {
        let mut disk = GptDisk::new(SECTORS, &parts);
        disk.backup_array = Some(array);
        let (disk, after) = (disk.build(), moved(&disk.build(), 8192).unwrap());
        assert_eq!(disk[1024..], after[1024..disk.len()], "{array}");
    }
}

#[test]
fn inv_44_a_backup_in_a_partition_or_of_another_disk_is_refused() {
    let parts = [(100, 999), (2000, 2999)];
    let changed = |change: fn(&mut GptDisk)| {
        let mut disk = GptDisk::new(SECTORS, &parts);
        change(&mut disk);
        disk
    };
    for disk in [
        changed(|disk| disk.backup_header = 2500),
        changed(|disk| disk.backup_header = 999),
        changed(|disk| disk.backup_guid = [7; 16]),
        changed(|disk| disk.backup_other = 99),
        changed(|disk| disk.backup_parts = vec![(100, 999)]),
        changed(|disk| disk.backup_parts = vec![(100, 998), (2000, 2999)]),
        // The first header names itself.
        changed(|disk| disk.named_backup = Some(1)),
    ] {
        let error = refused(&disk, 8192);
        assert!(matches!(error, TableError::NotABackup { .. }), "{error}: {disk:?}");
    }
    // Where no header is nothing is touched.
    for named in [0, 2, 500, 3000, 4096, u64::MAX] {
        let disk = changed(|_| ());
        let disk = GptDisk {
            named_backup: Some(named),
            backup_header: 3500,
            ..disk
        }
        .build();
        let after = moved(&disk, 8192).unwrap();
        assert_eq!(disk[1024..], after[1024..disk.len()], "{named}");
    }
}

#[test]
fn inv_44_a_hybrid_mbrs_partitions_are_in_use() {
    let mut disk = GptDisk::new(SECTORS, &[(100, 999)]).build();
    mbr_entry(&mut disk, 0, 1, 0x0C, 4070, 20);
    assert!(matches!(moved(&disk, 8192), Err(TableError::NotABackup { .. })));
    let mut disk = GptDisk::new(SECTORS, &[(100, 999)]).build();
    mbr_entry(&mut disk, 0, 1, 0x0C, 8180, 12);
    assert!(matches!(moved(&disk, 8192), Err(TableError::NoRoom { number: 2, .. })));
    // Its protective entry is not stretched over the others.
    mbr_entry(&mut disk, 0, 1, 0x0C, 2000, 12);
    assert_eq!(moved(&disk, 8192).unwrap()[..512], disk[..512]);
}

#[test]
fn inv_44_the_new_backup_has_a_place_of_its_own() {
    // Entries of the first table near the end, and the new backup over them.
    for (array, new) in [
        (4000, 4040),
        (4000, 4064),
        (3990, 4030),
        (2000, 2040),
        (2000, 2034),
        (2000, 2001),
    ] {
        let disk = GptDisk {
            primary_array: array,
            ..GptDisk::new(SECTORS, &[(100, 999)])
        };
        let error = refused(&disk, new);
        assert!(
            matches!(error, TableError::OwnTableInTheWay { .. }),
            "{array} {new}: {error}"
        );
        assert!(moved(&disk.build(), 8192).is_ok(), "{array}");
    }
    // Entries in the middle of what partitions can use.
    let disk = GptDisk {
        primary_array: 3000,
        first_usable: Some(34),
        ..GptDisk::new(SECTORS, &[(100, 999)])
    };
    assert!(matches!(refused(&disk, 8192), TableError::OwnTableInTheWay { .. }));
    // Partitions over the table.
    for part in [(0, 50), (1, 1), (2, 2), (33, 40)] {
        let error = refused(&GptDisk::new(SECTORS, &[part, (100, 999)]), 8192);
        assert!(
            matches!(error, TableError::OwnTableInTheWay { .. }),
            "{part:?}: {error}"
        );
    }
    assert!(matches!(
        refused(&GptDisk::new(SECTORS, &[(100, 3000)]), 3020),
        TableError::NoRoom { number: 1, .. }
    ));
    for tiny in [0, 1, 2, 34, 35, 66] {
        assert!(moved(&GptDisk::new(SECTORS, &[]).build(), tiny).is_err(), "{tiny}");
    }
    // Bytes that belong to nothing known.
    let mut disk = GptDisk::new(SECTORS, &[(100, 999)]).build();
    disk[3000 * SECTOR + 7] = 1;
    assert!(matches!(
        moved(&disk, 3010),
        Err(TableError::PlaceInUse { lba: 3000, .. })
    ));
    assert!(moved(&disk, 3000).is_ok());
    // A backup that disagrees, which the first table does not name.
    let mut old = GptDisk::new(SECTORS, &[(100, 999)]);
    old.backup_parts = vec![(100, 888)];
    old.named_backup = Some(2000);
    assert!(matches!(refused(&old, SECTORS), TableError::PlaceInUse { .. }));
}

#[test]
fn inv_44_entries_of_other_sizes_move_too() {
    for entries in [
        Entries { count: 1, size: 128 },
        Entries { count: 4, size: 256 },
        Entries { count: 1024, size: 128 },
        Entries { count: 16, size: 4096 },
    ] {
        let disk = GptDisk {
            entries,
            ..GptDisk::new(SECTORS, &[(1000, 1999)])
        }
        .build();
        for new in [2400, 4000, 4097, 9000] {
            moved(&disk, new).unwrap();
        }
    }
    // Entries of another size than the first table's, with the same partitions: that is no backup of it.
    let disk = GptDisk::new(SECTORS, &[(1000, 1999)]).build();
    let other = GptDisk {
        entries: Entries { count: 64, size: 128 },
        ..GptDisk::new(SECTORS, &[(1000, 1999)])
    }
    .build();
    let mut mixed = disk.clone();
    mixed[3000 * SECTOR..].copy_from_slice(&other[3000 * SECTOR..]);
    assert!(matches!(moved(&mixed, 8192), Err(TableError::NotABackup { .. })));
}

/// Interrupted after any patch, and within one after any sector: the first table is the same, and moving again ends as
/// if nothing had happened.
#[test]
fn inv_44_an_interrupted_move_goes_on() {
    for new in [8192, 4096 + 40, 2048, 4096 - 40] {
        let disk = GptDisk::new(SECTORS, &[(100, 999)]).build();
        let whole = moved(&disk, new).unwrap();
        let relocation = relocate(&disk, size(new)).unwrap().unwrap();
        let mut states = 0;
        for (index, patch) in relocation.patches().iter().enumerate() {
            for torn in 0..patch.bytes.len() / SECTOR {
                let mut cut = disk.clone();
                cut.resize(whole.len(), 0);
                relocation.patches()[..index]
                    .iter()
                    .for_each(|patch| apply(&mut cut, patch));
                let part = Patch {
                    offset: patch.offset,
                    bytes: patch.bytes[..torn * SECTOR].to_vec(),
                };
                apply(&mut cut, &part);
                assert!(
                    moved(&cut, new).unwrap() == whole,
                    "{new}: patch {index}, sector {torn}"
                );
                states += 1;
            }
        }
        println!("{new}: {states} states");
    }
}

/// Tables at random, most of which lie: whatever is moved, the first table and everything that is not its backup stays.
#[test]
fn inv_44_random_tables() {
    let count = std::env::var("VHD_PARTITION_TABLES").map_or(4000, |count| count.parse().unwrap());
    let seed = std::env::var("VHD_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("VHD_TEST_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let (mut done, mut not) = (0, 0);
    for _ in 0..count {
        let (disk, sectors) = random_disk(&mut rng);
        match relocate(&disk, size(sectors)) {
            Ok(Some(_)) => {
                moved(&disk, sectors).unwrap();
                done += 1;
            }
            Ok(None) => not += 1,
            Err(_) => not += 1,
        }
    }
    println!("{done} tables moved, {not} refused");
    assert!(done > count / 10 && not > count / 10, "{done} moved, {not} refused");
}

/// A disk, its free space filled with noise now and then, and the new size in sectors.
fn random_disk(rng: &mut Rng) -> (Vec<u8>, u64) {
    let sectors = rng.u64(300..700);
    let part = |rng: &mut Rng| {
        let first = rng.u64(36..sectors - 60);
        (first, rng.u64(first..sectors - 40))
    };
    let mut parts = vec![part(rng)];
    if rng.u8(..3) == 0 {
        parts.push(part(rng));
    }
    let mut disk = GptDisk::new(sectors, &parts);
    if rng.bool() {
        disk.entries = Entries {
            count: rng.u32(1..140),
            size: [128, 256, 512][rng.usize(..3)],
        };
        disk.entries.count = disk.entries.count.min(16384 / disk.entries.size);
    }
    let array = disk.entries.sectors();
    let places = [
        0,
        1,
        2,
        33,
        34,
        parts[0].0,
        parts[0].1,
        sectors - 1,
        sectors - 1 - array,
        sectors - 40,
    ];
    let place = |rng: &mut Rng| match rng.u8(..3) {
        0 => rng.u64(..sectors),
        _ => places[rng.usize(..places.len())]
            .saturating_add(rng.u64(..3))
            .saturating_sub(1),
    };
    for _ in 0..rng.u8(..3) {
        match rng.u8(..8) {
            0 => disk.backup_array = Some(place(rng)),
            1 => disk.named_backup = Some(place(rng)),
            2 => disk.backup_header = place(rng).clamp(array + 1, sectors - 1),
            3 => disk.backup_guid = [rng.u8(..3); 16],
            4 => disk.backup_other = place(rng),
            5 => disk.backup_parts = vec![part(rng)],
            6 => disk.primary_array = place(rng),
            _ => disk.parts.push((place(rng), place(rng))),
        }
    }
    let mut bytes = disk.build();
    for _ in 0..rng.u8(..3) {
        let at = usize::try_from(place(rng)).unwrap().min(bytes.len() / SECTOR - 1) * SECTOR;
        match rng.u8(..4) {
            0 => bytes[at..at + SECTOR].fill(rng.u8(1..)),
            1 => mbr_entry(&mut bytes, 0, 1, 0x0C, rng.u32(..700), rng.u32(..700)),
            2 => bytes[at + rng.usize(..100)] ^= 1,
            _ => bytes.copy_within(512..1024, at),
        }
    }
    let sectors = [sectors, sectors + rng.u64(..80), sectors * 2, rng.u64(..sectors)][rng.usize(..4)];
    (bytes, sectors)
}

fn have(programs: &[&str], what: &str) -> bool {
    let missing = programs
        .iter()
        .find(|program| Command::new(program).arg("--version").output().is_err());
    assert!(
        missing.is_none() || std::env::var_os("CI").is_none(),
        "{missing:?} is missing in CI"
    );
    if let Some(missing) = missing {
        eprintln!("NOT TESTED: {what}: no {missing}");
    }
    missing.is_none()
}

/// What sgdisk and the crate `gpt` read of the first table.
fn by_others(path: &Path) -> (String, Vec<(u32, Range<u64>, String)>) {
    let output = Command::new("sgdisk").arg("--info=1").arg(path).output().unwrap();
    let oracle = gpt::GptConfig::new().open(path).unwrap();
    assert!(oracle.primary_header().is_ok());
    let partitions = oracle.partitions().iter();
    let partitions = partitions.map(|(number, it)| (*number, it.first_lba..it.last_lba, it.name.clone()));
    // It complains first where the backup is being overwritten, on a disk that grows by less than a backup.
    let said = String::from_utf8(output.stdout).unwrap();
    let info = said.find("Partition GUID code").map(|at| said[at..].to_owned());
    (info.unwrap_or(said), partitions.collect())
}

#[test]
fn inv_44_other_readers_see_the_same_after_every_patch() {
    if !have(&["sgdisk"], "a GPT that is moved, read by sgdisk after every patch") {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk.raw");
    fs::File::create(&path).unwrap().set_len(size(SECTORS)).unwrap();
    let arguments = [
        "--clear",
        "--set-alignment=1",
        "--new=1:64:1000",
        "--change-name=1:data",
        "--typecode=1:8300",
        "--new=2:2000:2100",
    ];
    let made = Command::new("sgdisk").args(arguments).arg(&path).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
    let disk = fs::read(&path).unwrap();
    let expected = by_others(&path);
    assert_eq!(expected.1.len(), 2);
    for new in [8192, 4099, 3000] {
        let relocation = relocate(&disk, size(new)).unwrap().unwrap();
        let mut after = disk.clone();
        after.resize(disk.len().max(usize::try_from(size(new)).unwrap()), 0);
        for patch in relocation.patches() {
            apply(&mut after, patch);
            fs::write(&path, &after).unwrap();
            assert_eq!(by_others(&path), expected, "{new}: a patch at {:#x}", patch.offset);
        }
        fs::write(&path, &after[..usize::try_from(size(new)).unwrap()]).unwrap();
        let checked = Command::new("sgdisk").arg("-v").arg(&path).output().unwrap();
        let said = String::from_utf8(checked.stdout).unwrap();
        assert!(said.contains("No problems found"), "{new}: {said}");
        assert_eq!(by_others(&path), expected, "{new}");
    }
}
