//! The marks of foreign formats that are more than a magic number. Short magic numbers are backed by what must follow
//! them, so that a disk of random bytes is not mistaken.

use std::io;

use super::sample::Sample;

/// Bytes in a block of an optical disc.
const DISC_BLOCK: u64 = 2048;
/// Where the volume descriptors of an optical disc begin, whatever its blocks.
const VOLUME_DESCRIPTORS: usize = 32 << 10;
/// Volume descriptors that are looked at.
const MAX_DESCRIPTORS: usize = 16;
/// Bytes in a tar header.
const TAR_HEADER: usize = 512;
/// Where a tar header has its checksum.
const TAR_CHECKSUM: std::ops::Range<usize> = 148..156;

/// ISO 9660 in 2048-byte blocks.
pub(super) fn is_iso9660(sample: &Sample<'_>) -> io::Result<bool> {
    Ok(has_descriptor(sample, b"CD001"))
}

/// UDF without ISO 9660, in the blocks of an optical disc: on a hard disk UDF has blocks of 512 or 4096 bytes, and
/// then it is a file system as any other. The anchor in block 256 tells which.
pub(super) fn is_optical_udf(sample: &Sample<'_>) -> io::Result<bool> {
    if !has_descriptor(sample, b"NSR02") && !has_descriptor(sample, b"NSR03") {
        return Ok(false);
    }
    let anchor = sample.bytes_at::<2>(256 * DISC_BLOCK)?;
    Ok(anchor == Some([2, 0]))
}

fn has_descriptor(sample: &Sample<'_>, identifier: &[u8]) -> bool {
    let places = (VOLUME_DESCRIPTORS..).step_by(2048).take(MAX_DESCRIPTORS);
    places.into_iter().any(|place| sample.has(place + 1, identifier))
}

/// Deflate, and none of the reserved flags.
pub(super) fn is_gzip(sample: &Sample<'_>) -> io::Result<bool> {
    Ok(sample.has(0, b"\x1F\x8B\x08") && sample.number::<1>(3).is_some_and(|flags| flags & 0xE0 == 0))
}

/// A level, then the magic number of a block or of the end.
pub(super) fn is_bzip2(sample: &Sample<'_>) -> io::Result<bool> {
    let block = sample.has(4, b"\x31\x41\x59\x26\x53\x59") || sample.has(4, b"\x17\x72\x45\x38\x50\x90");
    let level = sample.head().get(3).is_some_and(|level| (b'1'..=b'9').contains(level));
    Ok(sample.has(0, b"BZh") && level && block)
}

/// The frame that parallel and seekable zstd files begin with.
pub(super) fn is_skippable_frame(sample: &Sample<'_>) -> io::Result<bool> {
    let magic = sample.number::<4>(0);
    let next = sample.number::<4>(4).and_then(|frame| usize::try_from(frame + 8).ok());
    let follows = next.is_some_and(|next| sample.has(next, b"\x28\xB5\x2F\xFD"));
    Ok(magic.is_some_and(|magic| magic & !0xF == 0x184D_2A50) && follows)
}

/// The properties that every encoder uses, a usual dictionary size, and a size that is unknown or below 1 TiB.
pub(super) fn is_lzma(sample: &Sample<'_>) -> io::Result<bool> {
    let dictionary = sample.number::<4>(1).unwrap_or(0);
    let size = sample.number::<8>(5).unwrap_or(0);
    let usual = dictionary >= 4096
        && (dictionary.is_power_of_two() || dictionary.is_multiple_of(3) && (dictionary / 3).is_power_of_two());
    Ok(sample.has(0, b"\x5D\0") && usual && (size == u64::MAX || (1..1 << 40).contains(&size)))
}

/// Codes of 9 to 16 bits, and none of the reserved flags.
pub(super) fn is_compress(sample: &Sample<'_>) -> io::Result<bool> {
    let flags = sample.number::<1>(2).unwrap_or(0);
    Ok(sample.has(0, b"\x1F\x9D") && flags & 0x60 == 0 && (9..=16).contains(&(flags & 0x1F)))
}

/// The magic number, and a type below 10.
pub(super) fn is_ghost(sample: &Sample<'_>) -> io::Result<bool> {
    Ok(sample.has(0, b"\xFE\xEF\x01") && sample.number::<1>(3).is_some_and(|kind| kind < 10) && sample.has(9, &[0; 2]))
}

/// A first header with a name and its own checksum: tar before `ustar` has no magic number.
pub(super) fn is_tar(sample: &Sample<'_>) -> io::Result<bool> {
    let Some(header) = sample.head().get(..TAR_HEADER) else {
        return Ok(false);
    };
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(at, &byte)| u64::from(if TAR_CHECKSUM.contains(&at) { b' ' } else { byte }))
        .sum();
    Ok(header[0] != 0 && octal(&header[TAR_CHECKSUM]) == Some(sum))
}

/// A tar archive whose first file is an OVF descriptor.
pub(super) fn is_ova(sample: &Sample<'_>) -> io::Result<bool> {
    let name = sample.head().get(..100).unwrap_or_default();
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    Ok(name.to_ascii_lowercase().ends_with(b".ovf") && is_tar(sample)?)
}

/// A number in octal digits, with spaces before and a space or zero byte behind.
fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    u64::from_str_radix(text.trim_matches([' ', '\0']), 8).ok()
}

/// A DOS program that leads to a Windows one.
pub(super) fn is_pe(sample: &Sample<'_>) -> io::Result<bool> {
    let header = sample.number::<4>(0x3C).and_then(|at| usize::try_from(at).ok());
    Ok(sample.has(0, b"MZ") && header.is_some_and(|at| sample.has(at, b"PE\0\0")))
}

/// Both ends are text: printable characters, more than one of them, and line ends.
pub(super) fn is_text(sample: &Sample<'_>) -> io::Result<bool> {
    let start = &sample.head()[..sample.head().len().min(sample.tail().len())];
    if let Some(utf16) = Utf16::of(start) {
        return Ok(utf16.is_text(&start[2..]));
    }
    let varied = start.iter().any(|byte| *byte != start[0]);
    Ok(varied && is_utf8_text(start) && is_utf8_text(sample.tail()))
}

/// UTF-8 that may be cut at both ends.
fn is_utf8_text(bytes: &[u8]) -> bool {
    let cut = bytes.iter().take(3).take_while(|byte| **byte & 0xC0 == 0x80).count();
    let bytes = &bytes[cut..];
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or("\0"),
        Err(_) => return false,
    };
    text.chars().all(is_printable)
}

fn is_printable(character: char) -> bool {
    !character.is_control() || matches!(character, '\t' | '\n' | '\r' | '\x0C' | '\x1B')
}

/// The order of the bytes in UTF-16.
#[derive(Clone, Copy)]
enum Utf16 {
    Little,
    Big,
}

impl Utf16 {
    /// As the byte order mark says.
    fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xFF, 0xFE, ..] => Some(Self::Little),
            [0xFE, 0xFF, ..] => Some(Self::Big),
            _ => None,
        }
    }

    fn is_text(self, bytes: &[u8]) -> bool {
        let (pairs, _) = bytes.as_chunks::<2>();
        let units = pairs.iter().map(|&pair| match self {
            Self::Little => u16::from_le_bytes(pair),
            Self::Big => u16::from_be_bytes(pair),
        });
        let latin = units.clone().filter(|unit| *unit < 0x100).count();
        let printable = char::decode_utf16(units).all(|unit| unit.is_ok_and(is_printable));
        // Random bytes are mostly valid: a text has line ends and spaces, whatever its letters.
        printable && latin > 0
    }
}
