//! The disks that the measurements run on, each beside the raw file it is compared with.
#![forbid(unsafe_code)]

mod arguments;
pub mod running;

use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub use arguments::Arguments;

use anyhow::Result;
use vhd_core::chain::{OpenOptions, OpenedDisk, create_child};
use vhd_core::device::{ByteRange, Disk};
use vhd_core::image::create_dynamic;
use vhd_core::storage::StagedFile;

/// Bytes per request.
pub const REQUEST: usize = 4096;

/// Bytes of a block.
pub const BLOCK: u64 = 2 << 20;

/// Bytes of the pieces that scattered writes leave in a child.
pub const SCATTERED: u64 = 64 << 10;

/// A disk in a directory of its own, which goes with it.
pub struct Bench {
    dir: tempfile::TempDir,
    size: u64,
}

impl Bench {
    /// A place for disks of `size` bytes below `parent`, which should be on the file system to be measured.
    pub fn new(parent: &Path, size: u64) -> Result<Self> {
        Ok(Self {
            dir: tempfile::tempdir_in(parent)?,
            size,
        })
    }

    /// Bytes of the disks.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Brings every disk made so far into the page cache in the same way.
    pub fn warm(&self) -> Result<()> {
        warm(self.dir.path())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A raw file full of random bytes.
    pub fn raw_full(&self) -> Result<File> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.path("full.raw"))?;
        fill(self.size, |bytes, offset| Ok(file.write_all_at(bytes, offset)?))?;
        file.sync_all()?;
        Ok(file)
    }

    /// A raw file without a single block.
    pub fn raw_sparse(&self) -> Result<File> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.path("sparse.raw"))?;
        file.set_len(self.size)?;
        Ok(file)
    }

    /// An empty dynamic image, open for writing.
    pub fn dynamic_empty(&self) -> Result<Disk> {
        self.create_dynamic("empty.vhd")?;
        Ok(OpenOptions::new().write(true).open(&self.path("empty.vhd"))?.disk())
    }

    /// A dynamic image with every block allocated, open for writing.
    pub fn dynamic_full(&self) -> Result<Disk> {
        self.create_dynamic("full.vhd")?;
        let disk = OpenOptions::new().write(true).open(&self.path("full.vhd"))?.disk();
        fill(self.size, |bytes, offset| Ok(disk.write_at(bytes, offset)?))?;
        disk.flush()?;
        Ok(disk)
    }

    /// A chain of `depth` children over a full dynamic image; each holds a tenth of the disk in scattered pieces of
    /// `piece` bytes. Open for reading.
    pub fn chain(&self, depth: u32, piece: u64, random: &mut fastrand::Rng) -> Result<OpenedDisk> {
        drop(self.dynamic_full()?);
        let mut leaf = self.path("full.vhd");
        for level in 1..=depth {
            let child = self.path(&format!("child-{level}.vhd"));
            let _ = std::fs::remove_file(&child);
            create_child(&child, &leaf, None, &OpenOptions::new())?;
            let disk = OpenOptions::new().write(true).open(&child)?.disk();
            let pieces = self.size / piece;
            let bytes: Vec<u8> = (0..piece).map(|_| random.u8(..)).collect();
            for _ in 0..pieces / 10 {
                disk.write_at(&bytes, random.u64(0..pieces) * piece)?;
            }
            disk.flush()?;
            leaf = child;
        }
        Ok(OpenOptions::new().open(&leaf)?)
    }

    fn create_dynamic(&self, name: &str) -> Result<()> {
        let staged = StagedFile::create_beside(&self.path(name))?;
        create_dynamic(&*staged.storage(), self.size, BLOCK)?;
        Ok(staged.publish(true, false)?)
    }
}

/// Brings every file of the directory into the page cache in the same way, by reading it from start to end:
/// how a file was written decides how the cache holds it, and would be measured otherwise.
fn warm(dir: &Path) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    for entry in dir.read_dir()? {
        let mut file = File::open(entry?.path())?;
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        while file.read(&mut buffer)? > 0 {}
    }
    Ok(())
}

fn fill(size: u64, mut write: impl FnMut(&[u8], u64) -> Result<()>) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(1);
    let bytes: Vec<u8> = (0..BLOCK).map(|_| random.u8(1..)).collect();
    for offset in (0..size).step_by(usize::try_from(BLOCK)?) {
        write(&bytes, offset)?;
    }
    Ok(())
}

/// Where the requests at `offsets` find their bytes: the layer and the offset in its file. Requests that lie in
/// several places are left out, in `offsets` too.
pub fn places(opened: &OpenedDisk, offsets: &mut Vec<u64>) -> Result<Vec<(u32, u64)>> {
    let disk = opened.disk();
    let request = u64::try_from(REQUEST)?;
    let mut places = Vec::with_capacity(offsets.len());
    let mut failed = None;
    offsets.retain(|&offset| {
        let mut found = None;
        let walked = disk.extents(ByteRange::new(offset, request), &mut |extent| {
            found = extent
                .file_offset
                .filter(|_| extent.range.len == request)
                .map(|at| (extent.depth, at));
            ControlFlow::Break(())
        });
        failed = failed.take().or(walked.err());
        places.extend(found);
        found.is_some()
    });
    failed.map_or(Ok(places), |error| Err(error.into()))
}

/// `count` request offsets all over a disk of `size` bytes.
#[must_use]
pub fn random_offsets(size: u64, count: usize, random: &mut fastrand::Rng) -> Vec<u64> {
    let request = u64::try_from(REQUEST).unwrap_or(u64::MAX);
    (0..count).map(|_| random.u64(0..size / request) * request).collect()
}

/// Median (of an even number: the mean of the two in the middle), minimum, maximum.
#[must_use]
pub fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let (Some(&min), Some(&max)) = (values.first(), values.last()) else {
        return (f64::NAN, f64::NAN, f64::NAN);
    };
    let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
    (f64::midpoint(low, high), min, max)
}

/// One request offset in each block of a disk of `size` bytes, in random order.
#[must_use]
pub fn one_offset_per_block(size: u64, random: &mut fastrand::Rng) -> Vec<u64> {
    let request = u64::try_from(REQUEST).unwrap_or(u64::MAX);
    let mut offsets: Vec<u64> = (0..size / BLOCK)
        .map(|block| block * BLOCK + random.u64(0..BLOCK / request) * request)
        .collect();
    random.shuffle(&mut offsets);
    offsets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_has_as_many_above_as_below() {
        assert_eq!(spread(vec![9.0, 1.0, 2.0]), (2.0, 1.0, 9.0));
        assert_eq!(spread(vec![9.0, 1.0, 4.0, 2.0]), (3.0, 1.0, 9.0));
    }
}
