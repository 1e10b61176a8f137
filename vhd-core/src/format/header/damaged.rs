//! What a damaged dynamic header was, as far as its checksum tells.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{COOKIE, DynamicHeader, HEADER_SIZE, NO_NEXT, RawHeader, VERSION, checksum};
use crate::format::checksum::nearest;
use crate::format::{BlockLayout, DiskType, Footer, MAX_BLOCK_SIZE, MIN_BLOCK_SIZE, PARENT_NAME_UNITS, UniqueId};

/// The header that stood where `bytes` stand, if exactly one that differs in what programs agree on, or in what
/// `footer` tells, has the checksum that is there. `table_offset` is where a table usually is, in bytes.
#[must_use]
pub fn reconstruct_header(bytes: &[u8; HEADER_SIZE], footer: &Footer, table_offset: u64) -> Option<[u8; HEADER_SIZE]> {
    let raw = RawHeader::read_from_bytes(bytes).expect("as long as a header");
    let mut bases = vec![raw, RawHeader { cookie: COOKIE, ..raw }, with_constants(raw)];
    if footer.disk_type == DiskType::Dynamic {
        bases.push(without_parent(with_constants(raw)));
    }
    let placed = bases.iter().map(|raw| RawHeader {
        table_offset: U64::new(table_offset),
        ..*raw
    });
    let placed: Vec<RawHeader> = placed.chain(bases.iter().copied()).collect();
    let guesses = placed.iter().flat_map(|raw| with_shapes(raw, footer));
    let accepted = guesses.map(|raw| zerocopy::transmute!(raw));
    nearest(bytes, accepted.filter(|guess| DynamicHeader::decode(guess).is_ok()))
}

/// `bytes` with what all headers have in common put right and the checksum renewed: what the other fields say is
/// for the caller to confirm.
#[must_use]
pub fn reseal_header(bytes: &[u8; HEADER_SIZE]) -> [u8; HEADER_SIZE] {
    let mut raw = with_constants(RawHeader::read_from_bytes(bytes).expect("as long as a header"));
    raw.checksum = U32::new(checksum(raw.as_bytes(), super::CHECKSUM));
    zerocopy::transmute!(raw)
}

/// The parent's identity in the place where a header has it, whatever the rest of `bytes` is.
#[must_use]
pub fn named_parent(bytes: &[u8; HEADER_SIZE]) -> UniqueId {
    let raw: &RawHeader = zerocopy::transmute_ref!(bytes);
    UniqueId(raw.parent_id)
}

/// Every block size that images have, in bytes.
pub fn block_layouts() -> impl Iterator<Item = BlockLayout> {
    let sizes = (MIN_BLOCK_SIZE.ilog2()..=MAX_BLOCK_SIZE.ilog2()).map(|shift| 1 << shift);
    sizes.filter_map(|size| BlockLayout::new(size).ok())
}

fn with_constants(raw: RawHeader) -> RawHeader {
    RawHeader {
        cookie: COOKIE,
        next: U64::new(NO_NEXT),
        version: U32::new(VERSION),
        reserved: U32::ZERO,
        padding: [0; 256],
        ..raw
    }
}

fn without_parent(raw: RawHeader) -> RawHeader {
    RawHeader {
        parent_id: [0; 16],
        parent_timestamp: U32::ZERO,
        parent_name: [U16::ZERO; PARENT_NAME_UNITS],
        locators: raw.locators.map(|_| super::RawLocator::encode(None)),
        ..raw
    }
}

/// The header with each combination of block size and entries that the disk allows, its own included.
fn with_shapes(raw: &RawHeader, footer: &Footer) -> Vec<RawHeader> {
    let sizes = block_layouts()
        .map(|layout| layout.block_size_field())
        .chain([raw.block_size.get()]);
    let entries = |block_size: u32| {
        let blocks = footer.current_size.div_ceil(u64::from(block_size).max(1));
        [raw.max_table_entries.get(), u32::try_from(blocks).unwrap_or(u32::MAX)]
    };
    let shapes = sizes.flat_map(|size| entries(size).map(|entries| (size, entries)));
    let shaped = shapes.map(|(size, entries)| RawHeader {
        block_size: U32::new(size),
        max_table_entries: U32::new(entries),
        ..*raw
    });
    shaped.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Timestamp;

    const TABLE: u64 = 1536;

    fn image() -> (Footer, [u8; HEADER_SIZE]) {
        let size = 10 << 20;
        let header = DynamicHeader::new_dynamic(size, BlockLayout::new(2 << 20).unwrap(), TABLE);
        let footer = Footer::new(DiskType::Dynamic, size, UniqueId([7; 16]), Timestamp(99));
        (footer, header.encode())
    }

    #[test]
    fn the_checksum_confirms_what_is_put_back() {
        let (footer, good) = image();
        for at in [0, 7, 8, 15, 20, 22, 24, 28, 31, 32, 34, 41, 57, 61, 90, 580, 600, 1023] {
            let mut bytes = good;
            bytes[at] ^= 0x41;
            assert_eq!(reconstruct_header(&bytes, &footer, TABLE), Some(good), "byte {at}");
        }
    }

    #[test]
    fn what_nothing_confirms_is_left_to_the_caller() {
        let (footer, good) = image();
        let mut bytes = good;
        bytes[39] ^= 1;
        assert_eq!(reconstruct_header(&bytes, &footer, TABLE), None);
        assert_eq!(reseal_header(&bytes), good);
        assert_eq!(reconstruct_header(&[0; HEADER_SIZE], &footer, TABLE), None);
    }
}
