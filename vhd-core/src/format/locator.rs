//! Parent locators: where a differencing disk says its parent is.

use std::fmt;

use crate::units::SECTOR_SIZE;

/// Bytes: longer locator data is not worth reading. Windows reserves this much, and no path that it or
/// Linux opens is longer; a declared length is a number from the file and may be anything.
pub const MAX_LOCATOR_LENGTH: u32 = 64 << 10;

/// The kind of a locator's data (specification, "Parent Locator Entries", "Platform Code").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlatformCode {
    /// `Wi2r`: a relative path in some 8-bit Windows code page; deprecated.
    Wi2r,
    /// `Wi2k`: an absolute path in some 8-bit Windows code page; deprecated.
    Wi2k,
    /// `W2ru`: a path relative to the child's directory, UTF-16LE.
    W2ru,
    /// `W2ku`: an absolute path, UTF-16LE.
    W2ku,
    /// `Mac `: an alias of the classic Mac OS, opaque.
    Mac,
    /// `MacX`: a file URL, UTF-8.
    MacX,
    /// A code that is not in the specification.
    Other(u32),
}

/// The code of an unused locator slot.
pub(super) const NO_PLATFORM: u32 = 0;

const NAMED_CODES: [(PlatformCode, [u8; 4]); 6] = [
    (PlatformCode::Wi2r, *b"Wi2r"),
    (PlatformCode::Wi2k, *b"Wi2k"),
    (PlatformCode::W2ru, *b"W2ru"),
    (PlatformCode::W2ku, *b"W2ku"),
    (PlatformCode::Mac, *b"Mac "),
    (PlatformCode::MacX, *b"MacX"),
];

impl PlatformCode {
    /// The code with this number.
    #[must_use]
    pub fn from_u32(code: u32) -> Self {
        let named = NAMED_CODES.iter().find(|(_, name)| u32::from_be_bytes(*name) == code);
        named.map_or(Self::Other(code), |(known, _)| *known)
    }

    /// The number in the file.
    #[must_use]
    pub fn to_u32(self) -> u32 {
        match self {
            Self::Other(code) => code,
            _ => self.name().map_or(NO_PLATFORM, u32::from_be_bytes),
        }
    }

    fn name(self) -> Option<[u8; 4]> {
        NAMED_CODES
            .iter()
            .find(|(known, _)| *known == self)
            .map(|(_, name)| *name)
    }
}

impl fmt::Display for PlatformCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{}", name.trim_ascii_end().escape_ascii()),
            None => write!(f, "{:#010x}", self.to_u32()),
        }
    }
}

/// One used locator slot of a header (specification, "Parent Locator Entries").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LocatorEntry {
    /// The kind of the data.
    pub code: PlatformCode,
    /// The space of the data in the file as the header has it: bytes or sectors, see
    /// [`space_bytes`](Self::space_bytes). New entries have bytes, a multiple of 512.
    pub space: u32,
    /// Bytes of data. Not to be trusted before it is compared with [`MAX_LOCATOR_LENGTH`].
    pub length: u32,
    /// Where the data begins in the file, in bytes.
    pub offset: u64,
}

impl LocatorEntry {
    /// Bytes of the file that the data may fill.
    ///
    /// The specification counts the space in sectors, but Windows and most others write bytes. A number
    /// below 512 can only mean sectors, a multiple of 512 is taken for bytes, any other is meaningless.
    /// In no case is the space less than the data.
    #[must_use]
    pub fn space_bytes(&self) -> u64 {
        let space = u64::from(self.space);
        let reserved = if space < SECTOR_SIZE {
            space * SECTOR_SIZE
        } else if space.is_multiple_of(SECTOR_SIZE) {
            space
        } else {
            0
        };
        reserved.max(u64::from(self.length))
    }

    /// The offset behind the space of the data, in bytes; `None` if that is past the largest offset.
    #[must_use]
    pub fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.space_bytes())
    }
}

/// The path in a locator's `data`, as its writer wrote it: backslashes and drive letters are kept, and
/// what is no text becomes U+FFFD. `None` where there is no path: opaque kinds, an empty text, or a
/// `MacX` that is no file URL.
///
/// `data` is the locator's bytes up to its length. Some writers count a terminating NUL in the length,
/// or leave older bytes behind it; the text ends there.
#[must_use]
pub fn decode_locator(code: PlatformCode, data: &[u8]) -> Option<String> {
    let path = match code {
        PlatformCode::W2ru | PlatformCode::W2ku => decode_utf16le(data),
        PlatformCode::MacX => decode_file_url(until_nul(data))?,
        // The code page is not recorded; Latin-1 is right for ASCII and loses nothing.
        PlatformCode::Wi2r | PlatformCode::Wi2k => until_nul(data).iter().map(|&byte| char::from(byte)).collect(),
        PlatformCode::Mac | PlatformCode::Other(_) => return None,
    };
    (!path.is_empty()).then_some(path)
}

/// The data of a `W2ru` or `W2ku` locator for `path`: UTF-16LE without terminator.
#[must_use]
pub fn encode_locator_utf16le(path: &str) -> Vec<u8> {
    path.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn decode_utf16le(data: &[u8]) -> String {
    let (pairs, _odd) = data.as_chunks::<2>();
    let units = pairs
        .iter()
        .map(|pair| u16::from_le_bytes(*pair))
        .take_while(|&unit| unit != 0);
    char::decode_utf16(units)
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

fn until_nul(data: &[u8]) -> &[u8] {
    data.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// The path in a file URL. The host `localhost` and an empty one are dropped; libvhd puts a relative
/// path in the host's place (`file://./base.vhd`), so any other host is taken for the path's beginning.
fn decode_file_url(url: &[u8]) -> Option<String> {
    let rest = strip_prefix_ignoring_case(url, b"file:")?;
    let rest = rest.strip_prefix(b"//").unwrap_or(rest);
    let path = match strip_prefix_ignoring_case(rest, b"localhost") {
        Some(path) if path.starts_with(b"/") => path,
        _ => rest,
    };
    let path = percent_decode(path);
    // An escaped NUL is no path, and an open call would see only what precedes it.
    (!path.contains(&0)).then(|| String::from_utf8_lossy(&path).into_owned())
}

fn strip_prefix_ignoring_case<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// Replaces `%XX`. A percent sign without two digits stands for itself: libvhd does not escape.
fn percent_decode(mut text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    while let [first, rest @ ..] = text {
        match (first, rest) {
            (b'%', [high, low, behind @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                decoded.push(hex_digit(*high) << 4 | hex_digit(*low));
                text = behind;
            }
            _ => {
                decoded.push(*first);
                text = rest;
            }
        }
    }
    decoded
}

/// The value of a hexadecimal digit.
fn hex_digit(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => digit.to_ascii_lowercase() - b'a' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn codes_as_numbers() {
        let known = [
            (PlatformCode::Wi2r, 0x5769_3272, "Wi2r"),
            (PlatformCode::Wi2k, 0x5769_326B, "Wi2k"),
            (PlatformCode::W2ru, 0x5732_7275, "W2ru"),
            (PlatformCode::W2ku, 0x5732_6B75, "W2ku"),
            (PlatformCode::Mac, 0x4D61_6320, "Mac"),
            (PlatformCode::MacX, 0x4D61_6358, "MacX"),
            (PlatformCode::Other(0x4D16_3220), 0x4D16_3220, "0x4d163220"),
        ];
        for (code, number, text) in known {
            assert_eq!(code.to_u32(), number);
            assert_eq!(PlatformCode::from_u32(number), code);
            assert_eq!(code.to_string(), text);
        }
    }

    fn space_of(space: u32, length: u32) -> u64 {
        LocatorEntry {
            code: PlatformCode::W2ku,
            space,
            length,
            offset: 0,
        }
        .space_bytes()
    }

    #[test]
    fn space_in_sectors_or_bytes() {
        assert_eq!(space_of(1, 40), 512);
        assert_eq!(space_of(511, 40), 511 * 512);
        assert_eq!(space_of(512, 40), 512);
        assert_eq!(space_of(4096, 90), 4096);
        assert_eq!(space_of(65536, 20), 65536);
        assert_eq!(space_of(1000, 40), 40);
        assert_eq!(space_of(0, 40), 40);
        assert_eq!(space_of(512, 600), 600);
    }

    #[test]
    fn end_does_not_wrap() {
        let entry = LocatorEntry {
            code: PlatformCode::W2ru,
            space: 512,
            length: 20,
            offset: 0x800,
        };
        assert_eq!(entry.end(), Some(0xA00));
        assert_eq!(
            LocatorEntry {
                offset: u64::MAX - 511,
                ..entry
            }
            .end(),
            None
        );
        assert_eq!(
            LocatorEntry {
                offset: u64::MAX - 512,
                ..entry
            }
            .end(),
            Some(u64::MAX)
        );
    }

    fn path(code: PlatformCode, data: &[u8]) -> Option<String> {
        decode_locator(code, data)
    }

    #[test]
    fn windows_paths() {
        let relative = b".\0\\\0b\0.\0v\0h\0d\0";
        assert_eq!(path(PlatformCode::W2ru, relative).as_deref(), Some(".\\b.vhd"));
        assert_eq!(encode_locator_utf16le(".\\b.vhd"), relative);
        assert_eq!(path(PlatformCode::W2ku, b"C\0:\0\\\0a\0").as_deref(), Some("C:\\a"));
        assert_eq!(path(PlatformCode::W2ru, b"a\0\0\0").as_deref(), Some("a"));
        assert_eq!(path(PlatformCode::W2ru, b"a\0\0\0z\0").as_deref(), Some("a"));
        assert_eq!(path(PlatformCode::W2ru, b"a\0b").as_deref(), Some("a"));
        assert_eq!(path(PlatformCode::W2ru, &[0x00, 0xD8]).as_deref(), Some("\u{FFFD}"));
        assert_eq!(path(PlatformCode::W2ru, b""), None);
        assert_eq!(path(PlatformCode::W2ru, b"\0\0"), None);
    }

    #[test]
    fn eight_bit_paths_and_opaque_data() {
        assert_eq!(path(PlatformCode::Wi2r, b".\\b.vhd\0").as_deref(), Some(".\\b.vhd"));
        assert_eq!(
            path(PlatformCode::Wi2k, b"C:\\\xE4.vhd").as_deref(),
            Some("C:\\\u{E4}.vhd")
        );
        assert_eq!(path(PlatformCode::Mac, b"anything"), None);
        assert_eq!(path(PlatformCode::Other(1), b"anything"), None);
    }

    #[test]
    fn file_urls() {
        let cases = [
            ("file://localhost/dir/x", Some("/dir/x")),
            ("FILE://LocalHost/dir/x", Some("/dir/x")),
            ("file:///dir/x", Some("/dir/x")),
            ("file:/dir/x", Some("/dir/x")),
            ("file://./base.vhd", Some("./base.vhd")),
            ("file://../up/base.vhd", Some("../up/base.vhd")),
            ("file://base.vhd", Some("base.vhd")),
            ("file://localhost.vhd", Some("localhost.vhd")),
            ("file://localhost/a%20b/%C3%A4.vhd", Some("/a b/\u{E4}.vhd")),
            ("file://./%2e%2E/x", Some("./../x")),
            ("file://./100%.vhd", Some("./100%.vhd")),
            ("file://./100%4", Some("./100%4")),
            ("file://./%zz%+1%", Some("./%zz%+1%")),
            ("file://./base.vhd\0old", Some("./base.vhd")),
            ("file://./a%00b", None),
            ("file://./%ff", Some("./\u{FFFD}")),
            ("file://", None),
            ("/dir/x", None),
            ("http://localhost/dir/x", None),
            ("", None),
        ];
        for (url, expected) in cases {
            assert_eq!(path(PlatformCode::MacX, url.as_bytes()).as_deref(), expected, "{url:?}");
        }
    }

    proptest! {
        #[test]
        fn codes_survive(code: u32) {
            prop_assert_eq!(PlatformCode::from_u32(code).to_u32(), code);
        }

        #[test]
        fn paths_survive(text in "[^\0]{1,80}") {
            let data = encode_locator_utf16le(&text);
            prop_assert_eq!(decode_locator(PlatformCode::W2ru, &data), Some(text.clone()));
            let padded = [&data[..], &[0, 0, 7, 7]].concat();
            prop_assert_eq!(decode_locator(PlatformCode::W2ku, &padded), Some(text));
        }

        #[test]
        fn escaped_urls_survive(text in "[^\0]{1,40}") {
            let escaped: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            let url = format!("file://localhost/{escaped}");
            prop_assert_eq!(decode_locator(PlatformCode::MacX, url.as_bytes()), Some(format!("/{text}")));
        }

        #[test]
        fn nothing_panics(code: u32, data: Vec<u8>, space: u32, length: u32, offset: u64) {
            for code in NAMED_CODES.map(|(code, _)| code) {
                let _ = decode_locator(code, &data);
                let _ = decode_locator(code, &[b"file://", &data[..]].concat());
            }
            let entry = LocatorEntry { code: PlatformCode::from_u32(code), space, length, offset };
            prop_assert!(entry.space_bytes() >= u64::from(length));
            prop_assert!(entry.end().is_none_or(|end| end >= offset));
        }
    }
}
