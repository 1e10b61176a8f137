//! The record of a resize that more than one atomic step belongs to, and going on with one that was interrupted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::family::{Family, Kin, Member};
use super::one::{Resizing, decode_former};
use super::{Request, ResizeError, ResizePlan};
use crate::chain::{ChainError, ResizeRecord, ResizedFile};
use crate::format::{DiskType, FOOTER_SIZE};
use crate::image::{Footers, OpenError};
use crate::job::{Head, Job, JobImage, JobKind, require_only};
use crate::storage::{Access, HostFile, Sharing, full_name};
use crate::units::{UnixSeconds, u64_from};

/// The files, where their record belongs, and whether there is one already.
pub(super) fn find(request: &Request<'_>, write: bool) -> Result<(Family, PathBuf, bool), ResizeError> {
    let opened = match request.options.clone().write(false).for_job().open(request.image) {
        Ok(opened) => opened,
        Err(error) => {
            let Some(path) = record_of(&error) else {
                return Err(error.into());
            };
            let record = ResizeRecord::read(&path)?.ok_or(error)?;
            return Ok((resume(request, &path, &record, write)?, path, true));
        }
    };
    let base = opened.paths().last().map_or(request.image, PathBuf::as_path);
    let path = ResizeRecord::path_for(base);
    match ResizeRecord::read(&path)? {
        Some(record) => {
            drop(opened);
            Ok((resume(request, &path, &record, write)?, path, true))
        }
        None if opened.chain().is_none() => Err(ResizeError::Raw {
            path: request.image.to_owned(),
        }),
        None => Ok((Family::open(request, opened, write)?, path, false)),
    }
}

/// The record that says why a chain can't be opened.
fn record_of(error: &ChainError) -> Option<PathBuf> {
    match error {
        ChainError::ResizeUnfinished { record, .. } => Some(record.clone()),
        ChainError::ParentMissing { tried, .. } | ChainError::ParentMismatch { tried, .. } => {
            let mut records = tried.iter().map(|tried| ResizeRecord::path_for(&tried.path));
            records.find(|record| record.exists())
        }
        _ => None,
    }
}

fn resume(request: &Request<'_>, path: &Path, record: &ResizeRecord, write: bool) -> Result<Family, ResizeError> {
    let changed = |file: &Path, reason: &str| ResizeError::Changed {
        path: file.to_owned(),
        reason: reason.to_owned(),
        record: path.to_owned(),
    };
    let dir = path.parent().unwrap_or(Path::new(""));
    let image_path = |file: &ResizedFile| dir.join(&file.path);
    let base = record
        .files
        .first()
        .map(image_path)
        .ok_or_else(|| changed(path, "it names no files"))?;
    // INV-38: the record is beside the base, and the other images lead to the record.
    if full_name(path).ok() != Some(ResizeRecord::path_for(&base)) {
        return Err(changed(&base, "it is not the image that the record is beside"));
    }
    let job = Job::new(JobKind::Resize, path, []);
    for file in record.files.iter().skip(1) {
        job.prove_related(&image_path(file))?;
    }
    if record.size != request.size {
        return Err(unfinished(path, base, record));
    }
    let mut members = Vec::new();
    for (index, file) in record.files.iter().enumerate() {
        let kin = Kin::new(image_path(file), file.parent.filter(|parent| *parent < index));
        let raw = file.former_raw();
        let raw = raw.ok_or_else(|| changed(&kin.path, "its footer in the record is none"))?;
        let resizing = Resizing::new(decode_former(&raw)?, raw, record.size);
        let modified = file.modified.map(UnixSeconds::to_system_time);
        members.push(reopen(kin, resizing, modified, write, &changed)?);
    }
    let asked = crate::storage::FileIdentity::of_path(request.image).ok();
    let image = members.iter().position(|member| member.file.identity().ok() == asked);
    let image = image.ok_or_else(|| changed(request.image, "it is not among its files"))?;
    Ok(Family { members, image })
}

fn unfinished(path: &Path, image: PathBuf, record: &ResizeRecord) -> ResizeError {
    ResizeError::Unfinished {
        record: path.to_owned(),
        image,
        size: record.size,
        tree: record.tree,
    }
}

/// Where the record of an image by itself belongs.
///
/// # Errors
/// [`ResizeError::Unfinished`] if there is one.
pub(super) fn place_for(image: &Path) -> Result<PathBuf, ResizeError> {
    let path = ResizeRecord::path_for(image);
    match ResizeRecord::read(&path)? {
        None => Ok(path),
        Some(record) => Err(unfinished(&path, image.to_owned(), &record)),
    }
}

/// The size to which an image by itself was being resized when that was interrupted.
pub(super) fn interrupted(image: &Path) -> Result<Option<u64>, ResizeError> {
    let record = ResizeRecord::read(&ResizeRecord::path_for(image))?;
    Ok(record
        .filter(|record| record.files.len() == 1)
        .map(|record| record.size))
}

/// Opens a file that has the old or the new size, or is a fixed image in between.
fn reopen(
    kin: Kin,
    resizing: Resizing,
    modified: Option<SystemTime>,
    write: bool,
    changed: &dyn Fn(&Path, &str) -> ResizeError,
) -> Result<Member, ResizeError> {
    let access = if write { Access::ReadWrite } else { Access::ReadOnly };
    let file = Arc::new(HostFile::open(&kin.path, access, Sharing::Exclusive)?);
    let (former, size) = (resizing.footer(), resizing.size());
    // Without a footer the file can have any length between the two.
    let lens = former.current_size.min(size)..=former.current_size.max(size) + u64_from(FOOTER_SIZE);
    match Footers::read(&*file) {
        Ok(found) if found.footer.unique_id != former.unique_id => {
            return Err(changed(&kin.path, "it is another disk now"));
        }
        Ok(found) if ![former.current_size, size].contains(&found.footer.current_size) => {
            return Err(changed(&kin.path, "it has another size now"));
        }
        Ok(_) => {}
        Err(OpenError::NoFooter { file_len }) if former.disk_type == DiskType::Fixed && lens.contains(&file_len) => {}
        Err(error) => return Err(ResizeError::from(error).about(&kin.path)),
    }
    Ok(Member {
        path: kin.path,
        parent: kin.parent,
        storage: Arc::clone(&file) as _,
        file,
        resizing,
        modified,
    })
}

/// The resize as a job that all its images show. Nobody else writes to one: what a child of the former size is based on
/// may have the new one.
fn job(family: &Family, path: &Path) -> Job {
    let images = family.members.iter().map(|member| JobImage::held(&member.path));
    Job::new(JobKind::Resize, path, images)
}

/// Refuses if another job is open on one of the images that change.
pub(super) fn require_no_other(family: &Family, path: &Path, plan: &ResizePlan) -> Result<(), ResizeError> {
    let all = plan.tree || plan.resumed;
    let members = family.members.iter().enumerate();
    let concerned = members.filter(|(index, _)| all || *index == family.image);
    Ok(require_only(Some(path), concerned.map(|(_, member)| &member.path))?)
}

/// Shows the resize on all images, and notes durably what is going to be done. One that goes on is noted already.
pub(super) fn announce(family: &Family, path: &Path, plan: &ResizePlan) -> Result<(), ResizeError> {
    let job = job(family, path);
    job.announce(|| match plan.resumed {
        true => Ok(()),
        false => write(family, path, plan, job.head()),
    })
}

/// All images have the new size, or all have the former one: nothing is left to be done.
pub(super) fn close(family: &Family, path: &Path) -> Result<(), ResizeError> {
    Ok(job(family, path).close()?)
}

fn write(family: &Family, path: &Path, plan: &ResizePlan, head: Head) -> Result<(), ResizeError> {
    let files = family.members.iter().map(|member| {
        Ok(ResizedFile {
            path: name_from(path, &member.path)?,
            parent: member.parent,
            footer: hex(member.resizing.raw()),
            modified: member.modified.map(UnixSeconds::from_system_time),
        })
    });
    let record = ResizeRecord {
        size: plan.size,
        tree: plan.tree,
        files: files.collect::<Result<_, ResizeError>>()?,
        head,
    };
    Ok(record.write(path)?)
}

/// A file's name as it is written into the record at `record`: a tree may be carried elsewhere as a whole.
fn name_from(record: &Path, file: &Path) -> Result<PathBuf, ResizeError> {
    let no_text = || ResizeError::Name { path: file.to_owned() };
    let absolute = |path: &Path| std::path::absolute(path).map_err(|_| no_text());
    let (record, absolute_file) = (absolute(record)?, absolute(file)?);
    let dir = record.parent().unwrap_or(Path::new("/"));
    let name = absolute_file.strip_prefix(dir).unwrap_or(&absolute_file).to_owned();
    name.to_str().ok_or_else(no_text)?;
    Ok(name)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
