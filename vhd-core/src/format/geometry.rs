//! The disk geometry: cylinders, heads and sectors per track.

use std::fmt;

use crate::units::SECTOR_SIZE;

/// The geometry in a footer (specification, "Appendix: CHS Calculation"). It is a hint for guests of the
/// BIOS age: the disk's size is the footer's current size, and the geometry usually covers a little less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// Cylinders of the disk.
    pub cylinders: u16,
    /// Heads, the tracks of a cylinder.
    pub heads: u8,
    /// Sectors of 512 bytes in a track.
    pub sectors_per_track: u8,
}

const MAX_CYLINDERS: u32 = 65_535;
const MAX_HEADS: u32 = 16;
/// A cylinder number of 10 bits, the BIOS limit that the smaller track sizes keep.
const BIOS_CYLINDERS: u32 = 1024;
const MIN_HEADS: u32 = 4;

impl Geometry {
    /// The geometry of a disk of `bytes` bytes. It is exact arithmetic of the specification, every
    /// division truncates; disks past 127.5 GiB all have the largest geometry.
    #[must_use]
    pub fn from_size(bytes: u64) -> Self {
        let largest = MAX_CYLINDERS * MAX_HEADS * 255;
        let sectors = u32::try_from(bytes / SECTOR_SIZE).map_or(largest, |sectors| sectors.min(largest));
        let (heads, sectors_per_track) = heads_and_track(sectors);
        let cylinders = sectors / sectors_per_track / heads;
        // The bounds above keep all three inside their fields.
        Self {
            cylinders: u16::try_from(cylinders).unwrap_or(u16::MAX),
            heads: u8::try_from(heads).unwrap_or(u8::MAX),
            sectors_per_track: u8::try_from(sectors_per_track).unwrap_or(u8::MAX),
        }
    }

    /// The bytes that cylinders, heads and sectors address.
    #[must_use]
    pub fn size_bytes(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors_per_track) * SECTOR_SIZE
    }
}

/// The smallest track, and with it the fewest heads, whose cylinder numbers stay in range.
fn heads_and_track(sectors: u32) -> (u32, u32) {
    if sectors >= MAX_CYLINDERS * MAX_HEADS * 63 {
        return (MAX_HEADS, 255);
    }
    let tracks = sectors / 17;
    let heads = tracks.div_ceil(BIOS_CYLINDERS).max(MIN_HEADS);
    if heads <= MAX_HEADS && tracks < heads * BIOS_CYLINDERS {
        return (heads, 17);
    }
    if sectors / 31 < MAX_HEADS * BIOS_CYLINDERS {
        return (MAX_HEADS, 31);
    }
    (MAX_HEADS, 63)
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.cylinders, self.heads, self.sectors_per_track)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    /// Sizes with their geometry, the most of them seen in images that Microsoft's programs made.
    const KNOWN: &[(u64, (u16, u8, u8))] = &[
        (3 * MIB, (90, 4, 17)),
        (4 * MIB, (120, 4, 17)),
        (10 * MIB, (301, 4, 17)),
        (64 * MIB, (963, 8, 17)),
        (100 * MIB, (1003, 12, 17)),
        (128 * MIB, (963, 16, 17)),
        (512 * MIB, (1040, 16, 63)),
        (GIB, (2080, 16, 63)),
        (2 * GIB, (4161, 16, 63)),
        (32 * GIB, (16448, 16, 255)),
        (127 * GIB, (65278, 16, 255)),
        (267_382_800 * SECTOR_SIZE, (65535, 16, 255)),
        (2040 * GIB, (65535, 16, 255)),
        (u64::MAX, (65535, 16, 255)),
        (0, (0, 4, 17)),
        (512, (0, 4, 17)),
    ];

    /// The formula as the specification writes it, step by step, to hold against ours.
    fn by_the_book(bytes: u64) -> (u64, u64, u64) {
        let sectors = (bytes / 512).min(65535 * 16 * 255);
        let (mut spt, mut heads);
        if sectors >= 65535 * 16 * 63 {
            return (sectors / 255 / 16, 16, 255);
        }
        spt = 17;
        let mut cylinders_times_heads = sectors / spt;
        heads = cylinders_times_heads.div_ceil(1024).max(4);
        if cylinders_times_heads >= heads * 1024 || heads > 16 {
            (spt, heads) = (31, 16);
            cylinders_times_heads = sectors / spt;
        }
        if cylinders_times_heads >= heads * 1024 {
            (spt, heads) = (63, 16);
            cylinders_times_heads = sectors / spt;
        }
        (cylinders_times_heads / heads, heads, spt)
    }

    fn triple(geometry: Geometry) -> (u64, u64, u64) {
        (
            geometry.cylinders.into(),
            geometry.heads.into(),
            geometry.sectors_per_track.into(),
        )
    }

    #[test]
    fn known_values() {
        for &(size, (cylinders, heads, sectors_per_track)) in KNOWN {
            let expected = Geometry {
                cylinders,
                heads,
                sectors_per_track,
            };
            assert_eq!(Geometry::from_size(size), expected, "{size}");
        }
    }

    #[test]
    fn product_is_smaller_than_the_size() {
        let size = 127 * GIB;
        assert_eq!(size - Geometry::from_size(size).size_bytes(), 2_080_768);
    }

    #[test]
    fn steps_between_track_sizes() {
        for edge in [
            17 * 1024 * 4,
            17 * 1024 * 16,
            31 * 1024 * 16,
            65535 * 16 * 63,
            65535 * 16 * 255_u64,
        ] {
            for sectors in edge - 40..edge + 40 {
                assert_eq!(
                    triple(Geometry::from_size(sectors * 512)),
                    by_the_book(sectors * 512),
                    "{sectors}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn follows_the_formula(sectors in 0_u64..300_000_000) {
            let geometry = Geometry::from_size(sectors * 512);
            prop_assert_eq!(triple(geometry), by_the_book(sectors * 512));
            prop_assert!(geometry.size_bytes() <= sectors * 512);
        }
    }
}
