//! Extents: how the parts of a disk read, and from where.

use std::ops::ControlFlow;

use crate::ByteRange;

/// How a part of a disk reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Stored bytes.
    Data,
    /// Stored as zeroes: some layer owns the range, but it takes no space and reads zero.
    Zero,
    /// No layer owns the range; it reads zero.
    Hole,
}

/// A maximal range of a disk that reads in one way from one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The range on the virtual disk.
    pub range: ByteRange,
    /// How it reads.
    pub kind: ExtentKind,
    /// The layer that answers, 0 for the disk's own file; for a hole, the base.
    pub depth: u32,
    /// Where the range lies in that layer's file, contiguous; `None` for a hole.
    pub file_offset: Option<u64>,
}

/// Receives extents in ascending order, without gaps; `Break` ends the walk.
pub type ExtentVisitor<'a> = &'a mut dyn FnMut(Extent) -> ControlFlow<()>;

/// Joins neighbouring extents that continue one another, and passes the maximal ones on.
pub struct Coalescer<'a> {
    visitor: ExtentVisitor<'a>,
    last: Option<Extent>,
}

impl<'a> Coalescer<'a> {
    /// Passes on to `visitor`.
    pub fn new(visitor: ExtentVisitor<'a>) -> Self {
        Self { visitor, last: None }
    }

    /// Takes the extent that follows the last one; `Break` if the visitor has seen enough.
    pub fn push(&mut self, next: Extent) -> ControlFlow<()> {
        if let Some(last) = &mut self.last {
            if continues(last, &next) {
                last.range.len += next.range.len;
                return ControlFlow::Continue(());
            }
            (self.visitor)(*last)?;
        }
        self.last = Some(next);
        ControlFlow::Continue(())
    }

    /// Passes the last extent on.
    pub fn finish(self) {
        if let Some(last) = self.last {
            let _ = (self.visitor)(last);
        }
    }
}

fn continues(last: &Extent, next: &Extent) -> bool {
    let same_place = match (last.file_offset, next.file_offset) {
        (None, None) => true,
        (Some(a), Some(b)) => a + last.range.len == b,
        _ => false,
    };
    same_place && last.kind == next.kind && last.depth == next.depth
}
