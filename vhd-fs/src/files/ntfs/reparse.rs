//! Reparse points: symbolic links and junctions, and files whose content is kept elsewhere.

use super::{FORMAT, utf16};
use crate::bytes::{le16, le32};
use crate::files::FileError;

/// Windows allows 16 KiB.
pub(super) const MAX_LEN: u64 = 16 << 10;

// [MS-FSCC] 2.1.2.1, reparse tags.
const MOUNT_POINT: u32 = 0xA000_0003;
const SYMLINK: u32 = 0xA000_000C;
const LX_SYMLINK: u32 = 0xA000_001D;
const DEDUP: u32 = 0x8000_0013;
const WOF: u32 = 0x8000_0017;
const HSM: u32 = 0xC000_0004;
const HSM2: u32 = 0x8000_0006;
/// Files of cloud providers have sixteen tags.
const CLOUD: u32 = 0x9000_001A;
const CLOUD_MASK: u32 = 0xFFFF_0FFF;

/// Where the data of a tag starts: behind tag, length and a reserved field.
const DATA: usize = 8;

/// What a reparse point says.
#[derive(Debug)]
pub(super) struct Reparse {
    tag: u32,
    /// The path of a link.
    pub(super) target: Option<Vec<u8>>,
}

impl Reparse {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, FileError> {
        let tag = le32(bytes, 0);
        let target = match tag {
            SYMLINK => Some(windows_target(bytes, 12)?),
            MOUNT_POINT => Some(windows_target(bytes, 8)?),
            // A version, and the path in UTF-8.
            LX_SYMLINK => bytes.get(DATA + 4..).map(<[u8]>::to_vec),
            _ => None,
        };
        Ok(Self { tag, target })
    }

    /// Why the content is not in the file's stream, if it is not.
    pub(super) fn content_elsewhere(&self) -> Option<&'static str> {
        match self.tag {
            WOF => Some("compression of the whole file (compact /exe, CompactOS)"),
            DEDUP => Some("data deduplication"),
            HSM | HSM2 => Some("hierarchical storage"),
            tag if tag & CLOUD_MASK == CLOUD => Some("a file of a cloud provider"),
            _ => None,
        }
    }
}

/// The path of a link of Windows, with slashes. Two names follow the fields at `names`; the one for printing is shown,
/// the other one where there is none.
fn windows_target(bytes: &[u8], names: usize) -> Result<Vec<u8>, FileError> {
    let name = |at: usize| {
        let start = DATA + names + usize::from(le16(bytes, DATA + at));
        let len = usize::from(le16(bytes, DATA + at + 2));
        bytes.get(start..start + len)
    };
    let print = name(4).filter(|name| !name.is_empty());
    let target = print.or_else(|| name(0));
    let target = target.ok_or_else(|| FileError::damaged(FORMAT, "a link leads out of its reparse point"))?;
    let text = utf16(target);
    let text = text.strip_prefix("\\??\\").unwrap_or(&text);
    Ok(text.replace('\\', "/").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(tag: u32, names: usize, substitute: &str, print: &str) -> Vec<u8> {
        let text = |name: &str| name.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let (substitute, print) = (text(substitute), text(print));
        let mut bytes = vec![0; DATA + names];
        bytes[..4].copy_from_slice(&tag.to_le_bytes());
        let fields = [0, substitute.len(), substitute.len(), print.len()];
        for (at, field) in fields.into_iter().enumerate() {
            let field = u16::try_from(field).unwrap().to_le_bytes();
            bytes[DATA + at * 2..DATA + at * 2 + 2].copy_from_slice(&field);
        }
        bytes.extend(substitute);
        bytes.extend(print);
        bytes
    }

    #[test]
    fn links_of_windows_have_two_names() {
        let symlink = Reparse::parse(&link(SYMLINK, 12, "\\??\\C:\\a\\b", "C:\\a\\b")).unwrap();
        assert_eq!(symlink.target.unwrap(), b"C:/a/b");
        let relative = Reparse::parse(&link(SYMLINK, 12, "..\\x", "")).unwrap();
        assert_eq!(relative.target.unwrap(), b"../x");
        let junction = Reparse::parse(&link(MOUNT_POINT, 8, "\\??\\D:\\", "")).unwrap();
        assert_eq!(junction.target.unwrap(), b"D:/");
    }

    #[test]
    fn what_leads_out_is_damaged_and_what_is_short_is_nothing() {
        let mut bytes = link(SYMLINK, 12, "a", "b");
        bytes[DATA + 6] = 0xFF;
        bytes[DATA + 2] = 0xFF;
        assert!(Reparse::parse(&bytes).is_err());
        assert!(Reparse::parse(&[]).unwrap().target.is_none());
    }

    #[test]
    fn files_that_are_kept_elsewhere_are_named() {
        for tag in [WOF, DEDUP, HSM, HSM2, 0x9000_601A, 0x9000_001A] {
            let mut bytes = vec![0; 16];
            bytes[..4].copy_from_slice(&tag.to_le_bytes());
            let reparse = Reparse::parse(&bytes).unwrap();
            assert!(reparse.content_elsewhere().is_some() && reparse.target.is_none());
        }
    }
}
