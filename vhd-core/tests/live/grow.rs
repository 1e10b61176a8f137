//! A disk in use becomes larger together with all images of its tree, under writers, and for all who read its snapshots.

use super::delete::{content_of, delete, files_in};
use super::*;
use vhd_core::chain::create_child;
use vhd_core::ops::Progress;
use vhd_core::ops::resize::{Request, Resize, ResizeError, plan_in_use, resize_in_use};

pub(super) struct Wanted<'a> {
    image: &'a Path,
    size: u64,
    tree: bool,
}

impl Wanted<'_> {
    pub(super) fn request<'a>(&'a self, options: &'a OpenOptions) -> Request<'a> {
        Request {
            image: self.image,
            size: self.size,
            shrink: true,
            tree: self.tree,
            fix_gpt: false,
            options,
            cancel: &GO_ON,
        }
    }

    pub(super) fn grow(&self, device: &LiveDevice, progress: &dyn Progress) -> Result<usize, ResizeError> {
        let options = OpenOptions::new();
        let request = self.request(&options);
        let planned = plan_in_use(&request, device)?;
        let report = resize_in_use(&request, device, progress)?;
        assert_eq!(planned.files.len(), report.plan.files.len());
        Ok(report.plan.files.len())
    }
}

pub(super) fn tree(image: &Path, size: u64) -> Wanted<'_> {
    Wanted {
        image,
        size,
        tree: true,
    }
}

/// Each with what it held, and zeroes behind that.
fn assert_grown(found: &[u8], former: &[u8], size: u64, what: &str) {
    assert_eq!(u64_from(found.len()), size, "{what}");
    let (same, new) = found.split_at(former.len());
    assert_same(same, former, what);
    assert!(new.iter().all(|byte| *byte == 0), "{what}: what is new reads zero");
}

/// INV-47: writers and readers go on, everything reads what it read, and all images of the tree have one size.
#[test]
fn inv_47_a_tree_grows_under_writers_and_readers() {
    const THREADS: usize = 2;
    let dir = temp_dir();
    let disk = new_disk(dir.path(), "vm.vhd");
    let device = live(&disk);
    write_number(&device, 15_000, 1);
    let mut kept = Vec::new();
    for name in ["one", "two"] {
        let created = take(&disk, &device, name);
        kept.push((name, bytes_of(&*created.frozen), created.frozen));
        write_number(&device, 15_001, 2);
    }
    // A branch that nobody uses.
    let clone = dir.path().join("clone.vhd");
    create_child(&clone, &disk, None, &OpenOptions::new()).unwrap();
    let branch = open(&clone, true);
    write_number(&**branch.chain().unwrap(), 14_000, 7);
    branch.close().unwrap();
    let of_clone = content_of(&clone);
    let mark = device.mark(1).unwrap();
    // Larger tables at each step: in the last one they don't fit where they are, and blocks move.
    let sizes = [9 * MIB, 64 * MIB, 4096 * MIB];
    beside_writers(&device, THREADS, || {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let _stop = StopOnDrop(&over);
            for (_, content, view) in &kept {
                let over = &over;
                scope.spawn(move || {
                    let mut bytes = vec![0; content.len()];
                    while !over.load(Ordering::Relaxed) {
                        view.read_at(&mut bytes, 0).unwrap();
                        assert_same(&bytes, content, "a snapshot that is read meanwhile");
                    }
                });
            }
            for (size, image) in sizes.into_iter().zip([&disk, &clone, &disk]) {
                thread::sleep(std::time::Duration::from_millis(5));
                assert_eq!(tree(image, size).grow(&device, &()).unwrap(), 4);
                assert_eq!(device.size_bytes(), size);
                assert_eq!(tree(image, size).grow(&device, &()).unwrap(), 0, "it has that size");
                write_number(&device, usize_from(size) / SECTOR - 1, 9);
            }
        });
    });
    let size = sizes[2];
    assert_eq!(mark.depth_in(&device.present()), Some(1), "the mark is on the layer");
    let head = |device: &dyn BlockDevice| {
        let mut bytes = vec![0; 64 << 20];
        device.read_at(&mut bytes, 0).unwrap();
        bytes
    };
    let now = head(&device);
    for (name, content, view) in &kept {
        assert_eq!(view.size_bytes(), size, "{name}");
        assert_grown(&head(&**view), content, 64 * MIB, name);
        assert_grown(
            &head(&**open(&resolve(&disk, name).unwrap(), false).chain().unwrap()),
            content,
            64 * MIB,
            name,
        );
    }
    assert_grown(
        &head(&**open(&clone, false).chain().unwrap()),
        &of_clone,
        64 * MIB,
        "the branch",
    );
    std::fs::remove_file(&clone).unwrap();
    kept.clear();
    // All locks are as they were: snapshots come and go.
    for name in ["two", "one"] {
        let settled = delete(&disk, &device, name).unwrap();
        assert_eq!((settled.merged.len(), settled.waiting.len()), (1, 0), "{settled:?}");
    }
    assert_eq!(files_in(dir.path()), ["vm.vhd"]);
    device.close().unwrap();
    let opened = open(&disk, true);
    assert_eq!((opened.disk().size(), opened.warnings().len()), (size, 0));
    assert_same(&head(&**opened.chain().unwrap()), &now, "the disk");
}

/// Copies the directory while requests are held.
struct Watching<'a>(Copying<'a>);

impl Progress for Watching<'_> {
    fn begin(&self, _total: u64) {
        self.0.done("announced");
    }

    fn advance(&self, _bytes: u64) {
        self.0.done("a file is larger");
    }
}

/// INV-28 for a disk in use: killed between any two files, each disk reads what it read, and the same command finishes.
#[test]
fn inv_28_killed_while_a_tree_in_use_grows_the_same_command_finishes() {
    let (dir, copies) = (temp_dir(), temp_dir());
    let disk = new_disk(dir.path(), "vm.vhd");
    let device = live(&disk);
    for (number, name) in (1..).zip(["one", "two"]) {
        write_number(&device, 5 + usize_from(number), number);
        drop(take(&disk, &device, name));
    }
    write_number(&device, 5, 5);
    device.flush().unwrap();
    let now = bytes_of(&device);
    let size = 16 * MIB;
    let found = {
        let watching = Watching(Copying::new(dir.path(), copies.path(), |_| ()));
        assert_eq!(tree(&disk, size).grow(&device, &watching).unwrap(), 3);
        watching.0.copies.into_inner().unwrap()
    };
    assert_eq!(found.len(), 4);
    for (at, (_, copy)) in found.iter().enumerate() {
        let disk = copy.join("vm.vhd");
        let active = resolve(&disk, "now").unwrap();
        let read = content_of(&active);
        assert_same(&read[..now.len()], &now, &format!("after {at} files"));
        assert_eq!(
            OpenOptions::new().write(true).open(&active).unwrap_err().kind(),
            ErrorKind::JobPending
        );
        let options = OpenOptions::new();
        let again = tree(&active, size);
        let resize = Resize::prepare(&again.request(&options), true).unwrap();
        assert!(resize.plan().resumed);
        resize.run(&()).unwrap();
        assert_grown(&content_of(&active), &now, size, "after the same command");
        assert_eq!(files_in(copy).len(), 4, "{:?}", files_in(copy));
        open(&active, true).close().unwrap();
    }
    assert_grown(&bytes_of(&device), &now, size, "the disk in use");
    device.close().unwrap();
}

/// What can't be done now is refused, and nothing changes; a failure while requests are held lets everybody go on too.
#[test]
fn a_tree_in_use_that_can_not_grow_stays_as_it_is() {
    let dir = temp_dir();
    let disk = new_disk(dir.path(), "vm.vhd");
    let device = live(&disk);
    let created = take(&disk, &device, "one");
    let active = created.created.active.clone();
    let clone = dir.path().join("clone.vhd");
    create_child(&clone, &disk, None, &OpenOptions::new()).unwrap();
    write_number(&device, 1, 1);
    device.flush().unwrap();
    let before = (files_in(dir.path()), bytes_of(&device));
    let refused = |wanted: Wanted<'_>, kind: ErrorKind| {
        let error = wanted.grow(&device, &()).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(
            (files_in(dir.path()), device.size_bytes()),
            (before.0.clone(), 8 * MIB),
            "{error}"
        );
        assert_same(&bytes_of(&device), &before.1, &error.to_string());
        write_number(&device, 1, 1);
        device.flush().unwrap();
    };
    let alone = Wanted {
        image: &active,
        size: 16 * MIB,
        tree: false,
    };
    refused(alone, ErrorKind::TiedSizes);
    refused(tree(&active, 4 * MIB), ErrorKind::InUse);
    let other = new_disk(dir.path(), "other.vhd");
    let stranger = tree(&other, 16 * MIB).grow(&device, &()).unwrap_err();
    assert_eq!(stranger.kind(), ErrorKind::InUse, "{stranger}");
    std::fs::remove_file(&other).unwrap();
    // Somebody else reads a branch, or a layer.
    for image in [&clone, &disk] {
        let reader = open(image, false);
        let error = tree(&active, 16 * MIB).grow(&device, &()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
        drop(reader);
    }
    // A machine is saved with a branch, which is found when requests are held.
    let bytes = std::fs::read(&clone).unwrap();
    set_saved_state(&clone, bytes.len());
    let options = OpenOptions::new();
    let wanted = tree(&active, 16 * MIB);
    let error = resize_in_use(&wanted.request(&options), &device, &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SavedState, "{error}");
    std::fs::write(&clone, &bytes).unwrap();
    assert_same(&bytes_of(&device), &before.1, "after a failure");
    assert_eq!(tree(&active, 16 * MIB).grow(&device, &()).unwrap(), 3);
    assert_eq!(created.frozen.size_bytes(), 16 * MIB);
    device.close().unwrap();
}

/// Sets the flag in both footers, with the right checksums.
fn set_saved_state(image: &Path, len: usize) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::options().read(true).write(true).open(image).unwrap();
    for at in [0, u64_from(len - 512)] {
        let mut footer = [0; 512];
        file.read_exact_at(&mut footer, at).unwrap();
        footer[84] = 1;
        footer[64..68].fill(0);
        let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
        footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
        file.write_all_at(&footer, at).unwrap();
    }
}
