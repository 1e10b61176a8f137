//! All images in their order, and back again if one of them fails.

use std::path::Path;

use super::family::{Family, Member};
use super::plan::prove_undoable;
use super::spare::Spare;
use super::{Progress, ResizeError, ResizePlan, journal};
use crate::image::Footers;
use crate::job::{JobKind, sweep};
use crate::storage::put_back_modified;

/// Resizes the files of the plan.
pub(super) fn run(
    family: &Family,
    record: &Path,
    plan: &ResizePlan,
    progress: &dyn Progress,
) -> Result<(), ResizeError> {
    let find = |path: &Path| family.members.iter().find(|member| member.path == path);
    let members: Vec<&Member> = plan.files.iter().filter_map(|file| find(&file.path)).collect();
    sweep(JobKind::Resize, record)?;
    let mut spare = None;
    if plan.needs_record() {
        // INV-48: taken before anything is begun.
        spare = Some(Spare::take(&members)?);
        // INV-28, INV-36: markers and record are durable before the first image changes.
        journal::announce(family, record, plan)?;
    }
    if let Err(error) = all(&members, progress) {
        spare.into_iter().for_each(Spare::give_back);
        return Err(undo(family, &members, error, record, plan));
    }
    restore_footers(family, plan)?;
    if plan.tree || plan.resumed {
        keep_modified(family);
    }
    if plan.needs_record() {
        // INV-28: all images are durable; from here on there is nothing to finish.
        journal::close(family, record)?;
    }
    Ok(())
}

/// A crash may have left an image of the right size with one footer that is not current, from which a repair could
/// restore the former size one day.
fn restore_footers(family: &Family, plan: &ResizePlan) -> Result<(), ResizeError> {
    for (index, member) in family.members.iter().enumerate() {
        let is_written = plan.tree || plan.resumed || index == family.image;
        if is_written && member.resizing.is_nothing() && !Footers::read(&*member.storage)?.agree() {
            let restored = member.resizing.run(&member.storage());
            restored.map_err(|error| error.about(&member.path))?;
        }
    }
    Ok(())
}

/// One after the other; why it ended.
fn all(members: &[&Member], progress: &dyn Progress) -> Result<(), ResizeError> {
    let size_of = |member: &&Member| member.footer().current_size;
    progress.begin(members.iter().map(size_of).sum());
    for member in members {
        let resized = member.resizing.run(&member.storage());
        resized.map_err(|error| error.about(&member.path))?;
        progress.advance(size_of(member));
    }
    Ok(())
}

/// Gives all images their former sizes again, or none of them if that would lose something; answers the failure to
/// report. While the record is there the same resize goes on.
fn undo(family: &Family, members: &[&Member], error: ResizeError, record: &Path, plan: &ResizePlan) -> ResizeError {
    let undone = match plan.needs_record() {
        true => undo_all(family, members).and_then(|()| journal::close(family, record)),
        // One image of blocks has the old or the new size.
        false => undo_each(members).or(Ok(())),
    };
    match undone {
        Ok(()) => error,
        Err(undoing) => ResizeError::Stuck {
            source: Box::new(error),
            undoing: Box::new(undoing),
            record: record.to_owned(),
        },
    }
}

fn undo_all(family: &Family, members: &[&Member]) -> Result<(), ResizeError> {
    prove_undoable(family)?;
    undo_each(members)?;
    // The journal goes only when all of them have the size that it says.
    for member in members {
        let found = Footers::read(&*member.storage).map_err(|error| ResizeError::from(error).about(&member.path))?;
        let (found, former) = (found.footer.current_size, member.footer().current_size);
        if found != former {
            return Err(ResizeError::SizesDiffer {
                path: member.path.clone(),
                found,
                base: member.path.clone(),
                expected: former,
            });
        }
    }
    Ok(())
}

/// The last one first: no child is ever larger than its parent.
fn undo_each(members: &[&Member]) -> Result<(), ResizeError> {
    for member in members.iter().rev() {
        let undone = member.resizing.reversed().run(&member.storage());
        undone.map_err(|error| error.about(&member.path))?;
    }
    Ok(())
}

/// Children remember when their parent's file was changed last, and its content was not.
fn keep_modified(family: &Family) {
    for (index, member) in family.members.iter().enumerate() {
        if let Some(modified) = member.modified.filter(|_| family.is_parent(index)) {
            put_back_modified(&member.path, modified);
        }
    }
}
