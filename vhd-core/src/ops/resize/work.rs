//! All images in their order, and back again if one of them fails.

use std::path::Path;

use super::family::{Family, Member};
use super::{Progress, ResizeError, ResizePlan, journal};
use crate::storage::{put_back_modified, remove_file};

/// Resizes the files of the plan.
pub(super) fn run(
    family: &Family,
    record: &Path,
    plan: &ResizePlan,
    progress: &dyn Progress,
) -> Result<(), ResizeError> {
    let find = |path: &Path| family.members.iter().find(|member| member.path == path);
    let members: Vec<&Member> = plan.files.iter().filter_map(|file| find(&file.path)).collect();
    if plan.needs_record() && !plan.resumed {
        // INV-28: the record is durable before the first image changes.
        journal::write(family, record, plan.size, plan.tree)?;
    }
    if let Err((failed, error)) = all(&members, progress) {
        return Err(undo(&members[..=failed], error, record, plan));
    }
    if plan.tree || plan.resumed {
        keep_modified(family);
    }
    // INV-28: all images are durable; from here on there is nothing to finish.
    remove_file(record)?;
    Ok(())
}

/// One after the other; where and why it ended.
fn all(members: &[&Member], progress: &dyn Progress) -> Result<(), (usize, ResizeError)> {
    let size_of = |member: &&Member| member.footer().current_size;
    progress.begin(members.iter().map(size_of).sum());
    for (index, member) in members.iter().enumerate() {
        let resized = member.resizing.run(&member.storage());
        resized.map_err(|error| (index, error.about(&member.path)))?;
        progress.advance(size_of(member));
    }
    Ok(())
}

/// Gives the images their former sizes again, the last one first; answers the failure to report.
fn undo(members: &[&Member], error: ResizeError, record: &Path, plan: &ResizePlan) -> ResizeError {
    for member in members.iter().rev() {
        let undone = member.resizing.reversed().run(&member.storage());
        if let Err(undoing) = undone {
            if !plan.needs_record() {
                // One image of blocks has the old or the new size.
                return error;
            }
            return ResizeError::Stuck {
                source: Box::new(error),
                undoing: Box::new(undoing),
                record: record.to_owned(),
            };
        }
    }
    match remove_file(record) {
        Ok(_) => error,
        Err(undoing) => ResizeError::Stuck {
            source: Box::new(error),
            undoing: Box::new(undoing.into()),
            record: record.to_owned(),
        },
    }
}

/// Children remember when their parent's file was changed last, and its content was not.
fn keep_modified(family: &Family) {
    for (index, member) in family.members.iter().enumerate() {
        if let Some(modified) = member.modified.filter(|_| family.is_parent(index)) {
            put_back_modified(&member.path, modified);
        }
    }
}
