//! What a damaged footer was, as far as its checksum or its other copy tells.

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{COOKIE, FEATURE_RESERVED, FOOTER_SIZE, FORMAT_VERSION, Footer, NO_HEADER, RawFooter, checksum};
use crate::format::checksum::{nearest, word_mixes};
use crate::format::{DiskType, Geometry};
use crate::units::u64_from;

/// The footer that stood where `bytes` stand, if exactly one that differs in what programs agree on or in what the
/// other fields tell has the checksum that is there. `other` is what is left of its other copy: the two may
/// complete each other.
#[must_use]
pub fn reconstruct_footer(bytes: &[u8; FOOTER_SIZE], other: Option<&[u8; FOOTER_SIZE]>) -> Option<[u8; FOOTER_SIZE]> {
    let mut bases = vec![*bytes];
    bases.extend(other.into_iter().flat_map(|other| word_mixes(bytes, other)));
    let guesses = bases.iter().flat_map(guesses);
    nearest(bytes, guesses.filter(|guess| Footer::decode(guess).is_ok()))
}

/// `bytes` with what all footers have in common put right and the checksum renewed: what the other fields say is
/// for the caller to confirm.
#[must_use]
pub fn reseal_footer(bytes: &[u8; FOOTER_SIZE]) -> [u8; FOOTER_SIZE] {
    let mut raw = with_constants(RawFooter::read_from_bytes(bytes).expect("as long as a footer"));
    raw.checksum = U32::new(checksum(raw.as_bytes(), super::CHECKSUM));
    zerocopy::transmute!(raw)
}

fn with_constants(raw: RawFooter) -> RawFooter {
    RawFooter {
        cookie: COOKIE,
        features: U32::new(FEATURE_RESERVED),
        format_version: U32::new(FORMAT_VERSION),
        hidden: 0,
        reserved: [0; 426],
        ..raw
    }
}

fn guesses(bytes: &[u8; FOOTER_SIZE]) -> Vec<[u8; FOOTER_SIZE]> {
    let raw = RawFooter::read_from_bytes(bytes).expect("as long as a footer");
    let mut all = vec![raw, RawFooter { cookie: COOKIE, ..raw }, with_constants(raw)];
    let mut vary = |change: &dyn Fn(RawFooter) -> RawFooter| {
        let changed: Vec<RawFooter> = all.iter().map(|raw| change(*raw)).collect();
        all.extend(changed);
    };
    vary(&|raw| RawFooter { saved_state: 0, ..raw });
    vary(&|raw| RawFooter {
        current_size: raw.original_size,
        ..raw
    });
    vary(&|raw| RawFooter {
        original_size: raw.current_size,
        ..raw
    });
    vary(&with_geometry);
    for disk_type in [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing] {
        vary(&|raw| with_type(raw, disk_type));
    }
    vary(&with_header_place);
    all.into_iter().map(|raw| zerocopy::transmute!(raw)).collect()
}

/// A type that is one is not doubted: the next one differs by a single step in the sum, as damage elsewhere may.
fn with_type(raw: RawFooter, disk_type: DiskType) -> RawFooter {
    match DiskType::from_u32(raw.disk_type.get()) {
        Ok(_) => raw,
        Err(_) => RawFooter {
            disk_type: U32::new(disk_type.to_u32()),
            ..raw
        },
    }
}

fn with_header_place(raw: RawFooter) -> RawFooter {
    let sparse = DiskType::from_u32(raw.disk_type.get()).is_ok_and(DiskType::is_sparse);
    RawFooter {
        data_offset: U64::new(if sparse { u64_from(FOOTER_SIZE) } else { NO_HEADER }),
        ..raw
    }
}

fn with_geometry(raw: RawFooter) -> RawFooter {
    let geometry = Geometry::from_size(raw.current_size.get());
    RawFooter {
        cylinders: geometry.cylinders.into(),
        heads: geometry.heads,
        sectors_per_track: geometry.sectors_per_track,
        ..raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Timestamp, UniqueId};

    fn footer() -> [u8; FOOTER_SIZE] {
        Footer::new(DiskType::Dynamic, 64 << 20, UniqueId([7; 16]), Timestamp(99)).encode()
    }

    #[test]
    fn what_all_footers_have_and_what_is_there_twice_comes_back() {
        for at in [0, 7, 8, 12, 16, 40, 48, 55, 56, 58, 60, 63, 84, 85, 300, 511] {
            let mut bytes = footer();
            bytes[at] ^= 0x41;
            assert_eq!(reconstruct_footer(&bytes, None), Some(footer()), "byte {at}");
        }
    }

    #[test]
    fn two_damaged_copies_complete_each_other() {
        let (mut tail, mut copy) = (footer(), footer());
        tail[70] = 0;
        tail[24] = 9;
        copy[75] = 3;
        copy[66] = 3;
        assert_eq!(reconstruct_footer(&tail, None), None);
        assert_eq!(reconstruct_footer(&tail, Some(&copy)), Some(footer()));
    }

    #[test]
    fn what_nothing_confirms_is_left_to_the_caller() {
        let mut bytes = footer();
        bytes[70] ^= 1;
        assert_eq!(reconstruct_footer(&bytes, None), None);
        let resealed = Footer::decode(&reseal_footer(&bytes)).unwrap();
        assert_eq!(resealed.current_size, 64 << 20);
        assert_eq!(reconstruct_footer(&[0; FOOTER_SIZE], None), None);
        assert!(Footer::decode(&reseal_footer(&[0; FOOTER_SIZE])).is_err());
    }
}
