//! The table: entries that lead nowhere, blocks over one another, a last block that the file ends in.

use super::basis::Basis;
use super::draft::Draft;
use super::error::{Doing as _, RepairError};
use super::finding::{Certainty, RepairCode};
use super::header::Located;
use super::overlap::{self, Contested};
use super::scene::{Claim, Scene};
use super::{locators, orphans};
use crate::format::{TABLE_ENTRY_SIZE, TableEntry};
use crate::image::Region;
use crate::units::{BlockIndex, FileOffset, SECTOR_SIZE, u64_from};

/// Repairs what the table refers to; where its last block ends afterwards.
pub(super) fn repair(draft: &mut Draft, basis: &Basis, located: &mut Located) -> Result<u64, RepairError> {
    locators::remove_useless(draft, basis, located)?;
    let scene = Scene::of(draft, basis, located)?;
    let (standing, lost) = scene.sort();
    let mut settled = overlap::settle(draft, standing, &scene)?;
    let mut unknown: Vec<Claim> = lost.into_iter().chain(settled.disbelieved).collect();
    let (displaced, shared): (Vec<Contested>, Vec<Contested>) = settled
        .contested
        .into_iter()
        .partition(|contested| !contested.looks_right);
    unknown.extend(displaced.iter().map(|contested| contested.claim));
    unknown.sort_unstable_by_key(|claim| claim.block);
    let standing = &mut settled.standing;
    standing.sort_unstable_by_key(|claim| claim.block);
    let found = orphans::assign(draft, &scene, standing, &shared, &unknown)?;
    for (block, offset) in &found {
        scene.restore_entry(draft, *block, *offset)?;
        standing.push(Claim {
            block: *block,
            offset: *offset,
        });
    }
    let is_found = |block: BlockIndex| found.iter().any(|(found, _)| *found == block);
    let mut end = scene.complete_blocks(draft, standing)?;
    for contested in displaced.iter().chain(&shared) {
        if !is_found(contested.claim.block) {
            end = scene.copy_block(draft, contested, end)?;
        }
    }
    // A block whose entry was wrong shares no space.
    settled
        .overlaps
        .retain(|pair| !is_found(pair.first.block) && !is_found(pair.second.block));
    overlap::doubt(draft, &scene, &settled.overlaps)?;
    let copied = |block: BlockIndex| displaced.iter().any(|contested| contested.claim.block == block);
    for claim in &unknown {
        if !is_found(claim.block) && !copied(claim.block) {
            scene.clear_entry(draft, claim)?;
        }
    }
    Ok(end)
}

/// Lists what looks like blocks that a sound table does not refer to.
pub(super) fn list_orphans(draft: &mut Draft, basis: &Basis, located: &Located) -> Result<(), RepairError> {
    let scene = Scene::of(draft, basis, located)?;
    let (mut standing, _) = scene.sort();
    standing.sort_unstable_by_key(|claim| claim.block);
    orphans::assign(draft, &scene, &standing, &[], &[]).map(drop)
}

impl Scene<'_> {
    /// The blocks whose bitmap is in the file and that lie over no metadata, and the others.
    fn sort(&self) -> (Vec<Claim>, Vec<Claim>) {
        let bitmap = self.layout().bitmap_bytes();
        let claims = (0..).map(BlockIndex).zip(&self.located.entries);
        let claims = claims.filter_map(|(block, entry)| {
            let offset = entry.bitmap_offset()?.0;
            Some(Claim { block, offset })
        });
        claims.partition(|claim| {
            let over = |region: &Region| claim.offset < region.end && region.start < self.end_of(claim);
            claim.offset + bitmap <= self.end && !self.regions.iter().any(over)
        })
    }

    /// What the disk reads where it has no block.
    fn without_block(&self) -> &'static str {
        match self.is_differencing() {
            true => "it reads what the parent has, which is older",
            false => "it reads zero",
        }
    }

    fn set_entry(&self, draft: &Draft, block: BlockIndex, entry: TableEntry) -> Result<(), RepairError> {
        let at = self.located.header.table_offset + u64::from(block.0) * u64_from(TABLE_ENTRY_SIZE);
        draft.write(at, &entry.to_be_bytes()).map(drop)
    }

    fn restore_entry(&self, draft: &mut Draft, block: BlockIndex, offset: u64) -> Result<(), RepairError> {
        self.set_entry(draft, block, entry_at(offset)?)?;
        let message = format!(
            "the entry of block {block} leads nowhere; a block that nothing refers to stands at {offset:#x}, and the \
             order of the blocks says that it is this one"
        );
        draft.found(RepairCode::EntryRestored, Certainty::Assumed, Some(offset), message);
        let reason = "it is taken from the only block that fits, which nothing confirms".to_owned();
        draft.doubt(self.range(block, 0), reason);
        Ok(())
    }

    fn clear_entry(&self, draft: &mut Draft, claim: &Claim) -> Result<(), RepairError> {
        self.set_entry(draft, claim.block, TableEntry::unused())?;
        let message = format!(
            "the entry of block {} leads to {:#x}, where no block can be; it is cleared",
            claim.block, claim.offset
        );
        draft.found(
            RepairCode::EntryCleared,
            Certainty::Assumed,
            Some(claim.offset),
            message,
        );
        let reason = format!("its block is lost: {}", self.without_block());
        draft.lose(self.range(claim.block, 0), reason);
        Ok(())
    }

    /// Completes blocks that the file ends in; where the last block ends.
    fn complete_blocks(&self, draft: &mut Draft, standing: &[Claim]) -> Result<u64, RepairError> {
        let mut end = 0;
        for claim in standing {
            let full = claim.offset + self.stored();
            if full > self.end {
                let missing = full - self.end;
                let message = format!(
                    "the file ends {missing} bytes before block {} does: zeroes complete it",
                    claim.block
                );
                draft.found(
                    RepairCode::BlockCompleted,
                    Certainty::Certain,
                    Some(claim.offset),
                    message,
                );
                let data = claim.offset + self.layout().bitmap_bytes();
                let skip = (self.end - data) / SECTOR_SIZE * SECTOR_SIZE;
                let range = self.range(claim.block, skip);
                draft.lose(range, "the file ended here: it reads zero".to_owned());
            }
            end = end.max(full);
        }
        Ok(end)
    }

    /// Gives a block that lies over another one a copy of its space; where that ends.
    fn copy_block(&self, draft: &mut Draft, contested: &Contested, end: u64) -> Result<u64, RepairError> {
        let Contested { claim, with, .. } = *contested;
        let behind = end
            .max(draft.original_len)
            .max(draft.len()?)
            .next_multiple_of(SECTOR_SIZE);
        let to = self.layout().aligned_start(behind);
        let len = self.stored().min(self.end - claim.offset);
        draft
            .overlay
            .copy_from_base(to, claim.offset, len)
            .doing("copy a block", claim.offset)?;
        self.set_entry(draft, claim.block, entry_at(to)?)?;
        let message = format!(
            "block {} at {:#x} lies over block {} at {:#x}: it gets a copy of its own at {to:#x}",
            claim.block, claim.offset, with.block, with.offset
        );
        draft.found(RepairCode::BlockCopied, Certainty::Assumed, Some(claim.offset), message);
        if !contested.looks_right {
            let reason = "it lies within another block, and its bitmap does not fit what is there".to_owned();
            draft.doubt(self.range(claim.block, 0), reason);
        }
        Ok(to + self.stored())
    }
}

/// The entry of a block at a sector that an entry can name.
fn entry_at(offset: u64) -> Result<TableEntry, RepairError> {
    let entry = TableEntry::at(FileOffset(offset));
    entry.ok_or_else(|| RepairError::hopeless(format!("a block at {offset:#x} is out of the table's reach")))
}
