//! Sizes on the command line: `64M`, `2040G`, `1.5G`, `512s`, plain bytes.

use vhd_core::format::{BlockLayout, MAX_BLOCK_SIZE, MAX_DISK_SIZE, MIN_CREATE_BLOCK_SIZE};
use vhd_core::units::SECTOR_SIZE;

use crate::human;

/// The suffixes with their factors; all but `s` are powers of 1024, as everywhere with disk images.
const SUFFIXES: &[(&str, u64)] = &[
    ("", 1),
    ("b", 1),
    ("s", SECTOR_SIZE),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("g", 1 << 30),
    ("gib", 1 << 30),
    ("t", 1 << 40),
    ("tib", 1 << 40),
];

const ACCEPTED: &str = "a number with an optional suffix: B (bytes), s (sectors of 512 bytes), K, M, G, T (powers of \
                        1024; KiB, MiB, GiB, TiB mean the same), for example 64M, 1.5G, 2040G or 4096s";

/// A number of bytes. Fractions are exact or refused.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits_end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits_end);
    let factor = SUFFIXES
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(suffix))
        .map(|&(_, factor)| factor)
        .ok_or_else(|| format!("expected {ACCEPTED}"))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || number.ends_with('.') || fraction.contains('.') {
        return Err(format!("expected {ACCEPTED}"));
    }
    exact_product(whole, fraction, factor)
}

/// `whole.fraction` times `factor`, if that is a whole number of 64 bits.
fn exact_product(whole: &str, fraction: &str, factor: u64) -> Result<u64, String> {
    let too_large = || "it is more than 64 bits can hold".to_owned();
    let whole: u128 = whole.parse().map_err(|_| too_large())?;
    let fraction = fraction.trim_end_matches('0');
    let places = u32::try_from(fraction.len()).map_err(|_| too_large())?;
    let scale = 10_u128
        .checked_pow(places)
        .ok_or("it has too many digits behind the point")?;
    let fraction: u128 = if fraction.is_empty() {
        0
    } else {
        fraction.parse().map_err(|_| too_large())?
    };
    let scaled = whole
        .checked_mul(scale)
        .and_then(|n| n.checked_add(fraction))
        .and_then(|n| n.checked_mul(u128::from(factor)))
        .ok_or_else(too_large)?;
    if scaled % scale != 0 {
        return Err("it is no whole number of bytes".to_owned());
    }
    u64::try_from(scaled / scale).map_err(|_| too_large())
}

/// The size of a disk: sectors, at least one, at most what a VHD can hold.
pub(crate) fn parse_disk_size(text: &str) -> Result<u64, String> {
    parse_bytes(text).and_then(check_disk_size)
}

fn check_disk_size(bytes: u64) -> Result<u64, String> {
    if bytes == 0 {
        return Err(format!("a disk has at least {SECTOR_SIZE} bytes"));
    }
    if !bytes.is_multiple_of(SECTOR_SIZE) {
        let below = bytes - bytes % SECTOR_SIZE;
        let above = below.saturating_add(SECTOR_SIZE);
        return Err(format!(
            "{bytes} bytes are no multiple of {SECTOR_SIZE}; the nearest sizes are {below} and {above} bytes"
        ));
    }
    if bytes > MAX_DISK_SIZE {
        let largest = human::binary(MAX_DISK_SIZE);
        return Err(format!(
            "{bytes} bytes are more than a VHD can hold: at most {MAX_DISK_SIZE} bytes ({largest})"
        ));
    }
    Ok(bytes)
}

/// A size as it is to be, or by how much it is to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NewSize {
    Exactly(u64),
    Larger(u64),
    Smaller(u64),
}

impl NewSize {
    /// The size in bytes of a disk that has `present` bytes.
    pub(crate) fn of(self, present: u64) -> Result<u64, String> {
        let bytes = match self {
            Self::Exactly(bytes) => return Ok(bytes),
            Self::Larger(bytes) => present.saturating_add(bytes),
            Self::Smaller(bytes) => present.saturating_sub(bytes),
        };
        check_disk_size(bytes).map_err(|reason| format!("the disk has {present} bytes: {reason}"))
    }
}

/// The new size of a disk: as [`parse_disk_size`] takes it, or `+10G`, `-10G` for a change.
pub(crate) fn parse_new_size(text: &str) -> Result<NewSize, String> {
    let change = |text: &str| parse_bytes(text).and_then(check_disk_size);
    match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(more), _) => change(more).map(NewSize::Larger),
        (_, Some(less)) => change(less).map(NewSize::Smaller),
        _ => parse_disk_size(text).map(NewSize::Exactly),
    }
}

/// The size of the blocks of a sparse image.
pub(crate) fn parse_block_size(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text)?;
    let narrow = u32::try_from(bytes)
        .ok()
        .filter(|&bytes| bytes >= MIN_CREATE_BLOCK_SIZE);
    match narrow.map(BlockLayout::new) {
        Some(Ok(layout)) => Ok(layout.block_size()),
        _ => Err(format!(
            "blocks have a power of two of bytes from {} to {}",
            human::binary(u64::from(MIN_CREATE_BLOCK_SIZE)),
            human::binary(u64::from(MAX_BLOCK_SIZE))
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_suffixes() {
        let good = [
            ("0", 0),
            ("1", 1),
            ("512", 512),
            ("512b", 512),
            ("1s", 512),
            ("512s", 262_144),
            ("64M", 64 << 20),
            ("64m", 64 << 20),
            ("64MiB", 64 << 20),
            ("2040G", 2040 << 30),
            ("1.5G", 3 << 29),
            ("1.50G", 3 << 29),
            ("0.5k", 512),
            ("2T", 2 << 40),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in good {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_and_says_what_is_accepted() {
        for text in [
            "", "G", ".5G", "5.", "1.2.3", "-1", "+1", " 1", "1 G", "1GB", "0x200", "1e3", "\u{0661}",
        ] {
            let error = parse_bytes(text).unwrap_err();
            assert!(error.contains("64M"), "{text}: {error}");
        }
        for text in [
            "0.3",
            "1.3K",
            "18446744073709551616",
            "16777216T",
            "99999999999999999999999999999999999999999",
        ] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn disks_are_whole_sectors() {
        assert_eq!(parse_disk_size("1s"), Ok(512));
        assert_eq!(parse_disk_size("2040G"), Ok(2040 << 30));
        assert!(parse_disk_size("0").unwrap_err().contains("at least 512"));
        let error = parse_disk_size("1000").unwrap_err();
        assert!(error.contains("512 and 1024 bytes"), "{error}");
        let error = parse_disk_size("2041G").unwrap_err();
        assert!(error.contains("2040.00 GiB"), "{error}");
    }

    #[test]
    fn sizes_and_changes_of_size() {
        let size = |text: &str, present| parse_new_size(text).and_then(|size| size.of(present));
        for (text, bytes) in [
            ("64M", 64 << 20),
            ("+1G", 5 << 30),
            ("-1G", 3 << 30),
            ("+1s", (4 << 30) + 512),
        ] {
            assert_eq!(size(text, 4 << 30), Ok(bytes), "{text}");
        }
        for text in ["-4G", "-5G", "+2040G", "+0", "-1000", "+", "-", "+-1G", "--shrink"] {
            assert!(size(text, 4 << 30).is_err(), "{text}");
        }
    }

    #[test]
    fn blocks_are_powers_of_two() {
        assert_eq!(parse_block_size("2M"), Ok(2 << 20));
        assert_eq!(parse_block_size("512K"), Ok(512 << 10));
        assert_eq!(parse_block_size("256M"), Ok(256 << 20));
        for text in ["256K", "3M", "512M", "0", "8G"] {
            assert!(parse_block_size(text).is_err(), "{text}");
        }
    }
}
