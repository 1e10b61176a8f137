//! A directory of small images whose identities are known, for targets whose input stands beside files.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use vhd_core::chain::OpenOptions;
use vhd_core::format::{DiskType, FOOTER_SIZE, Footer, Timestamp, UniqueId};
use vhd_core::image::{ParentLink, create_differencing, create_dynamic};
use vhd_core::storage::{MemoryFile, StorageFile};

/// Bytes of the disks.
pub const SIZE: u64 = 1 << 20;
const BLOCK: u64 = 512 << 10;
/// The identities: `01010101-...` is the base, 2 its child, 3 the child of that, 4 a fixed image, 5 a stranger.
pub const NAMES: [&str; 5] = ["base.vhd", "middle.avhd", "child.avhd", "fixed.vhd", "stranger.vhd"];

/// The files of a new lab, in the order of [`NAMES`].
fn files() -> &'static [Vec<u8>] {
    static FILES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    FILES.get_or_init(|| {
        let base = image(1, dynamic);
        let middle = image(2, |file| child(file, 1));
        let child = image(3, |file| child(file, 2));
        let content = [7; 64 << 10];
        let footer = Footer::new(DiskType::Fixed, content.len() as u64, id(4), Timestamp(1));
        let fixed = [&content[..], &footer.encode()].concat();
        let stranger = image(5, dynamic);
        vec![base, middle, child, fixed, stranger]
    })
}

fn id(number: u8) -> UniqueId {
    UniqueId([number; 16])
}

fn dynamic(file: &dyn StorageFile) {
    create_dynamic(file, SIZE, BLOCK).expect("the size is possible");
}

fn child(file: &dyn StorageFile, parent: u8) {
    let name = NAMES[usize::from(parent) - 1];
    let link = ParentLink {
        id: id(parent),
        modified: Timestamp(1),
        name: name.to_owned(),
        relative_path: format!(".\\{name}"),
        absolute_path: format!("C:\\{name}"),
    };
    create_differencing(file, SIZE, BLOCK, &link).expect("the size is possible");
}

/// An image with this identity.
fn image(number: u8, create: impl Fn(&dyn StorageFile)) -> Vec<u8> {
    let file = MemoryFile::new();
    create(&file);
    let mut bytes = file.to_vec();
    let end = bytes.len() - FOOTER_SIZE;
    let mut footer = Footer::decode(&bytes[end..]).expect("it was just made");
    footer.unique_id = id(number);
    footer.timestamp = Timestamp(1);
    bytes[end..].copy_from_slice(&footer.encode());
    bytes[..FOOTER_SIZE].copy_from_slice(&footer.encode());
    bytes
}

/// The directory, until it is dropped.
pub struct Lab(tempfile::TempDir);

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Lab {
    /// A new directory with all files.
    #[must_use]
    pub fn new() -> Self {
        let lab = Self(tempfile::tempdir().expect("there is a directory for temporary files"));
        for (name, bytes) in NAMES.iter().zip(files()) {
            lab.put(name, bytes);
        }
        lab
    }

    /// A path in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Puts a file there.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).expect("it can be written to");
    }

    /// What a disk reads, as far as all disks here reach; `None` if it can't be opened.
    #[must_use]
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        content_of(&self.path(name))
    }
}

/// What the first bytes of the disk at a path are; `None` if it can't be opened.
#[must_use]
pub fn content_of(path: &Path) -> Option<Vec<u8>> {
    let opened = OpenOptions::new().open(path).ok()?;
    let disk = opened.disk();
    let len = usize::try_from(disk.size().min(SIZE)).expect("SIZE fits");
    let mut bytes = vec![0; len];
    disk.read_at(&mut bytes, 0).expect("what opens can be read");
    Some(bytes)
}

/// A file in memory.
#[must_use]
pub fn memory(bytes: &[u8]) -> Arc<MemoryFile> {
    Arc::new(MemoryFile::from_bytes(bytes.to_vec()))
}
