//! A disk in use becomes larger together with all images of its tree, for all who read one of them in this process.
//!
//! ```text
//!   open        the tree is looked for; its files are opened for writing, those that the disk reads beside it
//!   rework      requests to the disk, and to who reads its layers, are held: the leaf is flushed and closed,
//!               all files are resized under one record, and all layers are opened again
//! ```

use std::path::Path;
use std::sync::Arc;

use super::family::{Family, Kin, Member, add_descendants, in_line};
use super::{Progress, Request, Resize, ResizeError, ResizePlan, ResizeReport};
use crate::device::{Layer, LayeredDevice, LiveDevice, Reworked};
use crate::storage::{Access, FileIdentity, HostFile, Sharing, StorageError, StorageFile, WatchedFile};

/// Says what [`resize`] would do. Nothing is changed.
pub(super) fn plan(request: &Request<'_>, device: &LiveDevice) -> Result<ResizePlan, ResizeError> {
    let tree = Tree::open(request, device, Access::ReadOnly)?;
    Ok(Resize::prepare_family(request, tree.family)?.plan)
}

/// Makes the disk larger, and all images of its tree: all or none.
pub(super) fn resize(
    request: &Request<'_>,
    device: &LiveDevice,
    progress: &dyn Progress,
) -> Result<ResizeReport, ResizeError> {
    // What is unfinished or in use is refused before anybody has to wait.
    let Tree { family, watched } = Tree::open(request, device, Access::ReadWrite)?;
    let mut report = None;
    device.rework_chain(Box::new(|| {
        let resized = Resize::prepare_family(request, family).and_then(|resize| resize.run(progress));
        let stuck = matches!(resized, Err(ResizeError::Stuck { .. }));
        Reworked {
            read_only: stuck || watched.iter().any(|file| file.sync_failed()),
            result: resized.map(|resized| report = Some(resized)),
        }
    }))?;
    Ok(report.expect("a resize that did not fail has a report"))
}

/// The files of a tree of which some are in use by a disk of this process.
struct Tree {
    family: Family,
    /// The files by which they are changed.
    watched: Vec<Arc<WatchedFile>>,
}

impl Tree {
    fn open(request: &Request<'_>, device: &LiveDevice, access: Access) -> Result<Self, ResizeError> {
        let present = device.present();
        let asked = FileIdentity::of_path(request.image).ok();
        let mut kin = in_line(kin_of(request.image, &present)?);
        add_descendants(&mut kin, request.options.ignores_children())?;
        let mut image = None;
        let (mut members, mut watched) = (Vec::with_capacity(kin.len()), Vec::with_capacity(kin.len()));
        for (index, kin) in kin.into_iter().enumerate() {
            image = image.or((kin.file.is_some() && kin.file == asked).then_some(index));
            let mut member = open(kin, &present, access, request.size)?;
            let file = Arc::new(WatchedFile::new(Arc::clone(&member.storage)));
            member.storage = Arc::clone(&file) as _;
            watched.push(file);
            members.push(member);
        }
        let image = image.ok_or_else(|| ResizeError::InUse {
            path: request.image.to_owned(),
            what: "be resized: it is not in the tree of that disk",
        })?;
        let family = Family { members, image };
        // INV-46: all are held.
        family.refuse_newcomers()?;
        Ok(Self { family, watched })
    }
}

/// The layers of the disk, the leaf first.
fn kin_of(image: &Path, present: &LayeredDevice) -> Result<Vec<Kin>, ResizeError> {
    let kin = present.layers().iter().map(|layer| {
        let path = layer
            .path()
            .map_err(|source| StorageError::at(image, "find the files of", source))?;
        match layer.image() {
            Some(image) => Ok(Kin {
                file: FileIdentity::of_open(layer.file()),
                id: image.unique_id(),
                path,
                parent: None,
            }),
            None => Err(ResizeError::Raw { path }),
        }
    });
    kin.collect()
}

/// Opens a file of the tree: the leaf's once more by the same open file, whose locks stay as they are; another one that the
/// disk reads beside that; and any other alone.
fn open(kin: Kin, present: &LayeredDevice, access: Access, size: u64) -> Result<Member, ResizeError> {
    let is_file = |layer: &Layer, file| FileIdentity::of_open(layer.file()) == Some(file);
    let depth = kin
        .file
        .and_then(|file| present.layers().iter().position(|layer| is_file(layer, file)));
    let reader = depth.and_then(|depth| present.layers()[depth].file().host_file());
    let at = |source| StorageError::at(&kin.path, "use", source);
    let file = match (depth, reader) {
        (Some(0), Some(leaf)) => HostFile::from_file(leaf.try_clone().map_err(at)?).map_err(at)?,
        (Some(_), Some(reader)) if access == Access::ReadWrite => HostFile::open_beside(&kin.path, reader)?,
        (Some(_), Some(_)) => HostFile::open(&kin.path, access, Sharing::Unlocked)?,
        _ => return Member::open(kin, access, size),
    };
    let file = Arc::new(file);
    let storage = Arc::clone(&file) as Arc<dyn StorageFile>;
    Member::of_file(kin, file, storage, size)
}
