//! Planning a merge: everything that can be refused is refused here, before anything is written.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::copy::WINDOW;
use super::dependants::{self, Dependants, Recorded};
use super::error::Dependant;
use super::holder::Holder;
use super::journal::{Journal, Phase};
use super::known::Known;
use super::{CarriedChild, MergeError, MergePlan, MergeRequest, MergeSummary, carry};
use crate::chain::{ImageFormat, OpenOptions, OpenedDisk, link_to_disk};
use crate::device::{BlockDevice as _, ByteRange, DeviceError, Layer, LiveDevice, held};
use crate::format::UniqueId;
use crate::job::require_only;
use crate::storage::{self, FileIdentity, StorageError};
use crate::units::VirtualOffset;

/// Plans a merge, or how an unfinished one goes on. Nothing is changed.
///
/// # Errors
/// [`MergeError`]: the chain can't be opened, or something that the merge needs is not so.
pub fn plan(request: &MergeRequest) -> Result<MergePlan, MergeError> {
    plan_for(request, Owner::Caller)
}

/// Who answers for the files of a merge.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The caller: what a manifest of snapshots lists is not for him to merge.
    Caller,
    /// The manifest of snapshots that lists them.
    Manifest,
}

/// The same, for the caller or for the manifest that lists the files.
pub(crate) fn plan_for(request: &MergeRequest, owner: Owner) -> Result<MergePlan, MergeError> {
    let child = full_name(&request.child)?;
    let journal = Journal::read(&child)?;
    let size_of_target = |recorded: &Journal| {
        let opened = open_target(&request.open, &recorded.target)?;
        Ok::<_, MergeError>(opened.disk().size())
    };
    if let Some(recorded) = journal.as_ref().filter(|recorded| recorded.is_complete()) {
        return plan_of_record(request, recorded, size_of_target(recorded)?);
    }
    if journal.is_none() && matches!(child.try_exists(), Ok(false)) {
        return match Journal::read_done(&child)? {
            Some(done) => plan_of_record(request, &done, size_of_target(&done)?),
            None => Err(MergeError::Gone { path: child }),
        };
    }
    let opened = request.open.clone().write(false).open(&child)?;
    plan_of_chain(request, owner, journal, &opened)
}

/// Plans a merge of layers of a disk that this process has in use.
///
/// # Errors
/// Those of [`plan`]; `InUse`, `ChildrenInUse` for what can't be done to the leaf while the disk is in use.
pub fn plan_in_use(request: &MergeRequest, device: &LiveDevice) -> Result<MergePlan, MergeError> {
    let child = full_name(&request.child)?;
    if device.writes_to(&child) {
        return plan_of_leaf(request, &child, device);
    }
    match Journal::read(&child)? {
        // The disk has gone on in the target, and that is, or is to be made, known.
        Some(recorded) if device.writes_to(&recorded.target.path) => {
            device.flush().map_err(|source| MergeError::Device {
                path: recorded.target.path.clone(),
                source,
            })?;
            match Journal::read(&child)? {
                Some(switched) if switched.phase == Phase::Switched => {
                    plan_of_record(request, &switched, device.size_bytes())
                }
                Some(other) => Err(other.unfinished()),
                None => Err(MergeError::Gone { path: child }),
            }
        }
        _ => plan(request),
    }
}

/// The same for the leaf, and layers below it. INV-78: what its users write from then on shows through all that is based on
/// the target or on what goes, so nothing may be, and nothing can be carried along.
fn plan_of_leaf(request: &MergeRequest, child: &Path, device: &LiveDevice) -> Result<MergePlan, MergeError> {
    let present = device.present();
    let paths = present.layers().iter().map(Layer::path).collect::<Result<_, _>>();
    let paths = paths.map_err(|source| StorageError::at(child, "find the files of", source))?;
    let opened = OpenedDisk::of_present(present, paths);
    let alone = MergeRequest {
        carry: false,
        ..request.clone()
    };
    let in_use = |dependants| MergeError::ChildrenInUse {
        child: child.to_owned(),
        dependants,
    };
    let planned = plan_of_chain(&alone, Owner::Caller, Journal::read(child)?, &opened);
    let planned = planned.map_err(|error| match error {
        MergeError::HasChildren { dependants } => in_use(dependants),
        error => error,
    })?;
    if planned.target_known().id.is_nil() {
        return Err(MergeError::InUse {
            child: child.to_owned(),
            target: planned.target().to_owned(),
        });
    }
    if !planned.children.is_empty() {
        let dependants = planned.children.iter().map(|path| Dependant {
            path: path.clone(),
            parent: child.to_owned(),
        });
        return Err(in_use(dependants.collect()));
    }
    Ok(planned)
}

/// The same for a chain that is open.
fn plan_of_chain(
    request: &MergeRequest,
    owner: Owner,
    journal: Option<Journal>,
    opened: &OpenedDisk,
) -> Result<MergePlan, MergeError> {
    let range = Range::of(opened, request)?;
    range.check_sizes()?;
    range.check_removable()?;
    if let Some(journal) = &journal {
        range.check_same(journal)?;
        // The layers are proven by the chain itself.
        journal.prove_children()?;
    }
    let recorded = journal.as_ref().map_or(Recorded::default(), Journal::dependants);
    let all = dependants::search(&range.layers, opened.paths());
    let ignores = request.open.ignores_children();
    if !ignores {
        if owner == Owner::Caller {
            all.refuse_listed()?;
        }
        all.refuse_damaged()?;
        all.refuse_unknown()?;
    }
    let found = dependants::find(&range.layers, &all, &request.extra_children, &recorded)?;
    if !found.others.is_empty() && !request.carry && !ignores {
        return Err(MergeError::HasChildren {
            dependants: found.others,
        });
    }
    let record = Journal::path(&range.layers[0].path);
    require_only(Some(&record), range.layers.iter().map(|layer| &*layer.path))?;
    require_only(Some(&record), found.paths())?;
    check_links(request, range.target(), &found)?;
    let carried = found.others.into_iter().filter(|_| request.carry);
    let carried = carried.map(|child| carry::survey(request, child, &range.layers[0].path, opened));
    let carried = carried.collect::<Result<_, _>>()?;
    let start = match journal.as_ref().map(|journal| journal.phase) {
        Some(Phase::Copying(done)) => done,
        Some(Phase::Finishing | Phase::Switched) => range.disk_bytes(),
        Some(Phase::Carrying) | None => 0,
    };
    let mut warnings: Vec<String> = opened.warnings().iter().map(ToString::to_string).collect();
    warnings.extend(hidden_mark(&range, &found.children));
    Ok(MergePlan {
        request: request.clone(),
        children: found.children,
        carried,
        summary: range.survey(start)?,
        warnings,
        resumed: journal.map(|journal| journal.phase),
        complete: false,
        child_gone: false,
        layers: range.layers,
    })
}

/// What is left of a merge that has everything in its target, a disk of so many bytes.
fn plan_of_record(request: &MergeRequest, journal: &Journal, disk_bytes: u64) -> Result<MergePlan, MergeError> {
    let same = match &request.into {
        None => journal.layers.len() == 1,
        Some(into) => is_same_file(into, &journal.target.path),
    };
    if !same {
        return Err(journal.unfinished());
    }
    // Each has what it needs: it is only told of.
    let carried = journal.carried.iter().map(|path| CarriedChild {
        path: path.clone(),
        parent: journal.target.path.clone(),
        bytes: 0,
        new_bytes: 0,
    });
    let mut layers: Vec<Known> = journal.layers.iter().map(|source| source.known.clone()).collect();
    layers.push(journal.target.clone());
    Ok(MergePlan {
        request: request.clone(),
        layers,
        children: journal.children.clone(),
        carried: carried.collect(),
        summary: MergeSummary {
            disk_bytes,
            ..MergeSummary::default()
        },
        warnings: Vec::new(),
        resumed: Some(journal.phase),
        complete: true,
        child_gone: !journal.child_is_there(),
    })
}

/// The name of a file that may be gone, from the root and without symbolic links.
fn full_name(path: &Path) -> Result<PathBuf, MergeError> {
    Ok(storage::full_name(path).map_err(|source| StorageError::at(path, "find", source))?)
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    match (FileIdentity::of_path(a), FileIdentity::of_path(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// Opens the target over its own ancestors, for reading. It must be the disk that is known.
pub(super) fn open_target(options: &OpenOptions, target: &Known) -> Result<OpenedDisk, MergeError> {
    let opened = target_options(options, target).open(&target.path)?;
    require_target(target, opened)
}

/// The same for writing.
pub(super) fn hold_target(
    options: &OpenOptions,
    target: &Known,
    holder: &Holder<'_>,
) -> Result<OpenedDisk, MergeError> {
    let file = Arc::new(holder.open(&target.path)?);
    let opened = target_options(options, target)
        .write(true)
        .open_held(&target.path, file)?;
    require_target(target, opened)
}

fn target_options(options: &OpenOptions, target: &Known) -> OpenOptions {
    let format = if target.id.is_nil() {
        ImageFormat::Raw
    } else {
        ImageFormat::Vhd
    };
    // Who relies on it was asked when the merge was planned, and for open jobs too.
    let options = options.clone().format(Some(format)).write(false);
    options.ignore_children(true).for_job()
}

fn require_target(target: &Known, opened: OpenedDisk) -> Result<OpenedDisk, MergeError> {
    let found = opened
        .layers()
        .next()
        .map_or(UniqueId::NIL, |leaf| leaf.layer.unique_id());
    if found != target.id {
        return Err(other_disk(&target.path, target.id, found));
    }
    Ok(opened)
}

pub(super) fn other_disk(path: &Path, expected: UniqueId, found: UniqueId) -> MergeError {
    MergeError::Changed {
        path: path.to_owned(),
        what: format!("the disk {expected} was here, and now it is {found}"),
    }
}

/// What the children have to say of the target can be said.
fn check_links(request: &MergeRequest, target: &Known, found: &Dependants) -> Result<(), MergeError> {
    if found.paths().next().is_none() {
        return Ok(());
    }
    let opened = open_target(&request.open, target)?;
    for child in found.paths() {
        link_to_disk(child, &target.path, &opened)?;
    }
    Ok(())
}

fn hidden_mark(range: &Range<'_>, children: &[PathBuf]) -> Option<String> {
    let image = range.opened.layers().next().and_then(|leaf| leaf.layer.image())?;
    (children.is_empty() && image.footer().hidden != 0).then(|| {
        let child = range.layers[0].path.display();
        format!(
            "{child} is marked as a parent (hidden), and no child of it was found: name it with --child if there is one"
        )
    })
}

/// The layers that go, and the target below them.
pub(super) struct Range<'a> {
    opened: &'a OpenedDisk,
    pub(super) layers: Vec<Known>,
}

impl<'a> Range<'a> {
    pub(super) fn of(opened: &'a OpenedDisk, request: &MergeRequest) -> Result<Self, MergeError> {
        let paths = opened.paths();
        if opened.layers().count() < 2 {
            return Err(MergeError::NoParent { path: paths[0].clone() });
        }
        let target = match &request.into {
            None => 1,
            Some(into) => (1..paths.len())
                .find(|&depth| is_same_file(into, &paths[depth]))
                .ok_or_else(|| MergeError::NotAncestor {
                    child: paths[0].clone(),
                    ancestor: into.clone(),
                })?,
        };
        let known = opened.layers().take(target + 1).map(|layer| {
            let path = full_name(layer.path)?;
            let id = layer.layer.unique_id();
            Ok(Known { path, id })
        });
        let layers = known.collect::<Result<_, MergeError>>()?;
        Ok(Self { opened, layers })
    }

    fn target(&self) -> &Known {
        &self.layers[self.layers.len() - 1]
    }

    fn disk_bytes(&self) -> u64 {
        self.opened.disk().size()
    }

    pub(super) fn check_sizes(&self) -> Result<(), MergeError> {
        let sizes: Vec<u64> = self.opened.layers().map(|layer| layer.layer.disk_size()).collect();
        for (depth, pair) in self.layers.windows(2).enumerate() {
            if sizes[depth] != sizes[depth + 1] {
                return Err(MergeError::SizeMismatch {
                    path: pair[0].path.clone(),
                    size: sizes[depth],
                    other: pair[1].path.clone(),
                    other_size: sizes[depth + 1],
                });
            }
        }
        Ok(())
    }

    fn check_removable(&self) -> Result<(), MergeError> {
        let mut sources = self.layers[..self.layers.len() - 1].iter();
        let other = sources.find(|layer| !layer.path.metadata().is_ok_and(|metadata| metadata.is_file()));
        match other {
            None => Ok(()),
            Some(layer) => Err(MergeError::NotRemovable {
                path: layer.path.clone(),
            }),
        }
    }

    /// An unfinished merge is the one that is asked for.
    fn check_same(&self, journal: &Journal) -> Result<(), MergeError> {
        let ids = journal.layers.iter().map(|source| source.known.id);
        let same = ids.eq(self.layers[..self.layers.len() - 1].iter().map(|layer| layer.id))
            && journal.target.id == self.target().id
            && (!journal.target.id.is_nil() || journal.target.path == self.target().path);
        if same { Ok(()) } else { Err(journal.unfinished()) }
    }

    /// How much there is to be copied, and by how much the target grows.
    fn survey(&self, start: u64) -> Result<MergeSummary, MergeError> {
        let failed = |source| MergeError::Device {
            path: self.layers[0].path.clone(),
            source,
        };
        let layers = self.opened.chain().map_or(&[][..], |device| device.layers());
        let (sources, below) = layers.split_at(self.layers.len() - 1);
        let mut growth = Growth::new(&below[0]).map_err(failed)?;
        let mut summary = MergeSummary {
            disk_bytes: self.disk_bytes(),
            ..MergeSummary::default()
        };
        visit_held(sources, summary.disk_bytes, |range| {
            summary.held_bytes += range.len;
            summary.remaining_bytes += range.end().max(start) - range.start.max(start);
            growth.add(range);
        })
        .map_err(failed)?;
        summary.new_bytes = growth.bytes();
        Ok(summary)
    }
}

/// Calls `visitor` with each range that one of `sources` holds.
pub(super) fn visit_held(
    sources: &[Layer],
    disk_bytes: u64,
    mut visitor: impl FnMut(ByteRange),
) -> Result<(), DeviceError> {
    let mut at = 0;
    while at < disk_bytes {
        let window = ByteRange::new(at, WINDOW.min(disk_bytes - at));
        held(sources, window)?.iter().for_each(|held| visitor(held.range));
        at = window.end();
    }
    Ok(())
}

/// The blocks that an image needs and does not have.
struct Growth {
    /// Of one block in the file; 0 for a file that does not grow.
    stored_bytes: u64,
    layout: Option<crate::format::BlockLayout>,
    /// The blocks that have space, and then those that need it.
    known: HashSet<u32>,
    blocks: u64,
}

impl Growth {
    fn new(target: &Layer) -> Result<Self, DeviceError> {
        let arrangement = target.image().map(|image| image.arrangement()).transpose()?.flatten();
        Ok(Self {
            stored_bytes: arrangement.as_ref().map_or(0, |a| a.layout.stored_bytes()),
            layout: arrangement.as_ref().map(|a| a.layout),
            known: arrangement.map_or_else(HashSet::new, |a| a.blocks.iter().map(|placed| placed.block.0).collect()),
            blocks: 0,
        })
    }

    fn add(&mut self, range: ByteRange) {
        let Some(layout) = self.layout else { return };
        let last = layout.block_of(VirtualOffset(range.end() - 1)).0;
        for block in layout.block_of(VirtualOffset(range.start)).0..=last {
            self.blocks += u64::from(self.known.insert(block));
        }
    }

    fn bytes(&self) -> u64 {
        self.blocks * self.stored_bytes
    }
}
