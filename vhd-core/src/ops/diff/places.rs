//! The ranges that two disks do not read from one place of one file.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;

use super::DiffMode;
use crate::chain::OpenedDisk;
use crate::device::{ByteRange, DeviceError, Disk, Extent, ExtentKind};
use crate::ops::OpsError;
use crate::ops::compare::Candidates;
use crate::storage::FileIdentity;
use crate::units::usize_from;

/// Bytes of the disks whose places are known at once.
const WINDOW: u64 = 1 << 30;

/// The files of both chains, each with a number that is the same for one file in both.
pub(in crate::ops) struct Layers {
    a: Vec<usize>,
    b: Vec<usize>,
}

/// Which files a disk is read from, by their depth. One that can't be recognised is like no other.
pub(in crate::ops) type Files = Vec<Option<FileIdentity>>;

/// The files of an open disk.
pub(in crate::ops) fn files_of(opened: &OpenedDisk) -> Files {
    // By the descriptors: a name may lead elsewhere by now.
    let depths = (0..).take(opened.paths().len());
    depths.map(|depth| opened.identity_at_depth(depth)).collect()
}

impl Layers {
    pub(in crate::ops) fn of(a: &Files, b: &Files) -> Self {
        let mut known: HashMap<FileIdentity, usize> = HashMap::new();
        let mut next = 0;
        let mut numbers = |files: &Files| {
            let number = |identity: &Option<FileIdentity>| {
                next += 1;
                identity.map_or(next, |identity| *known.entry(identity).or_insert(next))
            };
            files.iter().map(number).collect()
        };
        Self {
            a: numbers(a),
            b: numbers(b),
        }
    }

    /// How many files the chains have in common, counted from the base.
    pub(in crate::ops) fn shared(&self) -> usize {
        let pairs = self.a.iter().rev().zip(self.b.iter().rev());
        pairs.take_while(|(a, b)| a == b).count()
    }
}

/// Where a range is read from: the number of a file and the offset in it; `None` for nowhere: it reads zero.
type Place = Option<(usize, u64)>;

/// A range of a disk that is read from one place.
#[derive(Clone, Copy)]
struct Piece {
    end: u64,
    start: u64,
    place: Place,
    /// The disk's own file has it.
    in_leaf: bool,
}

impl Piece {
    fn place_at(&self, position: u64) -> Place {
        self.place
            .map(|(file, offset)| (file, offset + (position - self.start)))
    }
}

/// Walks over both disks at once.
pub(in crate::ops) struct Places<'a> {
    a: &'a Disk,
    b: &'a Disk,
    layers: &'a Layers,
    mode: DiffMode,
    /// What the leaf of `a` has is no candidate.
    below_leaf: bool,
    /// Up to where the candidates are known.
    known: u64,
    candidates: VecDeque<ByteRange>,
}

impl<'a> Places<'a> {
    pub(super) fn new(a: &'a Disk, b: &'a Disk, layers: &'a Layers, mode: DiffMode) -> Self {
        Self {
            a,
            b,
            layers,
            mode,
            below_leaf: false,
            known: 0,
            candidates: VecDeque::new(),
        }
    }

    /// Where what `a` leaves to its parents may differ from `b`.
    pub(in crate::ops) fn below_leaf(a: &'a Disk, b: &'a Disk, layers: &'a Layers) -> Self {
        Self {
            below_leaf: true,
            ..Self::new(a, b, layers, DiffMode::Content)
        }
    }

    pub(in crate::ops) fn size(&self) -> u64 {
        self.a.size().max(self.b.size())
    }

    /// Looks the next window up.
    fn advance(&mut self) -> Result<(), DeviceError> {
        let (start, end) = (self.known, self.size().min(self.known + WINDOW));
        let a = self.pieces(self.a, &self.layers.a, start, end)?;
        let b = self.pieces(self.b, &self.layers.b, start, end)?;
        self.known = end;
        let (mut in_a, mut in_b) = (a.iter().peekable(), b.iter().peekable());
        let mut at = start;
        while let (Some(left), Some(right)) = (in_a.peek(), in_b.peek()) {
            let next = left.end.min(right.end);
            let left_out = self.below_leaf && left.in_leaf;
            if !left_out && left.place_at(at) != right.place_at(at) {
                push(&mut self.candidates, ByteRange::new(at, next - at));
            }
            at = next;
            in_a.next_if(|piece| piece.end == next);
            in_b.next_if(|piece| piece.end == next);
        }
        Ok(())
    }

    /// What a disk reads from where, from `start` to `end`, which may lie behind it.
    fn pieces(&self, disk: &Disk, files: &[usize], start: u64, end: u64) -> Result<Vec<Piece>, DeviceError> {
        let mut pieces = Vec::new();
        let inside = end.min(disk.size()).max(start);
        if inside > start {
            disk.extents(ByteRange::new(start, inside - start), &mut |extent| {
                pieces.push(Piece {
                    start: extent.range.start,
                    end: extent.range.end(),
                    place: self.place(&extent, files),
                    in_leaf: extent.depth == 0,
                });
                ControlFlow::Continue(())
            })?;
        }
        if inside < end {
            pieces.push(Piece {
                start: inside,
                end,
                place: None,
                in_leaf: false,
            });
        }
        Ok(pieces)
    }

    fn place(&self, extent: &Extent, files: &[usize]) -> Place {
        // Stored zeroes are as good as none where only the content counts.
        if extent.kind == ExtentKind::Zero && self.mode == DiffMode::Content {
            return None;
        }
        let file = files.get(usize_from(u64::from(extent.depth)))?;
        Some((*file, extent.file_offset?))
    }
}

fn push(candidates: &mut VecDeque<ByteRange>, range: ByteRange) {
    match candidates.back_mut() {
        Some(last) if last.end() == range.start => last.len += range.len,
        _ => candidates.push_back(range),
    }
}

impl Candidates for Places<'_> {
    fn next(&mut self, position: u64) -> Result<Option<ByteRange>, OpsError> {
        loop {
            while let Some(range) = self.candidates.front() {
                if range.end() > position {
                    let start = range.start.max(position);
                    return Ok(Some(ByteRange::new(start, range.end() - start)));
                }
                self.candidates.pop_front();
            }
            if self.known >= self.size() {
                return Ok(None);
            }
            self.advance().map_err(OpsError::Source)?;
        }
    }
}
