//! Bytes that bitmaps hide: sectors that a bitmap calls absent and that are not zero. Either the bytes are left over, or
//! the bitmap is damaged; what the other blocks of the image are like decides which of them is believed.

use std::io;

use super::sector_map::SectorMap;
use super::validate::Space;
use crate::format::{DiskType, Footer};
use crate::storage::{Segment, StorageFile, is_on_volume, is_zero};
use crate::units::{BlockIndex, FileOffset, SECTOR_SIZE, u64_from, usize_from};

/// Programs that set all bits of a block when they make it.
const WRITE_WHOLE_BITMAPS: [[u8; 4]; 2] = [*b"qemu", *b"qem2"];

/// What is believed of a block that hides bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Belief {
    /// The bitmap has no bit set, and no program gives a block space without one (but for [volumes](Hidden::on_volume)): the
    /// bitmap is lost.
    Lost,
    /// The other blocks hide nothing: what this one hides is data whose bits are missing.
    Unmarked {
        /// The other bitmaps have all bits set: so had this one.
        whole: bool,
    },
    /// The image has such bytes in many places, or it is a differencing one, where nothing tells them from old ones.
    LeftOver,
}

/// A block that hides bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hiding {
    pub(crate) block: BlockIndex,
    /// Where its bitmap is.
    pub(crate) offset: FileOffset,
    /// Sectors that the bitmap calls absent and that are not zero.
    pub(crate) sectors: u64,
    /// No bit is set.
    blank: bool,
}

/// What the bitmaps of an image are like.
#[derive(Debug, Default)]
pub(crate) struct Hidden {
    /// The blocks that hide bytes, in the order that they were looked at.
    pub(crate) blocks: Vec<Hiding>,
    differencing: bool,
    writes_whole: bool,
    /// The coordinator of its volume gives blocks their space before anything is in them: blank bitmaps are ordinary there.
    on_volume: bool,
    /// Blocks with all bits set.
    complete: usize,
    /// Blocks with some bits set that hide nothing.
    partial: usize,
}

impl Hidden {
    /// Looks at blocks that lie in the file and over nothing else.
    pub(crate) fn find(
        file: &dyn StorageFile,
        footer: &Footer,
        space: &Space<'_>,
        blocks: &[(FileOffset, BlockIndex)],
    ) -> io::Result<Self> {
        let mut hidden = Self {
            differencing: footer.disk_type == DiskType::Differencing,
            on_volume: is_on_volume(file),
            writes_whole: WRITE_WHOLE_BITMAPS.contains(&footer.creator_application),
            ..Self::default()
        };
        let mut bitmap = vec![0; usize_from(space.layout.bitmap_bytes())];
        for &(offset, block) in blocks {
            file.read_exact_at(&mut bitmap, offset.0)?;
            let on_disk = space.layout.bytes_on_disk(block, space.disk_size) / SECTOR_SIZE;
            let data = offset.0 + space.layout.bitmap_bytes();
            let (mut sectors, mut complete) = (0, true);
            for run in absent_runs(&bitmap, on_disk) {
                complete = false;
                stored_runs(file, data, run, &mut |_, count| sectors += count)?;
            }
            // Bits behind the end of the disk, from before it shrank, show that the bitmap is there.
            let blank = is_zero(&bitmap);
            match sectors {
                0 if complete => hidden.complete += 1,
                0 if !blank => hidden.partial += 1,
                0 => {}
                _ => hidden.blocks.push(Hiding {
                    block,
                    offset,
                    sectors,
                    blank,
                }),
            }
        }
        Ok(hidden)
    }

    /// Which of bitmap and bytes is believed.
    pub(crate) fn belief(&self, hiding: &Hiding) -> Belief {
        let blank = self.blocks.iter().filter(|hiding| hiding.blank).count();
        let hide = self.blocks.len() - blank;
        // A blank bitmap says nothing of what the others are like: it counts as the bitmap that it was.
        let is_habit = hide > self.complete + self.partial + blank;
        match () {
            () if self.differencing && (self.on_volume || !hiding.blank) => Belief::LeftOver,
            () if hiding.blank => Belief::Lost,
            () if self.writes_whole => Belief::Unmarked { whole: true },
            () if is_habit => Belief::LeftOver,
            () => Belief::Unmarked {
                whole: self.partial == 0,
            },
        }
    }
}

/// Calls `visit` with the runs of sectors that are not zero among `count` from `first` of a block whose data begins at
/// `data`: their first sector and count. Holes are not read, and what the file lacks is zero.
pub(crate) fn stored_runs(
    file: &dyn StorageFile,
    data: u64,
    (first, count): (u64, u64),
    visit: &mut dyn FnMut(u64, u64),
) -> io::Result<()> {
    const CHUNK: u64 = 64 << 10;
    let len = file.len()?;
    let start = data + first * SECTOR_SIZE;
    // A file may end within a sector, whose bytes count.
    let end = (start + count * SECTOR_SIZE).min(start.max(len.next_multiple_of(SECTOR_SIZE)));
    let (mut at, mut run): (u64, Option<(u64, u64)>) = (start, None);
    let mut buffer = vec![0; usize_from(CHUNK)];
    let mut flush = |run: &mut Option<(u64, u64)>| {
        if let Some((first, count)) = run.take() {
            visit(first, count);
        }
    };
    while at < end {
        let (segment, segment_end) = file.segment_at(at)?;
        let hole_end = segment_end.min(end) / SECTOR_SIZE * SECTOR_SIZE;
        if segment == Segment::Hole && hole_end > at {
            flush(&mut run);
            at = hole_end;
            continue;
        }
        let stop = end.min(
            at + (segment_end.max(at + 1) - at)
                .min(end - at)
                .next_multiple_of(SECTOR_SIZE),
        );
        while at < stop {
            let part = &mut buffer[..usize_from((stop - at).min(CHUNK))];
            let stored = part.len().min(usize_from(len - at));
            part[stored..].fill(0);
            file.read_exact_at(&mut part[..stored], at)?;
            for sector in part.chunks(usize_from(SECTOR_SIZE)) {
                match (&mut run, is_zero(sector)) {
                    (_, true) => flush(&mut run),
                    (Some((_, count)), false) => *count += 1,
                    (None, false) => run = Some(((at - data) / SECTOR_SIZE, 1)),
                }
                at += u64_from(sector.len());
            }
        }
    }
    flush(&mut run);
    Ok(())
}

/// Runs of clear bits among the first `sectors` of a bitmap: first sector and count. They are looked for as they are asked
/// for: who is content with the first does not pay for all.
pub(crate) fn absent_runs(bitmap: &[u8], sectors: u64) -> impl Iterator<Item = (u64, u64)> {
    let map = SectorMap::from_bytes(bitmap, u32::try_from(sectors).unwrap_or(u32::MAX));
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < map.sectors() {
            let (first, (present, count)) = (at, map.run(at, map.sectors() - at));
            at += count;
            if !present {
                return Some((u64::from(first), u64::from(count)));
            }
        }
        None
    })
}
