//! Extents: how the parts of a disk read, and from where.

use std::io;
use std::ops::ControlFlow;

use super::ByteRange;
use crate::storage::{Segment, StorageFile};

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

/// What the files of a disk say of their holes, asked once per stretch: to find the end of one takes a file system
/// longer the more extents it has, and blocks would ask for the same one again and again.
#[derive(Default)]
pub(super) struct Stretches {
    last: Option<Stretch>,
}

struct Stretch {
    depth: u32,
    start: u64,
    end: u64,
    segment: Segment,
}

impl Stretches {
    /// What stands at `offset` of the file of a layer, and where that ends.
    fn at(&mut self, file: &dyn StorageFile, depth: u32, offset: u64) -> io::Result<(Segment, u64)> {
        if let Some(last) = &self.last
            && last.depth == depth
            && (last.start..last.end).contains(&offset)
        {
            return Ok((last.segment, last.end));
        }
        let (segment, end) = file.segment_at(offset)?;
        self.last = Some(Stretch {
            depth,
            start: offset,
            end,
            segment,
        });
        Ok((segment, end))
    }
}

/// Splits a stored range by the holes of the file that it lies in.
pub(super) fn push_stored(
    coalescer: &mut Coalescer<'_>,
    stretches: &mut Stretches,
    file: &dyn StorageFile,
    range: ByteRange,
    depth: u32,
    file_offset: u64,
) -> io::Result<ControlFlow<()>> {
    let mut done = 0;
    while done < range.len {
        let (segment, end) = stretches.at(file, depth, file_offset + done)?;
        let start = file_offset + done;
        // Past the end of the file (a last block that was cut) everything reads zero.
        let left = range.len - done;
        let len = if end > start { (end - start).min(left) } else { left };
        let kind = if segment == Segment::Data {
            ExtentKind::Data
        } else {
            ExtentKind::Zero
        };
        // File systems tell holes by their own blocks; a disk's are sectors.
        let len = len.next_multiple_of(u64::from(super::LOGICAL_BLOCK)).min(left);
        let part = ByteRange::new(range.start + done, len);
        let flow = coalescer.push(Extent {
            range: part,
            kind,
            depth,
            file_offset: Some(start),
        });
        if flow.is_break() {
            return Ok(flow);
        }
        done += len;
    }
    Ok(ControlFlow::Continue(()))
}
