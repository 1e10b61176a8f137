//! The hard disk footer: what every VHD ends with, and every sparse one begins with.

mod damaged;

use std::mem::offset_of;
use std::ops::Range;

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::field_at;
use super::{DiskType, FormatError, FormatOddity, Geometry, HEADER_SIZE, Timestamp, UniqueId, checksum};
use crate::units::{SECTOR_SIZE, u64_from};

pub use damaged::{reconstruct_footer, reseal_footer};

/// Bytes of a footer.
pub const FOOTER_SIZE: usize = 512;
/// Bytes of a footer from before Virtual PC 2004, which lacks the last (reserved) byte.
pub const LEGACY_FOOTER_SIZE: usize = 511;
/// The first eight bytes of a footer.
pub const COOKIE: [u8; 8] = *b"conectix";
/// Bytes: the largest disk (2040 GiB). Beyond it a table entry could not address every block.
pub const MAX_DISK_SIZE: u64 = 2040 << 30;

/// The cookie that the Xen tools write while a journaled operation is under way.
const JOURNAL_COOKIE: [u8; 8] = *b"v_poison";
const FEATURE_TEMPORARY: u32 = 1;
const FEATURE_RESERVED: u32 = 2;
const FORMAT_VERSION: u32 = 0x0001_0000;
/// The data offset of fixed disks. The specification names 32 bits of ones, but every Microsoft program
/// writes 64, and several readers refuse the former.
const NO_HEADER: u64 = u64::MAX;
/// As Hyper-V of Windows Server 2008 R2 writes them. qemu up to version 9 cuts images of creators that it does not
/// know off where their geometry ends, and that is before the end of most disks.
const CREATOR_APPLICATION: [u8; 4] = *b"win ";
const CREATOR_VERSION: u32 = 0x0006_0001;
/// Windows: the specification has only this and the Macintosh.
const CREATOR_HOST_OS: [u8; 4] = *b"Wi2k";

/// The first Xen tap driver and its versions that need care.
const TAP_APPLICATION: [u8; 4] = *b"tap\0";
const TAP_REVERSE_BITMAPS: u32 = 0x0000_0001;
const TAP_HIDDEN_NOT_SUMMED: [u32; 2] = [0x0000_0001, 0x0001_0001];

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawFooter {
    cookie: [u8; 8],
    features: U32,
    format_version: U32,
    data_offset: U64,
    timestamp: U32,
    creator_application: [u8; 4],
    creator_version: U32,
    creator_host_os: [u8; 4],
    original_size: U64,
    current_size: U64,
    cylinders: U16,
    heads: u8,
    sectors_per_track: u8,
    disk_type: U32,
    checksum: U32,
    unique_id: [u8; 16],
    saved_state: u8,
    hidden: u8,
    reserved: [u8; 426],
}

const _: () = assert!(size_of::<RawFooter>() == FOOTER_SIZE);

const CHECKSUM: Range<usize> = field_at(offset_of!(RawFooter, checksum));

/// The footer of an image (specification, "Hard Disk Footer Format").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Bit 0: temporary disk. Bit 1: reserved, always set.
    pub features: u32,
    /// The version of the format, 0x00010000.
    pub format_version: u32,
    /// Where the dynamic header begins in the file, in bytes. `None` exactly for fixed disks, whatever
    /// the field holds there.
    pub data_offset: Option<u64>,
    /// When the image was created.
    pub timestamp: Timestamp,
    /// The program that created the image, four characters.
    pub creator_application: [u8; 4],
    /// That program's version: major in the upper, minor in the lower 16 bits.
    pub creator_version: u32,
    /// The operating system that program ran on, four characters.
    pub creator_host_os: [u8; 4],
    /// Bytes of the disk when it was created.
    pub original_size: u64,
    /// Bytes of the disk.
    pub current_size: u64,
    /// The geometry that guests without large disk support see.
    pub geometry: Geometry,
    /// The kind of the image.
    pub disk_type: DiskType,
    /// The identity of the disk, which children name their parent by.
    pub unique_id: UniqueId,
    /// Whether a virtual machine is saved with this disk.
    pub saved_state: bool,
    /// The Xen tools' mark for disks that are only parents: 0, 1 or 2. Reserved, hence 0, elsewhere.
    pub hidden: u8,
}

impl Footer {
    /// The footer of a new disk of `size` bytes, which the caller has checked. The dynamic header of a
    /// sparse disk is directly behind the footer copy.
    #[must_use]
    pub fn new(disk_type: DiskType, size: u64, unique_id: UniqueId, timestamp: Timestamp) -> Self {
        Self {
            features: FEATURE_RESERVED,
            format_version: FORMAT_VERSION,
            data_offset: disk_type.is_sparse().then_some(u64_from(FOOTER_SIZE)),
            timestamp,
            creator_application: CREATOR_APPLICATION,
            creator_version: CREATOR_VERSION,
            creator_host_os: CREATOR_HOST_OS,
            original_size: size,
            current_size: size,
            geometry: Geometry::from_size(size),
            disk_type,
            unique_id,
            saved_state: false,
            hidden: 0,
        }
    }

    /// The footer in `bytes`: 512 of them, or 511 of the legacy form. Checked are, in this order, the
    /// cookie, the checksum, the disk type, the size and, for sparse disks, the data offset; whether that
    /// is inside the file is for the caller to check.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        Ok(RawFooter::read(bytes)?.validate()?.0)
    }

    /// Like [`decode`](Self::decode), with all oddities: those of [`oddities`](Self::oddities) and those
    /// that are lost in decoding.
    pub fn decode_with_oddities(bytes: &[u8]) -> Result<(Self, Vec<FormatOddity>), FormatError> {
        let raw = RawFooter::read(bytes)?;
        let (footer, sum) = raw.validate()?;
        let mut oddities = footer.oddities();
        if bytes.len() == LEGACY_FOOTER_SIZE {
            oddities.push(FormatOddity::LegacyFooter);
        }
        let offset = raw.data_offset.get();
        if footer.disk_type == DiskType::Fixed && offset != NO_HEADER {
            oddities.push(FormatOddity::FixedDataOffset { offset });
        }
        if sum == Sum::WithoutHidden {
            oddities.push(FormatOddity::HiddenNotSummed);
        }
        if raw.reserved.iter().any(|&byte| byte != 0) {
            oddities.push(FormatOddity::FooterReserved);
        }
        Ok((footer, oddities))
    }

    /// The footer as it stands in the file, with its checksum. Reserved bytes are zero.
    #[must_use]
    pub fn encode(&self) -> [u8; FOOTER_SIZE] {
        let mut raw = RawFooter {
            cookie: COOKIE,
            features: U32::new(self.features),
            format_version: U32::new(self.format_version),
            data_offset: U64::new(self.data_offset.unwrap_or(NO_HEADER)),
            timestamp: U32::new(self.timestamp.0),
            creator_application: self.creator_application,
            creator_version: U32::new(self.creator_version),
            creator_host_os: self.creator_host_os,
            original_size: U64::new(self.original_size),
            current_size: U64::new(self.current_size),
            cylinders: U16::new(self.geometry.cylinders),
            heads: self.geometry.heads,
            sectors_per_track: self.geometry.sectors_per_track,
            disk_type: U32::new(self.disk_type.to_u32()),
            checksum: U32::ZERO,
            unique_id: self.unique_id.0,
            saved_state: u8::from(self.saved_state),
            hidden: self.hidden,
            reserved: [0; 426],
        };
        raw.checksum = U32::new(raw.sum());
        zerocopy::transmute!(raw)
    }

    /// Like [`encode`](Self::encode), with the reserved bytes of `found`, the footer that this one takes the place
    /// of: other programs keep things there.
    #[must_use]
    pub fn encode_over(&self, found: &[u8; FOOTER_SIZE]) -> [u8; FOOTER_SIZE] {
        let mut bytes = self.encode();
        let raw: &mut RawFooter = zerocopy::transmute_mut!(&mut bytes);
        let found: &RawFooter = zerocopy::transmute_ref!(found);
        raw.reserved = found.reserved;
        raw.checksum = U32::new(raw.sum());
        bytes
    }

    /// What is unusual in the footer's fields. Oddities of the bytes that have no field come from
    /// [`decode_with_oddities`](Self::decode_with_oddities) only.
    #[must_use]
    pub fn oddities(&self) -> Vec<FormatOddity> {
        let &Self {
            features,
            format_version,
            geometry,
            original_size,
            current_size,
            hidden,
            ..
        } = self;
        let offset = self.data_offset.filter(|offset| !offset.is_multiple_of(SECTOR_SIZE));
        let (expected, covered) = (Geometry::from_size(current_size), geometry.size_bytes());
        let unknown_features = features & !(FEATURE_TEMPORARY | FEATURE_RESERVED) != 0;
        let size = current_size;
        [
            (features & FEATURE_RESERVED == 0).then_some(FormatOddity::ReservedFeatureClear { features }),
            (features & FEATURE_TEMPORARY != 0).then_some(FormatOddity::Temporary),
            unknown_features.then_some(FormatOddity::UnknownFeatures { features }),
            (format_version != FORMAT_VERSION).then_some(FormatOddity::FormatVersion {
                found: format_version,
                expected: FORMAT_VERSION,
            }),
            offset.map(|offset| FormatOddity::HeaderMisaligned { offset }),
            (original_size != size).then_some(FormatOddity::OriginalSize {
                original: original_size,
                current: size,
            }),
            (covered != size).then_some(FormatOddity::GeometrySize {
                geometry,
                covered,
                size,
            }),
            (geometry != expected).then_some(FormatOddity::GeometryFormula {
                found: geometry,
                expected,
            }),
            self.saved_state.then_some(FormatOddity::SavedState),
            (hidden != 0).then_some(FormatOddity::Hidden { value: hidden }),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Whether `bytes` begin like a footer, be it one with the cookie of an unfinished journaled operation:
/// [`Footer::decode`] then tells what there is.
#[must_use]
pub fn has_footer_cookie(bytes: &[u8]) -> bool {
    bytes.starts_with(&COOKIE) || bytes.starts_with(&JOURNAL_COOKIE)
}

/// Which bytes a footer's checksum was found to sum.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sum {
    All,
    WithoutHidden,
}

impl RawFooter {
    fn read(bytes: &[u8]) -> Result<Self, FormatError> {
        let len = bytes.len();
        if len != FOOTER_SIZE && len != LEGACY_FOOTER_SIZE {
            return Err(FormatError::FooterLength { len });
        }
        let mut whole = [0; FOOTER_SIZE];
        whole[..len].copy_from_slice(bytes);
        Ok(zerocopy::transmute!(whole))
    }

    fn sum(&self) -> u32 {
        checksum(self.as_bytes(), CHECKSUM)
    }

    fn validate(&self) -> Result<(Footer, Sum), FormatError> {
        match self.cookie {
            COOKIE => {}
            JOURNAL_COOKIE => return Err(FormatError::JournalPending),
            found => return Err(FormatError::FooterCookie { found }),
        }
        let sum = self.check_sum()?;
        let disk_type = DiskType::from_u32(self.disk_type.get())?;
        check_size(self.current_size.get())?;
        let data_offset = if disk_type.is_sparse() {
            Some(self.check_sparse()?)
        } else {
            None
        };
        let footer = Footer {
            features: self.features.get(),
            format_version: self.format_version.get(),
            data_offset,
            timestamp: Timestamp(self.timestamp.get()),
            creator_application: self.creator_application,
            creator_version: self.creator_version.get(),
            creator_host_os: self.creator_host_os,
            original_size: self.original_size.get(),
            current_size: self.current_size.get(),
            geometry: Geometry {
                cylinders: self.cylinders.get(),
                heads: self.heads,
                sectors_per_track: self.sectors_per_track,
            },
            disk_type,
            unique_id: UniqueId(self.unique_id),
            saved_state: self.saved_state != 0,
            hidden: self.hidden,
        };
        Ok((footer, sum))
    }

    /// Early Xen tools marked a disk as hidden without renewing the checksum; the footer is good then.
    fn check_sum(&self) -> Result<Sum, FormatError> {
        let (stored, computed) = (self.checksum.get(), self.sum());
        if stored == computed {
            return Ok(Sum::All);
        }
        let unsummed = self.creator_application == TAP_APPLICATION
            && TAP_HIDDEN_NOT_SUMMED.contains(&self.creator_version.get())
            && stored == (Self { hidden: 0, ..*self }).sum();
        if unsummed {
            Ok(Sum::WithoutHidden)
        } else {
            Err(FormatError::FooterChecksum { stored, computed })
        }
    }

    /// The checks of a dynamic or differencing disk; returns the data offset.
    fn check_sparse(&self) -> Result<u64, FormatError> {
        let offset = self.data_offset.get();
        if offset < u64_from(FOOTER_SIZE) {
            return Err(FormatError::HeaderInFooterCopy { offset });
        }
        if offset.checked_add(u64_from(HEADER_SIZE)).is_none() {
            return Err(FormatError::HeaderPastEnd { offset });
        }
        // Reading such an image by the rule of all others would return wrong data without a word.
        if self.creator_application == TAP_APPLICATION && self.creator_version == TAP_REVERSE_BITMAPS {
            return Err(FormatError::LegacyBitOrder {
                version: TAP_REVERSE_BITMAPS,
            });
        }
        Ok(offset)
    }
}

fn check_size(size: u64) -> Result<(), FormatError> {
    if size == 0 {
        return Err(FormatError::DiskSizeZero);
    }
    if !size.is_multiple_of(SECTOR_SIZE) {
        return Err(FormatError::DiskSizeMisaligned { size });
    }
    if size > MAX_DISK_SIZE {
        return Err(FormatError::DiskSizeTooLarge {
            size,
            max: MAX_DISK_SIZE,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
