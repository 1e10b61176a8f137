//! The three kinds of image.

use std::fmt;

use super::FormatError;

/// What kind of image a file is (specification, "Hard Disk Footer Format", "Disk Type").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskType {
    /// All of the disk, then the footer.
    Fixed,
    /// Blocks where something was written.
    Dynamic,
    /// Blocks where something differs from the parent.
    Differencing,
}

impl DiskType {
    /// Whether the image has a dynamic header and a block table: all but fixed ones.
    #[must_use]
    pub fn is_sparse(self) -> bool {
        self != Self::Fixed
    }

    /// The type with the number `found` in the footer.
    pub(super) fn from_u32(found: u32) -> Result<Self, FormatError> {
        match found {
            2 => Ok(Self::Fixed),
            3 => Ok(Self::Dynamic),
            4 => Ok(Self::Differencing),
            _ => Err(FormatError::DiskType { found }),
        }
    }

    /// The number in the footer.
    pub(super) fn to_u32(self) -> u32 {
        match self {
            Self::Fixed => 2,
            Self::Dynamic => 3,
            Self::Differencing => 4,
        }
    }
}

impl fmt::Display for DiskType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fixed => "fixed",
            Self::Dynamic => "dynamic",
            Self::Differencing => "differencing",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn three_numbers_are_types() {
        let known = [
            (2, DiskType::Fixed, false),
            (3, DiskType::Dynamic, true),
            (4, DiskType::Differencing, true),
        ];
        for (number, disk_type, sparse) in known {
            assert_eq!(DiskType::from_u32(number), Ok(disk_type));
            assert_eq!(disk_type.to_u32(), number);
            assert_eq!(disk_type.is_sparse(), sparse);
        }
    }

    proptest! {
        #[test]
        fn other_numbers_are_not(number in prop_oneof![0_u32..2, 5_u32..]) {
            prop_assert_eq!(DiskType::from_u32(number), Err(FormatError::DiskType { found: number }));
        }
    }
}
