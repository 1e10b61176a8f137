//! The images that are served. Every 4 KiB of a full disk begin with a stamp of their place.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use vhd_benches::BLOCK;
use vhd_core::chain::{OpenOptions, create_child};
use vhd_core::device::Disk;
use vhd_core::image::{Preallocate, create_dynamic, create_fixed};
use vhd_core::storage::StagedFile;

/// Bytes between two stamps.
pub(crate) const STAMPED: u64 = 4096;

/// Children of the chains.
const DEPTH: u32 = 8;

/// The leaf of a chain: a copy, since writes change it.
const SERVED: &str = "served.vhd";

/// What both chains are based on. An image of its own: one that has children is not written to.
const BASE: &str = "base.vhd";

/// Bytes of the empty disks.
const EMPTY: u64 = 32 << 30;

/// What the eight bytes at a stamped place are; never zero.
pub(crate) fn stamp(offset: u64) -> u64 {
    !offset
}

/// An image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Image {
    Raw,
    Fixed,
    Dynamic,
    /// Each child holds a tenth of the disk in whole blocks.
    Chain,
    /// Each child holds a tenth of the disk in scattered pieces of 64 KiB.
    Pieces,
    EmptyRaw,
    EmptyDynamic,
}

impl Image {
    pub(crate) fn is_empty(self) -> bool {
        matches!(self, Self::EmptyRaw | Self::EmptyDynamic)
    }

    pub(crate) fn is_raw(self) -> bool {
        matches!(self, Self::Raw | Self::EmptyRaw)
    }
}

/// The images, in a directory of their own.
pub(crate) struct Images<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) size: u64,
}

impl Images<'_> {
    /// The file that a server opens.
    pub(crate) fn path(&self, image: Image) -> PathBuf {
        match image {
            Image::Raw => self.dir.join("full.raw"),
            Image::Fixed => self.dir.join("fixed.vhd"),
            Image::Dynamic => self.dir.join("dynamic.vhd"),
            Image::Chain => self.dir.join("chain").join(SERVED),
            Image::Pieces => self.dir.join("pieces").join(SERVED),
            Image::EmptyRaw => self.dir.join("empty.raw"),
            Image::EmptyDynamic => self.dir.join("empty.vhd"),
        }
    }

    /// Makes all but the empty ones.
    pub(crate) fn build(&self) -> Result<()> {
        let raw = File::create(self.path(Image::Raw))?;
        stamped(0, self.size, |bytes, offset| Ok(raw.write_all_at(bytes, offset)?))?;
        let fixed = self.path(Image::Fixed);
        let staged = StagedFile::create_beside(&fixed)?;
        create_fixed(&*staged.storage(), self.size, Preallocate::Off)?;
        staged.publish(true, false)?;
        self.fill(&fixed)?;
        let dynamic = self.path(Image::Dynamic);
        create(&dynamic, self.size)?;
        self.fill(&dynamic)?;
        std::fs::copy(&dynamic, self.dir.join(BASE))?;
        self.chain(Image::Chain, BLOCK)?;
        self.chain(Image::Pieces, vhd_benches::SCATTERED)?;
        for dir in ["", "chain", "pieces"] {
            for entry in self.dir.join(dir).read_dir()? {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    warm(&entry.path())?;
                }
            }
        }
        Ok(())
    }

    /// Makes an empty image anew; writes back what an earlier server left of a full one, and brings back what is not in
    /// the page cache any more: a server that writes past it takes it away from the next.
    pub(crate) fn prepare(&self, image: Image) -> Result<()> {
        let path = self.path(image);
        match image {
            Image::EmptyRaw => Ok(File::create(path)?.set_len(EMPTY)?),
            Image::EmptyDynamic => create(&path, EMPTY),
            Image::Chain | Image::Pieces => {
                std::fs::copy(path.with_file_name(format!("child-{DEPTH}.vhd")), &path)?;
                warm(&path)?;
                read_through(&self.dir.join(BASE))
            }
            Image::Raw | Image::Fixed | Image::Dynamic => read_through(&path),
        }
    }

    fn fill(&self, image: &Path) -> Result<()> {
        write_to(image, |disk| {
            stamped(0, self.size, |bytes, offset| Ok(disk.write_at(bytes, offset)?))
        })
    }

    fn chain(&self, image: Image, piece: u64) -> Result<()> {
        let path = self.path(image);
        let dir = path.parent().unwrap_or(self.dir);
        std::fs::create_dir(dir)?;
        let mut random = fastrand::Rng::with_seed(7);
        let mut parent = self.dir.join(BASE);
        for level in 1..=DEPTH {
            let child = dir.join(format!("child-{level}.vhd"));
            create_child(&child, &parent, None, &OpenOptions::new())?;
            write_to(&child, |disk| {
                for _ in 0..self.size / piece / 10 {
                    let start = random.u64(0..self.size / piece) * piece;
                    stamped(start, piece, |bytes, offset| Ok(disk.write_at(bytes, offset)?))?;
                }
                Ok(())
            })?;
            parent = child;
        }
        Ok(())
    }
}

fn create(path: &Path, size: u64) -> Result<()> {
    let staged = StagedFile::create_beside(path)?;
    create_dynamic(&*staged.storage(), size, BLOCK)?;
    Ok(staged.publish(true, false)?)
}

fn write_to(image: &Path, write: impl FnOnce(&Disk) -> Result<()>) -> Result<()> {
    let opened = OpenOptions::new().write(true).open(image)?;
    write(&opened.disk())?;
    Ok(opened.close().map(drop)?)
}

/// Writes the bytes of a range, piece by piece.
fn stamped(start: u64, len: u64, mut write: impl FnMut(&[u8], u64) -> Result<()>) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut bytes: Vec<u8> = (0..len.min(BLOCK)).map(|_| random.u8(1..)).collect();
    for offset in (start..start + len).step_by(bytes.len()) {
        let mut at = offset;
        for part in bytes.chunks_mut(usize::try_from(STAMPED)?) {
            part[..8].copy_from_slice(&stamp(at).to_be_bytes());
            at += STAMPED;
        }
        write(&bytes, offset)?;
    }
    Ok(())
}

/// Brings a file into the page cache in small pages, as random requests would have done: the system's read-ahead makes
/// large ones, and then every small write costs 30 us, whoever serves it.
fn warm(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    read_through(path)
}

/// Reads a file from start to end, into small pages what is not there yet.
fn read_through(path: &Path) -> Result<()> {
    let mut file = File::open(path)?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random)?;
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}
