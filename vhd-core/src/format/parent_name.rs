//! The parent's name in the header of a differencing disk.

use std::fmt;
use std::str::FromStr;

use super::FormatError;

/// UTF-16 units that the header has room for.
pub const PARENT_NAME_UNITS: usize = 256;

/// The name of a parent as it stands in a header (specification, "Dynamic Disk Header Format", "Parent
/// Unicode Name"): a file name or, from Windows 10, a full path. All 256 units are kept as found, those
/// behind the terminator too, so writing a header back changes nothing in it.
#[derive(Clone, PartialEq, Eq)]
pub struct ParentName([u16; PARENT_NAME_UNITS]);

impl ParentName {
    /// No name, as in dynamic disks.
    pub const EMPTY: Self = Self([0; PARENT_NAME_UNITS]);

    /// The name with these units; in the file they are big-endian.
    #[must_use]
    pub const fn from_units(units: [u16; PARENT_NAME_UNITS]) -> Self {
        Self(units)
    }

    /// All units, those from the terminator on included.
    #[must_use]
    pub const fn units(&self) -> &[u16; PARENT_NAME_UNITS] {
        &self.0
    }

    /// Whether there is no name.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.text().is_empty()
    }

    /// The name up to its terminator; what is no UTF-16 becomes U+FFFD.
    #[must_use]
    pub fn to_string_lossy(&self) -> String {
        String::from_utf16_lossy(self.text())
    }

    /// The units before the terminator. A name may use all 256 and have none.
    fn text(&self) -> &[u16] {
        self.0.split(|&unit| unit == 0).next().unwrap_or_default()
    }
}

impl FromStr for ParentName {
    type Err = FormatError;

    /// Takes at most 255 units, so that a terminator follows: there are readers that rely on it.
    fn from_str(name: &str) -> Result<Self, FormatError> {
        let mut units = [0; PARENT_NAME_UNITS];
        let max = PARENT_NAME_UNITS - 1;
        let length = name.encode_utf16().count();
        if length > max {
            return Err(FormatError::ParentNameTooLong { units: length, max });
        }
        if name.contains('\0') {
            return Err(FormatError::ParentNameNul);
        }
        for (slot, unit) in units.iter_mut().zip(name.encode_utf16()) {
            *slot = unit;
        }
        Ok(Self(units))
    }
}

impl Default for ParentName {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl fmt::Debug for ParentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ParentName({:?})", self.to_string_lossy())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_end_at_the_terminator() {
        let mut units = [0; PARENT_NAME_UNITS];
        units[..2].copy_from_slice(&[0x61, 0x62]);
        units[3] = 0x63;
        let name = ParentName::from_units(units);
        assert_eq!(name.to_string_lossy(), "ab");
        assert_eq!(name.units()[3], 0x63);
    }

    #[test]
    fn names_without_terminator_and_without_meaning() {
        let full = ParentName::from_units([0x78; PARENT_NAME_UNITS]);
        assert_eq!(full.to_string_lossy(), "x".repeat(256));
        let half_pair = ParentName::from_units([0xD800; PARENT_NAME_UNITS]);
        assert_eq!(half_pair.to_string_lossy(), "\u{FFFD}".repeat(256));
    }

    #[test]
    fn empty_names() {
        assert!(ParentName::EMPTY.is_empty());
        assert_eq!("".parse(), Ok(ParentName::EMPTY));
        assert!(!"a".parse::<ParentName>().unwrap().is_empty());
    }

    #[test]
    fn the_limit_is_in_units() {
        let longest = "\u{1F4BE}".repeat(127) + "x";
        assert_eq!(longest.parse::<ParentName>().unwrap().to_string_lossy(), longest);
        let error = "\u{1F4BE}".repeat(128).parse::<ParentName>().unwrap_err();
        assert_eq!(error, FormatError::ParentNameTooLong { units: 256, max: 255 });
        assert_eq!("a\0b".parse::<ParentName>(), Err(FormatError::ParentNameNul));
    }

    proptest! {
        #[test]
        fn text_survives(name in "[^\0]{0,120}") {
            prop_assert_eq!(name.parse::<ParentName>().unwrap().to_string_lossy(), name);
        }
    }
}
