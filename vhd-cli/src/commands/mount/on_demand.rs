//! Disks that are open only as long as somebody reads them: a disk may have hundreds of snapshots.

use std::io::{IoSlice, IoSliceMut};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use vhd_core::ErrorKind;
use vhd_core::chain::OpenOptions;
use vhd_core::device::{BlockDevice, ByteRange, DeviceError, DeviceInfo, Disk, ExtentVisitor, LiveDevice, ZeroOptions};
use vhd_core::error::with_causes;
use vhd_core::format::UniqueId;
use vhd_core::snapshot::{self, SnapshotFile};

use crate::output;

/// Disks that are open at once. What they have in common is open once for all of them.
const MOST_OPEN: usize = 16;
/// How long one stays open that nobody reads: so long other commands can't delete or merge what it stands on.
const IDLE: Duration = Duration::from_secs(30);

/// How snapshots are opened, and which of them are open.
pub(super) struct OpenDisks {
    options: OpenOptions,
    /// The disk that is mounted for writing: its layers are read in its own open files.
    live: OnceLock<Weak<LiveDevice>>,
    most_open: usize,
    open: Mutex<Vec<Weak<OnDemand>>>,
}

/// The disk of a snapshot. A request opens it, if it is not open; some time later it is closed again.
pub(super) struct OnDemand {
    /// A file of the disk whose snapshot this is.
    image: PathBuf,
    /// The snapshot, whatever it is called.
    id: UniqueId,
    all: Arc<OpenDisks>,
    me: Weak<Self>,
    info: DeviceInfo,
    /// Bytes, as of when it was opened last.
    size: AtomicU64,
    open: Mutex<Option<Open>>,
}

struct Open {
    disk: Disk,
    used: Instant,
}

impl OpenDisks {
    /// Disks that are opened in this way. One that nobody reads is closed as long as this is there.
    pub(super) fn new(options: OpenOptions) -> Arc<Self> {
        let disks = Self::with_limit(options, MOST_OPEN);
        let all = Arc::downgrade(&disks);
        let watch = move || {
            while let Some(all) = all.upgrade() {
                all.close_unused_for(IDLE);
                drop(all);
                thread::sleep(IDLE / 4);
            }
        };
        if let Err(error) = thread::Builder::new().name("idle-disks".into()).spawn(watch) {
            output::warning(format_args!("snapshots that were looked at stay open: {error}"));
        }
        disks
    }

    fn with_limit(options: OpenOptions, most_open: usize) -> Arc<Self> {
        Arc::new(Self {
            options,
            live: OnceLock::new(),
            most_open,
            open: Mutex::default(),
        })
    }

    /// Snapshots that are layers of this disk are read in its open files: they go on being read, whatever becomes of those.
    pub(super) fn read_in(&self, live: &Arc<LiveDevice>) {
        let _ = self.live.set(Arc::downgrade(live));
    }

    /// What the disk that is mounted for writing writes to at this moment.
    pub(super) fn leaf_path(&self) -> Option<PathBuf> {
        self.live.get()?.upgrade()?.leaf_path()
    }

    /// Closes what nobody is reading at this moment.
    pub(super) fn close_unused(&self) {
        self.close_unused_for(Duration::ZERO);
    }

    /// The snapshot in the open files of the disk that is mounted, if it is one of its layers.
    fn in_live(&self, snapshot: &SnapshotFile) -> Option<Disk> {
        let live = self.live.get()?.upgrade()?;
        let present = live.present();
        let mut layers = present.layers().iter();
        // INV-72: by the identity that the manifest says.
        let depth = layers.position(|layer| layer.unique_id() == snapshot.image_id)?;
        let view = live.view(depth)?;
        let same = view.present().leaf().unique_id() == snapshot.image_id;
        same.then(|| Disk::new(view as _))
    }

    /// Closes what nobody has read for so long.
    fn close_unused_for(&self, idle: Duration) {
        let now = Instant::now();
        self.keep(|disk| {
            let Ok(mut open) = disk.open.try_lock() else {
                return true;
            };
            let is_used = open.as_ref().is_some_and(|open| now.duration_since(open.used) < idle);
            if !is_used {
                open.take();
            }
            is_used
        });
    }

    fn keep(&self, mut wanted: impl FnMut(&OnDemand) -> bool) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|disk| disk.upgrade().is_some_and(|disk| wanted(&disk)));
    }

    /// Takes notice of a disk that was opened, and closes the ones that nobody has read for the longest time if they are too
    /// many. One that is being opened or asked for at this moment is not waited for, and stays.
    fn opened(&self, disk: &Weak<OnDemand>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|other| other.strong_count() > 0 && !other.ptr_eq(disk));
        open.push(disk.clone());
        while open.len() > self.most_open {
            let others = open.iter().enumerate().take(open.len() - 1);
            let ages = others.filter_map(|(index, disk)| {
                let disk = disk.upgrade()?;
                let used = disk.open.try_lock().ok()?.as_ref().map(|open| open.used);
                Some((used, index))
            });
            let Some((_, oldest)) = ages.min() else { return };
            if let Some(disk) = open.swap_remove(oldest).upgrade()
                && let Ok(mut open) = disk.open.try_lock()
            {
                open.take();
            }
        }
    }

    /// Opens the chain of a snapshot.
    fn open(&self, snapshot: &SnapshotFile) -> Result<Disk, DeviceError> {
        if let Some(disk) = self.in_live(snapshot) {
            return Ok(disk);
        }
        let opened = self.options.open(&snapshot.path);
        let opened = opened.map_err(|error| {
            gone(
                error.kind(),
                format!("{}: {}", snapshot.path.display(), with_causes(&error)),
            )
        })?;
        // INV-72: what is shown under a snapshot's name is the image that the manifest says it is.
        if opened.chain().map(|chain| chain.leaf().unique_id()) == Some(snapshot.image_id) {
            return Ok(opened.disk());
        }
        let message = format!(
            "{} is another image than the one of snapshot \"{}\", {}; see `vhd snapshot list`",
            snapshot.path.display(),
            snapshot.name,
            snapshot.image_id,
        );
        Err(gone(ErrorKind::ManifestStale, message))
    }
}

impl OnDemand {
    /// The disk of a snapshot of the disk that `image` belongs to, open at first.
    ///
    /// # Errors
    /// What opening meets.
    pub(super) fn new(image: PathBuf, snapshot: &SnapshotFile, all: &Arc<OpenDisks>) -> Result<Arc<Self>, DeviceError> {
        let opened = all.open(snapshot)?;
        let disk = Arc::new_cyclic(|me: &Weak<Self>| Self {
            image,
            id: snapshot.id,
            all: Arc::clone(all),
            me: me.clone(),
            info: opened.info().clone(),
            size: AtomicU64::new(opened.size()),
            open: Mutex::new(Some(Open::now(opened))),
        });
        all.opened(&disk.me);
        Ok(disk)
    }

    /// The disk, for one request.
    fn disk(&self) -> Result<Disk, DeviceError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &mut *open {
            open.used = Instant::now();
            return Ok(open.disk.clone());
        }
        let disk = self.open_again()?;
        *open = Some(Open::now(disk.clone()));
        // Whoever closes others does not wait for one of them.
        drop(open);
        self.all.opened(&self.me);
        Ok(disk)
    }

    /// Opens the snapshot where it is now: another command may have merged its file into another one meanwhile.
    fn open_again(&self) -> Result<Disk, DeviceError> {
        let listed = snapshot::snapshots_beside(&self.image);
        let listed = listed.map_err(|error| gone(error.kind(), with_causes(&error)))?;
        let found = listed.into_iter().find(|snapshot| snapshot.id == self.id);
        let found = found.ok_or_else(|| gone(ErrorKind::NotFound, "the snapshot has been deleted".into()))?;
        let disk = self.all.open(&found)?;
        self.size.store(disk.size(), Ordering::Relaxed);
        Ok(disk)
    }
}

impl Open {
    fn now(disk: Disk) -> Self {
        Self {
            disk,
            used: Instant::now(),
        }
    }
}

fn gone(kind: ErrorKind, message: String) -> DeviceError {
    DeviceError::Gone {
        kind: kind.into(),
        message,
    }
}

impl BlockDevice for OnDemand {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn size_bytes(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DeviceError> {
        self.disk()?.read_at(buf, offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), DeviceError> {
        self.disk()?.read_vectored_at(bufs, offset)
    }

    fn write_vectored_at(&self, _bufs: &[IoSlice<'_>], _offset: u64, _fua: bool) -> Result<(), DeviceError> {
        Err(DeviceError::ReadOnly)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn write_zeroes(&self, _range: ByteRange, _options: ZeroOptions) -> Result<(), DeviceError> {
        Err(DeviceError::ReadOnly)
    }

    fn discard(&self, _range: ByteRange) -> Result<(), DeviceError> {
        Err(DeviceError::ReadOnly)
    }

    fn extents(&self, range: ByteRange, visitor: ExtentVisitor<'_>) -> Result<(), DeviceError> {
        self.disk()?.extents(range, visitor)
    }

    fn resize(&self, _size: u64) -> Result<(), DeviceError> {
        Err(DeviceError::ReadOnly)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use vhd_core::chain::SharedImages;
    use vhd_core::image::create_dynamic;
    use vhd_core::snapshot::{SnapshotTree, Work, snapshots_beside};
    use vhd_core::storage::HostFile;

    use super::*;

    const SIZE: u64 = 8 << 20;

    /// A disk with snapshots of these names.
    fn disk(dir: &std::path::Path, names: &[&str]) -> PathBuf {
        let path = dir.join("disk.vhd");
        let file = std::fs::File::create_new(&path).unwrap();
        create_dynamic(&HostFile::from_file(file).unwrap(), SIZE, 2 << 20).unwrap();
        for name in names {
            with_tree(&path, |tree| tree.create(name).map(drop));
        }
        path
    }

    fn with_tree<T>(
        path: &std::path::Path,
        act: impl FnOnce(&mut SnapshotTree<'_>) -> Result<T, snapshot::SnapshotError>,
    ) -> T {
        let cancel = AtomicBool::new(false);
        let work = Work {
            steps: &(),
            progress: &(),
            cancel: &cancel,
        };
        act(&mut SnapshotTree::open(path, work).unwrap()).unwrap()
    }

    fn open_count(disks: &[Arc<OnDemand>]) -> usize {
        disks.iter().filter(|disk| disk.open.lock().unwrap().is_some()).count()
    }

    #[test]
    fn so_many_are_open_at_once_and_each_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = disk(dir.path(), &["a", "b", "c", "d", "e"]);
        let shared = Arc::<SharedImages>::default();
        let all = OpenDisks::with_limit(OpenOptions::new().share(shared), 2);
        let listed = snapshots_beside(&path).unwrap();
        let disks: Vec<_> = listed
            .iter()
            .map(|it| OnDemand::new(path.clone(), it, &all).unwrap())
            .collect();
        assert_eq!(open_count(&disks), 2);
        for disk in disks.iter().chain(&disks) {
            disk.read_at(&mut [1; 512], SIZE - 512).unwrap();
            assert!(open_count(&disks) <= 2 && disk.open.lock().unwrap().is_some());
        }
        all.close_unused_for(Duration::ZERO);
        assert_eq!(open_count(&disks), 0);
        // Nothing is locked any more.
        HostFile::open(
            &path,
            vhd_core::storage::Access::ReadWrite,
            vhd_core::storage::Sharing::Exclusive,
        )
        .unwrap();
    }

    #[test]
    fn inv_72_a_snapshot_is_found_again_wherever_it_went_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = disk(dir.path(), &["a", "b", "c"]);
        let all = OpenDisks::with_limit(OpenOptions::new(), 8);
        let listed = snapshots_beside(&path).unwrap();
        let disks: Vec<_> = listed
            .iter()
            .map(|it| OnDemand::new(path.clone(), it, &all).unwrap())
            .collect();
        all.close_unused_for(Duration::ZERO);
        with_tree(&path, |tree| tree.rename("b", "a new name"));
        // What "b" has goes into the file of "a".
        with_tree(&path, |tree| tree.delete("a", false));
        let moved = snapshots_beside(&path).unwrap();
        assert_ne!(moved.first().map(|it| &it.path), listed.get(1).map(|it| &it.path));
        let read = |disk: &OnDemand| disk.read_at(&mut [0; 512], 0);
        assert!(matches!(read(&disks[0]), Err(DeviceError::Gone { .. })));
        read(&disks[1]).unwrap();
        read(&disks[2]).unwrap();
        all.close_unused_for(Duration::ZERO);
        // Another image under its name is not taken for it.
        std::fs::copy(&moved[1].path, &moved[0].path).unwrap();
        assert!(matches!(read(&disks[1]), Err(DeviceError::Gone { .. })));
    }
}
