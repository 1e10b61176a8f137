//! Loss of power and failing files while layers below the leaf of a disk in use become one.

use super::delete::User;
use super::*;
use crate::support::any_parent;
use vhd_core::device::Layer;
use vhd_core::ops::Progress;
use vhd_core::ops::merge::{CopyMode, LayerCopy, MergeOptions};

/// Three files: a base, a frozen layer that is merged into it, and the leaf that is in use. The base and the leaf lose power
/// together; nobody writes to the layer between.
#[derive(Clone)]
struct Family {
    base: CrashFile,
    middle: CrashFile,
    leaf: CrashFile,
    /// What the layer reads over the base.
    frozen: Arc<Vec<u8>>,
    model: Arc<Mutex<CrashModel>>,
    /// The base has everything, durably: children may be pointed to it.
    complete: Arc<AtomicBool>,
    states: Arc<AtomicU64>,
    seed: u64,
}

fn image(file: &CrashFile, mode: &OpenMode) -> Image {
    Image::open(Arc::new(file.clone()), mode).unwrap()
}

fn layer(file: &CrashFile) -> Layer {
    Layer::Vhd(Arc::new(image(file, &OpenMode::read_only())))
}

fn disk(layers: &[&CrashFile]) -> LayeredDevice {
    let below = layers[1..].iter().map(|file| layer(file)).collect();
    LayeredDevice::new(image(layers[0], &OpenMode::read_only()), below)
}

impl Family {
    /// The two lower files are written by a script, durably.
    fn new(seed: u64, mut next: impl FnMut() -> Op) -> Self {
        let dynamic = Forge::dynamic(CRASH_SIZE, CRASH_BLOCK).build();
        let differencing = Forge::differencing(CRASH_SIZE, CRASH_BLOCK).build();
        let mut family = Self {
            base: CrashFile::from_bytes(&dynamic),
            middle: CrashFile::from_bytes(&differencing),
            leaf: CrashFile::from_bytes(&differencing),
            frozen: Arc::default(),
            model: Arc::new(Mutex::new(CrashModel::new(CRASH_SIZE))),
            complete: Arc::default(),
            states: Arc::default(),
            seed,
        };
        for (file, below) in [(&family.base, vec![]), (&family.middle, vec![layer(&family.base)])] {
            let device = LayeredDevice::new(image(file, &OpenMode::read_write()), below);
            for _ in 0..5 {
                let op = next();
                let begun = op.begin(&mut family.model());
                op.run(&device).unwrap();
                op.end(&mut family.model(), begun);
            }
            device.close().unwrap();
        }
        family.model().flushed();
        family.frozen = Arc::new(read_all(&disk(&[&family.middle, &family.base])));
        family
    }

    fn model(&self) -> MutexGuard<'_, CrashModel> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observe(&self) {
        for file in [&self.base, &self.leaf] {
            let looking = self.clone();
            file.set_observer(Some(Box::new(move |_| looking.look())));
        }
    }

    fn look(&self) {
        if thread::panicking() {
            return;
        }
        let limits = CrashLimits {
            exhaustive_bits: 2,
            random: 3,
            seed: mix(self.seed, self.states.load(Ordering::Relaxed)),
            newest_only: false,
        };
        let model = self.model();
        let leaves: Vec<_> = self.leaf.crash_states(&limits).collect();
        for base in self.base.crash_states(&limits) {
            for leaf in &leaves {
                self.states.fetch_add(1, Ordering::Relaxed);
                self.check(&base.file(), &leaf.file(), &model);
            }
        }
    }

    /// Each state reads right through the layer that goes, and without it as soon as a child may be pointed to the base.
    fn check(&self, base: &CrashFile, leaf: &CrashFile, model: &CrashModel) {
        let through = [leaf, &self.middle, base];
        let checked = model.check(&read_all(&disk(&through)));
        checked.unwrap_or_else(|violation| panic!("through the layer: {violation}"));
        assert_same(&read_all(&disk(&through[1..])), &self.frozen, "the snapshot");
        if self.complete.load(Ordering::SeqCst) {
            let checked = model.check(&read_all(&disk(&[leaf, base])));
            checked.unwrap_or_else(|violation| panic!("without the layer: {violation}"));
            assert_same(
                &read_all(&disk(&[base])),
                &self.frozen,
                "the snapshot in the base's file",
            );
        } else {
            let parent = image(leaf, &OpenMode::read_only()).header().unwrap().parent_id;
            assert_ne!(parent, any_parent().id, "pointed to a base that is not complete");
        }
    }

    fn apply(&self, device: &LiveDevice, op: Op) {
        let begun = op.begin(&mut self.model());
        op.run(device).unwrap();
        op.end(&mut self.model(), begun);
        self.look();
    }

    fn copy(&self, progress: &dyn Progress) {
        let target = LayeredDevice::new(image(&self.base, &OpenMode::read_write()), Vec::new());
        let target = Arc::new(target);
        let disk = Disk::new(Arc::clone(&target) as _);
        let copy = LayerCopy {
            sources: &[layer(&self.middle)],
            paths: &["middle".into()],
            target: &disk,
            target_path: "base".as_ref(),
            mode: CopyMode::Write,
            options: &MergeOptions {
                cancel: &GO_ON,
                threads: 1,
                batch_bytes: 2048,
            },
            progress,
        };
        copy.run(0, &mut |_| Ok(())).unwrap();
        drop(disk);
        Arc::into_inner(target).unwrap().close().unwrap();
    }
}

/// A user who goes on while sectors are copied.
struct Meanwhile<F>(F);

impl<F: Fn() + Sync> Progress for Meanwhile<F> {
    fn begin(&self, _total: u64) {}

    fn advance(&self, _bytes: u64) {
        (self.0)();
    }
}

/// INV-73, INV-74 in every state that a loss of power can leave of the base and the leaf together.
#[test]
fn inv_73_74_power_fails_while_layers_become_one() {
    let mut states = 0;
    for round in 0..rounds(6) {
        let geometry = Geometry::new(CRASH_SIZE, CRASH_BLOCK.into());
        let script = Workload::new(mix(0x73CE, round), geometry).filter(|op| *op != Op::Reopen);
        let script = Mutex::new(script);
        let next = || script.lock().unwrap().next().unwrap();
        let family = Family::new(mix(0x73CF, round), next);
        let middle = Arc::new(image(&family.middle, &OpenMode::read_only()));
        let below = vec![Layer::Vhd(Arc::clone(&middle)), layer(&family.base)];
        let device = LayeredDevice::new(image(&family.leaf, &OpenMode::read_write()), below);
        let device = LiveDevice::new(Arc::new(device));
        let view = device.view(1).unwrap();
        family.observe();
        (0..5).for_each(|_| family.apply(&device, next()));
        family.copy(&Meanwhile(|| {
            family.apply(&device, next());
            assert_same(&read_all(&*view), &family.frozen, "the snapshot as it is open");
        }));
        family.complete.store(true, Ordering::SeqCst);
        family.look();
        (0..usize_from(round % 3)).for_each(|_| family.apply(&device, next()));
        device.point_leaf(any_parent()).unwrap();
        family.model().flushed();
        family.look();
        (0..usize_from(round % 4)).for_each(|_| family.apply(&device, next()));
        assert!(device.join_layers(&middle, 2, &layer(&family.base)));
        assert_eq!(device.present().layers().len(), 2);
        assert_same(&read_all(&*view), &family.frozen, "the snapshot as it is open");
        (0..5).for_each(|_| family.apply(&device, next()));
        device.close().unwrap();
        family.model().flushed();
        family.look();
        family.base.set_observer(None);
        family.leaf.set_observer(None);
        let leaf = image(&family.leaf, &OpenMode::read_only());
        assert_eq!(leaf.header().unwrap().parent_id, any_parent().id);
        states += family.states.load(Ordering::Relaxed);
    }
    announce(&format!(
        "crash states of a base that a layer is merged into and a leaf in use: {states}, 0 violations"
    ));
}

/// INV-74: each operation on the leaf's file fails in turn while the leaf is pointed to another parent. What was flushed is
/// there, the file is an image at every moment, and no flush succeeds after one that failed for good.
#[test]
fn inv_74_each_operation_fails_while_a_leaf_is_pointed() {
    let pointed = AtomicU64::new(0);
    let struck = each_operation_fails(Fault::nth, |control, _| {
        let base = MemoryFile::from_bytes(Forge::dynamic(CRASH_SIZE, CRASH_BLOCK).build());
        let base = Arc::new(Image::open(Arc::new(base), &OpenMode::read_only()).unwrap());
        let leaf = Forge::differencing(CRASH_SIZE, CRASH_BLOCK).build();
        let leaf = Arc::new(FaultFile::new(MemoryFile::from_bytes(leaf)));
        let faulty = FaultFile::with_control(Shared(Arc::clone(&leaf)), control);
        let mut user = User::new();
        if let Ok(image) = Image::open(Arc::new(faulty), &OpenMode::read_write()) {
            let device = LayeredDevice::new(image, vec![Layer::Vhd(Arc::clone(&base))]);
            let device = LiveDevice::new(Arc::new(device));
            let write = |offset, fill| Op::Write {
                offset,
                len: 1024,
                fill,
            };
            let ops = [write(0, 1), write(4096, 2), Op::Flush, write(1024, 3)];
            ops.iter().for_each(|op| user.run(&device, op));
            if device.point_leaf(any_parent()).is_ok() {
                pointed.fetch_add(1, Ordering::SeqCst);
            }
            let ops = [write(512, 5), write(8192, 6), Op::Flush, write(512, 7), Op::Flush];
            ops.iter().for_each(|op| user.run(&device, op));
        }
        control.heal();
        let mut bytes = vec![0; usize_from(leaf.inner().len().unwrap())];
        leaf.inner().read_exact_at(&mut bytes, 0).unwrap();
        let found = Image::open(Arc::new(MemoryFile::from_bytes(bytes)), &OpenMode::read_only()).unwrap();
        let device = LayeredDevice::new(found, vec![Layer::Vhd(base)]);
        let checked = user.model.check(&read_all(&device));
        checked.unwrap_or_else(|violation| panic!("{violation}"));
    });
    announce(&format!(
        "operations that failed while a leaf was pointed to another parent: {struck}"
    ));
    assert!(struck > 20 && pointed.into_inner() > 0);
}
