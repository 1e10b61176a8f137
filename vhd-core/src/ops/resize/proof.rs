//! The proof that what is cut off a disk is not in use (INV-27).

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use vhd_partition::proven_backups;

use super::ResizeError;
use crate::device::{ByteRange, Disk, ExtentKind};
use crate::format::{DiskType, Footer};
use crate::partition::{DiskReader, PartitionError, byte_range, range_of, read_table};
use crate::storage::is_zero;
use crate::units::{SECTOR_SIZE, u64_from, usize_from};

/// Bytes read at once.
const STEP: u64 = 1 << 20;

/// Uses that are named; more are not looked for.
const MAX_USES: usize = 8;

/// What is in the part of a disk that is to be cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TailUse {
    /// A partition reaches into it.
    Partition {
        /// Its number.
        number: u32,
        /// Its name, if it has one.
        name: Option<String>,
        /// Where it is.
        range: ByteRange,
    },
    /// The backup of the partition table is there.
    GptBackup(ByteRange),
    /// Bytes that are not zero.
    Data(ByteRange),
}

impl fmt::Display for TailUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, range) = match self {
            Self::Partition { number, name, range } => {
                let name = name.as_ref().map_or(String::new(), |name| format!(" ({name})"));
                (format!("partition {number}{name}"), range)
            }
            Self::GptBackup(range) => (
                "the backup of the partition table, which --fix-gpt moves".to_owned(),
                range,
            ),
            Self::Data(range) => ("data".to_owned(), range),
        };
        write!(f, "{what} at {:#x}..{:#x}", range.start, range.end())
    }
}

/// The part of a disk that is to be cut off.
pub(super) struct Tail<'a> {
    pub(super) disk: &'a Disk,
    /// Where it begins.
    pub(super) size: u64,
    /// The footer of the disk's file, if it has one.
    pub(super) own: Option<&'a Footer>,
    /// The backup of a GPT is no obstacle.
    pub(super) may_move_gpt: bool,
}

impl Tail<'_> {
    /// Proves that nothing in it is in use; `path` is for the message.
    pub(super) fn require_free(&self, path: &Path, cancel: &AtomicBool) -> Result<(), ResizeError> {
        let uses = self.uses(cancel)?;
        if uses.is_empty() {
            return Ok(());
        }
        Err(ResizeError::TailInUse {
            path: path.to_owned(),
            size: self.size,
            uses,
        })
    }

    fn uses(&self, cancel: &AtomicBool) -> Result<Vec<TailUse>, ResizeError> {
        let table = read_table(self.disk)?;
        let partitions = table.into_iter().flat_map(|table| table.partitions);
        let reaching = partitions.filter(|partition| partition.end() > self.size);
        let mut uses: Vec<TailUse> = reaching
            .map(|partition| TailUse::Partition {
                number: partition.number,
                range: range_of(&partition),
                name: partition.name,
            })
            .collect();
        let backups = proven_backups(&DiskReader(self.disk)).map_err(PartitionError::from)?;
        let backup: Vec<ByteRange> = backups
            .iter()
            .map(byte_range)
            .filter(|range| range.end() > self.size)
            .collect();
        if !self.may_move_gpt {
            uses.extend(backup.iter().map(|range| TailUse::GptBackup(*range)));
        }
        let mut scan = Scan {
            disk: self.disk,
            size: self.size,
            own: self.own,
            cancel,
            exempt: backup,
            uses,
        };
        scan.run()?;
        scan.uses.truncate(MAX_USES);
        Ok(scan.uses)
    }
}

struct Scan<'a> {
    disk: &'a Disk,
    size: u64,
    own: Option<&'a Footer>,
    cancel: &'a AtomicBool,
    exempt: Vec<ByteRange>,
    uses: Vec<TailUse>,
}

impl Scan<'_> {
    fn run(&mut self) -> Result<(), ResizeError> {
        let (disk, tail) = (self.disk, ByteRange::new(self.size, self.disk.size() - self.size));
        let mut stored = Vec::new();
        disk.extents(tail, &mut |extent| {
            if extent.kind == ExtentKind::Data {
                stored.push(extent.range);
            }
            ControlFlow::Continue(())
        })?;
        let mut buffer = vec![0; usize_from(STEP)];
        for range in stored {
            let mut at = range.start;
            while at < range.end() && self.uses.len() <= MAX_USES {
                if self.cancel.load(Ordering::Relaxed) {
                    return Err(ResizeError::Cancelled);
                }
                let len = STEP.min(range.end() - at);
                let bytes = &mut buffer[..usize_from(len)];
                disk.read_at(bytes, at)?;
                self.look_at(bytes, at);
                at += len;
            }
        }
        Ok(())
    }

    fn look_at(&mut self, bytes: &[u8], at: u64) {
        if is_zero(bytes) {
            return;
        }
        for (index, sector) in bytes.chunks(usize_from(SECTOR_SIZE)).enumerate() {
            let start = at + u64_from(index) * SECTOR_SIZE;
            let exempt = self
                .exempt
                .iter()
                .any(|range| (range.start..range.end()).contains(&start));
            if !exempt && !is_zero(sector) && !self.is_own_footer(sector, start) {
                self.note(ByteRange::new(start, SECTOR_SIZE));
            }
        }
    }

    fn note(&mut self, sector: ByteRange) {
        if let Some(TailUse::Data(last)) = self.uses.last_mut()
            && last.end() == sector.start
        {
            last.len += sector.len;
        } else {
            self.uses.push(TailUse::Data(sector));
        }
    }

    /// An interrupted shrink of the same fixed image to the same size has put its footer here already.
    fn is_own_footer(&self, sector: &[u8], at: u64) -> bool {
        let Some(own) = self.own.filter(|own| own.disk_type == DiskType::Fixed) else {
            return false;
        };
        at == self.size
            && Footer::decode(sector).is_ok_and(|found| {
                let there = Footer {
                    current_size: own.current_size,
                    geometry: own.geometry,
                    ..found.clone()
                };
                found.current_size == self.size && there == *own
            })
    }
}
