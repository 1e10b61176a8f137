//! Partition tables as real programs write them, and as nobody should.
#![forbid(unsafe_code)]

mod common;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::disk::open;
use common::temp_dir;
use common::tools::{have, run};
use vhd_core::ErrorKind;
use vhd_core::device::{ByteRange, Disk, RawDevice};
use vhd_core::partition::{PartitionTable, Scheme};
use vhd_core::storage::{MemoryFile, StorageFile as _};
use vhd_core::units::{u64_from, usize_from};

const MIB: u64 = 1 << 20;

fn disk_with(dir: &Path, script: &str) -> PathBuf {
    let path = dir.join("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(64 * MIB).unwrap();
    let mut sfdisk = Command::new("sfdisk")
        .arg("-q")
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    sfdisk.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
    path
}

fn read(path: &Path) -> Option<PartitionTable> {
    PartitionTable::read(&open(path, false).disk()).unwrap()
}

const GPT: &str = "label: gpt\nsize=4MiB,name=\"EFI system\"\nsize=8MiB\nname=root\n";

#[test]
fn gpt_as_sfdisk_writes_it_and_the_gpt_crate_reads_it() {
    if !have(&["sfdisk"], "GPT of sfdisk") {
        return;
    }
    let dir = temp_dir();
    let path = disk_with(dir.path(), GPT);
    let table = read(&path).unwrap();
    assert_eq!(table.scheme, Scheme::Gpt);
    let oracle = gpt::GptConfig::new().open(&path).unwrap();
    assert_eq!(table.partitions.len(), oracle.partitions().len());
    for partition in &table.partitions {
        let expected = &oracle.partitions()[&partition.number];
        let count = expected.last_lba - expected.first_lba + 1;
        assert_eq!(partition.range, ByteRange::new(expected.first_lba * 512, count * 512));
        assert_eq!(partition.name.clone().unwrap_or_default(), expected.name);
        assert_eq!(
            partition.kind.to_uppercase(),
            expected.part_type_guid.guid.to_string().to_uppercase()
        );
    }
    assert_eq!(table.partitions[0].range, ByteRange::new(MIB, 4 * MIB));
}

#[test]
fn mbr_with_logical_partitions() {
    if !have(&["sfdisk"], "MBR of sfdisk") {
        return;
    }
    let dir = temp_dir();
    let script = "label: dos\nsize=8MiB,type=7\ntype=5\nsize=4MiB,type=83\nsize=6MiB,type=82\n";
    // The first two are primary; sfdisk puts what follows an extended one into it only if told by number.
    let script = script
        .replacen("size=4MiB", "5: size=4MiB", 1)
        .replacen("size=6MiB", "6: size=6MiB", 1);
    let table = read(&disk_with(dir.path(), &script)).unwrap();
    assert_eq!(table.scheme, Scheme::Mbr);
    let numbers: Vec<u32> = table.partitions.iter().map(|partition| partition.number).collect();
    assert_eq!(numbers, [1, 5, 6]);
    let sizes: Vec<u64> = table.partitions.iter().map(|partition| partition.range.len).collect();
    assert_eq!(sizes, [8 * MIB, 4 * MIB, 6 * MIB]);
    let listed = String::from_utf8(run("sfdisk", ["-d".as_ref(), dir.path().join("disk.raw").as_os_str()])).unwrap();
    for partition in &table.partitions {
        let start = format!("start={:>12}", partition.range.start / 512);
        assert!(listed.contains(&start), "{start} in {listed}");
    }
}

#[test]
fn no_table_is_none() {
    let dir = temp_dir();
    let path = dir.path().join("a.raw");
    let mut boot = vec![0_u8; 4096];
    std::fs::write(&path, &boot).unwrap();
    assert_eq!(read(&path), None);
    // A boot sector of a file system: the signature, and code where the table would be.
    boot[446..510].fill(0xCC);
    boot[510..512].copy_from_slice(&[0x55, 0xAA]);
    std::fs::write(&path, &boot).unwrap();
    assert_eq!(read(&path), None);
}

/// Each byte of the first header and its entries: the backup answers. With the backup gone too: an error.
#[test]
fn any_damage_of_a_gpt_is_noticed() {
    if !have(&["sfdisk"], "damaged GPT") {
        return;
    }
    let dir = temp_dir();
    let path = disk_with(dir.path(), GPT);
    let sound = read(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let file = Arc::new(MemoryFile::from_bytes(bytes.clone()));
    let disk = Disk::new(Arc::new(RawDevice::new(Arc::clone(&file) as _, false).unwrap()));
    let end = 64 * MIB - 512;
    for at in (512..512 + 92).chain((1024..1024 + 384).step_by(5)) {
        file.write_all_at(&[bytes[at] ^ 0x81], u64_from(at)).unwrap();
        assert_eq!(PartitionTable::read(&disk).unwrap().as_ref(), Some(&sound), "{at}");
        file.write_all_at(&[0; 512], end).unwrap();
        let error = PartitionTable::read(&disk).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PartitionTable, "{at}");
        file.write_all_at(&bytes[usize_from(end)..], end).unwrap();
        file.write_all_at(&[bytes[at]], u64_from(at)).unwrap();
    }
}

/// Extended partitions that lead back to themselves, and numbers that reach past 64 bits.
#[test]
fn hostile_tables_end() {
    let dir = temp_dir();
    let path = dir.path().join("a.raw");
    let mut bytes = vec![0_u8; 8192];
    for sector in [0_usize, 4] {
        let table = sector * 512 + 446;
        bytes[table + 4] = 0x83;
        bytes[table + 8..table + 16].fill(0xFF);
        bytes[table + 16 + 4] = 0x05;
        bytes[table + 16 + 8] = if sector == 0 { 4 } else { 0 };
        bytes[table + 16 + 12] = 8;
        bytes[sector * 512 + 510..sector * 512 + 512].copy_from_slice(&[0x55, 0xAA]);
    }
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(read(&path).unwrap().partitions.len(), 2);
}
