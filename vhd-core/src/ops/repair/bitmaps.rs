//! Bitmaps that hide data. A bit that is missing is set, so that the data can be read: what a bitmap hides is never
//! cleared, for it may be the only copy.

use super::basis::Basis;
use super::draft::Draft;
use super::error::{Doing as _, RepairError};
use super::finding::{Certainty, RepairCode};
use super::header::Located;
use super::scene::Scene;
use crate::device::ByteRange;
use crate::format::DiskType;
use crate::image::{Belief, Hidden, Hiding, absent_runs, read_table, stored_runs};
use crate::units::{BlockIndex, FileOffset, SECTOR_SIZE, u64_from, usize_from};

/// Sets missing bits where the evidence says that the bitmap, and not the data, is wrong; what was assumed is in doubt.
pub(super) fn restore(draft: &mut Draft, basis: &Basis, located: &Located) -> Result<(), RepairError> {
    let len = draft.len()?;
    let table = read_table(&*draft.overlay, &located.header, &basis.footer, located.offset, len);
    let entries = table.map_err(|error| RepairError::hopeless(error.to_string()))?;
    let scene = Scene::of(draft, basis, located)?;
    let blocks: Vec<(FileOffset, BlockIndex)> = (0..)
        .map(BlockIndex)
        .zip(&entries)
        .filter_map(|(block, entry)| Some((entry.bitmap_offset()?, block)))
        // The table may lie over something else that was written: the last check says so.
        .filter(|(offset, _)| offset.0 + scene.layout().bitmap_bytes() <= len)
        .collect();
    let found = Hidden::find(&*draft.overlay, &basis.footer, &scene.space(), &blocks);
    let hidden = found.doing("look for hidden data", 0)?;
    for hiding in &hidden.blocks {
        match hidden.belief(hiding) {
            Belief::LeftOver if basis.footer.disk_type == DiskType::Differencing => {}
            Belief::LeftOver => leave(draft, &scene, hiding)?,
            belief => set_bits(draft, &scene, hiding, belief)?,
        }
    }
    Ok(())
}

/// The sectors of a block that are absent and not zero, as runs.
fn hidden_runs(draft: &Draft, scene: &Scene<'_>, hiding: &Hiding) -> Result<Vec<(u64, u64)>, RepairError> {
    let layout = scene.layout();
    let bitmap = draft.read(hiding.offset.0, layout.bitmap_bytes())?;
    let data = hiding.offset.0 + layout.bitmap_bytes();
    let mut runs = Vec::new();
    for absent in absent_runs(&bitmap, scene.range(hiding.block, 0).len / SECTOR_SIZE) {
        let mut push = |first, count| runs.push((first, count));
        stored_runs(&*draft.overlay, data, absent, &mut push).doing("look for hidden data", data)?;
    }
    Ok(runs)
}

/// The image hides bytes in many blocks: they stay, and stay hidden.
fn leave(draft: &mut Draft, scene: &Scene<'_>, hiding: &Hiding) -> Result<(), RepairError> {
    let message = format!(
        "block {}: {} sectors that the bitmap calls absent are not zero, as in most blocks of this image: they stay as \
         they are",
        hiding.block, hiding.sectors
    );
    draft.found(
        RepairCode::StaleSectors,
        Certainty::Assumed,
        Some(hiding.offset.0),
        message,
    );
    let reason = "it reads zero, and programs that ignore bitmaps read something else";
    doubt_runs(draft, scene, hiding, reason)
}

/// Runs of a block that are listed one by one; more of them are listed as one range.
const MOST_RUNS: usize = 64;

fn doubt_runs(draft: &mut Draft, scene: &Scene<'_>, hiding: &Hiding, reason: &str) -> Result<(), RepairError> {
    let start = scene.range(hiding.block, 0).start;
    let mut runs = hidden_runs(draft, scene, hiding)?;
    if let (Some(&(first, _)), Some(&(last, count)), true) = (runs.first(), runs.last(), runs.len() > MOST_RUNS) {
        runs = vec![(first, last + count - first)];
    }
    for (first, count) in runs {
        let range = ByteRange::new(start + first * SECTOR_SIZE, count * SECTOR_SIZE);
        draft.doubt(range, reason.to_owned());
    }
    Ok(())
}

fn set_bits(draft: &mut Draft, scene: &Scene<'_>, hiding: &Hiding, belief: Belief) -> Result<(), RepairError> {
    let differencing = scene.basis.footer.disk_type == DiskType::Differencing;
    // A zero sector of a child may be the parent's: its bit is not set without need.
    let whole = !differencing && belief != Belief::Unmarked { whole: false };
    let (block, at) = (hiding.block, hiding.offset.0);
    let sectors = hiding.sectors;
    let what = match belief {
        Belief::Lost => format!("the bitmap of block {block} is blank over {sectors} sectors of data: it is lost"),
        _ => format!("the bitmap of block {block} hides {sectors} sectors that are not zero, unlike others here"),
    };
    let how = if whole {
        "all its bits are set"
    } else {
        "their bits are set"
    };
    let message = format!("{what}; {how}, and the data is read");
    draft.found(RepairCode::BitmapRestored, Certainty::Assumed, Some(at), message);
    match (belief, differencing) {
        (Belief::Lost, true) => {
            let reason = "its bitmap is lost: what is not zero is read, the rest from the parent";
            draft.doubt(scene.range(block, 0), reason.to_owned());
        }
        (Belief::Lost, false) => {
            let reason = "its bitmap is lost: the data that is there is read";
            draft.doubt(scene.range(block, 0), reason.to_owned());
        }
        _ => doubt_runs(
            draft,
            scene,
            hiding,
            "its bit was not set: the data that is there is read",
        )?,
    }
    let bitmap = match whole {
        true => whole_bitmap(scene),
        false => with_runs(
            draft.read(at, scene.layout().bitmap_bytes())?,
            &hidden_runs(draft, scene, hiding)?,
        ),
    };
    draft.write(at, &bitmap).map(drop)
}

/// A bitmap with all bits set.
pub(super) fn whole_bitmap(scene: &Scene<'_>) -> Vec<u8> {
    let layout = scene.layout();
    let mut bitmap = vec![0; usize_from(layout.bitmap_bytes())];
    let padded = u64_from(bitmap.len()) * 8;
    set_run(
        &mut bitmap,
        (0, layout.sectors_per_block().next_multiple_of(8).min(padded)),
    );
    bitmap
}

/// A bitmap with these runs of sectors set in addition.
pub(super) fn with_runs(mut bitmap: Vec<u8>, runs: &[(u64, u64)]) -> Vec<u8> {
    for run in runs {
        set_run(&mut bitmap, *run);
    }
    bitmap
}

fn set_run(bitmap: &mut [u8], (first, count): (u64, u64)) {
    for sector in first..first + count {
        bitmap[usize_from(sector / 8)] |= 0x80 >> (sector % 8);
    }
}
