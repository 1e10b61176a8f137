//! The partition table of the first sector (MBR), and the list of logical partitions it may lead to.

use std::collections::HashSet;

use crate::oddity::Oddity;
use crate::source::{SECTOR, read};
use crate::{Partition, PartitionType, ReadAt, TableError};

/// Where the disk's signature is, and where the four entries begin.
const DISK_SIGNATURE: usize = 440;
const TABLE: usize = 446;
const ENTRY: usize = 16;
const ENTRIES: usize = 4;
const SIGNATURE: [u8; 2] = [0x55, 0xAA];
const ACTIVE: u8 = 0x80;
/// The type of the one partition that covers a disk with a GPT.
const PROTECTIVE: u8 = 0xEE;
const EXTENDED: [u8; 3] = [0x05, 0x0F, 0x85];
/// Sectors of the list of logical partitions that are read.
const MAX_LOGICAL: usize = 256;
const FIRST_LOGICAL: u32 = 5;

/// One of the four entries of a table.
#[derive(Clone, Copy)]
struct Entry {
    status: u8,
    kind: u8,
    first: u64,
    count: u64,
}

impl Entry {
    fn is_used(self) -> bool {
        self.kind != 0 && self.count > 0
    }

    fn is_extended(self) -> bool {
        EXTENDED.contains(&self.kind)
    }

    /// The partition of an entry whose sectors count from `base`.
    fn partition(self, number: u32, base: u64, disk: u32) -> Partition {
        Partition {
            number,
            start: base.saturating_add(self.first).saturating_mul(SECTOR),
            len: self.count.saturating_mul(SECTOR),
            kind: PartitionType::Mbr(self.kind),
            name: None,
            identity: format!("{disk:08x}-{number:02x}"),
            attributes: u64::from(self.status),
        }
    }
}

/// A sector with entries of partitions.
#[derive(Clone)]
pub(crate) struct Mbr {
    sector: Vec<u8>,
}

impl Mbr {
    /// The table in the first sector, if there is one: boot sectors of file systems have the signature too, but code
    /// or nothing where the entries are.
    pub(crate) fn read(disk: &dyn ReadAt) -> Result<Option<Self>, TableError> {
        let found = Self::at(disk, 0)?;
        Ok(found.filter(|mbr| mbr.entries().iter().any(|entry| entry.is_used())))
    }

    /// The table in a sector, if it has the signature and no impossible status.
    fn at(disk: &dyn ReadAt, lba: u64) -> Result<Option<Self>, TableError> {
        let sector = read(disk, lba.saturating_mul(SECTOR), SECTOR)?;
        let table = sector.map(|sector| Self { sector });
        Ok(table.filter(|table| {
            table.sector.ends_with(&SIGNATURE) && table.entries().iter().all(|entry| entry.status & !ACTIVE == 0)
        }))
    }

    fn entries(&self) -> [Entry; ENTRIES] {
        std::array::from_fn(|index| {
            let at = TABLE + index * ENTRY;
            Entry {
                status: self.sector[at],
                kind: self.sector[at + 4],
                first: u64::from(self.number(at + 8)),
                count: u64::from(self.number(at + 12)),
            }
        })
    }

    fn number(&self, at: usize) -> u32 {
        let bytes = &self.sector[at..at + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    pub(crate) fn disk_signature(&self) -> u32 {
        self.number(DISK_SIGNATURE)
    }

    /// Whether it says that the disk has a GPT.
    pub(crate) fn is_protective(&self) -> bool {
        self.entries().iter().any(|entry| entry.kind == PROTECTIVE)
    }

    /// The partitions beside the protective one: there are some in a hybrid MBR.
    pub(crate) fn beside_protective(&self) -> Vec<Partition> {
        let others = (1..).zip(self.entries());
        let others = others.filter(|(_, entry)| entry.is_used() && entry.kind != PROTECTIVE);
        others
            .map(|(number, entry)| entry.partition(number, 0, self.disk_signature()))
            .collect()
    }

    /// Where the only protective entry is, if it begins where it should.
    fn protective(&self) -> Option<(usize, Entry)> {
        let entries = self.entries();
        let mut used = entries.iter().enumerate().filter(|(_, entry)| entry.kind != 0);
        let (index, entry) = used.next()?;
        let is_alone = used.next().is_none();
        (is_alone && entry.kind == PROTECTIVE && entry.first == 1).then_some((index, *entry))
    }

    /// The last sector of the disk that the protective entry covers.
    pub(crate) fn protected_end(&self) -> Option<u64> {
        let (_, entry) = self.protective()?;
        Some(entry.count)
    }

    /// The sector with the protective entry reaching to the end of a disk of `sectors` sectors. One that covers
    /// whatever comes stays so, and so does a hybrid MBR, whose entries share the disk by their own rules.
    pub(crate) fn grown(&self, sectors: u64) -> Vec<u8> {
        let mut grown = self.sector.clone();
        if let Some((index, entry)) = self.protective()
            && entry.count != u64::from(u32::MAX)
        {
            let count = u32::try_from(sectors.saturating_sub(1)).unwrap_or(u32::MAX);
            let at = TABLE + index * ENTRY + 12;
            grown[at..at + 4].copy_from_slice(&count.to_le_bytes());
        }
        grown
    }

    /// The partitions of the disk, logical ones included, by number.
    pub(crate) fn partitions(
        &self,
        disk: &dyn ReadAt,
        oddities: &mut Vec<Oddity>,
    ) -> Result<Vec<Partition>, TableError> {
        let mut partitions = Vec::new();
        let mut logical = Logical {
            disk,
            signature: self.disk_signature(),
            next: FIRST_LOGICAL,
            seen: HashSet::new(),
        };
        let mut has_extended = false;
        for (number, entry) in (1..).zip(self.entries()).filter(|(_, entry)| entry.is_used()) {
            if !entry.is_extended() {
                partitions.push(entry.partition(number, 0, self.disk_signature()));
                continue;
            }
            if std::mem::replace(&mut has_extended, true) {
                oddities.push(Oddity::SeveralExtended);
            }
            logical.follow(entry.first, &mut partitions, oddities)?;
        }
        partitions.sort_by_key(|partition| partition.number);
        Ok(partitions)
    }
}

/// The lists of logical partitions under way.
struct Logical<'a> {
    disk: &'a dyn ReadAt,
    signature: u32,
    /// The number of the next partition.
    next: u32,
    /// Sectors of the lists that were read.
    seen: HashSet<u64>,
}

impl Logical<'_> {
    /// Follows the list of the extended partition at sector `base`. Each sector has a partition, counted from there,
    /// and the next sector of the list, counted from `base`.
    fn follow(&mut self, base: u64, found: &mut Vec<Partition>, oddities: &mut Vec<Oddity>) -> Result<(), TableError> {
        let mut at = base;
        loop {
            if self.seen.len() == MAX_LOGICAL {
                oddities.push(Oddity::TooManyLogical(MAX_LOGICAL));
                return Ok(());
            }
            if !self.seen.insert(at) {
                oddities.push(Oddity::LogicalLeadsBack(at));
                return Ok(());
            }
            let Some(table) = Mbr::at(self.disk, at)? else {
                oddities.push(Oddity::LogicalBroken(at));
                return Ok(());
            };
            let mut next = None;
            for entry in table.entries().into_iter().filter(|entry| entry.is_used()) {
                if !entry.is_extended() {
                    found.push(entry.partition(self.next, at, self.signature));
                    self.next += 1;
                } else if next.is_none() {
                    next = Some(base.saturating_add(entry.first));
                } else {
                    oddities.push(Oddity::SeveralExtended);
                }
            }
            match next {
                None => return Ok(()),
                Some(next) => at = next,
            }
        }
    }
}

const _: () = assert!(TABLE + ENTRIES * ENTRY + SIGNATURE.len() == 512);

#[cfg(test)]
mod tests {
    use super::*;

    fn mbr(entries: &[(u8, u32, u32)]) -> Mbr {
        let mut sector = vec![0; 512];
        sector[510..].copy_from_slice(&SIGNATURE);
        for (index, (kind, first, count)) in entries.iter().enumerate() {
            let at = TABLE + index * ENTRY;
            sector[at + 4] = *kind;
            sector[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
            sector[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
        }
        Mbr { sector }
    }

    #[test]
    fn only_a_protective_entry_of_its_own_grows() {
        let grown = |entries: &[(u8, u32, u32)]| {
            let mbr = mbr(entries);
            let sector = mbr.grown(1000);
            (sector != mbr.sector).then(|| Mbr { sector }.protected_end())
        };
        assert_eq!(grown(&[(0xEE, 1, 99)]), Some(Some(999)));
        assert_eq!(grown(&[(0, 0, 0), (0xEE, 1, 99)]), Some(Some(999)));
        for kept in [
            &[(0xEE, 1, u32::MAX)][..],
            &[(0xEE, 1, 33), (0x0C, 40, 20)],
            &[(0xEE, 1, 33), (0xEE, 40, 20)],
            &[(0xEE, 2, 99)],
            &[(0x83, 1, 99)],
        ] {
            assert_eq!(grown(kept), None, "{kept:?}");
        }
    }
}
