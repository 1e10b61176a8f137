//! What can be read without doubt and is still worth a remark.

use super::Geometry;

/// How much a [`FormatOddity`] matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OdditySeverity {
    /// Found in images in good order, for instance in every resized one.
    Note,
    /// No usual writer does this, or some other reader refuses the image or reads it as another size.
    Warning,
}

/// Something unusual in a structure that can be read nevertheless.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatOddity {
    /// The footer is one of 511 bytes, from before Virtual PC 2004.
    #[error("the footer has 511 bytes, as before Virtual PC 2004")]
    LegacyFooter,
    /// The reserved feature bit, which is always set, is clear.
    #[error("the features {features:#x} lack the reserved bit 0x2")]
    ReservedFeatureClear {
        /// The features in the footer.
        features: u32,
    },
    /// The disk is marked as temporary.
    #[error("the disk is marked as temporary: some programs may delete it")]
    Temporary,
    /// Feature bits that the specification does not know.
    #[error("the features {features:#x} have unknown bits")]
    UnknownFeatures {
        /// The features in the footer.
        features: u32,
    },
    /// The format version is not 1.0.
    #[error("the format version is {found:#010x} instead of {expected:#010x}")]
    FormatVersion {
        /// The version in the footer.
        found: u32,
        /// The only version there is.
        expected: u32,
    },
    /// The footer of a fixed disk has a data offset other than 64 bits of ones.
    #[error("the data offset of a fixed disk is {offset:#x} instead of 64 bits of ones")]
    FixedDataOffset {
        /// The offset in the footer, in bytes.
        offset: u64,
    },
    /// The dynamic header does not begin at a sector.
    #[error("the dynamic header's offset {offset:#x} is no multiple of 512")]
    HeaderMisaligned {
        /// The offset in the file, in bytes.
        offset: u64,
    },
    /// The size at creation is not the size now.
    #[error("the disk was created with {original:#x} bytes and has {current:#x} now")]
    OriginalSize {
        /// Bytes at creation.
        original: u64,
        /// Bytes now.
        current: u64,
    },
    /// The geometry addresses another number of bytes than the disk has, as most sizes have it.
    #[error("the geometry {geometry} covers {covered:#x} of {size:#x} bytes")]
    GeometrySize {
        /// The geometry in the footer.
        geometry: Geometry,
        /// The bytes it addresses.
        covered: u64,
        /// Bytes of the disk.
        size: u64,
    },
    /// The geometry is not the one the specification computes for the size.
    #[error("the geometry is {found} instead of {expected}")]
    GeometryFormula {
        /// The geometry in the footer.
        found: Geometry,
        /// The geometry of the disk's size.
        expected: Geometry,
    },
    /// A virtual machine is saved with this disk: changing the disk breaks its state.
    #[error("the disk belongs to a saved state of a virtual machine")]
    SavedState,
    /// The Xen tools' mark for disks that are only parents.
    #[error("the disk is marked as hidden ({value:#x}), which makes some programs refuse it")]
    Hidden {
        /// The mark.
        value: u8,
    },
    /// The hidden mark was set without renewing the checksum, as early Xen tools did.
    #[error("the footer's checksum is that of a disk not marked as hidden")]
    HiddenNotSummed,
    /// Reserved bytes of the footer are not zero.
    #[error("reserved bytes of the footer are not zero")]
    FooterReserved,
}

impl FormatOddity {
    /// A stable name for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::LegacyFooter => "legacy-footer",
            Self::ReservedFeatureClear { .. } => "reserved-feature-clear",
            Self::Temporary => "temporary",
            Self::UnknownFeatures { .. } => "unknown-features",
            Self::FormatVersion { .. } => "format-version",
            Self::FixedDataOffset { .. } => "fixed-data-offset",
            Self::HeaderMisaligned { .. } => "header-misaligned",
            Self::OriginalSize { .. } => "original-size",
            Self::GeometrySize { .. } => "geometry-size",
            Self::GeometryFormula { .. } => "geometry-formula",
            Self::SavedState => "saved-state",
            Self::Hidden { .. } => "hidden",
            Self::HiddenNotSummed => "hidden-not-summed",
            Self::FooterReserved => "footer-reserved",
        }
    }

    /// How much it matters.
    #[must_use]
    pub fn severity(&self) -> OdditySeverity {
        match self {
            Self::OriginalSize { .. } | Self::GeometrySize { .. } => OdditySeverity::Note,
            _ => OdditySeverity::Warning,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_in_the_text() {
        let oddity = FormatOddity::OriginalSize {
            original: 0x1000,
            current: 0x2000,
        };
        assert_eq!(
            oddity.to_string(),
            "the disk was created with 0x1000 bytes and has 0x2000 now"
        );
        assert_eq!(oddity.code(), "original-size");
        assert_eq!(oddity.severity(), OdditySeverity::Note);
        let geometry = Geometry {
            cylinders: 65535,
            heads: 16,
            sectors_per_track: 255,
        };
        let expected = Geometry {
            cylinders: 120,
            heads: 4,
            sectors_per_track: 17,
        };
        let oddity = FormatOddity::GeometryFormula {
            found: geometry,
            expected,
        };
        assert_eq!(oddity.to_string(), "the geometry is 65535/16/255 instead of 120/4/17");
        assert_eq!(oddity.severity(), OdditySeverity::Warning);
    }
}
