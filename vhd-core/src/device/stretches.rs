//! What the files of a disk say of their holes.

use std::io;
use std::ops::ControlFlow;

use vhd_block::{ByteRange, Coalescer, Extent, ExtentKind, LOGICAL_BLOCK};

use crate::storage::{Segment, StorageFile};

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
        let len = len.next_multiple_of(u64::from(LOGICAL_BLOCK)).min(left);
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
