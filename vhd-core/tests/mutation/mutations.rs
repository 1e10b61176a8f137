//! The damages, as data that a failure can print.

use std::ops::Range;

use crate::common::build::{FOOTER, FOOTER_SUM, HEADER, HEADER_SUM, SECTOR, Sparse, fixed, id, put, seal};
use vhd_core::units::{u64_from, usize_from};
use vhd_testkit::rng::rng;

/// An image to be damaged.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) content: Vec<u8>,
    pub(crate) parent: Option<Vec<u8>>,
    header: Option<usize>,
    table: Option<(usize, usize)>,
    /// Table and bitmaps: metadata without a checksum.
    unsummed: Vec<Range<usize>>,
    /// The data of the locators: without a checksum too.
    locators: Vec<Range<usize>>,
    tail: usize,
}

impl Subject {
    pub(crate) fn sparse(name: &'static str, spec: &Sparse, parent: Option<Vec<u8>>) -> Self {
        let laid = spec.lay();
        let below = parent
            .as_ref()
            .map_or(&[][..], |parent| &parent[..parent.len() - FOOTER]);
        let table_len = (laid.entries * 4).next_multiple_of(SECTOR);
        let locators = laid.locators.iter().map(|(offset, length)| *offset..offset + length);
        let bitmaps = laid.blocks.iter().map(|(_, offset)| *offset..offset + SECTOR);
        let table = std::iter::once(laid.table..laid.table + table_len);
        Self {
            name,
            content: spec.flat(below),
            parent,
            header: Some(FOOTER),
            table: Some((laid.table, laid.entries)),
            unsummed: table.chain(bitmaps).collect(),
            locators: locators.collect(),
            tail: laid.tail,
            bytes: laid.bytes,
        }
    }

    pub(crate) fn fixed(name: &'static str, content: &[u8]) -> Self {
        Self {
            name,
            bytes: fixed(content, id(1)),
            content: content.to_vec(),
            parent: None,
            header: None,
            table: None,
            unsummed: Vec::new(),
            locators: Vec::new(),
            tail: content.len(),
        }
    }

    /// Where each byte of the metadata is.
    pub(crate) fn metadata(&self) -> impl Iterator<Item = usize> {
        let start = match self.header {
            Some(header) => 0..header + HEADER,
            None => 0..0,
        };
        let unsummed = self.unsummed.iter().chain(&self.locators).cloned().flatten();
        start.chain(unsummed).chain(self.tail..self.tail + FOOTER)
    }

    /// Where each byte is that leads to the parent: its identity, its name, the locators and their data.
    pub(crate) fn ways_to_the_parent(&self) -> impl Iterator<Item = usize> {
        let in_header = [40..56, 64..64 + 40, 576..576 + 3 * 24].map(|range| FOOTER + range.start..FOOTER + range.end);
        in_header.into_iter().chain(self.locators.iter().cloned()).flatten()
    }

    /// The structure with a checksum that this byte is in: where it starts, and where its checksum is.
    fn summed(&self, at: usize) -> Option<(Range<usize>, usize)> {
        let footers = self.header.map(|_| 0).into_iter().chain([self.tail]);
        let footers = footers.map(|start| (start..start + FOOTER, FOOTER_SUM));
        let header = self.header.map(|start| (start..start + HEADER, HEADER_SUM));
        footers.chain(header).find(|(range, _)| range.contains(&at))
    }

    fn expected_of_byte(&self, at: usize) -> Expected {
        let in_header = self.header.is_some_and(|start| (start..start + HEADER).contains(&at));
        let in_locator = self.locators.iter().any(|range| range.contains(&at));
        match self.summed(at) {
            Some(_) if in_header || self.header.is_none() => Expected::Refused,
            Some(_) => Expected::AsBefore,
            None if in_locator => Expected::AsBefore,
            None => Expected::Anything,
        }
    }

    fn reseal(&self, bytes: &mut [u8], at: usize) {
        if let Some((range, field)) = self.summed(at) {
            seal(&mut bytes[range], field);
        }
    }
}

/// One damage.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mutation {
    /// The file is this long: cut, or filled up with zeroes.
    Cut(usize),
    /// A byte has another value.
    Byte { at: usize, change: Change },
    /// The same, and the checksum is right again.
    Sealed { at: usize, change: Change },
    /// A field has another value, and the checksum is right again.
    Field { field: Field, value: u64 },
    /// Several fields of all structures have extreme values. The number is a seed.
    Fields(u64),
    /// Several bytes of the metadata are random. The number is a seed.
    Noise(u64),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    Set(u8),
    Flip(u8),
}

/// A field of a structure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    place: Place,
    offset: usize,
    width: usize,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// Both footers.
    Footers,
    Header,
    Table,
}

const FOOTER_FIELDS: [(usize, usize); 14] = [
    (8, 4),
    (12, 4),
    (16, 8),
    (24, 4),
    (28, 4),
    (32, 4),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (68, 8),
    (84, 1),
    (85, 1),
    (508, 4),
];
const HEADER_FIELDS: [(usize, usize); 9] = [
    (8, 8),
    (16, 8),
    (24, 4),
    (28, 4),
    (32, 4),
    (40, 8),
    (56, 4),
    (60, 4),
    (64, 8),
];
const LOCATORS: Range<usize> = 0..3;
const LOCATOR_FIELDS: [(usize, usize); 5] = [(0, 4), (4, 4), (8, 4), (12, 4), (16, 8)];

impl Mutation {
    /// Every way in which one byte is changed.
    pub(crate) fn all_of_byte(at: usize) -> impl Iterator<Item = Self> {
        let flips = (0..8).map(|bit| Change::Flip(1 << bit));
        let changes = [Change::Set(0), Change::Set(0xFF)].into_iter().chain(flips);
        changes.map(move |change| Self::Byte { at, change })
    }

    pub(crate) fn sealed(self) -> Option<Self> {
        match self {
            Self::Byte { at, change } => Some(Self::Sealed { at, change }),
            _ => None,
        }
    }

    /// The damaged image; `None` if nothing is different, or the same as without repaired checksums.
    pub(crate) fn apply(self, subject: &Subject) -> Option<Vec<u8>> {
        let mut bytes = subject.bytes.clone();
        match self {
            Self::Cut(len) => bytes.resize(len, 0),
            Self::Byte { at, change } => bytes[at] = change.of(bytes[at]),
            Self::Sealed { at, change } => {
                subject.summed(at)?;
                bytes[at] = change.of(bytes[at]);
                subject.reseal(&mut bytes, at);
            }
            Self::Field { field, value } => field.set(subject, &mut bytes, value),
            Self::Fields(seed) => set_random_fields(subject, &mut bytes, seed),
            Self::Noise(seed) => make_noise(subject, &mut bytes, seed),
        }
        (bytes != subject.bytes).then_some(bytes)
    }

    /// The damage is in what a checksum covers or what the length tells, and the checksum is not repaired.
    pub(crate) fn is_told_by_a_checksum(self, subject: &Subject) -> bool {
        match self {
            Self::Cut(_) => true,
            Self::Byte { at, .. } => subject.summed(at).is_some(),
            _ => false,
        }
    }

    /// What must become of the image.
    pub(crate) fn expected(self, subject: &Subject) -> Expected {
        match self {
            Self::Cut(_) => Expected::AsBeforeOrRefused,
            Self::Byte { at, .. } => subject.expected_of_byte(at),
            _ => Expected::Anything,
        }
    }
}

/// What must become of a damaged image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// A checksum gives the damage away, and there is no other copy.
    Refused,
    /// There is another footer, or nothing depends on the damaged bytes.
    AsBefore,
    /// It depends on what is missing.
    AsBeforeOrRefused,
    /// Nothing tells the damage from intent.
    Anything,
}

impl Change {
    fn of(self, byte: u8) -> u8 {
        match self {
            Self::Set(value) => value,
            Self::Flip(bits) => byte ^ bits,
        }
    }
}

impl Field {
    fn set(self, subject: &Subject, bytes: &mut [u8], value: u64) {
        let value = value.to_be_bytes();
        let value = &value[8 - self.width..];
        let mut set = |start: usize| {
            put(bytes, start + self.offset, value);
            subject.reseal(bytes, start);
        };
        match (self.place, subject.header, subject.table) {
            (Place::Footers, Some(_), _) => {
                set(0);
                set(subject.tail);
            }
            (Place::Footers, None, _) => set(subject.tail),
            (Place::Header, Some(header), _) => set(header),
            (Place::Table, _, Some((table, _))) => set(table),
            _ => {}
        }
    }
}

fn fields(subject: &Subject) -> Vec<Field> {
    let field = |place| move |(offset, width)| Field { place, offset, width };
    let mut fields: Vec<Field> = FOOTER_FIELDS.map(field(Place::Footers)).to_vec();
    if let Some((_, entries)) = subject.table {
        fields.extend(HEADER_FIELDS.map(field(Place::Header)));
        let locators = LOCATORS.map(|slot| 576 + slot * 24);
        let of_locators = locators.flat_map(|start| LOCATOR_FIELDS.map(|(offset, width)| (start + offset, width)));
        fields.extend(of_locators.map(field(Place::Header)));
        fields.extend((0..entries).map(|entry| (entry * 4, 4)).map(field(Place::Table)));
    }
    fields
}

/// Numbers at which something begins, ends or overflows.
fn extremes(subject: &Subject) -> Vec<u64> {
    let len = u64_from(subject.bytes.len());
    let around = |number: u64| [number.wrapping_sub(1), number, number.wrapping_add(1)];
    let mut values: Vec<u64> = [
        0,
        2,
        4,
        512,
        1024,
        1536,
        2048,
        4096,
        len - 512,
        len,
        len + 512,
        len / 512 - 1,
    ]
    .into_iter()
    .flat_map(around)
    .collect();
    values.extend((13..64).map(|shift| 1 << shift));
    values.extend([1_u64 << 31, 1 << 32, 2040 << 30, 1 << 63].into_iter().flat_map(around));
    values.extend([
        0x00FF_FFFF,
        (2040 << 30) + 512,
        u64::MAX - 511,
        u64::MAX - 1023,
        u64::MAX - 1535,
    ]);
    values
}

/// Every field with every extreme value.
pub(crate) fn single_fields(subject: &Subject) -> impl Iterator<Item = Mutation> {
    let values = extremes(subject);
    let each = move |field| {
        let values = values.clone();
        values.into_iter().map(move |value| Mutation::Field { field, value })
    };
    fields(subject).into_iter().flat_map(each)
}

fn set_random_fields(subject: &Subject, bytes: &mut [u8], seed: u64) {
    let mut rng = rng(seed);
    let (fields, values) = (fields(subject), extremes(subject));
    for _ in 0..rng.usize(2..6) {
        let field = fields[rng.usize(..fields.len())];
        field.set(subject, bytes, values[rng.usize(..values.len())]);
    }
}

fn make_noise(subject: &Subject, bytes: &mut [u8], seed: u64) {
    let mut rng = rng(seed);
    let places: Vec<usize> = subject.metadata().collect();
    let repair = rng.bool();
    for _ in 0..rng.usize(1..12) {
        let at = places[rng.usize(..places.len())];
        let end = (at + rng.usize(1..10)).min(bytes.len());
        rng.fill(&mut bytes[at..end]);
        if repair {
            subject.reseal(bytes, at);
        }
    }
    if rng.u8(..10) == 0 {
        // And sometimes a structure stands where another should.
        let from = places[rng.usize(..places.len())] / SECTOR * SECTOR;
        let to = usize_from(rng.u64(..u64_from(bytes.len() / SECTOR))) * SECTOR;
        bytes.copy_within(from..(from + SECTOR).min(bytes.len()), to.min(bytes.len() - SECTOR));
    }
}

/// All damages of all kinds.
pub(crate) fn all(subject: &Subject) -> impl Iterator<Item = Mutation> {
    let cut = (0..subject.bytes.len() + 1100).map(Mutation::Cut);
    let plain = || subject.metadata().flat_map(Mutation::all_of_byte);
    let fields = single_fields(subject).chain((0..12_000).map(Mutation::Fields));
    let summed = plain().filter_map(Mutation::sealed);
    let noise = (0..6000).map(Mutation::Noise);
    cut.chain(plain()).chain(summed).chain(fields).chain(noise)
}
