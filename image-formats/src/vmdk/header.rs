//! The header, the footer of a stream, and what the descriptor must say.

use vhd_block::units::usize_from;

use super::{ENTRIES, SECTOR};
use crate::bytes::{le16, le32, le64};
use crate::error::ReadContext as _;
use crate::limits::MAX_L1;
use crate::{BrokenRule, ImageError, ImageFile, Rule};

const LEN: usize = 512;
const SIGNATURE: &[u8; 4] = b"KDMV";
/// Where the directory is that a stream has at its end.
const AT_END: u64 = u64::MAX;
/// Bytes before the end of a stream where its footer is.
const FOOTER: u64 = 1024;
/// Bytes; descriptors are a few hundred.
const MAX_DESCRIPTOR: u64 = 1 << 20;
/// Sectors in a grain.
const GRAINS: std::ops::RangeInclusive<u64> = 1..=1 << 16;

const ZERO_GRAINS: u32 = 1 << 2;
const COMPRESSED: u32 = 1 << 16;
const MARKERS: u32 = 1 << 17;

/// What the header of an image says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes on the disk.
    pub disk_size: u64,
    /// Bytes in a grain, a power of two.
    pub grain_size: u64,
    /// Grains are compressed, each by itself.
    pub compressed: bool,
    pub(super) zero_grains: bool,
    pub(super) directory: u64,
    pub(super) tables: u64,
}

impl Header {
    /// Reads and checks the header, and the descriptor.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn read(file: &dyn ImageFile) -> Result<Self, ImageError> {
        let file_len = file.len().at(0, 0)?;
        let mut bytes = vec![0; LEN];
        file.read_exact_at(&mut bytes, 0).at(0, LEN)?;
        require_signature(&bytes)?;
        check_descriptor(file, &bytes)?;
        let mut at = 0;
        if le64(&bytes, 56) == AT_END {
            at = file_len.saturating_sub(FOOTER);
            file.read_exact_at(&mut bytes, at).at(at, LEN)?;
            if !bytes.starts_with(SIGNATURE) {
                let found = format!("{:#x}", le32(&bytes, 0));
                return Err(broken(at, found, "the footer of a stream: was it cut?"));
            }
        }
        Self::decode(&bytes, at, file_len)
    }

    fn decode(bytes: &[u8], at: u64, file_len: u64) -> Result<Self, ImageError> {
        let (version, flags) = (le32(bytes, 4), le32(bytes, 8));
        if !(1..=3).contains(&version) {
            return Err(unsupported(format!("VMDK version {version}"), at + 4));
        }
        let compressed = flags & COMPRESSED != 0;
        if compressed && (le16(bytes, 77) != 1 || flags & MARKERS == 0) {
            return Err(unsupported(
                format!("compression {} without markers", le16(bytes, 77)),
                at + 77,
            ));
        }
        let (capacity, grain) = (le64(bytes, 12), le64(bytes, 20));
        if !GRAINS.contains(&grain) || !grain.is_power_of_two() {
            return Err(broken(
                at + 20,
                format!("grains of {grain} sectors"),
                "a power of two up to 65536",
            ));
        }
        if u64::from(le32(bytes, 44)) != ENTRIES {
            return Err(unsupported(
                format!("grain tables of {} entries", le32(bytes, 44)),
                at + 44,
            ));
        }
        let tables = capacity.div_ceil(grain * ENTRIES);
        if capacity == 0 || capacity > u64::MAX / SECTOR {
            return Err(broken(
                at + 12,
                format!("a disk of {capacity} sectors"),
                "at least one, less than 2^55",
            ));
        }
        if tables * 4 > MAX_L1 {
            return Err(unsupported(format!("a directory of {tables} entries"), at + 12));
        }
        let directory = le64(bytes, 56).checked_mul(SECTOR);
        let end = directory.and_then(|start| start.checked_add(tables * 4));
        let Some(directory) = directory.filter(|start| *start > 0 && end.is_some_and(|end| end <= file_len)) else {
            let found = format!("a directory of {tables} entries at sector {:#x}", le64(bytes, 56));
            return Err(broken(
                at + 56,
                found,
                format!("one inside the file of {file_len:#x} bytes"),
            ));
        };
        Ok(Self {
            disk_size: capacity * SECTOR,
            grain_size: grain * SECTOR,
            compressed,
            zero_grains: flags & ZERO_GRAINS != 0,
            directory,
            tables,
        })
    }
}

fn require_signature(bytes: &[u8]) -> Result<(), ImageError> {
    if bytes.starts_with(SIGNATURE) {
        return Ok(());
    }
    if bytes.starts_with(b"# Disk Descriptor") {
        return Err(unsupported("a disk whose data is in other files".to_owned(), 0));
    }
    if bytes.starts_with(b"COWD") {
        return Err(unsupported("a sparse disk of ESX".to_owned(), 0));
    }
    let found = format!("{:#x}", le32(bytes, 0));
    Err(BrokenRule::new(Rule::Identifier, 0, found, "the signature \"KDMV\"").into())
}

/// The disk is in this file alone, and has no parent.
fn check_descriptor(file: &dyn ImageFile, header: &[u8]) -> Result<(), ImageError> {
    let (offset, len) = (
        le64(header, 28).saturating_mul(SECTOR),
        le64(header, 36).saturating_mul(SECTOR),
    );
    if offset == 0 || len == 0 {
        return Err(unsupported("one of several files of a disk".to_owned(), 28));
    }
    if len > MAX_DESCRIPTOR {
        return Err(broken(36, format!("a descriptor of {len:#x} bytes"), "at most 1 MiB"));
    }
    let mut bytes = vec![0; usize_from(len)];
    file.read_exact_at(&mut bytes, offset).at(offset, bytes.len())?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = || text.lines().map(|line| line.trim_end_matches('\0').trim());
    let value = |key: &str| {
        lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            name.trim()
                .eq_ignore_ascii_case(key)
                .then(|| value.trim().trim_matches('"').to_owned())
        })
    };
    let kind = value("createType").unwrap_or_default();
    if !["monolithicSparse", "streamOptimized"]
        .iter()
        .any(|known| kind.eq_ignore_ascii_case(known))
    {
        return Err(unsupported(format!("type \"{}\"", kind.escape_debug()), offset));
    }
    if value("parentCID").is_some_and(|parent| !parent.eq_ignore_ascii_case("ffffffff")) {
        return Err(unsupported("a parent".to_owned(), offset));
    }
    let is_extent = |line: &&str| {
        ["RW ", "RDONLY ", "NOACCESS "]
            .iter()
            .any(|access| line.starts_with(access))
    };
    match lines().filter(is_extent).count() {
        1 => Ok(()),
        count => Err(unsupported(format!("{count} extents"), offset)),
    }
}

fn broken(offset: u64, found: impl ToString, expected: impl ToString) -> ImageError {
    BrokenRule::new(Rule::Header, offset, found.to_string(), expected.to_string()).into()
}

fn unsupported(feature: String, offset: u64) -> ImageError {
    ImageError::Unsupported { feature, offset }
}
