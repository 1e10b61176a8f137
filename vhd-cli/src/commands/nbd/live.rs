//! A disk that is served for writing, whose snapshots come and go meanwhile.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vhd_core::device::{ByteRange, DeviceError, Disk, LayerMark, LiveDevice};
use vhd_core::format::UniqueId;
use vhd_core::snapshot::{self, CreatedInUse, Manifest};
use vhd_nbd::server::{ChangeVisitor, ChangedAboveLayer, ChangedRanges, Export, ExportSet};

use super::exports::file_name;
use crate::in_use::Frontend;
use crate::output;

/// The export of the disk, with a context for each of these layers.
pub(super) fn present(name: &str, device: &Arc<LiveDevice>, paths: &[PathBuf], contexts: Vec<(String, u32)>) -> Export {
    let export = Export::new(name, Disk::new(Arc::clone(device) as _));
    let export = match paths.first() {
        Some(image) => export.with_description(file_name(image)),
        None => export,
    };
    with_contexts(export, device, device, 0, contexts)
}

/// The export of the snapshot that is so deep in the disk's own chain, in its open files, with a context for each of these
/// layers.
pub(super) fn frozen(
    name: &str,
    device: &Arc<LiveDevice>,
    depth: usize,
    file: &Path,
    contexts: Vec<(String, u32)>,
) -> Option<Export> {
    let view = device.view(depth)?;
    let export = Export::new(name, Disk::new(Arc::clone(&view) as _)).with_description(file_name(file));
    Some(with_contexts(export, &view, device, depth, contexts))
}

/// Adds contexts of layers that are so deep below the layer at `depth` of the disk.
fn with_contexts(
    export: Export,
    shown: &Arc<LiveDevice>,
    device: &LiveDevice,
    depth: usize,
    contexts: Vec<(String, u32)>,
) -> Export {
    contexts.into_iter().fold(export, |export, (context, below)| {
        let below = usize::try_from(below).unwrap_or(usize::MAX);
        match ChangedAboveMark::new(shown, device, depth.saturating_add(below)) {
            Some(changes) => export.with_changes(context, Box::new(changes)),
            None => export,
        }
    })
}

/// What changed since an image of the chain was frozen, wherever in the chain it is by now.
struct ChangedAboveMark {
    shown: Weak<LiveDevice>,
    mark: Arc<LayerMark>,
}

impl ChangedAboveMark {
    /// For the disk, or a snapshot of it, of a layer of the disk.
    fn new(shown: &Arc<LiveDevice>, device: &LiveDevice, depth: usize) -> Option<Self> {
        Some(Self {
            shown: Arc::downgrade(shown),
            mark: device.mark(depth)?,
        })
    }
}

impl ChangedRanges for ChangedAboveMark {
    fn visit(&self, disk: &Disk, range: ByteRange, visitor: ChangeVisitor<'_>) -> Result<(), DeviceError> {
        let Some(shown) = self.shown.upgrade() else {
            return ChangedAboveLayer { depth: u32::MAX }.visit(disk, range, visitor);
        };
        // Depth and extents of one moment. Of a layer that is gone nothing is known: all may have changed.
        let chain = shown.present();
        let depth = self.mark.depth_in(&chain).and_then(|depth| u32::try_from(depth).ok());
        let depth = depth.unwrap_or(u32::MAX);
        ChangedAboveLayer { depth }.visit(&Disk::new(chain), range, visitor)
    }
}

/// A snapshot that is served.
pub(super) struct ServedSnapshot {
    /// The context of the disk's export that says what changed since.
    context: String,
    /// Which one it is, wherever its content is by now.
    id: UniqueId,
}

impl ServedSnapshot {
    pub(super) fn new(context: &str, id: UniqueId) -> Self {
        Self {
            context: context.to_owned(),
            id,
        }
    }
}

/// The exports of a disk and its snapshots.
pub(super) struct Exports {
    export: String,
    exports: ExportSet,
    /// The exports that are snapshots of this disk: a name that was deleted may be given again.
    snapshots: Mutex<HashMap<String, ServedSnapshot>>,
}

impl Exports {
    pub(super) fn new(export: &str, exports: &ExportSet, snapshots: HashMap<String, ServedSnapshot>) -> Self {
        Self {
            export: export.to_owned(),
            exports: exports.clone(),
            snapshots: Mutex::new(snapshots),
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, ServedSnapshot>> {
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Frontend for Exports {
    /// Serves the snapshot, and tells clients of the disk that connect from now on what has changed since.
    fn taken(&self, name: &str, taken: &CreatedInUse, device: &Arc<LiveDevice>) {
        if let Some(changes) = ChangedAboveMark::new(device, device, 1) {
            self.exports
                .replace(&self.export, |export| export.and_changes(name, Box::new(changes)));
        }
        let label = match self.export.as_str() {
            "" => {
                let active = &taken.created.active;
                let base = snapshot::base_of(active).unwrap_or_else(|_| active.clone());
                file_name(base.file_stem().map_or(&base, Path::new))
            }
            label => label.to_owned(),
        };
        let export = format!("{label}@{name}");
        let file = Path::new(&taken.created.snapshot.file.name);
        let Some(snapshot) = frozen(&export, device, 1, file, Vec::new()) else {
            return;
        };
        let mut known = self.known();
        let served = match known.contains_key(&export) {
            true => self.exports.put(snapshot),
            false => self.exports.add_later(snapshot),
        };
        match served {
            Ok(()) => drop(known.insert(export, ServedSnapshot::new(name, taken.created.snapshot.id))),
            Err(error) => output::warning(format_args!("the snapshot is not served: {error}")),
        }
    }

    /// Deleted snapshots are found by nobody who connects from now on. Whoever reads one goes on with it.
    fn withdraw(&self, manifest: &Manifest) {
        let deleted = manifest.snapshots.iter().filter(|snapshot| snapshot.deleted);
        let deleted: Vec<UniqueId> = deleted.map(|snapshot| snapshot.id).collect();
        let mut known = self.known();
        let gone: Vec<_> = known.extract_if(|_, served| deleted.contains(&served.id)).collect();
        for (export, served) in gone {
            self.exports.remove(&export);
            for export in known.keys().chain([&self.export]) {
                self.exports
                    .replace(export, |export| export.without_changes(&served.context));
            }
        }
    }
}
