//! Tables that nobody should write: each is read in bounded time, and what is odd about it is said.
#![forbid(unsafe_code)]

mod build;

use build::{Entries, GptDisk, mbr_entry, mbr_signature};
use vhd_partition::{Oddity, ReadAt, Scheme, Table};

#[allow(clippy::ptr_arg, reason = "the trait is implemented for vectors")]
fn read(disk: &Vec<u8>) -> Table {
    Table::read(disk).unwrap().unwrap()
}

fn numbers(table: &Table) -> Vec<u32> {
    table.partitions.iter().map(|partition| partition.number).collect()
}

#[test]
fn no_table_is_none() {
    let mut boot = vec![0_u8; 4096];
    assert!(Table::read(&boot).unwrap().is_none());
    // A boot sector of a file system: the signature, and code where the table would be.
    boot[446..510].fill(0xCC);
    mbr_signature(&mut boot, 0);
    assert!(Table::read(&boot).unwrap().is_none());
    for size in [0, 1, 511, 512, 513] {
        assert!(Table::read(&vec![0xFF_u8; size]).unwrap().is_none());
    }
}

#[test]
fn lists_of_logical_partitions_end() {
    // 0: extended at 4; 4: a partition that ends beyond 64 bits of bytes, and the list leads back to itself.
    let mut disk = vec![0_u8; 8192];
    mbr_entry(&mut disk, 0, 0, 0x83, u32::MAX, u32::MAX);
    mbr_entry(&mut disk, 0, 1, 0x05, 4, 8);
    mbr_entry(&mut disk, 4, 0, 0x83, u32::MAX, u32::MAX);
    mbr_entry(&mut disk, 4, 1, 0x05, 0, 8);
    let table = read(&disk);
    assert_eq!(numbers(&table), [1, 5]);
    let leads_back = |oddity: &Oddity| matches!(oddity, Oddity::LogicalLeadsBack(4));
    assert!(table.oddities.iter().any(leads_back), "{:?}", table.oddities);
    // A list that goes on for ever without a cycle.
    let mut disk = vec![0_u8; 512 * 2000];
    mbr_entry(&mut disk, 0, 0, 0x0F, 1, 1999);
    for at in 1..1999 {
        mbr_entry(&mut disk, at, 0, 0x83, 0, 1);
        mbr_entry(&mut disk, at, 1, 0x05, u32::try_from(at).unwrap(), 1);
    }
    let table = read(&disk);
    assert!(
        matches!(table.oddities.last(), Some(Oddity::TooManyLogical(256))),
        "{:?}",
        table.oddities
    );
    assert_eq!(table.partitions.len(), 256);
    // Two extended partitions: the numbers go on.
    let mut disk = vec![0_u8; 512 * 64];
    for (slot, base) in [(0, 10), (1, 20)] {
        mbr_entry(&mut disk, 0, slot, 0x05, base, 10);
        mbr_entry(&mut disk, base as usize, 0, 0x83, 1, 2);
    }
    let table = read(&disk);
    assert_eq!(numbers(&table), [5, 6]);
    assert!(matches!(table.oddities[..], [Oddity::SeveralExtended]));
    // A list that leads to nothing.
    mbr_entry(&mut disk, 20, 1, 0x05, 30, 2);
    assert!(matches!(
        read(&disk).oddities[..],
        [Oddity::SeveralExtended, Oddity::LogicalBroken(50)]
    ));
}

#[test]
fn partitions_that_cannot_be_are_said() {
    let odd = |parts: &[(u64, u64)]| {
        let table = read(&GptDisk::new(2048, parts).build());
        let oddities = table.oddities.iter().map(ToString::to_string);
        (numbers(&table), oddities.collect::<Vec<_>>())
    };
    let one = |text: &str| vec![text.to_owned()];
    assert_eq!(odd(&[(100, 199), (200, 299)]), (vec![1, 2], vec![]));
    assert_eq!(
        odd(&[(100, 200), (200, 299)]),
        (vec![1, 2], one("partitions 1 and 2 overlap"))
    );
    let (found, oddities) = odd(&[(100, 2048)]);
    assert_eq!(found, [1]);
    assert_eq!(oddities[1..], one("partition 1 is not inside the disk"));
    assert!(
        oddities[0].starts_with("the GPT and its backup disagree"),
        "{oddities:?}"
    );
    assert_eq!(
        odd(&[(199, 100)]),
        (vec![], one("entry 1 of the GPT ends before it begins"))
    );
    assert_eq!(
        odd(&[(1, 50)]),
        (vec![1], one("partition 1 lies over the partition table"))
    );
    let (found, oddities) = odd(&[(0, u64::MAX), (100, 199)]);
    assert_eq!((found, oddities.len()), (vec![1, 2], 4), "{oddities:?}");
}

#[test]
fn hybrid_missing_and_misplaced_tables_are_said() {
    let parts = [(100, 199)];
    let mut hybrid = GptDisk::new(2048, &parts).build();
    mbr_entry(&mut hybrid, 0, 1, 0x0C, 100, 100);
    assert!(matches!(read(&hybrid).oddities[..], [Oddity::HybridMbr]));
    let mut bare = GptDisk::new(2048, &parts).build();
    bare[..512].fill(0);
    let table = read(&bare);
    assert_eq!((table.scheme, numbers(&table)), (Scheme::Gpt, vec![1]));
    assert!(matches!(table.oddities[..], [Oddity::NoProtectiveMbr]));
    let mut behind = GptDisk::new(2048, &parts).build();
    mbr_entry(&mut behind, 0, 0, 0x83, 100, 100);
    let table = read(&behind);
    assert_eq!(table.scheme, Scheme::Mbr);
    assert!(matches!(table.oddities[..], [Oddity::GptBehindMbr]));
    let mut grown = GptDisk::new(2048, &parts).build();
    grown.resize(4096 * 512, 0);
    let table = read(&grown);
    assert!(matches!(
        table.oddities[..],
        [Oddity::BackupNotAtEnd { lba: 2047, last: 4095 }]
    ));
    assert!(!table.oddities[0].is_doubtful());
    let mut other = GptDisk::new(2048, &parts);
    other.backup_parts = vec![(100, 150)];
    assert!(matches!(
        read(&other.build()).oddities[..],
        [Oddity::BackupDisagrees(_)]
    ));
    // The first header is gone, the disk has grown: the protective MBR says where the backup is.
    grown[512..1024].fill(0);
    let table = read(&grown);
    assert_eq!(numbers(&table), [1]);
    assert!(matches!(table.oddities[..], [Oddity::PrimaryDamaged(_)]));
}

#[test]
fn entries_of_other_sizes_are_read() {
    for entries in [
        Entries { count: 1, size: 128 },
        Entries { count: 4, size: 256 },
        Entries { count: 1024, size: 128 },
        Entries { count: 256, size: 4096 },
    ] {
        let table = read(
            &GptDisk {
                entries,
                ..GptDisk::new(8192, &[(2100, 2199)])
            }
            .build(),
        );
        assert_eq!(numbers(&table), [1], "{entries:?}");
        assert!(table.oddities.is_empty(), "{:?}", table.oddities);
    }
    for entries in [
        Entries { count: 4, size: 64 },
        Entries { count: 4, size: 192 },
        Entries { count: 4, size: 8192 },
        Entries {
            count: u32::MAX,
            size: 4096,
        },
        Entries { count: 8193, size: 128 },
    ] {
        let disk = GptDisk {
            entries,
            ..GptDisk::new(8192, &[(2100, 2199)])
        }
        .build();
        assert!(Table::read(&disk).is_err(), "{entries:?}");
    }
}

/// A disk that cannot be read is not one with a damaged table.
#[test]
fn failures_to_read_stay_failures_to_read() {
    struct Bad(Vec<u8>, u64);
    impl ReadAt for Bad {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
            let covers = (offset..offset + buf.len() as u64).contains(&self.1);
            if covers {
                return Err(std::io::ErrorKind::ConnectionReset.into());
            }
            self.0.read_at(buf, offset)
        }
    }
    let disk = GptDisk::new(2048, &[(100, 199)]).build();
    for lba in [0, 1, 2, 2047, 2015] {
        let error = Table::read(&Bad(disk.clone(), lba * 512)).unwrap_err();
        assert!(matches!(error, vhd_partition::TableError::Read(_)), "{lba}: {error}");
    }
}
