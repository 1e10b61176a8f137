//! A disk that is served for writing, whose snapshots come and go meanwhile.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vhd_core::device::{ByteRange, DeviceError, Disk, LayeredDevice, LiveDevice};
use vhd_core::error::with_causes;
use vhd_core::format::UniqueId;
use vhd_core::image::Image;
use vhd_core::snapshot::{self, CreatedInUse, Settled, SnapshotTree, Work};
use vhd_nbd::server::{ChangeVisitor, ChangedAboveLayer, ChangedRanges, Export, ExportSet};

use super::exports::file_name;
use crate::codes::Kind;
use crate::control::{Deleted, Jobs, Taken, WaitingFile};
use crate::failure::Failure;
use crate::output;

/// The export of the disk, with a context for each of these layers.
pub(super) fn present(name: &str, device: &Arc<LiveDevice>, paths: &[PathBuf], contexts: Vec<(String, u32)>) -> Export {
    let mut export = Export::new(name, Disk::new(Arc::clone(device) as _));
    if let Some(image) = paths.first() {
        export = export.with_description(file_name(image));
    }
    let chain = device.present();
    for (context, depth) in contexts {
        let depth = usize::try_from(depth).unwrap_or(usize::MAX);
        if let Some(image) = chain.shared_image(depth) {
            export = export.with_changes(context, Box::new(ChangedAboveImage::new(device, image)));
        }
    }
    export
}

/// The export of a snapshot in the disk's own open files, with a context for each of these layers; and its image.
pub(super) fn frozen(
    name: &str,
    frozen: Arc<LayeredDevice>,
    file: &Path,
    contexts: Vec<(String, u32)>,
) -> (Export, UniqueId) {
    let image = frozen.leaf().unique_id();
    let mut export = Export::new(name, Disk::new(frozen as _)).with_description(file_name(file));
    for (context, depth) in contexts {
        export = export.with_changes(context, Box::new(ChangedAboveLayer { depth }));
    }
    (export, image)
}

/// What changed since an image of the chain was frozen, wherever in the chain it is by now.
struct ChangedAboveImage {
    device: Weak<LiveDevice>,
    /// The object, and not its identity: the file of a deleted snapshot has the content of another one.
    image: Weak<Image>,
}

impl ChangedAboveImage {
    fn new(device: &Arc<LiveDevice>, image: &Arc<Image>) -> Self {
        Self {
            device: Arc::downgrade(device),
            image: Arc::downgrade(image),
        }
    }

    fn depth_in(&self, chain: &LayeredDevice) -> Option<u32> {
        let is_it = |depth: &usize| {
            let image = chain.shared_image(*depth);
            image.is_some_and(|image| std::ptr::eq(Arc::as_ptr(image), self.image.as_ptr()))
        };
        let depth = (0..chain.layers().len()).find(is_it)?;
        u32::try_from(depth).ok()
    }
}

impl ChangedRanges for ChangedAboveImage {
    fn visit(&self, disk: &Disk, range: ByteRange, visitor: ChangeVisitor<'_>) -> Result<(), DeviceError> {
        let Some(device) = self.device.upgrade() else {
            return ChangedAboveLayer { depth: u32::MAX }.visit(disk, range, visitor);
        };
        // Depth and extents of one moment. Of an image that is gone nothing is known: all may have changed.
        let chain = device.present();
        let depth = self.depth_in(&chain).unwrap_or(u32::MAX);
        ChangedAboveLayer { depth }.visit(&Disk::new(chain), range, visitor)
    }
}

/// A snapshot that is served.
pub(super) struct ServedSnapshot {
    /// The context of the disk's export that says what changed since.
    context: String,
    image: UniqueId,
}

impl ServedSnapshot {
    pub(super) fn new(context: &str, image: UniqueId) -> Self {
        Self {
            context: context.to_owned(),
            image,
        }
    }
}

/// Takes and deletes snapshots of a disk that is served.
pub(super) struct Keeper {
    /// A file of the disk.
    disk: PathBuf,
    export: String,
    /// Not the device itself: whoever closes the disk wants it alone.
    device: Weak<LiveDevice>,
    exports: ExportSet,
    /// The exports that are snapshots of this disk: a name that was deleted may be given again.
    snapshots: Mutex<HashMap<String, ServedSnapshot>>,
}

impl Jobs for Keeper {
    fn take(&self, name: &str) -> Result<Taken, Failure> {
        let device = self.device()?;
        let never = AtomicBool::new(false);
        let base = snapshot::base_of(&self.disk)?;
        let mut tree = SnapshotTree::open_in_use(&base, &device, work(&never))?;
        let taken = tree.create_in_use(name)?;
        self.serve(name, &base, &taken, &device);
        Ok(Taken {
            active: file_name(&taken.created.active),
            snapshot: taken.created.snapshot,
            paused_us: u64::try_from(taken.paused.as_micros()).unwrap_or(u64::MAX),
        })
    }

    fn delete(&self, name: &str, subtree: bool, cancel: &AtomicBool) -> Result<Deleted, Failure> {
        let device = self.device()?;
        let base = snapshot::base_of(&self.disk)?;
        let mut tree = SnapshotTree::open_in_use(&base, &device, work(cancel))?;
        tree.give_up(name, subtree)?;
        self.withdraw(&tree);
        let settled = tree.settle_in_use()?;
        Ok(report(&tree, &settled))
    }
}

impl Keeper {
    pub(super) fn new(
        disk: &Path,
        export: &str,
        device: &Arc<LiveDevice>,
        exports: &ExportSet,
        snapshots: HashMap<String, ServedSnapshot>,
    ) -> Self {
        Self {
            disk: disk.to_owned(),
            export: export.to_owned(),
            device: Arc::downgrade(device),
            exports: exports.clone(),
            snapshots: Mutex::new(snapshots),
        }
    }

    fn device(&self) -> Result<Arc<LiveDevice>, Failure> {
        let gone = || Failure::new(Kind::Control, "the server is about to stop");
        self.device.upgrade().ok_or_else(gone)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, ServedSnapshot>> {
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves the snapshot, and tells clients of the disk that connect from now on what has changed since.
    fn serve(&self, name: &str, base: &Path, taken: &CreatedInUse, device: &Arc<LiveDevice>) {
        if let Some(image) = taken.frozen.shared_image(0) {
            let changes = ChangedAboveImage::new(device, image);
            self.exports
                .replace(&self.export, |export| export.and_changes(name, Box::new(changes)));
        }
        let label = match self.export.as_str() {
            "" => file_name(base.file_stem().map_or(base, Path::new)),
            label => label.to_owned(),
        };
        let export = format!("{label}@{name}");
        let file = Path::new(&taken.created.snapshot.file.name);
        let (snapshot, image) = frozen(&export, Arc::clone(&taken.frozen), file, Vec::new());
        let mut known = self.known();
        let served = match known.contains_key(&export) {
            true => self.exports.put(snapshot),
            false => self.exports.add_later(snapshot),
        };
        match served {
            Ok(()) => drop(known.insert(export, ServedSnapshot::new(name, image))),
            Err(error) => output::warning(format_args!("the snapshot is not served: {error}")),
        }
    }

    /// Deleted snapshots are found by nobody who connects from now on. Whoever reads one goes on with it.
    fn withdraw(&self, tree: &SnapshotTree<'_>) {
        let deleted = tree.manifest().snapshots.iter().filter(|snapshot| snapshot.deleted);
        let deleted: Vec<UniqueId> = deleted.map(|snapshot| snapshot.file.id).collect();
        self.known().retain(|export, served| {
            let stays = !deleted.contains(&served.image);
            if !stays {
                self.exports.remove(export);
                let context = served.context.as_str();
                self.exports
                    .replace(&self.export, |export| export.without_changes(context));
            }
            stays
        });
    }
}

fn work(cancel: &AtomicBool) -> Work<'_> {
    Work {
        steps: &(),
        progress: &(),
        cancel,
    }
}

fn report(tree: &SnapshotTree<'_>, settled: &Settled) -> Deleted {
    let names = |paths: &[PathBuf]| paths.iter().map(|path| file_name(path)).collect();
    let waiting = settled.waiting.iter().map(|waiting| WaitingFile {
        name: waiting.name.clone(),
        file: file_name(&waiting.path),
        dependants: u64::try_from(waiting.dependants).unwrap_or(u64::MAX),
        reason: waiting.reason.as_ref().map(|reason| with_causes(reason)),
    });
    Deleted {
        active: tree.manifest().active.file.name.clone(),
        removed: names(&settled.removed),
        merged: names(&settled.merged),
        waiting: waiting.collect(),
    }
}
