//! The header.

use std::ops::RangeInclusive;

use vhd_block::units::usize_from;

use super::SIGNATURE;
use crate::bytes::{be32, be64};
use crate::error::ReadContext as _;
use crate::limits::MAX_L1;
use crate::{BrokenRule, ImageError, ImageFile, Rule};

const V2_LEN: usize = 72;
const V3_LEN: usize = 104;
const CLUSTER_BITS: RangeInclusive<u32> = 9..=21;
/// Bytes; no name of a backing file is longer.
const MAX_NAME: u32 = 1023;

/// The image was not closed: the reference counts may be wrong, which are not used to read it.
const DIRTY: u64 = 1;
/// What a reader need not know to read: the image was not closed; the compression type is said.
const HARMLESS: u64 = DIRTY | COMPRESSION_TYPE;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// What the header of an image says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Bytes in a cluster, a power of two from 512 to 2 MiB.
    pub cluster_size: u64,
    /// Bytes on the disk.
    pub disk_size: u64,
    /// The file that has what is not allocated here, as written.
    pub backing_file: Option<String>,
    /// The image was not closed.
    pub dirty: bool,
    /// Internal snapshots.
    pub snapshots: u32,
    pub(super) l1_offset: u64,
    pub(super) l1_entries: u64,
}

impl Header {
    /// Entries in a table of the second level.
    pub(super) fn l2_entries(&self) -> u64 {
        self.cluster_size / 8
    }

    /// Reads and checks the header.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn read(file: &dyn ImageFile) -> Result<Self, ImageError> {
        let mut bytes = vec![0; V2_LEN];
        file.read_exact_at(&mut bytes, 0).at(0, V2_LEN)?;
        if !bytes.starts_with(SIGNATURE) {
            let found = format!("{:#x}", be32(&bytes, 0));
            return Err(BrokenRule::new(Rule::Identifier, 0, found, "the signature \"QFI\\xfb\"").into());
        }
        let version = be32(&bytes, 4);
        if !(2..=3).contains(&version) {
            return Err(unsupported(format!("qcow version {version}"), 4));
        }
        if version == 3 {
            bytes.resize(V3_LEN, 0);
            file.read_exact_at(&mut bytes, 0).at(0, V3_LEN)?;
        }
        let features = if version == 3 { be64(&bytes, 72) } else { 0 };
        check_features(features)?;
        let bits = be32(&bytes, 20);
        if !CLUSTER_BITS.contains(&bits) {
            return Err(broken(20, format!("clusters of 2^{bits} bytes"), "2^9 to 2^21"));
        }
        if be32(&bytes, 32) != 0 {
            return Err(unsupported(format!("encryption of type {}", be32(&bytes, 32)), 32));
        }
        let header = Self {
            version,
            cluster_size: 1 << bits,
            disk_size: be64(&bytes, 24),
            backing_file: backing_file(file, &bytes)?,
            dirty: features & DIRTY != 0,
            snapshots: be32(&bytes, 60),
            l1_offset: be64(&bytes, 40),
            l1_entries: u64::from(be32(&bytes, 36)),
        };
        header.check(file.len().at(0, 0)?)?;
        Ok(header)
    }

    fn check(&self, file_len: u64) -> Result<(), ImageError> {
        let covered = self.cluster_size * self.l2_entries();
        let needed = self.disk_size.div_ceil(covered);
        if self.l1_entries < needed {
            let found = format!("a table of {} entries", self.l1_entries);
            return Err(broken(36, found, format!("{needed} for {:#x} bytes", self.disk_size)));
        }
        if self.l1_entries * 8 > MAX_L1 {
            return Err(unsupported(format!("a first table of {} entries", self.l1_entries), 36));
        }
        let end = self.l1_offset.checked_add(needed * 8);
        if !self.l1_offset.is_multiple_of(self.cluster_size) || end.is_none_or(|end| end > file_len) {
            let found = format!("a table at {:#x}", self.l1_offset);
            return Err(broken(40, found, "a multiple of a cluster, inside the file"));
        }
        Ok(())
    }
}

fn check_features(features: u64) -> Result<(), ImageError> {
    let unknown = features & !HARMLESS;
    let name = match unknown {
        0 => return Ok(()),
        _ if unknown & CORRUPT != 0 => {
            "an image that is marked as corrupt (`qemu-img check -r all` repairs it)".to_owned()
        }
        _ if unknown & DATA_FILE != 0 => "an external data file".to_owned(),
        _ if unknown & EXTENDED_L2 != 0 => "extended tables (subclusters)".to_owned(),
        _ => format!("incompatible features {unknown:#x}"),
    };
    Err(unsupported(name, 72))
}

fn backing_file(file: &dyn ImageFile, header: &[u8]) -> Result<Option<String>, ImageError> {
    let (offset, len) = (be64(header, 8), be32(header, 16));
    if offset == 0 {
        return Ok(None);
    }
    if len > MAX_NAME {
        return Err(broken(
            16,
            format!("a backing file with a name of {len} bytes"),
            "at most 1023",
        ));
    }
    let mut name = vec![0; usize_from(u64::from(len))];
    file.read_exact_at(&mut name, offset).at(offset, name.len())?;
    match String::from_utf8(name) {
        Ok(name) => Ok(Some(name).filter(|name| !name.is_empty())),
        Err(_) => Err(broken(8, "a backing file whose name is no UTF-8", "UTF-8")),
    }
}

fn broken(offset: u64, found: impl ToString, expected: impl ToString) -> ImageError {
    BrokenRule::new(Rule::Header, offset, found.to_string(), expected.to_string()).into()
}

fn unsupported(feature: String, offset: u64) -> ImageError {
    ImageError::Unsupported { feature, offset }
}
