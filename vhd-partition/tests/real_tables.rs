//! Partition tables as real programs write them, read beside sfdisk and the crate `gpt`.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vhd_partition::{Oddity, PartitionType, Scheme, Table, TableError};

const MIB: u64 = 1 << 20;
const SIZE: usize = 64 << 20;

/// The path of a program; `None`, said loudly, where it is missing. A failure in CI.
fn sfdisk(what: &str) -> Option<&'static str> {
    let found = Command::new("sfdisk").arg("--version").output().is_ok();
    assert!(found || std::env::var_os("CI").is_none(), "sfdisk is missing in CI");
    if !found {
        eprintln!("NOT TESTED: {what}: no sfdisk");
    }
    found.then_some("sfdisk")
}

fn disk_with(dir: &Path, script: &str) -> PathBuf {
    let path = dir.join("disk.raw");
    fs::File::create(&path).unwrap().set_len(64 * MIB).unwrap();
    let mut child = Command::new("sfdisk")
        .arg("-q")
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    path
}

fn bytes_of(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SIZE);
    fs::File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn listing(path: &Path) -> String {
    let output = Command::new("sfdisk").arg("-d").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

const GPT: &str =
    "label: gpt\nsize=4MiB,name=\"EFI system\",attrs=\"RequiredPartition,GUID:63\"\nsize=8MiB\nname=root\n";

#[test]
fn gpt_as_sfdisk_writes_it_and_the_gpt_crate_reads_it() {
    if sfdisk("GPT of sfdisk").is_none() {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = disk_with(dir.path(), GPT);
    let table = Table::read(&bytes_of(&path)).unwrap().unwrap();
    assert_eq!((table.scheme, table.sector_size), (Scheme::Gpt, 512));
    assert!(table.oddities.is_empty(), "{:?}", table.oddities);
    let oracle = gpt::GptConfig::new().open(&path).unwrap();
    assert_eq!(table.identity, oracle.guid().to_string());
    assert_eq!(table.partitions.len(), oracle.partitions().len());
    for partition in &table.partitions {
        let expected = &oracle.partitions()[&partition.number];
        let count = expected.last_lba - expected.first_lba + 1;
        assert_eq!(
            (partition.start, partition.len),
            (expected.first_lba * 512, count * 512)
        );
        assert_eq!(partition.name.clone().unwrap_or_default(), expected.name);
        let kind = partition.kind.to_string();
        assert!(kind.eq_ignore_ascii_case(&expected.part_type_guid.guid.to_string()));
        assert_eq!(partition.identity, expected.part_guid.to_string());
        assert_eq!(partition.attributes, expected.flags);
    }
    assert_eq!((table.partitions[0].start, table.partitions[0].len), (MIB, 4 * MIB));
    assert_eq!(table.partitions[0].attributes, 1 | 1 << 63);
}

#[test]
fn mbr_with_logical_partitions() {
    if sfdisk("MBR of sfdisk").is_none() {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // The first two are primary; sfdisk puts what follows an extended one into it only if told by number.
    let script = "label: dos\nsize=8MiB,type=7,bootable\ntype=5\n5: size=4MiB,type=83\n6: size=6MiB,type=82\n";
    let path = disk_with(dir.path(), script);
    let table = Table::read(&bytes_of(&path)).unwrap().unwrap();
    assert_eq!(table.scheme, Scheme::Mbr);
    assert!(table.oddities.is_empty(), "{:?}", table.oddities);
    let numbers: Vec<u32> = table.partitions.iter().map(|partition| partition.number).collect();
    assert_eq!(numbers, [1, 5, 6]);
    let sizes: Vec<u64> = table.partitions.iter().map(|partition| partition.len).collect();
    assert_eq!(sizes, [8 * MIB, 4 * MIB, 6 * MIB]);
    assert_eq!(table.partitions[0].attributes, 0x80);
    assert_eq!(table.partitions[2].kind, PartitionType::Mbr(0x82));
    let listed = listing(&path);
    assert!(listed.contains(&format!("label-id: 0x{}", table.identity)), "{listed}");
    for partition in &table.partitions {
        let start = format!("start={:>12}", partition.start / 512);
        assert!(listed.contains(&start), "{start} in {listed}");
        assert_eq!(
            partition.identity,
            format!("{}-{:02x}", table.identity, partition.number)
        );
    }
}

/// Each byte of the first header and its entries: the backup answers, and the table says so. With the backup gone too:
/// an error.
#[test]
fn any_damage_of_a_gpt_is_noticed() {
    if sfdisk("damaged GPT").is_none() {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut bytes = bytes_of(&disk_with(dir.path(), GPT));
    let sound = Table::read(&bytes).unwrap().unwrap();
    let end = bytes.len() - 512;
    let backup = bytes[end..].to_vec();
    for at in (512..512 + 92).chain((1024..1024 + 384).step_by(5)) {
        bytes[at] ^= 0x81;
        let table = Table::read(&bytes).unwrap().unwrap();
        assert_eq!(table.partitions, sound.partitions, "{at}");
        assert!(
            matches!(table.oddities[..], [Oddity::PrimaryDamaged(_)]),
            "{at}: {:?}",
            table.oddities
        );
        bytes[end..].fill(0);
        assert!(Table::read(&bytes).is_err(), "{at}");
        bytes[end..].copy_from_slice(&backup);
        bytes[at] ^= 0x81;
    }
    for at in (end..end + 92).chain((end - 32 * 512..end - 32 * 512 + 384).step_by(5)) {
        bytes[at] ^= 0x81;
        let table = Table::read(&bytes).unwrap().unwrap();
        assert_eq!(table.partitions, sound.partitions, "{at}");
        assert!(
            matches!(table.oddities[..], [Oddity::BackupDamaged(_)]),
            "{at}: {:?}",
            table.oddities
        );
        bytes[at] ^= 0x81;
    }
}

#[test]
fn a_gpt_of_4096_byte_sectors_is_read_and_said() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk.raw");
    fs::File::create(&path).unwrap().set_len(64 * MIB).unwrap();
    let config = gpt::GptConfig::new().writable(true);
    let mut disk = config
        .logical_block_size(gpt::disk::LogicalBlockSize::Lb4096)
        .create(&path)
        .unwrap();
    disk.add_partition("four", 8 * MIB, gpt::partition_types::LINUX_FS, 0, None)
        .unwrap();
    let expected = disk.partitions()[&1].clone();
    disk.write().unwrap();
    let mut bytes = bytes_of(&path);
    bytes[446 + 4] = 0xEE;
    bytes[446 + 8] = 1;
    bytes[446 + 12..446 + 16].fill(0xFF);
    bytes[510..512].copy_from_slice(&[0x55, 0xAA]);
    let table = Table::read(&bytes).unwrap().unwrap();
    assert_eq!(table.sector_size, 4096);
    assert_eq!(table.partitions[0].start, expected.first_lba * 4096);
    assert_eq!(table.partitions[0].end(), (expected.last_lba + 1) * 4096);
    assert!(
        matches!(table.oddities[..], [Oddity::SectorSize(4096)]),
        "{:?}",
        table.oddities
    );
    assert!(matches!(
        vhd_partition::relocate(&bytes, 128 * MIB),
        Err(TableError::Signature { .. })
    ));
}
