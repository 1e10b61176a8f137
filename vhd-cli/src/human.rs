//! Numbers and texts as a person reads them.

use std::fmt;

use jiff::Timestamp as UtcTime;
use vhd_core::format::Timestamp;

/// Bytes in the largest binary unit that leaves a number of at least one: `1.50 GiB`.
pub(crate) fn binary(bytes: u64) -> String {
    const UNITS: &[&str] = &["KiB", "MiB", "GiB", "TiB"];
    let mut shift = 0;
    let mut unit = "bytes";
    for name in UNITS {
        // Disks are named in GiB up to the largest there is, 2040 GiB.
        if bytes >> (shift + 10) == 0 || *name == "TiB" && bytes >> 42 == 0 {
            break;
        }
        shift += 10;
        unit = name;
    }
    if shift == 0 {
        return format!("{bytes} bytes");
    }
    let hundredths = (u128::from(bytes) * 100) >> shift;
    format!("{}.{:02} {unit}", hundredths / 100, hundredths % 100)
}

/// Bytes exactly, and readably where that is something else.
pub(crate) fn bytes(bytes: u64) -> String {
    if bytes < 1024 {
        format!("{bytes} bytes")
    } else {
        format!("{bytes} bytes ({})", binary(bytes))
    }
}

/// `count` things, `one` being the word for one of them.
pub(crate) fn count(count: u64, one: &str) -> String {
    if count == 1 {
        format!("1 {one}")
    } else {
        format!("{count} {one}s")
    }
}

/// A time stamp in ISO 8601; `None` where it was not set.
pub(crate) fn utc(timestamp: Timestamp) -> Option<String> {
    (timestamp != Timestamp::UNSET).then(|| unix_utc(timestamp.to_unix_seconds()))?
}

/// Seconds since 1970 in ISO 8601; `None` where no calendar has them.
pub(crate) fn unix_utc(seconds: i64) -> Option<String> {
    UtcTime::from_second(seconds).ok().map(|time| time.to_string())
}

/// What of a disk is lost and in doubt, in a few words; `None` if nothing is.
pub(crate) fn loss(lost_sectors: u64, doubtful_sectors: u64) -> Option<String> {
    match (lost_sectors, doubtful_sectors) {
        (0, 0) => None,
        (lost, 0) => Some(format!("{} lost", count(lost, "sector"))),
        (0, doubtful) => Some(format!("{} in doubt", count(doubtful, "sector"))),
        (lost, doubtful) => Some(format!("{} lost, {doubtful} in doubt", count(lost, "sector"))),
    }
}

/// A text with every control character but line ends, and every character that reorders text, shown by its number: images
/// choose names of parents, strangers names of files, and a terminal obeys what it is sent.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push(c),
            c if c.is_control() || is_misleading(c) => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}

/// A character that changes the direction of text, or takes no space: names that look alike with it are not.
pub(crate) fn is_misleading(c: char) -> bool {
    matches!(c,
        '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Lines of `label: value`, the values below one another.
#[derive(Debug, Default)]
pub(crate) struct Fields(Vec<(&'static str, String)>);

impl Fields {
    /// Adds a line.
    pub(crate) fn add(&mut self, label: &'static str, value: impl fmt::Display) {
        self.0.push((label, value.to_string()));
    }
}

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|(label, _)| label.len()).max().unwrap_or(0) + 1;
        for (label, value) in &self.0 {
            let label = if label.is_empty() {
                String::new()
            } else {
                format!("{label}:")
            };
            writeln!(f, "  {label:width$} {value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        assert_eq!(binary(0), "0 bytes");
        assert_eq!(binary(1023), "1023 bytes");
        assert_eq!(binary(1024), "1.00 KiB");
        assert_eq!(binary(64 << 20), "64.00 MiB");
        assert_eq!(binary(3 << 29), "1.50 GiB");
        assert_eq!(binary(2040 << 30), "2040.00 GiB");
        assert_eq!(binary(u64::MAX), "16777215.99 TiB");
        assert_eq!(bytes(2048), "2048 bytes (2.00 KiB)");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(
            visible("a\u{1b}[2Jb\nc\u{202e}d\te\u{9b}"),
            "a\\u{1b}[2Jb\nc\\u{202e}d\\u{9}e\\u{9b}"
        );
    }
}
