//! The device over a chain of images: one loop moves the bytes, whatever the layers are.

use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use vhd_block::{
    BlockDevice, ByteRange, Capabilities, Coalescer, DeviceError, DeviceInfo, ErrorKind, Extent, ExtentKind,
    ExtentVisitor, LOGICAL_BLOCK, ReadSpan as BlockSpan, SpanFile, SpanStorage, WriteSpan, ZeroOptions, check_range,
    scatter,
};

use super::layer::Layer;
use super::owed::{Commit, Owed};
use super::places::{Located, Place, PlaceIndex};
use super::spans::InImage;
use super::stretches::{Stretches, push_stored};
use crate::image::{Image, IoContext, ReadSpan, discard_file_range};
use crate::storage::{StorageFile, reads_zero};
use crate::units::{FileOffset, VirtualOffset, u64_from, usize_from};

/// The most bytes per request that are recommended to a frontend.
const MAX_PREFERRED_TRANSFER: u64 = 2 << 20;

/// A disk made of a leaf and its ancestors. Only the leaf is ever written.
pub struct LayeredDevice {
    layers: Vec<Layer>,
    /// Their files: one step nearer than through the layers.
    files: Box<[Arc<dyn StorageFile>]>,
    /// The same for spans, which may outlive this device.
    span_files: Box<[Arc<dyn SpanStorage>]>,
    parents: Option<PlaceIndex>,
    /// Layers that were frozen while they were written to, and may not be durable, the lowest first.
    unclean: Vec<Arc<Image>>,
    follower: Option<Arc<dyn Follower>>,
    owed: Option<Owed>,
    info: DeviceInfo,
    size: u64,
}

/// Told of what is written to a leaf.
pub(super) trait Follower: Send + Sync {
    /// Something was written to the range, or may have been. The request has not returned yet.
    fn written(&self, range: ByteRange);
}

/// A layer that was opened anew in its open file.
pub(super) struct Reopened {
    pub(super) former: Arc<Image>,
    pub(super) now: Arc<Image>,
}

/// Layers below a leaf that have become one.
pub(super) struct Joined<'a> {
    /// The topmost of those that go.
    pub(super) first: &'a Arc<Image>,
    /// How many layers become one.
    pub(super) count: usize,
    /// The one layer.
    pub(super) layer: &'a Layer,
}

impl fmt::Debug for LayeredDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.layers).finish()
    }
}

impl LayeredDevice {
    /// The disk of `leaf` over `ancestors`, nearest first. That they belong together is the business of
    /// [`chain`](crate::chain); a differencing image needs its ancestors down to one that is not: what it leaves to a parent
    /// that is not there is [`DeviceError::NoParent`], never zeroes.
    #[must_use]
    pub fn new(leaf: Image, ancestors: Vec<Layer>) -> Self {
        Self::over(Arc::new(leaf), ancestors)
    }

    /// The same, where another disk may have the leaf too.
    pub(crate) fn over(leaf: Arc<Image>, ancestors: Vec<Layer>) -> Self {
        Self::of(leaf, ancestors, Vec::new())
    }

    /// The disk of `child`, an empty child of this disk's leaf, which is to be frozen before it is used.
    pub(crate) fn with_child(&self, child: Image) -> Self {
        let unclean = self.unclean.iter().chain([self.leaf_image()]);
        let unclean = unclean.filter(|image| !image.is_clean()).cloned();
        Self::of(Arc::new(child), self.layers.clone(), unclean.collect())
    }

    /// The disk below the leaf, for reading only, in the same open files; `None` if there is no VHD below.
    #[must_use]
    pub fn below(&self) -> Option<Self> {
        self.from_layer(1)
    }

    /// The disk of the layer so far below the leaf, in the same open files; `None` if that is no VHD. Below the leaf it is
    /// for reading only.
    #[must_use]
    pub fn from_layer(&self, depth: usize) -> Option<Self> {
        let (first, ancestors) = self.layers.get(depth..)?.split_first()?;
        match first {
            Layer::Vhd(image) => Some(Self::of(Arc::clone(image), ancestors.to_vec(), Vec::new())),
            Layer::Raw(_) => None,
        }
    }

    /// The same disk, whose writes `follower` is told of.
    pub(super) fn followed_by(&self, follower: Option<Arc<dyn Follower>>) -> Self {
        let leaf = Arc::clone(self.leaf_image());
        Self {
            follower,
            ..Self::of(leaf, self.layers[1..].to_vec(), self.unclean.clone())
        }
    }

    /// The disk of the layer so far below the leaf, opened anew for writing, in place of that and all above it.
    pub(crate) fn with_layer_as_leaf(&self, depth: usize, image: Arc<Image>) -> Self {
        Self::of(image, self.layers[depth + 1..].to_vec(), Vec::new())
    }

    /// The same disk, which has taken the place of the leaf `former`, and whose first flush `commit`s.
    pub(crate) fn owing(self, former: Arc<Image>, commit: Commit) -> Self {
        Self {
            owed: Some(Owed::new(former, commit)),
            ..self
        }
    }

    /// The same disk with those of its layers opened anew that are among these.
    pub(super) fn reopened(&self, reopened: &[Reopened]) -> Self {
        let now = |image: &Arc<Image>| {
            let found = reopened.iter().find(|layer| Arc::ptr_eq(&layer.former, image));
            found.map(|layer| Arc::clone(&layer.now))
        };
        let layers = self.layers[1..].iter().map(|layer| match layer {
            Layer::Vhd(image) => Layer::Vhd(now(image).unwrap_or_else(|| Arc::clone(image))),
            Layer::Raw(_) => layer.clone(),
        });
        let leaf = self.leaf_image();
        let unclean = self.unclean.iter().filter(|image| now(image).is_none()).cloned();
        Self::of(
            now(leaf).unwrap_or_else(|| Arc::clone(leaf)),
            layers.collect(),
            unclean.collect(),
        )
    }

    /// The same disk with one layer in place of several; `None` if it does not have those.
    pub(super) fn joined(&self, joined: &Joined<'_>) -> Option<Self> {
        let is_first = |layer: &Layer| matches!(layer, Layer::Vhd(image) if Arc::ptr_eq(image, joined.first));
        let first = self.layers.iter().position(is_first)?;
        let (above, gone) = self.layers.split_at(first);
        let (gone, below) = gone.split_at_checked(joined.count)?;
        let mut layers = above.iter().chain([joined.layer]).chain(below).cloned();
        let Some(Layer::Vhd(leaf)) = layers.next() else {
            return None;
        };
        let went = |image: &Arc<Image>| {
            gone.iter()
                .any(|layer| matches!(layer, Layer::Vhd(one) if Arc::ptr_eq(one, image)))
        };
        let unclean = self.unclean.iter().filter(|image| !went(image)).cloned();
        Some(Self::of(leaf, layers.collect(), unclean.collect()))
    }

    /// How often it has the image below another one.
    pub(super) fn uses_below_top(&self, image: &Arc<Image>) -> usize {
        let is_it = |layer: &&Layer| matches!(layer, Layer::Vhd(one) if Arc::ptr_eq(one, image));
        match self.layers[1..].iter().filter(is_it).count() {
            0 => 0,
            layers => {
                // INV-80: for its spans, a disk that is not written to has each image once more.
                let for_spans = if self.info.capabilities.write { 0 } else { layers };
                let unclean = self.unclean.iter().filter(|one| Arc::ptr_eq(one, image));
                layers + for_spans + unclean.count()
            }
        }
    }

    /// Whether somebody is told of what is written.
    pub(super) fn is_followed(&self) -> bool {
        self.follower.is_some()
    }

    /// Something in the range was written to, or may have been: for the device that a request has used, before it returns.
    pub(super) fn written(&self, range: ByteRange) {
        if let Some(follower) = &self.follower {
            follower.written(range);
        }
    }

    /// Whether the leaf is a child of this very image.
    pub(crate) fn is_over(&self, parent: &Arc<Image>) -> bool {
        matches!(self.layers.get(1), Some(Layer::Vhd(image)) if Arc::ptr_eq(image, parent))
    }

    /// Makes layers durable that were frozen while the disk was in use, and gives unused space at the end of their files
    /// back.
    ///
    /// # Errors
    /// What could not be written. If a sync failed the disk takes no writes any more.
    pub fn settle(&self) -> Result<(), DeviceError> {
        self.flush_unclean()?;
        self.unclean.iter().try_for_each(|image| image.settle())
    }

    fn of(leaf: Arc<Image>, ancestors: Vec<Layer>, unclean: Vec<Arc<Image>>) -> Self {
        let size = leaf.disk_size();
        let block_size = leaf.header().map(|header| header.layout.block_size());
        let writable = leaf.is_writable();
        let first_unchanging = usize::from(writable);
        let parents =
            (!ancestors.is_empty()).then(|| PlaceIndex::new(first_unchanging, size, block_size.unwrap_or(size)));
        let mut capabilities = Capabilities::of_disk(writable);
        capabilities.resolve = true;
        let preferred = block_size.unwrap_or(MAX_PREFERRED_TRANSFER).min(MAX_PREFERRED_TRANSFER);
        let preferred = u32::try_from(preferred).unwrap_or(LOGICAL_BLOCK);
        let info = DeviceInfo::new(Some(leaf.unique_id().0), preferred, capabilities);
        let layers: Vec<Layer> = std::iter::once(Layer::Vhd(leaf)).chain(ancestors).collect();
        Self {
            files: layers.iter().map(Layer::shared_file).collect(),
            span_files: layers.iter().map(|layer| layer.span_storage(writable)).collect(),
            layers,
            parents,
            unclean,
            follower: None,
            owed: None,
            info,
            size,
        }
    }

    /// The layers, the leaf first.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The image of a layer, which is the same object as long as nothing else has come in its place; `None` for a raw file.
    #[must_use]
    pub fn shared_image(&self, depth: usize) -> Option<&Arc<Image>> {
        match self.layers.get(depth)? {
            Layer::Vhd(image) => Some(image),
            Layer::Raw(_) => None,
        }
    }

    /// The image that is written.
    #[must_use]
    pub fn leaf(&self) -> &Image {
        self.layers[0].image().expect("the first layer is an image")
    }

    pub(crate) fn leaf_image(&self) -> &Arc<Image> {
        match &self.layers[0] {
            Layer::Vhd(image) => image,
            Layer::Raw(_) => unreachable!("the first layer is an image"),
        }
    }

    /// The image that is written, for one who has the disk to himself.
    pub(crate) fn leaf_mut(&mut self) -> &mut Image {
        let leaf = self.layers[0].image_mut();
        leaf.expect("the first layer is an image, and this disk has it alone")
    }

    /// The layers alone, the leaf first.
    pub(crate) fn into_layers(self) -> Vec<Layer> {
        self.layers
    }

    /// Whether the disk would read zero in the range if the leaf had nothing there.
    pub(crate) fn parents_read_zero(&self, range: ByteRange, buffer: &mut Vec<u8>) -> Result<bool, DeviceError> {
        if !self.leaf().is_differencing() {
            return Ok(true);
        }
        let mut at = range.start;
        while at < range.end() {
            let Located { place, len } = self.locate_in_parents(at, range.end() - at)?;
            if let Some(Place { layer, offset }) = place
                && !reads_zero(self.file_of(layer), offset.0, len, buffer).io_context("look for zeroes", offset.0)?
            {
                return Ok(false);
            }
            at += len;
        }
        Ok(true)
    }

    /// Makes a range zero in the leaf itself, whatever the parents read there: for a leaf that is to have others.
    pub(crate) fn hold_zeroes(&self, range: ByteRange) -> Result<(), DeviceError> {
        self.check_write(range.start, range.len)?;
        let options = ZeroOptions {
            may_unmap: true,
            ..ZeroOptions::default()
        };
        self.store_zeroes(range.start, range.len, options)
    }

    /// The image that is written, without its parents.
    pub(crate) fn into_leaf(mut self) -> Arc<Image> {
        match self.layers.swap_remove(0) {
            Layer::Vhd(image) => image,
            Layer::Raw(_) => unreachable!("the first layer is an image"),
        }
    }

    /// A place for the first bytes of the range: where in the leaf's file, and how many.
    pub(super) fn hold_place(&self, range: ByteRange) -> Result<(SpanFile, FileOffset, u64), DeviceError> {
        self.check_write(range.start, range.len)?;
        let (offset, len) = self.leaf().hold_place(VirtualOffset(range.start), range.len)?;
        Ok((SpanFile::new(Arc::clone(&self.span_files[0])), offset, len))
    }

    /// Flushes and closes the leaf: what only a close can say about the file is said here.
    pub fn close(self) -> Result<(), DeviceError> {
        self.close_all().map(drop)
    }

    /// The same, and whether the leaf is closed: somebody may have it still.
    pub(crate) fn close_all(self) -> Result<bool, DeviceError> {
        match &self.owed {
            Some(_) => self.flush()?,
            // The close of the leaf flushes it.
            None => self.flush_unclean()?,
        }
        let has_spans = self.span_files.iter().any(|file| Arc::strong_count(file) > 1);
        match Arc::try_unwrap(self.into_leaf()) {
            Ok(leaf) => leaf.close().map(|()| !has_spans),
            // Somebody reads it, or has a place in it.
            Err(shared) => shared.flush().map(|()| false),
        }
    }

    /// INV-51: what the leaf is based on is durable before it.
    fn flush_unclean(&self) -> Result<(), DeviceError> {
        self.unclean.iter().try_for_each(|image| self.flush_frozen(image))
    }

    fn flush_frozen(&self, image: &Image) -> Result<(), DeviceError> {
        let flushed = image.flush();
        if image.poison().is_some_and(|poison| poison.check().is_err())
            && let Some(poison) = self.leaf().poison()
        {
            // INV-05: no flush of this disk can succeed any more.
            poison.set();
        }
        flushed
    }

    fn locate(&self, offset: u64, len: u64) -> Result<Located, DeviceError> {
        if let (false, Some(parents)) = (self.info.capabilities.write, &self.parents) {
            // Nothing changes: the index answers for the leaf too.
            return parents.locate(&self.layers, offset, len);
        }
        match self.leaf_span(offset, len)? {
            ReadSpan::Data {
                file_offset: offset,
                len,
            } => Ok(Located {
                place: Some(Place { layer: 0, offset }),
                len,
            }),
            ReadSpan::Zero { len } => Ok(Located { place: None, len }),
            ReadSpan::Parent { len } => self.locate_in_parents(offset, len),
        }
    }

    fn leaf_span(&self, offset: u64, len: u64) -> Result<ReadSpan, DeviceError> {
        self.layers[0].resolve_read(VirtualOffset(offset), len)
    }

    fn locate_in_parents(&self, offset: u64, len: u64) -> Result<Located, DeviceError> {
        match &self.parents {
            Some(parents) => parents.locate(&self.layers, offset, len),
            None => Err(DeviceError::NoParent),
        }
    }

    /// How many bytes from the start of a range no layer has a block for. Nothing is looked up for each of their blocks.
    fn hole_len(&self, offset: u64, len: u64) -> u64 {
        let mut len = len;
        for layer in &self.layers {
            // Behind its end a layer reads zero, whatever is below.
            let Some(inside) = layer.disk_size().checked_sub(offset).filter(|&inside| inside > 0) else {
                break;
            };
            len = layer.unallocated(VirtualOffset(offset), len.min(inside));
        }
        len
    }

    fn file_of(&self, layer: u32) -> &dyn StorageFile {
        &*self.files[usize_from(u64::from(layer))]
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        if !self.info.capabilities.write {
            return Err(DeviceError::ReadOnly);
        }
        check_range(offset, len, self.size)
    }

    /// Makes a range zero that the leaf holds, or is to hold from now on.
    fn store_zeroes(&self, offset: u64, len: u64, options: ZeroOptions) -> Result<(), DeviceError> {
        let mut done = 0;
        while done < len {
            let span = self.leaf().resolve_write(VirtualOffset(offset + done), len - done)?;
            span.zero(options)?;
            done += span.len();
            span.complete()?;
        }
        Ok(())
    }

    /// Makes a range zero that the leaf leaves to its parents. INV-08: zeroes are stored, unless the parents
    /// read zero there too.
    fn cover_with_zeroes(&self, offset: u64, len: u64, options: ZeroOptions) -> Result<(), DeviceError> {
        let mut done = 0;
        while done < len {
            let located = self.locate_in_parents(offset + done, len - done)?;
            if located.place.is_some() {
                let range = ByteRange::new(offset + done, located.len);
                match self.store_zeroes(range.start, range.len, options) {
                    // Nothing needs to be stored where the parents read zero, which is not looked at as long as there is
                    // space.
                    Err(error)
                        if error.kind() == ErrorKind::NoSpace && self.parents_read_zero(range, &mut Vec::new())? => {}
                    stored => stored?,
                }
            }
            done += located.len;
        }
        Ok(())
    }
}

impl BlockDevice for LayeredDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DeviceError> {
        let len = u64_from(buf.len());
        check_range(offset, len, self.size)?;
        if len > 0
            && let Located {
                place: Some(Place { layer, offset: at }),
                len: part,
            } = self.locate(offset, len)?
            && part == len
        {
            return self.file_of(layer).read_exact_at(buf, at.0).io_context("read", at.0);
        }
        self.read_vectored_at(&mut [IoSliceMut::new(buf)], offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), DeviceError> {
        let len = scatter::total_len(bufs.iter().map(|buf| &**buf));
        check_range(offset, len, self.size)?;
        let mut done = 0;
        while done < len {
            let Located { place, len: part } = self.locate(offset + done, len - done)?;
            match place {
                Some(Place {
                    layer,
                    offset: FileOffset(at),
                }) if part == len => {
                    return self
                        .file_of(layer)
                        .read_exact_vectored_at(bufs, at)
                        .io_context("read", at);
                }
                Some(Place {
                    layer,
                    offset: FileOffset(at),
                }) => {
                    let file = self.file_of(layer);
                    scatter::for_each_mut(bufs, usize_from(done), usize_from(part), |buf, position| {
                        let at = at + u64_from(position);
                        file.read_exact_at(buf, at).io_context("read", at)
                    })?;
                }
                None => scatter::for_each_mut(bufs, usize_from(done), usize_from(part), |buf, _| {
                    buf.fill(0);
                    Ok::<(), DeviceError>(())
                })?,
            }
            done += part;
        }
        Ok(())
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64, fua: bool) -> Result<(), DeviceError> {
        let len = scatter::total_len(bufs.iter().map(|buf| &**buf));
        self.check_write(offset, len)?;
        let mut done = 0;
        while done < len {
            let span = self.leaf().resolve_write(VirtualOffset(offset + done), len - done)?;
            let FileOffset(at) = span.file_offset();
            if span.len() == len {
                span.file().write_all_vectored_at(bufs, at).io_context("write", at)?;
            } else {
                scatter::for_each(bufs, usize_from(done), usize_from(span.len()), |buf, position| {
                    let at = at + u64_from(position);
                    span.file().write_all_at(buf, at).io_context("write", at)
                })?;
            }
            done += span.len();
            span.complete()?;
        }
        if fua { self.flush() } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), DeviceError> {
        let flush = || {
            self.flush_unclean()?;
            self.leaf().flush()
        };
        match &self.owed {
            Some(owed) => owed.pay(|former| self.flush_frozen(former), flush),
            None => flush(),
        }
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<(), DeviceError> {
        self.check_write(range.start, range.len)?;
        let mut at = range.start;
        while at < range.end() {
            let span = self.leaf_span(at, range.end() - at)?;
            match span {
                ReadSpan::Data { len, .. } => self.store_zeroes(at, len, options)?,
                // It is to have space, whatever it reads.
                ReadSpan::Parent { len } | ReadSpan::Zero { len } if !options.may_unmap => {
                    self.store_zeroes(at, len, options)?;
                }
                ReadSpan::Parent { len } => self.cover_with_zeroes(at, len, options)?,
                ReadSpan::Zero { .. } => {}
            }
            at += span.len();
        }
        if options.fua { self.flush() } else { Ok(()) }
    }

    fn discard(&self, range: ByteRange) -> Result<(), DeviceError> {
        self.check_write(range.start, range.len)?;
        let mut at = range.start;
        while at < range.end() {
            let span = self.leaf_span(at, range.end() - at)?;
            if let ReadSpan::Data { len, .. } = span {
                self.discard_stored(at, len)?;
            }
            at += span.len();
        }
        Ok(())
    }

    fn extents(&self, range: ByteRange, visitor: ExtentVisitor<'_>) -> Result<(), DeviceError> {
        check_range(range.start, range.len, self.size)?;
        let base = u32::try_from(self.layers.len() - 1).expect("the depth of a chain is bounded");
        let mut coalescer = Coalescer::new(visitor);
        let mut stretches = Stretches::default();
        let mut at = range.start;
        while at < range.end() {
            let Located { place, len } = self.locate(at, range.end() - at)?;
            let mut part = ByteRange::new(at, len);
            let flow = match place {
                Some(Place {
                    layer: depth,
                    offset: FileOffset(offset),
                }) => push_stored(&mut coalescer, &mut stretches, self.file_of(depth), part, depth, offset)
                    .io_context("look for holes", offset)?,
                None => {
                    part.len = len.max(self.hole_len(at, range.end() - at));
                    coalescer.push(Extent {
                        range: part,
                        kind: ExtentKind::Hole,
                        depth: base,
                        file_offset: None,
                    })
                }
            };
            if flow.is_break() {
                return Ok(());
            }
            at = part.end();
        }
        coalescer.finish();
        Ok(())
    }

    fn resolve_read(&self, range: ByteRange) -> Result<BlockSpan, DeviceError> {
        check_range(range.start, range.len, self.size)?;
        let Located { place, len } = self.locate(range.start, range.len)?;
        Ok(match place {
            Some(Place {
                layer,
                offset: FileOffset(offset),
            }) => BlockSpan::Data {
                file: SpanFile::new(Arc::clone(&self.span_files[usize_from(u64::from(layer))])),
                offset,
                len,
            },
            None => BlockSpan::Zero { len },
        })
    }

    fn resolve_write(&self, range: ByteRange) -> Result<WriteSpan, DeviceError> {
        let (file, FileOffset(offset), len) = self.hold_place(range)?;
        let outcome = InImage {
            image: Arc::clone(self.leaf_image()),
            range: ByteRange::new(range.start, len),
        };
        Ok(WriteSpan::new(file, offset, len, Box::new(outcome)))
    }

    fn resize(&self, _size: u64) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported("be resized"))
    }
}

impl LayeredDevice {
    fn discard_stored(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        let span = self.leaf().resolve_write(VirtualOffset(offset), len)?;
        debug_assert_eq!(
            span.len(),
            len,
            "a span that was read in one piece is written in one piece"
        );
        discard_file_range(span.file(), span.file_offset().0, span.len())?;
        span.complete()
    }
}
