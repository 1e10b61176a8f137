//! The file identifier and the two headers.

use uuid::Uuid;

use super::{MIB, SIGNATURE, crc32c};
use crate::bytes::{array, le16, le32, le64};
use crate::error::ReadContext as _;
use crate::{BrokenRule, ImageError, ImageFile, Rule};

/// Where the headers are.
const OFFSETS: [u64; 2] = [64 << 10, 128 << 10];
const SIZE: usize = 4096;
/// The creator behind the signature, in bytes of UTF-16.
const CREATOR: usize = 512;

/// What a header says. The one with the higher sequence number counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Grows with each header that is written.
    pub sequence: u64,
    /// Changes when anything in the file does.
    pub file_write_guid: Uuid,
    /// Changes when the content of the disk does: a child remembers that of its parent.
    pub data_write_guid: Uuid,
    /// The log to replay; nil if there is none.
    pub log_guid: Uuid,
    pub(super) log_offset: u64,
    pub(super) log_len: u32,
}

/// The headers of a file.
pub(super) struct Headers {
    pub(super) current: Header,
    /// What is wrong with the other header, if it is not usable.
    pub(super) other: Option<BrokenRule>,
}

/// The program that made the file, and its headers.
pub(super) fn read(file: &dyn ImageFile) -> Result<(String, Headers), ImageError> {
    let mut identifier = [0; 8 + CREATOR];
    file.read_exact_at(&mut identifier, 0).at(0, identifier.len())?;
    if !identifier.starts_with(SIGNATURE) {
        let found = String::from_utf8_lossy(&identifier[..8]).escape_default().to_string();
        return Err(BrokenRule::new(Rule::Identifier, 0, format!("\"{found}\""), "\"vhdxfile\"").into());
    }
    let creator = utf16_until_zero(&identifier[8..]);
    let both = [read_one(file, OFFSETS[0])?, read_one(file, OFFSETS[1])?];
    Ok((creator, choose(both)?))
}

/// The header that counts, and nothing else: what a look at a possible parent needs.
///
/// # Errors
/// As for [`Image::open`](super::Image::open).
pub fn read_header(file: &dyn ImageFile) -> Result<Header, ImageError> {
    read(file).map(|(_, headers)| headers.current)
}

fn choose(both: [Result<Header, BrokenRule>; 2]) -> Result<Headers, ImageError> {
    match both {
        [Ok(first), Ok(second)] if first.sequence == second.sequence && first != second => {
            let expected = "one header newer than the other";
            let found = format!("two different headers of sequence number {}", first.sequence);
            Err(BrokenRule::new(Rule::Header, OFFSETS[0], found, expected).into())
        }
        // Some programs write the same header twice.
        [Ok(first), Ok(second)] => Ok(Headers {
            current: if second.sequence > first.sequence {
                second
            } else {
                first
            },
            other: None,
        }),
        [Ok(header), Err(error)] | [Err(error), Ok(header)] => Ok(Headers {
            current: header,
            other: Some(error),
        }),
        [Err(error), Err(_)] => Err(error.into()),
    }
}

/// One header; the inner failure is what is wrong with it.
fn read_one(file: &dyn ImageFile, offset: u64) -> Result<Result<Header, BrokenRule>, ImageError> {
    let mut bytes = [0; SIZE];
    file.read_exact_at(&mut bytes, offset).at(offset, SIZE)?;
    let broken =
        |at: u64, found: String, expected: String| Ok(Err(BrokenRule::new(Rule::Header, offset + at, found, expected)));
    if !bytes.starts_with(b"head") {
        return broken(
            0,
            format!("{:#x}", le32(&bytes, 0)),
            "the signature \"head\"".to_owned(),
        );
    }
    let (found, expected) = (le32(&bytes, 4), crc32c::without_field(&bytes, 4));
    if found != expected {
        return broken(4, format!("checksum {found:#x}"), format!("{expected:#x}"));
    }
    // A version that is not known can mean anything: that is no damage.
    let version = le16(&bytes, 66);
    if version != 1 {
        return Err(ImageError::Unsupported {
            feature: format!("VHDX version {version}"),
            offset: offset + 66,
        });
    }
    let header = Header {
        sequence: le64(&bytes, 8),
        file_write_guid: Uuid::from_bytes_le(array(&bytes, 16)),
        data_write_guid: Uuid::from_bytes_le(array(&bytes, 32)),
        log_guid: Uuid::from_bytes_le(array(&bytes, 48)),
        log_len: le32(&bytes, 68),
        log_offset: le64(&bytes, 72),
    };
    if !header.log_offset.is_multiple_of(MIB)
        || header.log_offset < MIB
        || !u64::from(header.log_len).is_multiple_of(MIB)
    {
        let found = format!("a log of {:#x} bytes at {:#x}", header.log_len, header.log_offset);
        return broken(68, found, "multiples of 1 MiB, behind the first".to_owned());
    }
    let log_version = le16(&bytes, 64);
    if !header.log_guid.is_nil() && log_version != 0 {
        return Err(ImageError::Unsupported {
            feature: format!("version {log_version} of the log, which has to be replayed"),
            offset: offset + 64,
        });
    }
    Ok(Ok(header))
}

/// UTF-16 up to its first zero.
fn utf16_until_zero(bytes: &[u8]) -> String {
    let (units, _) = bytes.as_chunks::<2>();
    let units = units.iter().map(|unit| u16::from_le_bytes(*unit));
    char::decode_utf16(units.take_while(|unit| *unit != 0))
        .map(|char| char.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}
