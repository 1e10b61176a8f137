//! One image of blocks gets another size.

use std::sync::Arc;

use super::ResizeError;
use super::layout::{BlockMove, Growth, LocatorMove, entries_for};
use crate::device::DeviceError;
use crate::format::{DynamicHeader, Footer};
use crate::image::{Amendment, Image, IoContext, OpenMode};
use crate::ops::compact;
use crate::storage::{StorageFile, clear_range, is_zero};
use crate::units::{BlockIndex, FileOffset, SECTOR_SIZE, u64_from, usize_from};

/// Bytes read and written at once.
const COPY_STEP: u64 = 512 << 10;

/// Makes room, writes the larger table, and switches to it.
pub(super) fn grow(file: &Arc<dyn StorageFile>, footer: &Footer) -> Result<(), ResizeError> {
    let mut image = open(file)?;
    let Some(plan) = Growth::plan(&image, footer.current_size)? else {
        return Ok(());
    };
    if let Some(end) = plan.end {
        image.extend(end)?;
    }
    move_blocks(&mut image, &plan.moves)?;
    if !plan.locators.is_empty() {
        image = move_locators(file, image, &plan.locators)?;
    }
    let used = image
        .header()
        .map_or(0, |header| header.layout.blocks_for(image.disk_size()));
    image.write_table(
        plan.table.start,
        if plan.table_moves { 0 } else { used },
        u64::from(plan.entries),
    )?;
    if let Some((start, len)) = plan.clear {
        clear_range(&**file, start, len).io_context("clear what is behind the end of the disk", start)?;
    }
    // INV-26: what the new size makes part of the disk, and the table, are durable before a footer says so.
    image.barrier()?;
    let header = image.header().map(|header| DynamicHeader {
        table_offset: plan.table.start,
        max_table_entries: plan.entries,
        ..header.clone()
    });
    amend(image, footer, header)?;
    if plan.moves.is_empty() {
        return Ok(());
    }
    let mut image = open(file)?;
    close_holes(&mut image, plan.moves.len())?;
    // Not dropped: what fails at the very end is a failure too.
    cut_end(image)
}

/// Drops the blocks behind the new end, which read zero, ends the file behind what is left, and switches.
pub(super) fn shrink(file: &Arc<dyn StorageFile>, footer: &Footer) -> Result<(), ResizeError> {
    let mut image = open(file)?;
    let (Some(header), Some(arrangement)) = (image.header(), image.arrangement()?) else {
        return Ok(());
    };
    let entries = entries_for(header.layout, footer.current_size)?;
    let header = DynamicHeader {
        max_table_entries: entries,
        ..header.clone()
    };
    let behind = arrangement
        .blocks
        .iter()
        .filter(|placed| placed.block >= BlockIndex(entries));
    let drops: Vec<_> = behind.map(|placed| (placed.block, None)).collect();
    image.point_blocks(&drops)?;
    // INV-27: nothing refers to what is cut off.
    image.barrier()?;
    close_holes(&mut image, drops.len())?;
    if let (false, Some(arrangement)) = (drops.is_empty(), image.arrangement()?) {
        image.cut(arrangement.needed_end())?;
    }
    amend(image, footer, Some(header))
}

/// Cuts off what nothing uses at the end, as that of a growth that failed, and closes the image.
pub(super) fn cut_end(mut image: Image) -> Result<(), ResizeError> {
    if let Some(arrangement) = image.arrangement()? {
        image.cut(arrangement.needed_end())?;
    }
    Ok(image.close()?)
}

/// Moves as many blocks from the end of the file into holes as blocks have left some: a disk that changes its size again
/// and again leaks no space. Holes that were there before, and more of them, are the business of a compaction.
fn close_holes(image: &mut Image, holes: usize) -> Result<(), ResizeError> {
    let Some(arrangement) = image.arrangement()? else {
        return Ok(());
    };
    let moves: Vec<_> = compact::plan_moves(&arrangement)
        .into_iter()
        .take(holes)
        .map(|step| BlockMove {
            block: step.block,
            from: step.from,
            to: step.to,
            len: step.len,
        })
        .collect();
    for step in &moves {
        // What a dropped block has left there.
        clear_range(&**image.file(), step.to, arrangement.layout.stored_bytes()).io_context("clear a hole", step.to)?;
    }
    move_blocks(image, &moves)
}

fn open(file: &Arc<dyn StorageFile>) -> Result<Image, ResizeError> {
    Ok(Image::open(Arc::clone(file), &OpenMode::read_write())?)
}

fn amend(image: Image, footer: &Footer, header: Option<DynamicHeader>) -> Result<(), ResizeError> {
    let amendment = Amendment {
        footer: footer.clone(),
        header,
        parent: None,
    };
    Ok(image.amend(&amendment)?)
}

/// Copies blocks to where the file reads zero and nothing is, and points the table there.
fn move_blocks(image: &mut Image, moves: &[BlockMove]) -> Result<(), ResizeError> {
    if moves.is_empty() {
        return Ok(());
    }
    for step in moves {
        copy(&**image.file(), step.from, step.to, step.len)?;
    }
    // INV-10: bitmap and data are durable at the new place before the table leads there.
    image.barrier()?;
    let changes: Vec<_> = moves
        .iter()
        .map(|step| (step.block, Some(FileOffset(step.to))))
        .collect();
    image.point_blocks(&changes)?;
    // INV-09: nothing is written to the old places before the table has given them up for good.
    Ok(image.barrier()?)
}

/// Copies locators to where nothing is, and makes the header lead there.
fn move_locators(
    file: &Arc<dyn StorageFile>,
    mut image: Image,
    locators: &[LocatorMove],
) -> Result<Image, ResizeError> {
    let Some(mut header) = image.header().cloned() else {
        return Ok(image);
    };
    for step in locators {
        let len = u64::from(step.entry.length);
        let moved = step.moved();
        let mut bytes = vec![0; usize_from(u64::from(moved.space))];
        let text = &mut bytes[..usize_from(len)];
        file.read_exact_at(text, step.entry.offset)
            .io_context("read a parent locator", step.entry.offset)?;
        file.write_all_at(&bytes, step.to)
            .io_context("write a parent locator", step.to)?;
        header.locators[step.slot] = Some(moved);
    }
    // INV-26: the texts are durable before the header leads to them.
    image.barrier()?;
    let footer = image.footer().clone();
    amend(image, &footer, Some(header))?;
    open(file)
}

/// Copies a range to where the file reads zero: what is zero need not be written.
fn copy(file: &dyn StorageFile, from: u64, to: u64, len: u64) -> Result<(), DeviceError> {
    let mut buffer = vec![0; usize_from(len.min(COPY_STEP))];
    let mut done = 0;
    while done < len {
        let step = u64_from(buffer.len()).min(len - done);
        let bytes = &mut buffer[..usize_from(step)];
        file.read_exact_at(bytes, from + done)
            .io_context("read a block", from + done)?;
        for (index, part) in bytes.chunks(usize_from(SECTOR_SIZE * 8)).enumerate() {
            let at = to + done + u64_from(index) * SECTOR_SIZE * 8;
            if !is_zero(part) {
                file.write_all_at(part, at).io_context("move a block", at)?;
            }
        }
        done += step;
    }
    Ok(())
}
