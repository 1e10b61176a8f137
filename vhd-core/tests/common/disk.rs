//! Disks under test, and the model that says what they must read.

use std::path::Path;
use std::sync::Arc;

use super::rng::{Rng, chance, random_bytes};
use vhd_core::chain::{ImageFormat, OpenOptions, OpenedDisk};
use vhd_core::device::{ByteRange, Disk, Layer, LayeredDevice, ZeroOptions};
use vhd_core::format::UniqueId;
use vhd_core::image::{CreateError, Image, OpenError, OpenMode};
use vhd_core::storage::{Access, HostFile, MemoryFile, Sharing, StagedFile, StorageFile};
use vhd_core::units::{u64_from, usize_from};
pub(crate) use vhd_testkit::bytes::assert_same;
use vhd_testkit::bytes::is_zero;

const SECTOR: u64 = 512;

/// The disk of an image that needs no parent.
pub(crate) fn disk_in(file: Arc<dyn StorageFile>, mode: &OpenMode) -> Result<Disk, OpenError> {
    Ok(disk_of(Image::open(file, mode)?, Vec::new()))
}

pub(crate) fn disk_of(leaf: Image, ancestors: Vec<Layer>) -> Disk {
    Disk::new(Arc::new(LayeredDevice::new(leaf, ancestors)))
}

/// A layer for use below a leaf.
pub(crate) fn parent_layer(bytes: Vec<u8>) -> Layer {
    let file = Arc::new(MemoryFile::from_bytes(bytes));
    Layer::Vhd(Arc::new(Image::open(file, &OpenMode::read_only()).unwrap()))
}

pub(crate) fn read_all(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0x5A; usize_from(disk.size())];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// The disk at a path, whoever relies on it: tests change parents to see what becomes of their children.
pub(crate) fn open(path: &Path, write: bool) -> OpenedDisk {
    let opened = options_for(path).write(write).ignore_children(true).open(path);
    opened.unwrap_or_else(|error| panic!("{}: {error:?}", path.display()))
}

/// To open a file for writing: what is named as a raw disk is said to be one.
pub(crate) fn options_for(path: &Path) -> OpenOptions {
    let is_raw = path.extension().is_some_and(|extension| extension == "raw");
    OpenOptions::new().format(is_raw.then_some(ImageFormat::Raw))
}

/// The image in a file, without its parents and without a lock.
pub(crate) fn open_alone(path: &Path) -> Image {
    let file = HostFile::open(path, Access::ReadOnly, Sharing::Unlocked).unwrap();
    Image::open(Arc::new(file), &OpenMode::read_only()).unwrap()
}

/// The identity of the parent, as a child has it.
pub(crate) fn parent_id_of(path: &Path) -> UniqueId {
    open_alone(path).header().unwrap().parent_id
}

pub(crate) fn assert_reads(path: &Path, expected: &[u8]) {
    let disk = open(path, false).disk();
    assert_same(&read_all(&disk), expected, &path.display().to_string());
}

/// Creates an image under its name.
pub(crate) fn create<T>(path: &Path, write: impl FnOnce(&HostFile) -> Result<T, CreateError>) {
    let staged = StagedFile::create_beside(path).unwrap();
    write(&staged.storage()).unwrap();
    staged.publish(false, false).unwrap();
}

/// Opens the image for writing, does random things to disk and model, closes it.
pub(crate) fn write_session(path: &Path, model: &mut [u8], rng: &mut Rng, operations: usize) {
    let opened = open(path, true);
    for _ in 0..operations {
        random_operation(&opened.disk(), model, rng);
    }
    opened.close().unwrap();
}

/// Does one random thing to the disk and the same to the model.
pub(crate) fn random_operation(disk: &Disk, model: &mut [u8], rng: &mut Rng) {
    let range = random_range(model.len(), rng);
    let span = usize_from(range.start)..usize_from(range.end());
    match rng.u64(..10) {
        0 => {
            // Not aligned to anything: the rest of the sectors at the edges must stay.
            let at = rng.usize(..model.len());
            let len = 1 + rng.usize(..(model.len() - at).min(3000));
            let bytes = random_bytes(rng, len);
            disk.write_at(&bytes, u64_from(at)).unwrap();
            model[at..at + len].copy_from_slice(&bytes);
        }
        1..6 => {
            let bytes = random_bytes(rng, span.len());
            disk.write_at(&bytes, range.start).unwrap();
            model[span].copy_from_slice(&bytes);
        }
        6..8 => {
            let may_unmap = chance(rng, 50);
            let options = ZeroOptions {
                may_unmap,
                ..ZeroOptions::default()
            };
            disk.write_zeroes(range, options).unwrap();
            model[span].fill(0);
        }
        8 => {
            disk.discard(range).unwrap();
            take_discarded(disk, range, model);
        }
        _ => disk.flush().unwrap(),
    }
}

/// A range of sectors: mostly short, sometimes across blocks.
fn random_range(size: usize, rng: &mut Rng) -> ByteRange {
    let sectors = u64_from(size) / SECTOR;
    let longest = if chance(rng, 80) { 64 } else { 4096 };
    let start = rng.u64(..sectors);
    let count = 1 + rng.u64(..longest.min(sectors - start));
    ByteRange::new(start * SECTOR, count * SECTOR)
}

/// A discarded sector reads zero or as before, whatever the device chose: the model learns which.
pub(crate) fn take_discarded(disk: &Disk, range: ByteRange, model: &mut [u8]) {
    let before = &mut model[usize_from(range.start)..usize_from(range.end())];
    let mut after = vec![0x5A; before.len()];
    disk.read_at(&mut after, range.start).unwrap();
    for (sector, (before, after)) in before.chunks_mut(512).zip(after.chunks(512)).enumerate() {
        let zero = is_zero(after);
        assert!(zero || before == after, "discarded sector {sector} of {range:?}");
        before.copy_from_slice(after);
    }
}

/// Opens the image for writing over its parents, does random things to disk and model, closes it.
pub(crate) fn memory_session(
    file: &Arc<MemoryFile>,
    ancestors: Vec<Layer>,
    model: &mut [u8],
    rng: &mut Rng,
    operations: usize,
) {
    let image = Image::open(Arc::clone(file) as _, &OpenMode::read_write()).unwrap();
    let device = Arc::new(LayeredDevice::new(image, ancestors));
    let disk = Disk::new(Arc::clone(&device) as _);
    for _ in 0..operations {
        random_operation(&disk, model, rng);
    }
    assert_same(&read_all(&disk), model, "before closing");
    drop(disk);
    Arc::into_inner(device).expect("the only handle").close().unwrap();
}
