//! The layers of a chain that do not change, as one: where in their files a range is.
//!
//! Ancestors do not change while the leaf is open, nor does a leaf that is open for reading. So what a walk
//! down the chain finds is remembered: one word per block of the leaf that lies in one piece in one file (or
//! reads zero), a list of runs where a block is in several pieces. A read then costs the same at every depth:
//! the word, and at most one list.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use vhd_block::{ByteRange, DeviceError};

use super::layer::Layer;
use crate::image::ReadSpan;
use crate::units::{FileOffset, SECTOR_SIZE, VirtualOffset, u64_from, usize_from};

/// Bytes of run lists that all disks of the process keep together; what is learned beyond that is learned again each time.
const LIST_BYTES: u64 = 256 << 20;

/// Bytes of run lists that are kept now.
static KEPT: AtomicU64 = AtomicU64::new(0);

/// Blocks per lazily allocated group of summaries, and of run lists.
const GROUP: usize = 512;

/// A place in the file of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The layer, counted like in the list of all layers.
    pub(super) layer: u32,
    pub(super) offset: FileOffset,
}

impl Place {
    fn advanced(self, bytes: u64) -> Self {
        Self {
            offset: FileOffset(self.offset.0 + bytes),
            ..self
        }
    }
}

/// Where the first bytes of a range are; they read zero if they are nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Located {
    pub(super) place: Option<Place>,
    pub(super) len: u64,
}

/// What is known of one block of the leaf, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Summary {
    Unknown,
    Zero,
    Pieces,
    /// In one piece from here on.
    Whole(Place),
}

impl Summary {
    const UNKNOWN_WORD: u64 = 0;
    const PLACE: u64 = 1 << 63;
    const LAYER_SHIFT: u32 = 44;
    const SECTOR_MASK: u64 = (1 << Self::LAYER_SHIFT) - 1;

    fn from_word(word: u64) -> Self {
        match word {
            Self::UNKNOWN_WORD => Self::Unknown,
            1 => Self::Zero,
            2 => Self::Pieces,
            _ => Self::Whole(Place {
                layer: u32::try_from((word & !Self::PLACE) >> Self::LAYER_SHIFT).unwrap_or(u32::MAX),
                offset: FileOffset((word & Self::SECTOR_MASK) * SECTOR_SIZE),
            }),
        }
    }

    fn to_word(self) -> u64 {
        match self {
            Self::Unknown => Self::UNKNOWN_WORD,
            Self::Zero => 1,
            Self::Pieces => 2,
            Self::Whole(Place { layer, offset }) => {
                Self::PLACE | (u64::from(layer) << Self::LAYER_SHIFT) | (offset.0 / SECTOR_SIZE)
            }
        }
    }
}

/// A piece of a block, in a word: a search touches several of them, and memory is what it waits for.
///
/// From the top: where it ends, in sectors from the start of the block, less one; its layer; where it starts in
/// the layer's file, in sectors, or [`NOWHERE`](Run::NOWHERE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run(u64);

impl Run {
    const LAYER_BITS: u32 = 12;
    const SECTOR_BITS: u32 = 33;
    /// Stands for a run that reads zero.
    const NOWHERE: u64 = (1 << Self::SECTOR_BITS) - 1;

    /// A run that ends `end` bytes behind the start of its block; `None` if a word can't hold it.
    fn new(end: u64, place: Option<Place>) -> Option<Self> {
        let last = (end / SECTOR_SIZE).checked_sub(1)?;
        let (layer, sector) = match place {
            Some(Place { layer, offset }) => (u64::from(layer), offset.0 / SECTOR_SIZE),
            None => (0, Self::NOWHERE),
        };
        let fits = last < 1 << (u64::BITS - Self::LAYER_BITS - Self::SECTOR_BITS)
            && layer < 1 << Self::LAYER_BITS
            && (sector < Self::NOWHERE || place.is_none());
        fits.then_some(Self(
            (last << (Self::LAYER_BITS + Self::SECTOR_BITS)) | (layer << Self::SECTOR_BITS) | sector,
        ))
    }

    /// Where the run ends, in bytes from the start of the block.
    fn end(self) -> u64 {
        ((self.0 >> (Self::LAYER_BITS + Self::SECTOR_BITS)) + 1) * SECTOR_SIZE
    }

    fn place(self) -> Option<Place> {
        let sector = self.0 & Self::NOWHERE;
        let layer = (self.0 >> Self::SECTOR_BITS) & ((1 << Self::LAYER_BITS) - 1);
        (sector != Self::NOWHERE).then(|| Place {
            layer: u32::try_from(layer).unwrap_or(u32::MAX),
            offset: FileOffset(sector * SECTOR_SIZE),
        })
    }
}

type Summaries = Box<[AtomicU64; GROUP]>;
type Runs = Box<[Run]>;
type Group = Box<[OnceLock<Runs>]>;

/// Remembers where the unchanging layers have each block of the leaf.
pub(super) struct PlaceIndex {
    /// The first layer that does not change: 0 for a leaf that is open for reading, else 1.
    first: usize,
    /// Blocks are of two to the power of this many bytes: every read looks one up, and a division takes long.
    block_shift: u32,
    disk_size: u64,
    /// In groups that are allocated when something in them is learned: a large disk is hardly ever read as a whole.
    summaries: Box<[OnceLock<Summaries>]>,
    lists: RunLists,
}

impl PlaceIndex {
    /// For a leaf of `disk_size` bytes in blocks of `block_size` bytes, or of the next power of two; the layers from
    /// `first` on do not change.
    pub(super) fn new(first: usize, disk_size: u64, block_size: u64) -> Self {
        let block_shift = block_size.next_power_of_two().trailing_zeros();
        let blocks = disk_size.div_ceil(1 << block_shift);
        Self {
            first,
            block_shift,
            disk_size,
            summaries: (0..usize_from(blocks).div_ceil(GROUP))
                .map(|_| OnceLock::new())
                .collect(),
            lists: RunLists::new(blocks),
        }
    }

    fn block_size(&self) -> u64 {
        1 << self.block_shift
    }

    fn summary(&self, block: usize) -> Summary {
        match self.summaries[block / GROUP].get() {
            Some(group) => Summary::from_word(group[block % GROUP].load(Ordering::Relaxed)),
            None => Summary::Unknown,
        }
    }

    fn remember(&self, block: usize, summary: Summary) {
        let group = self.summaries[block / GROUP]
            .get_or_init(|| Box::new([const { AtomicU64::new(Summary::UNKNOWN_WORD) }; GROUP]));
        group[block % GROUP].store(summary.to_word(), Ordering::Relaxed);
    }

    /// Where the unchanging layers have the first bytes of the range.
    pub(super) fn locate(&self, layers: &[Layer], offset: u64, len: u64) -> Result<Located, DeviceError> {
        let block = usize_from(offset >> self.block_shift);
        let within = offset & (self.block_size() - 1);
        let len = len.min(self.block_size() - within);
        match self.summary(block) {
            Summary::Zero => Ok(Located { place: None, len }),
            Summary::Whole(place) => Ok(Located {
                place: Some(place.advanced(within)),
                len,
            }),
            Summary::Pieces => match self.lists.get(block) {
                Some(runs) => Ok(locate_in(runs, self.block_shift, within, len)),
                None => self.learn(layers, block, within, len),
            },
            Summary::Unknown => self.learn(layers, block, within, len),
        }
    }

    /// Walks down the chain for a whole block and remembers what it found.
    fn learn(&self, layers: &[Layer], block: usize, within: u64, len: u64) -> Result<Located, DeviceError> {
        let start = u64_from(block) * self.block_size();
        let end = self.disk_size.min(start + self.block_size());
        let found = walk(layers, self.first, start, end)?;
        let located = find(&found, start + within, len);
        let summary = match &found[..] {
            [Found { place: None, .. }] => Summary::Zero,
            [Found { place: Some(place), .. }] => Summary::Whole(*place),
            pieces => {
                self.lists.insert(block, start, pieces);
                Summary::Pieces
            }
        };
        // The layers do not change: whoever learns the same block learns the same.
        self.remember(block, summary);
        Ok(located)
    }
}

/// The run lists that are kept, within a bound on their bytes.
struct RunLists {
    /// In groups that are allocated when a block of theirs is in pieces.
    groups: Box<[OnceLock<Group>]>,
    /// Those of this disk.
    bytes: AtomicU64,
}

impl Drop for RunLists {
    fn drop(&mut self) {
        KEPT.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

impl RunLists {
    fn new(blocks: u64) -> Self {
        Self {
            groups: (0..usize_from(blocks).div_ceil(GROUP))
                .map(|_| OnceLock::new())
                .collect(),
            bytes: AtomicU64::new(0),
        }
    }

    fn get(&self, block: usize) -> Option<&[Run]> {
        Some(self.groups[block / GROUP].get()?[block % GROUP].get()?)
    }

    /// Keeps the pieces of the block that begins at `start` of the disk, if there is room for them.
    fn insert(&self, block: usize, start: u64, pieces: &[Found]) {
        let runs = u64_from(pieces.len() * size_of::<Run>());
        let group = match self.groups[block / GROUP].get() {
            Some(_) => 0,
            None => u64_from(GROUP * size_of::<OnceLock<Runs>>()),
        };
        let bytes = runs + group;
        if KEPT.fetch_add(bytes, Ordering::Relaxed) + bytes <= LIST_BYTES
            && let Some(runs) = pieces.iter().map(|run| Run::new(run.end - start, run.place)).collect()
            && let group = self.groups[block / GROUP].get_or_init(|| (0..GROUP).map(|_| OnceLock::new()).collect())
            && group[block % GROUP].set(runs).is_ok()
        {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            return;
        }
        // No room, or another thread was first.
        KEPT.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Looks byte `within` of a block of two to the power of `shift` bytes up in its runs.
fn locate_in(runs: &[Run], shift: u32, within: u64, len: u64) -> Located {
    let index = index_of(runs, shift, within);
    let run = runs[index];
    let start = if index == 0 { 0 } else { runs[index - 1].end() };
    Located {
        place: run.place().map(|place| place.advanced(within - start)),
        len: len.min(run.end() - within),
    }
}

/// The run that has byte `within`. It is looked for where it would be if all were of one length, and only then to one
/// side of that: a search through the whole list waits for several lines of memory, one after the other.
fn index_of(runs: &[Run], shift: u32, within: u64) -> usize {
    let guess = usize_from((u64_from(runs.len()) * within) >> shift);
    let (before, behind) = runs.split_at(guess);
    let ends_before = |run: &Run| run.end() <= within;
    match before.last() {
        Some(last) if !ends_before(last) => before.partition_point(ends_before),
        _ if !ends_before(&behind[0]) => guess,
        _ => guess + behind.partition_point(ends_before),
    }
}

/// Looks byte `offset` of the disk up in what was found.
fn find(found: &[Found], offset: u64, len: u64) -> Located {
    let run = &found[found.partition_point(|found| found.end <= offset)];
    Located {
        place: run.place.map(|place| place.advanced(offset - run.start)),
        len: len.min(run.end - offset),
    }
}

/// A range of the disk that a layer answered.
#[derive(Clone, Copy)]
struct Found {
    start: u64,
    end: u64,
    place: Option<Place>,
}

/// The runs of `start..end`, each layer from `first` on asked for what the ones above it left open.
fn walk(layers: &[Layer], first: usize, start: u64, end: u64) -> Result<Vec<Found>, DeviceError> {
    let Sifted { found, open } = sift(layers, first, start, end)?;
    if !open.is_empty() {
        return Err(DeviceError::NoParent);
    }
    Ok(join(&found))
}

/// What the layers from `first` on have of `start..end`.
fn sift(layers: &[Layer], first: usize, start: u64, end: u64) -> Result<Sifted, DeviceError> {
    let mut found = Vec::new();
    let mut open = vec![(start, end)];
    for (layer, number) in layers.iter().zip(0..).skip(first) {
        let mut passed_on = Vec::new();
        for (from, to) in open {
            ask(layer, number, from, to, &mut found, &mut passed_on)?;
        }
        open = passed_on;
        if open.is_empty() {
            break;
        }
    }
    found.sort_unstable_by_key(|found| found.start);
    Ok(Sifted { found, open })
}

/// What some layers have of a range, ascending, and what none of them has.
struct Sifted {
    found: Vec<Found>,
    open: Vec<(u64, u64)>,
}

/// A range of the disk that one of some layers holds, in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) range: ByteRange,
    /// Which layer, counted from the first.
    pub(crate) layer: usize,
    /// Where in its file.
    pub(crate) file_offset: FileOffset,
}

/// What `layers` hold of a range, ascending: of each sector what the first layer that has it holds. What none of
/// them has is left out, and so is what reads zero because the last one has no parent.
pub(crate) fn held(layers: &[Layer], range: ByteRange) -> Result<Vec<Held>, DeviceError> {
    let Sifted { found, .. } = sift(layers, 0, range.start, range.end())?;
    let held = found.into_iter().filter_map(|found| {
        found.place.map(|place| Held {
            range: ByteRange::new(found.start, found.end - found.start),
            layer: usize_from(u64::from(place.layer)),
            file_offset: place.offset,
        })
    });
    Ok(held.collect())
}

/// Makes maximal runs of what was found.
fn join(found: &[Found]) -> Vec<Found> {
    let mut runs: Vec<Found> = Vec::new();
    for next in found {
        match runs.last_mut() {
            Some(last) if last.place.map(|place| place.advanced(next.start - last.start)) == next.place => {
                last.end = next.end;
            }
            _ => runs.push(*next),
        }
    }
    runs
}

/// Asks one layer about `from..to`: what it has goes to `found`, what it leaves to its parent to `passed_on`.
fn ask(
    layer: &Layer,
    number: u32,
    from: u64,
    to: u64,
    found: &mut Vec<Found>,
    passed_on: &mut Vec<(u64, u64)>,
) -> Result<(), DeviceError> {
    let mut start = from;
    while start < to {
        if start >= layer.disk_size() {
            // A parent that is smaller than its child reads zero behind its end.
            found.push(Found {
                start,
                end: to,
                place: None,
            });
            break;
        }
        let limit = to.min(layer.disk_size());
        let span = layer.resolve_read(VirtualOffset(start), limit - start)?;
        let end = start + span.len();
        match span {
            ReadSpan::Data {
                file_offset: offset, ..
            } => {
                found.push(Found {
                    start,
                    end,
                    place: Some(Place { layer: number, offset }),
                });
            }
            ReadSpan::Zero { .. } => found.push(Found {
                start,
                end,
                place: None,
            }),
            ReadSpan::Parent { .. } => match passed_on.last_mut() {
                Some((_, last)) if *last == start => *last = end,
                _ => passed_on.push((start, end)),
            },
        }
        start = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_holds_every_summary() {
        let places = [(1, 0), (4095, 512), (7, (1 << 43) - 512)];
        let places = places.map(|(layer, offset)| {
            Summary::Whole(Place {
                layer,
                offset: FileOffset(offset),
            })
        });
        for summary in [Summary::Unknown, Summary::Zero, Summary::Pieces]
            .into_iter()
            .chain(places)
        {
            assert_eq!(Summary::from_word(summary.to_word()), summary);
        }
    }

    #[test]
    fn contiguous_pieces_of_one_file_are_one_run() {
        let at = |offset| {
            Some(Place {
                layer: 1,
                offset: FileOffset(offset),
            })
        };
        let found = [
            Found {
                start: 4096,
                end: 4608,
                place: at(512),
            },
            Found {
                start: 4608,
                end: 5120,
                place: at(1024),
            },
            Found {
                start: 5120,
                end: 5632,
                place: at(9216),
            },
            Found {
                start: 5632,
                end: 6144,
                place: None,
            },
            Found {
                start: 6144,
                end: 6656,
                place: None,
            },
        ];
        let joined = join(&found);
        assert_eq!(joined.iter().map(|run| run.end).collect::<Vec<_>>(), [5120, 5632, 6656]);
        let lists = RunLists::new(1);
        lists.insert(0, 4096, &joined);
        let runs = lists.get(0).unwrap();
        assert_eq!(runs.iter().map(|run| run.end()).collect::<Vec<_>>(), [1024, 1536, 2560]);
        const SHIFT: u32 = 12;
        for within in (0..2560).step_by(512) {
            assert_eq!(locate_in(runs, SHIFT, within, 4096), find(&joined, 4096 + within, 4096));
        }
        let half = Located {
            place: at(1024),
            len: 512,
        };
        assert_eq!(locate_in(runs, SHIFT, 512, 4096), half);
        assert_eq!(locate_in(runs, SHIFT, 1536, 512), Located { place: None, len: 512 });
    }

    #[test]
    fn a_run_is_found_wherever_the_guess_falls() {
        const SHIFT: u32 = 14;
        const SECTORS: u64 = (1 << SHIFT) / SECTOR_SIZE;
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..2000 {
            // Crowded at one end as well as even: cuts are taken from a part of the block.
            let (from, to) = (random.u64(1..SECTORS), random.u64(1..SECTORS));
            let mut ends: Vec<u64> = (0..random.usize(0..12))
                .map(|_| random.u64(from.min(to)..=from.max(to)))
                .chain([SECTORS])
                .collect();
            ends.sort_unstable();
            ends.dedup();
            let runs: Vec<Run> = ends
                .iter()
                .map(|end| Run::new(end * SECTOR_SIZE, None).unwrap())
                .collect();
            for sector in 0..SECTORS {
                let expected = ends.partition_point(|&end| end <= sector);
                assert_eq!(index_of(&runs, SHIFT, sector * SECTOR_SIZE), expected, "{ends:?}");
            }
        }
    }

    #[test]
    fn a_run_is_a_word_or_nothing() {
        let at = |layer, sector| {
            Some(Place {
                layer,
                offset: FileOffset(sector * SECTOR_SIZE),
            })
        };
        for (end, place) in [(512, None), (256 << 20, at(4095, (1 << 33) - 2)), (1024, at(0, 0))] {
            let run = Run::new(end, place).unwrap();
            assert_eq!((run.end(), run.place()), (end, place));
        }
        for (end, place) in [
            (0, None),
            ((256 << 20) + 512, None),
            (512, at(4096, 0)),
            (512, at(0, (1 << 33) - 1)),
        ] {
            assert_eq!(Run::new(end, place), None);
        }
    }

    #[test]
    fn lists_are_kept_within_the_bound() {
        let lists = RunLists::new(64);
        let many = usize_from(LIST_BYTES) / size_of::<Run>() / 4;
        let pieces = vec![
            Found {
                start: 0,
                end: 512,
                place: None
            };
            many
        ];
        for block in 0..6 {
            lists.insert(block, 0, &pieces);
            lists.insert(block, 0, &pieces);
            assert_eq!(lists.get(block).is_some(), block < 3, "the group takes some too");
        }
        let kept = lists.bytes.load(Ordering::Relaxed);
        assert!(kept > LIST_BYTES / 4 * 3 && kept < LIST_BYTES, "{kept}");
        let before = KEPT.load(Ordering::Relaxed);
        assert!(before >= kept && before <= LIST_BYTES);
        drop(lists);
        assert!(
            KEPT.load(Ordering::Relaxed) <= before - kept + (LIST_BYTES >> 4),
            "what is dropped is free for others"
        );
    }
}
