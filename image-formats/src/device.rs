//! A chain of images as a disk.

use std::io::IoSliceMut;
use std::ops::ControlFlow;
use std::sync::Arc;

use vhd_block::units::{u64_from, usize_from};
use vhd_block::{
    BlockDevice, ByteRange, Capabilities, Coalescer, DeviceError, DeviceInfo, Extent, ExtentKind, ExtentVisitor,
    LOGICAL_BLOCK, ZeroOptions, check_range, scatter,
};

use crate::error::ReadContext as _;
use crate::{ImageError, Layer, Place, Segment};

/// Bytes per request that are cheapest.
const PREFERRED_TRANSFER: u32 = 1 << 20;

/// A chain of images as a disk for reading.
pub struct LayeredImage {
    layers: Vec<Arc<dyn Layer>>,
    info: DeviceInfo,
    size: u64,
}

/// A part of the disk, and the layer that answers it.
struct Answer {
    depth: usize,
    place: Place,
    len: u64,
}

impl LayeredImage {
    /// The disk of `layers`, the leaf's first, under an identity.
    ///
    /// # Panics
    /// Without a layer.
    #[must_use]
    pub fn new(layers: Vec<Arc<dyn Layer>>, identity: Option<[u8; 16]>) -> Self {
        // A disk of a few odd bytes behind the last sector ends with it: no format here has one.
        let size = layers[0].disk_size();
        let size = size - size % u64::from(LOGICAL_BLOCK);
        Self {
            layers,
            info: DeviceInfo::new(identity, PREFERRED_TRANSFER, Capabilities::default()),
            size,
        }
    }

    /// Asks the layers in turn where the byte at `offset` is.
    fn answer(&self, offset: u64, len: u64) -> Result<Answer, ImageError> {
        let mut len = len;
        for (depth, layer) in self.layers.iter().enumerate() {
            // A child may be larger than its parent: behind the end of that there is nothing.
            if offset >= layer.disk_size() {
                break;
            }
            len = len.min(layer.disk_size() - offset);
            let (place, known) = layer.place(offset, len)?;
            len = known;
            if place != Place::Absent {
                return Ok(Answer { depth, place, len });
            }
        }
        Ok(Answer {
            depth: self.layers.len() - 1,
            place: Place::Absent,
            len,
        })
    }

    fn read_part(
        &self,
        bufs: &mut [IoSliceMut<'_>],
        at: usize,
        offset: u64,
        answer: &Answer,
    ) -> Result<(), ImageError> {
        let layer = &self.layers[answer.depth];
        let len = usize_from(answer.len);
        let is_all = at == 0 && scatter::total_len(bufs.iter().map(|buf| &**buf)) == answer.len;
        match answer.place {
            Place::Stored(file_offset) if is_all => layer
                .file()
                .read_exact_vectored_at(bufs, file_offset)
                .at(file_offset, len),
            Place::Computed if is_all => layer.read_computed(bufs, offset),
            place => scatter::for_each_mut(bufs, at, len, |part, done| {
                let done = u64_from(done);
                match place {
                    Place::Stored(file_offset) => {
                        let from = file_offset + done;
                        layer.file().read_exact_at(part, from).at(from, part.len())
                    }
                    Place::Computed => layer.read_computed(&mut [IoSliceMut::new(part)], offset + done),
                    Place::Zero | Place::Absent => {
                        part.fill(0);
                        Ok(())
                    }
                }
            }),
        }
    }

    /// Splits what is stored by the holes of the file.
    fn push_stored(
        &self,
        coalescer: &mut Coalescer<'_>,
        hint: &mut Option<Stretch>,
        start: u64,
        answer: &Answer,
        file_offset: u64,
    ) -> Result<ControlFlow<()>, ImageError> {
        let mut done = 0;
        while done < answer.len {
            let from = file_offset + done;
            let (segment, end) = self.stretch_at(hint, answer.depth, from)?;
            let left = answer.len - done;
            let known = if end > from { (end - from).min(left) } else { left };
            // File systems tell holes by their own blocks; a disk's are sectors.
            let len = known.next_multiple_of(u64::from(LOGICAL_BLOCK)).min(left);
            let (kind, file_offset) = match segment {
                Segment::Data => (ExtentKind::Data, from),
                Segment::Hole => (ExtentKind::Zero, from),
            };
            let range = ByteRange::new(start + done, len);
            let flow = coalescer.push(extent(range, kind, answer.depth, Some(file_offset)));
            if flow.is_break() {
                return Ok(flow);
            }
            done += len;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// What stands at an offset of a layer's file, asked once per stretch.
    fn stretch_at(&self, hint: &mut Option<Stretch>, depth: usize, offset: u64) -> Result<(Segment, u64), ImageError> {
        if let Some(known) = hint
            && known.depth == depth
            && (known.start..known.end).contains(&offset)
        {
            return Ok((known.segment, known.end));
        }
        let (segment, end) = self.layers[depth].file().segment_at(offset).at(offset, 0)?;
        *hint = Some(Stretch {
            depth,
            start: offset,
            end,
            segment,
        });
        Ok((segment, end))
    }
}

/// A part of a layer's file that is stored, or a hole.
struct Stretch {
    depth: usize,
    start: u64,
    end: u64,
    segment: Segment,
}

fn extent(range: ByteRange, kind: ExtentKind, depth: usize, file_offset: Option<u64>) -> Extent {
    Extent {
        range,
        kind,
        depth: u32::try_from(depth).unwrap_or(u32::MAX),
        file_offset,
    }
}

impl BlockDevice for LayeredImage {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), DeviceError> {
        let total = scatter::total_len(bufs.iter().map(|buf| &**buf));
        check_range(offset, total, self.size)?;
        let mut done = 0;
        while done < total {
            let answer = self.answer(offset + done, total - done)?;
            self.read_part(bufs, usize_from(done), offset + done, &answer)?;
            done += answer.len;
        }
        Ok(())
    }

    fn write_vectored_at(&self, _: &[std::io::IoSlice<'_>], _: u64, _: bool) -> Result<(), DeviceError> {
        Err(DeviceError::ReadOnly)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn write_zeroes(&self, _: ByteRange, _: ZeroOptions) -> Result<(), DeviceError> {
        Err(DeviceError::ReadOnly)
    }

    fn discard(&self, _: ByteRange) -> Result<(), DeviceError> {
        Err(DeviceError::ReadOnly)
    }

    fn extents(&self, range: ByteRange, visitor: ExtentVisitor<'_>) -> Result<(), DeviceError> {
        check_range(range.start, range.len, self.size)?;
        let mut coalescer = Coalescer::new(visitor);
        let mut hint = None;
        let mut at = range.start;
        while at < range.end() {
            let answer = self.answer(at, range.end() - at)?;
            let part = ByteRange::new(at, answer.len);
            let flow = match answer.place {
                Place::Stored(file_offset) => self.push_stored(&mut coalescer, &mut hint, at, &answer, file_offset)?,
                Place::Computed => coalescer.push(extent(part, ExtentKind::Data, answer.depth, None)),
                Place::Zero => coalescer.push(extent(part, ExtentKind::Zero, answer.depth, None)),
                Place::Absent => coalescer.push(extent(part, ExtentKind::Hole, answer.depth, None)),
            };
            if flow.is_break() {
                return Ok(());
            }
            at += answer.len;
        }
        coalescer.finish();
        Ok(())
    }

    fn resize(&self, _size: u64) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported("be resized"))
    }
}
