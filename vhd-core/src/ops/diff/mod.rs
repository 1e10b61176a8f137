//! Where two disks differ, found by what their chains share: a range that both read from one place of one file is
//! the same in both, and need not be read.

mod places;

use std::ops::ControlFlow;

use super::compare::{Candidates, compare_candidates};
use super::{Comparison, OpsError, Progress};
use crate::chain::OpenedDisk;
use crate::device::ByteRange;
pub(super) use places::{Files, Layers, Places, files_of};

/// What counts as a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiffMode {
    /// Sectors whose bytes differ.
    Content,
    /// Ranges that the two disks read from different places, whatever stands there. Nothing is read.
    Allocated,
}

/// What a diff found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// What was found in the ranges that were looked at. After [`DiffMode::Allocated`] it counts ranges, not bytes
    /// that were compared.
    pub comparison: Comparison,
    /// How many files, counted from the base, the two chains have in common.
    pub shared_layers: usize,
}

/// Finds the ranges in which two disks differ and hands them, ascending and coalesced, to `visitor`, until it
/// breaks off. A disk reads zero behind its end.
pub fn diff(
    a: &OpenedDisk,
    b: &OpenedDisk,
    mode: DiffMode,
    progress: &dyn Progress,
    visitor: &mut dyn FnMut(ByteRange) -> ControlFlow<()>,
) -> Result<Difference, OpsError> {
    let layers = Layers::of(&files_of(a), &files_of(b));
    let (a, b) = (a.disk(), b.disk());
    let mut places = Places::new(&a, &b, &layers, mode);
    let comparison = match mode {
        DiffMode::Content => compare_candidates(&a, &b, &mut places, progress, visitor)?,
        DiffMode::Allocated => list(&mut places, progress, visitor)?,
    };
    Ok(Difference {
        comparison,
        shared_layers: layers.shared(),
    })
}

/// Hands the candidates on as they are.
fn list(
    places: &mut Places<'_>,
    progress: &dyn Progress,
    visitor: &mut dyn FnMut(ByteRange) -> ControlFlow<()>,
) -> Result<Comparison, OpsError> {
    let mut found = Comparison {
        identical: true,
        ..Comparison::default()
    };
    let mut last: Option<ByteRange> = None;
    progress.begin(places.size());
    let mut position = 0;
    while let Some(range) = places.next(position)? {
        found.identical = false;
        found.first_difference.get_or_insert(range.start);
        found.different_bytes += range.len;
        progress.advance(range.end() - position);
        position = range.end();
        match &mut last {
            Some(last) if last.end() == range.start => last.len += range.len,
            last => {
                if let Some(complete) = last.replace(range)
                    && visitor(complete).is_break()
                {
                    return Ok(found);
                }
            }
        }
    }
    progress.advance(places.size() - position);
    if let Some(last) = last {
        let _ = visitor(last);
    }
    Ok(found)
}
