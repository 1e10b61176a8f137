//! A tree in use grows where its file system has no space, or its storage takes no more writes: real ones.

use std::fs::File;
use std::io::Write as _;

use super::grow::tree;
use super::*;
use crate::common::mounts::{EXT4, Kind, Mount, TMPFS, XFS};
use vhd_core::check::{Severity, check};
use vhd_core::device::DeviceError;
use vhd_core::ops::resize::{Resize, ResizeError};
use vhd_core::storage::{Access, HostFile, Sharing};

/// A table of 4 MiB for each of the three images, where one of a sector was.
const LARGE: u64 = 512 << 30;

/// A disk with two snapshots, in use, and all that it and its snapshots read.
struct Used {
    disk: PathBuf,
    device: LiveDevice,
    frozen: Vec<Arc<LiveDevice>>,
    content: Vec<Vec<u8>>,
}

impl Used {
    fn new(dir: &Path) -> Self {
        let disk = new_disk(dir, "vm.vhd");
        let device = live(&disk);
        let mut frozen = Vec::new();
        for (number, name) in (1..).zip(["one", "two"]) {
            // Two blocks, the first of which is in the way of a larger table.
            write_number(&device, 5 + usize_from(number), number);
            write_number(&device, 9000, number);
            frozen.push(take(&disk, &device, name).frozen);
        }
        write_number(&device, 5, 5);
        write_number(&device, 9000, 5);
        device.flush().unwrap();
        let mut used = Self {
            disk,
            device,
            frozen,
            content: Vec::new(),
        };
        used.content = used.read(8 * MIB);
        used
    }

    /// The start of the disk and of each snapshot.
    fn read(&self, len: u64) -> Vec<Vec<u8>> {
        let views = self.frozen.iter().map(|view| &**view as &dyn BlockDevice);
        let start_of = |device: &dyn BlockDevice| {
            let mut bytes = vec![0; usize_from(len)];
            device.read_at(&mut bytes, 0).unwrap();
            bytes
        };
        views.chain([&self.device as &dyn BlockDevice]).map(start_of).collect()
    }

    fn assert_same(&self, when: &str) {
        for (found, expected) in self.read(8 * MIB).iter().zip(&self.content) {
            assert_same(found, expected, when);
        }
    }

    fn grow(&self) -> Result<usize, ResizeError> {
        tree(&self.leaf(), LARGE).grow(&self.device, &())
    }

    fn leaf(&self) -> PathBuf {
        resolve(&self.disk, "now").unwrap()
    }

    /// The disk, all that it and its snapshots read, and what became of the close.
    fn close(self) -> (PathBuf, Vec<Vec<u8>>, Result<(), DeviceError>) {
        drop(self.frozen);
        (self.disk, self.content, self.device.close())
    }

    fn files(&self) -> Vec<PathBuf> {
        ["one", "two", "now"]
            .map(|name| resolve(&self.disk, name).unwrap())
            .into()
    }
}

/// INV-28, INV-47, INV-48: however little space there is, the tree grows or is as it was, and requests go on.
#[test]
fn inv_47_a_tree_in_use_that_finds_no_space_stays_as_it_was() {
    [EXT4, XFS, TMPFS].into_iter().for_each(grow_without_space);
}

fn grow_without_space(kind: Kind) {
    let dir = temp_dir();
    let Some(mount) = Mount::new(kind, dir.path(), "trees in use that find no space") else {
        return;
    };
    let (mut refused, mut grown) = (0, 0);
    for left in [0, 2, 3, 5, 6, 8, 10, 12, 24].map(|mib| mib * MIB) {
        let place = mount.dir.join(format!("{left}"));
        std::fs::create_dir(&place).unwrap();
        let used = Used::new(&place);
        mount.fill_up("filler", left);
        match used.grow() {
            Ok(files) => {
                assert_eq!(files, 3);
                grown += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
                assert!(!matches!(error, ResizeError::Stuck { .. }), "{error}");
                assert_eq!(used.device.size_bytes(), 8 * MIB);
                used.assert_same("after a failure");
                // What has its space is written as before.
                write_number(&used.device, 5, 5);
                used.device.flush().unwrap();
                refused += 1;
                std::fs::remove_file(mount.dir.join("filler")).unwrap();
                assert_eq!(used.grow().unwrap(), 3, "with space");
            }
        }
        assert_eq!(used.device.size_bytes(), LARGE);
        used.assert_same("in a larger disk");
        let files = used.files();
        let (disk, content, closed) = used.close();
        closed.unwrap();
        for file in &files {
            assert_sound(file);
        }
        assert_reads_start(&resolve(&disk, "now").unwrap(), &content[2]);
        std::fs::remove_dir_all(&place).unwrap();
        let _ = std::fs::remove_file(mount.dir.join("filler"));
    }
    assert!(
        refused >= 3 && grown >= 1,
        "{}: {refused} refused, {grown} grown",
        mount.kind.name
    );
}

fn assert_reads_start(image: &Path, expected: &[u8]) {
    let opened = open(image, false);
    let mut found = vec![0; expected.len()];
    opened.disk().read_at(&mut found, 0).unwrap();
    assert_same(&found, expected, &image.display().to_string());
}

/// Space that nothing uses may be left in it.
fn assert_sound(image: &Path) {
    let file = HostFile::open(image, Access::ReadOnly, Sharing::Unlocked).unwrap();
    let found = check(&file).unwrap();
    let worst = found.findings.iter().map(|finding| finding.severity).max();
    assert!(
        worst < Some(Severity::Repairable),
        "{}: {:?}",
        image.display(),
        found.findings
    );
}

/// INV-05, INV-28, INV-47: storage that promised more than it has refuses what was written when it is synced. Nobody can tell
/// then what a file holds: the disk goes on being read, nothing is written to it any more, and when the storage is mended
/// the same command finishes.
#[test]
fn inv_47_a_tree_in_use_on_storage_that_fails_is_read_from_then_on() {
    // In the flush before the pause, in the record, and in one file after the other.
    [0, 1, 2, 4, 6, 8, 10]
        .into_iter()
        .for_each(|mib| grow_on_failing_storage(mib * MIB));
}

fn grow_on_failing_storage(left: u64) {
    let dir = temp_dir();
    let untested = "trees in use on storage that fails";
    let Some(thin) = Mount::new(TMPFS, dir.path(), untested) else {
        return;
    };
    let Some(mount) = Mount::new(EXT4, &thin.dir, untested) else {
        return;
    };
    let used = Used::new(&mount.dir);
    rustix::fs::syncfs(File::open(&mount.dir).unwrap()).unwrap();
    thin.fill_up("filler", left);
    if left == 0 {
        // To the last byte.
        let mut rest = File::create(thin.dir.join("rest")).unwrap();
        while rest.write_all(&[1; 4096]).is_ok() {}
    }
    let error = used.grow().unwrap_err();
    eprintln!("storage that fails with {left} bytes: {error}");
    used.assert_same("after a failed sync");
    let refused = used.device.write_vectored_at(&[IoSlice::new(&[0; SECTOR])], 0, false);
    assert!(refused.is_err(), "it is read-only");
    used.assert_same("after a refused write");
    let (disk, content, _) = used.close();
    drop(mount);
    for filler in ["filler", "rest"] {
        let _ = std::fs::remove_file(thin.dir.join(filler));
    }
    let mount = Mount::again(EXT4, &thin.dir);
    let leaf = resolve(&disk, "now").unwrap();
    let options = OpenOptions::new();
    let again = tree(&leaf, LARGE);
    let resize = Resize::prepare(&again.request(&options), true).unwrap();
    assert_eq!(resize.plan().files.len(), 3);
    resize.run(&()).unwrap();
    for (name, content) in ["one", "two", "now"].iter().zip(&content) {
        let image = resolve(&disk, name).unwrap();
        assert_reads_start(&image, content);
        assert_sound(&image);
    }
    drop(mount);
}
