//! What is going to be done, as data; and the checks that come before.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use super::family::{Family, Member};
use super::layout::{Growth, entries_for};
use super::proof::Tail;
use super::{Request, ResizeError, gpt};
use crate::format::{DiskType, Footer};
use crate::image::{FooterSource, Footers, Image, OpenMode};
use crate::units::{BlockIndex, u64_from};

/// What is going to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResizePlan {
    /// Bytes that the disks will have.
    pub size: u64,
    /// The files, in the order in which they are resized. Empty if none changes its size.
    pub files: Vec<FilePlan>,
    /// All images of a tree are resized.
    pub tree: bool,
    /// An interrupted resize goes on.
    pub resumed: bool,
    /// The disk has a GPT that does not end where the disk will.
    pub gpt_misplaced: bool,
}

/// What is going to be done with one file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FilePlan {
    /// The file.
    pub path: PathBuf,
    /// The type of the image.
    pub disk_type: DiskType,
    /// Bytes on its disk before.
    pub old_size: u64,
    /// Blocks that make room for the table.
    pub moved_blocks: u64,
    /// The table goes elsewhere.
    pub table_moves: bool,
    /// Parent locators that make room for the table.
    pub moved_locators: u64,
    /// Blocks behind the new end, which hold zeroes.
    pub dropped_blocks: u64,
}

impl ResizePlan {
    /// A record is written beside the first image while it is done.
    #[must_use]
    pub fn needs_record(&self) -> bool {
        let is_fixed = |file: &FilePlan| file.disk_type == DiskType::Fixed;
        self.files.len() > 1 || self.resumed || self.files.iter().any(is_fixed)
    }
}

/// Checks everything and plans.
pub(super) fn plan(request: &Request<'_>, family: &Family, resumed: bool) -> Result<ResizePlan, ResizeError> {
    let image = &family.members[family.image];
    let shrinks = request.size < image.footer().current_size;
    check_request(request, family, resumed)?;
    let mut files = Vec::new();
    for (index, member) in family.members.iter().enumerate() {
        let is_concerned = request.tree || resumed || index == family.image;
        if member.resizing.is_nothing() || !is_concerned {
            continue;
        }
        let planned = plan_file(member, resumed).map_err(|error| error.about(&member.path))?;
        if shrinks {
            prove_free(request, family, index)?;
        }
        files.push(planned);
    }
    if shrinks {
        // INV-28: no child is ever larger than its parent, so the children go first.
        files.reverse();
    }
    Ok(ResizePlan {
        size: request.size,
        files,
        tree: request.tree,
        resumed,
        gpt_misplaced: is_gpt_misplaced(request, family, resumed)?,
    })
}

fn check_request(request: &Request<'_>, family: &Family, resumed: bool) -> Result<(), ResizeError> {
    let image = &family.members[family.image];
    let disk_size = image.footer().current_size;
    let shrinks = request.size < disk_size;
    if shrinks && !request.shrink {
        return Err(ResizeError::ShrinkNotAsked {
            disk_size,
            size: request.size,
        });
    }
    if request.fix_gpt && family.is_parent(family.image) {
        return Err(ResizeError::GptOfParent {
            path: image.path.clone(),
        });
    }
    if request.fix_gpt && shrinks && family.members.len() > 1 {
        return Err(ResizeError::GptOfTree);
    }
    if resumed {
        return Ok(());
    }
    let changes = request.size != disk_size;
    if (changes || request.fix_gpt) && !request.tree {
        if !request.options.ignores_children() {
            family.refuse_dependants()?;
        }
        if let Some(reason) = family.tie(changes) {
            return Err(ResizeError::NeedsTree {
                path: image.path.clone(),
                reason,
            });
        }
    }
    let base = &family.members[0];
    let expected = base.footer().current_size;
    match family
        .members
        .iter()
        .find(|member| member.footer().current_size != expected)
    {
        Some(other) if changes || request.tree => Err(ResizeError::SizesDiffer {
            path: other.path.clone(),
            found: other.footer().current_size,
            base: base.path.clone(),
            expected,
        }),
        _ => Ok(()),
    }
}

/// Checks that an image by itself can have any other size: nothing ties it to others, and it can be changed at all.
pub(super) fn check_alone(family: &Family) -> Result<(), ResizeError> {
    family.refuse_dependants()?;
    let image = &family.members[family.image];
    if let Some(reason) = family.tie(true) {
        return Err(ResizeError::NeedsTree {
            path: image.path.clone(),
            reason,
        });
    }
    plan_file(image, false).map(drop)
}

fn plan_file(member: &Member, resumed: bool) -> Result<FilePlan, ResizeError> {
    let footer = member.footer();
    let mut plan = FilePlan {
        path: member.path.clone(),
        disk_type: footer.disk_type,
        old_size: footer.current_size,
        moved_blocks: 0,
        table_moves: false,
        moved_locators: 0,
        dropped_blocks: 0,
    };
    if footer.saved_state {
        return Err(ResizeError::SavedState);
    }
    if footer.disk_type == DiskType::Fixed {
        if !resumed {
            check_footer_place(member, footer)?;
        }
        return Ok(plan);
    }
    let image = Image::open(member.storage(), &OpenMode::read_only())?;
    if image.has_batmap()? {
        return Err(ResizeError::Batmap);
    }
    if image.disk_size() < member.resizing.size() {
        let growth = Growth::plan(&image, member.resizing.size())?;
        if let Some(growth) = growth {
            plan.moved_blocks = u64_from(growth.moves.len());
            plan.table_moves = growth.table_moves;
            plan.moved_locators = u64_from(growth.locators.len());
        }
    } else if let (Some(header), Some(arrangement)) = (image.header(), image.arrangement()?) {
        let entries = entries_for(header.layout, member.resizing.size())?;
        let behind = arrangement
            .blocks
            .iter()
            .filter(|placed| placed.block >= BlockIndex(entries));
        plan.dropped_blocks = u64_from(behind.count());
    }
    Ok(plan)
}

/// Bytes between the disk and its footer would become part of the disk.
fn check_footer_place(member: &Member, footer: &Footer) -> Result<(), ResizeError> {
    let expected = footer.current_size;
    match Footers::read(&*member.file)?.source {
        FooterSource::Tail(found) | FooterSource::LegacyTail(found) if found.0 != expected => {
            Err(ResizeError::FooterPlace {
                found: found.0,
                expected,
            })
        }
        _ => Ok(()),
    }
}

/// INV-27: proves it for every disk of which a part is cut off, seen through its parents.
fn prove_free(request: &Request<'_>, family: &Family, index: usize) -> Result<(), ResizeError> {
    let disk = family.disk(index)?;
    if disk.size() <= request.size {
        return Ok(());
    }
    let member = &family.members[index];
    let tail = Tail {
        disk: &disk,
        size: request.size,
        own: Some(member.footer()),
        may_move_gpt: request.fix_gpt,
    };
    tail.require_free(&member.path, request.cancel)
}

/// INV-39: proves that the new part of each disk holds nothing, before the first one gets its former size back. A guest
/// may have written to it since it was there.
pub(super) fn prove_undoable(family: &Family) -> Result<(), ResizeError> {
    for (index, member) in family.members.iter().enumerate() {
        let former = member.footer().current_size;
        if member.resizing.size() <= former {
            continue;
        }
        let disk = family.disk(index)?;
        if disk.size() > former {
            let footer = disk_footer(member)?;
            let tail = Tail {
                disk: &disk,
                size: former,
                own: Some(&footer),
                may_move_gpt: false,
            };
            tail.require_free(&member.path, &AtomicBool::new(false))?;
        }
    }
    Ok(())
}

/// The footer as it is now.
fn disk_footer(member: &Member) -> Result<Footer, ResizeError> {
    let found = Footers::read(&*member.storage).map_err(|error| ResizeError::from(error).about(&member.path))?;
    Ok(found.footer)
}

/// Where it is not going to be moved, a table that is not usable stands against nothing; and a fixed image whose
/// resize was interrupted may have no footer yet.
fn is_gpt_misplaced(request: &Request<'_>, family: &Family, resumed: bool) -> Result<bool, ResizeError> {
    let misplaced = family
        .disk(family.image)
        .and_then(|disk| gpt::must_move(&disk, request.size));
    match misplaced {
        Err(_) if resumed || !request.fix_gpt => Ok(false),
        result => result,
    }
}
