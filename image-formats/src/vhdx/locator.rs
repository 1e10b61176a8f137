//! The parent locator: which file a differencing image belongs to, and where it is.

use uuid::{Uuid, uuid};
use vhd_block::units::{u64_from, usize_from};

use crate::bytes::{array, le16, le32};
use crate::{BrokenRule, ImageError, Rule};

/// The one type of locator that the format has.
const TYPE: Uuid = uuid!("b04aefb7-d19e-4a81-b789-25b8e9445913");
const HEADER: usize = 20;
const ENTRY: usize = 12;

/// A key under which a locator says where the parent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ParentKey {
    /// A path from the directory of the child.
    RelativePath,
    /// A path from the root of a drive.
    AbsolutePath,
    /// A path from the root of a volume, which is named by its GUID.
    VolumePath,
}

impl ParentKey {
    /// The name in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RelativePath => "relative_path",
            Self::AbsolutePath => "absolute_win32_path",
            Self::VolumePath => "volume_path",
        }
    }

    const ALL: [Self; 3] = [Self::RelativePath, Self::AbsolutePath, Self::VolumePath];
}

/// What a differencing image says of its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentLocator {
    /// The data write GUID that the parent has if its content did not change.
    pub linkage: Uuid,
    /// Another one that it may have: that of an operation that was under way.
    pub linkage2: Option<Uuid>,
    /// Where it is, best first, as written.
    pub paths: Vec<(ParentKey, String)>,
}

impl ParentLocator {
    /// Whether a file with this data write GUID is the parent.
    #[must_use]
    pub fn matches(&self, data_write_guid: Uuid) -> bool {
        self.linkage == data_write_guid || self.linkage2 == Some(data_write_guid)
    }

    pub(super) fn decode(bytes: &[u8], at: u64) -> Result<Self, ImageError> {
        let broken = |offset: usize, found: String, expected: &str| {
            ImageError::from(BrokenRule::new(
                Rule::ParentLocator,
                at + u64_from(offset),
                found,
                expected,
            ))
        };
        if bytes.len() < HEADER {
            return Err(broken(0, format!("{} bytes", bytes.len()), "a header of 20 bytes"));
        }
        let kind = Uuid::from_bytes_le(array(bytes, 0));
        if kind != TYPE {
            return Err(ImageError::Unsupported {
                feature: format!("a parent locator of type {kind}"),
                offset: at,
            });
        }
        let count = usize::from(le16(bytes, 18));
        if HEADER + count * ENTRY > bytes.len() {
            return Err(broken(
                18,
                format!("{count} entries in {} bytes", bytes.len()),
                "entries inside the item",
            ));
        }
        let mut pairs: Vec<(String, String)> = Vec::new();
        for index in 0..count {
            let start = HEADER + index * ENTRY;
            let entry = &bytes[start..start + ENTRY];
            let text = |offset: u32, len: u16| text(bytes, offset, len);
            let key = text(le32(entry, 0), le16(entry, 8));
            let value = text(le32(entry, 4), le16(entry, 10));
            let (Some(key), Some(value)) = (key, value) else {
                let found = "a key or value outside the item, or that is no UTF-16".to_owned();
                return Err(broken(start, found, "text inside the item"));
            };
            if pairs.iter().any(|(known, _)| *known == key) {
                return Err(broken(
                    start,
                    format!("a second \"{}\"", key.escape_debug()),
                    "each key once",
                ));
            }
            pairs.push((key, value));
        }
        let value = |name: &str| {
            pairs
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.as_str())
        };
        let guid = |name: &str| match value(name) {
            None => Ok(None),
            Some(text) => match Uuid::try_parse(text) {
                Ok(guid) => Ok(Some(guid)),
                Err(_) => {
                    let found = format!("\"{}\" as {name}", text.escape_debug());
                    Err(broken(0, found, "a GUID in braces"))
                }
            },
        };
        let linkage = guid("parent_linkage")?;
        Ok(Self {
            linkage: linkage
                .ok_or_else(|| broken(0, "no parent_linkage".to_owned(), "the parent's data write GUID"))?,
            linkage2: guid("parent_linkage2")?.filter(|guid| !guid.is_nil()),
            paths: ParentKey::ALL
                .into_iter()
                .filter_map(|key| Some((key, value(key.name())?.to_owned())))
                .collect(),
        })
    }
}

/// UTF-16 in the item.
fn text(bytes: &[u8], offset: u32, len: u16) -> Option<String> {
    let start = usize_from(u64::from(offset));
    let (units, rest) = bytes.get(start..start + usize::from(len))?.as_chunks::<2>();
    let units: Vec<u16> = units.iter().map(|unit| u16::from_le_bytes(*unit)).collect();
    rest.is_empty().then(|| String::from_utf16(&units).ok())?
}
