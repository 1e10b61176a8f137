//! Which of the pending changes persist: exhaustively where they are few, otherwise by lists and by lot.

use std::fmt;
use std::sync::Arc;

use super::CrashLimits;
use crate::rng::{mix, rng};

/// Which sectors of one change persisted, counted from its first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// None.
    Nothing,
    /// Every one.
    All,
    /// The first ones, this many.
    Prefix(u64),
    /// All but the first ones, this many.
    AllAfter(u64),
    /// Those whose bit is set; sectors from 64 on are lost.
    Sectors(u64),
    /// Half of them, drawn with this seed.
    Random(u64),
}

impl Kept {
    /// Whether the sector persisted.
    #[must_use]
    pub fn has(self, sector: u64) -> bool {
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::Prefix(count) => sector < count,
            Self::AllAfter(count) => sector >= count,
            Self::Sectors(mask) => sector < 64 && mask >> sector & 1 == 1,
            Self::Random(seed) => mix(seed, sector) & 1 == 1,
        }
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => write!(f, "lost"),
            Self::All => write!(f, "kept"),
            Self::Prefix(count) => write!(f, "torn, first {count} sectors kept"),
            Self::AllAfter(count) => write!(f, "torn, first {count} sectors lost"),
            Self::Sectors(mask) => write!(f, "torn, sectors of mask {mask:#b} kept"),
            Self::Random(seed) => write!(f, "torn, sectors drawn with seed {seed:#x}"),
        }
    }
}

/// The outcome of a crash for every pending change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashChoice {
    /// How many of the changes of length persisted: they have an order.
    pub lengths: usize,
    /// What persisted of each change of data: they have none.
    pub kept: Vec<Kept>,
}

/// As much as the enumeration needs to know of the pending changes.
#[derive(Debug)]
pub(super) struct Shape {
    /// For each change of data its number of sectors.
    pub(super) sectors: Vec<u64>,
    /// The number of changes of length.
    pub(super) lengths: usize,
}

type Choices = Box<dyn Iterator<Item = CrashChoice> + Send>;

/// All choices to try, the likeliest to hurt first; equal ones may come twice.
pub(super) fn choices(shape: Shape, limits: &CrashLimits) -> Choices {
    let shape = Arc::new(shape);
    let sectors = shape
        .sectors
        .iter()
        .fold(0_u64, |sum, &count| sum.saturating_add(count));
    if shape.fits(sectors, limits) {
        return by_sector(shape);
    }
    let whole = if shape.fits(shape.changes(), limits) {
        by_change(Arc::clone(&shape))
    } else {
        listed(&shape)
    };
    Box::new(whole.chain(torn(&shape)).chain(random(shape, limits)))
}

impl Shape {
    fn changes(&self) -> u64 {
        vhd_core::units::u64_from(self.sectors.len())
    }

    /// Whether `bits` yes-or-no questions for each length stay below the limit of an exhaustive walk.
    fn fits(&self, bits: u64, limits: &CrashLimits) -> bool {
        let most = 1_u64 << limits.exhaustive_bits.min(24);
        let lengths = vhd_core::units::u64_from(self.lengths) + 1;
        bits < 32 && lengths.saturating_mul(1 << bits) <= most
    }

    fn uniform(&self, kept: Kept) -> Vec<Kept> {
        vec![kept; self.sectors.len()]
    }

    fn choice(&self, lengths: usize, kept: Vec<Kept>) -> CrashChoice {
        CrashChoice { lengths, kept }
    }
}

/// Every subset of the sectors, with every length.
fn by_sector(shape: Arc<Shape>) -> Choices {
    let bits: u64 = shape.sectors.iter().sum();
    Box::new((0..=shape.lengths).flat_map(move |lengths| {
        let shape = Arc::clone(&shape);
        (0..1_u64 << bits).map(move |mask| {
            let mut rest = mask;
            let take = |&count: &u64| {
                let own = rest & ((1 << count) - 1);
                rest >>= count;
                if own == 0 { Kept::Nothing } else { Kept::Sectors(own) }
            };
            let kept = shape.sectors.iter().map(take).collect();
            shape.choice(lengths, kept)
        })
    }))
}

/// Every subset of whole changes, with every length.
fn by_change(shape: Arc<Shape>) -> Choices {
    let changes = shape.changes();
    Box::new((0..=shape.lengths).flat_map(move |lengths| {
        let shape = Arc::clone(&shape);
        (0..1_u64 << changes).map(move |mask| {
            let whole = |change| {
                if mask >> change & 1 == 1 {
                    Kept::All
                } else {
                    Kept::Nothing
                }
            };
            shape.choice(lengths, (0..changes).map(whole).collect())
        })
    }))
}

/// None, all, each prefix (with every length); each change missing and each alone (with the first and last length).
fn listed(shape: &Arc<Shape>) -> Choices {
    let count = shape.sectors.len();
    let prefixes = {
        let shape = Arc::clone(shape);
        (0..=shape.lengths).flat_map(move |lengths| {
            let shape = Arc::clone(&shape);
            (0..=count).map(move |end| {
                let mut kept = shape.uniform(Kept::Nothing);
                kept[..end].fill(Kept::All);
                shape.choice(lengths, kept)
            })
        })
    };
    let shape = Arc::clone(shape);
    let singles = (0..count).flat_map(move |index| {
        let shape = Arc::clone(&shape);
        let outcomes = [(Kept::All, Kept::Nothing), (Kept::Nothing, Kept::All)];
        outcomes.into_iter().flat_map(move |(others, own)| {
            let mut kept = shape.uniform(others);
            kept[index] = own;
            [shape.choice(shape.lengths, kept.clone()), shape.choice(0, kept)]
        })
    });
    Box::new(prefixes.chain(singles))
}

/// Each change of several sectors torn in the usual ways, with the others kept, lost, or kept up to it.
fn torn(shape: &Arc<Shape>) -> Choices {
    let shape = Arc::clone(shape);
    let several = (0..shape.sectors.len()).filter({
        let shape = Arc::clone(&shape);
        move |&index| shape.sectors[index] > 1
    });
    Box::new(several.flat_map(move |index| {
        let (shape, count) = (Arc::clone(&shape), shape.sectors[index]);
        let ways = [
            Kept::Prefix(1),
            Kept::Prefix(count / 2),
            Kept::Prefix(count - 1),
            Kept::AllAfter(1),
            Kept::AllAfter(count / 2),
            Kept::AllAfter(count - 1),
        ];
        ways.into_iter().flat_map(move |way| {
            let mut before = shape.uniform(Kept::Nothing);
            before[..index].fill(Kept::All);
            [shape.uniform(Kept::All), shape.uniform(Kept::Nothing), before].map(|mut kept| {
                kept[index] = way;
                shape.choice(shape.lengths, kept)
            })
        })
    }))
}

/// Subsets drawn with the seed of the limits; how many changes survive is drawn too.
fn random(shape: Arc<Shape>, limits: &CrashLimits) -> Choices {
    let seed = limits.seed;
    Box::new((0..limits.random).map(move |number| {
        let mut random = rng(mix(seed, number));
        let survival = random.f64();
        let mut draw = |&sectors: &u64| match random.u8(..4) {
            0 if sectors > 1 => Kept::Random(random.u64(..)),
            1 if sectors > 1 => Kept::Prefix(random.u64(..=sectors)),
            _ if random.f64() < survival => Kept::All,
            _ => Kept::Nothing,
        };
        let kept = shape.sectors.iter().map(&mut draw).collect();
        let lengths = if random.bool() {
            shape.lengths
        } else {
            random.usize(..=shape.lengths)
        };
        shape.choice(lengths, kept)
    }))
}
