//! What was read of each image: digests, and what is stored where; and when.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;
use vhd_core::chain::{OpenOptions, OpenedDisk};
use vhd_core::device::{ByteRange, ExtentKind};
use vhd_core::ops;
use vhd_core::storage::{Access, HostFile, Sharing, StorageFile as _};
use vhd_core::units::u64_from;

use crate::diagnosis::Diagnosis;
use crate::failure::Failure;
use crate::human;
use crate::output::path_text;
use crate::progress::ProgressArgs;

/// Cells of a map.
pub(super) const CELLS: u64 = 256;

/// What was read below a directory.
pub(super) struct Evidence {
    pub(super) directory: PathBuf,
    pub(super) begun: Timestamp,
    /// What was done, and when.
    pub(super) log: Vec<(Timestamp, String)>,
    /// By member of the forest.
    pub(super) images: Vec<ImageEvidence>,
}

/// What was read of an image.
#[derive(Default, Serialize)]
pub(super) struct ImageEvidence {
    pub(super) path: String,
    /// Of the bytes of its file.
    pub(super) file_sha256: Option<String>,
    pub(super) file_size: u64,
    /// Of the disk as a guest sees it, of an image that no other one here is based on.
    pub(super) disk_sha256: Option<String>,
    pub(super) disk_size: Option<u64>,
    /// For each part of the disk the depth of the layer that stores most of it; 0 is the image itself.
    #[serde(skip)]
    pub(super) map: Vec<Option<u32>>,
    /// Why something is missing.
    pub(super) not_read: Option<String>,
}

impl Evidence {
    /// Nothing has been read.
    pub(super) fn begin(directory: PathBuf) -> Self {
        let begun = Timestamp::now();
        let absolute = directory.canonicalize().unwrap_or(directory);
        Self {
            log: vec![(begun, format!("began with {}", path_text(&absolute)))],
            directory: absolute,
            begun,
            images: Vec::new(),
        }
    }

    /// The images are known and checked.
    pub(super) fn scanned(&mut self, diagnosis: &Diagnosis) {
        let images = human::count(u64_from(diagnosis.forest.members().len()), "image");
        self.note(format!("found and checked {images}"));
    }

    fn note(&mut self, what: String) {
        self.log.push((Timestamp::now(), what));
    }

    /// Reads every image. What can't be read is part of the result.
    pub(super) fn collect(&mut self, diagnosis: &Diagnosis, digests: bool, progress: ProgressArgs) {
        for (index, member) in diagnosis.forest.members().iter().enumerate() {
            let mut image = ImageEvidence {
                path: diagnosis.tree.files[index].path.clone(),
                file_size: member.file_size,
                ..ImageEvidence::default()
            };
            let is_leaf = diagnosis.forest.children(index).is_empty();
            if let Err(failure) = self.read(&mut image, &member.path, digests, is_leaf, progress) {
                image.not_read = Some(failure.message().to_owned());
                self.note(format!("could not read {}: {}", image.path, failure.message()));
            }
            self.images.push(image);
        }
        self.note("done".to_owned());
    }

    fn read(
        &mut self,
        image: &mut ImageEvidence,
        path: &Path,
        digests: bool,
        is_leaf: bool,
        progress: ProgressArgs,
    ) -> Result<(), Failure> {
        if digests {
            // Under the lock of a reader: nobody writes to it meanwhile.
            let file = HostFile::open(path, Access::ReadOnly, Sharing::Exclusive)?;
            let reporter = progress.reporter("hashing");
            let digest = ops::sha256_of_file(&file, &reporter);
            let digest = digest.map_err(|error| Failure::io("read", path, &error))?;
            drop(reporter);
            image.file_size = file.len().map_err(|error| Failure::io("read", path, &error))?;
            let digest = image.file_sha256.insert(hexadecimal(&digest)).clone();
            self.note(format!("SHA-256 of the file {}: {digest}", image.path));
        }
        let opened = OpenOptions::new().foreign(true).open(path)?;
        image.disk_size = Some(opened.disk().size());
        image.map = map_of(&opened)?;
        self.note(format!("read the map of {}", image.path));
        if digests && is_leaf {
            let reporter = progress.reporter("hashing");
            let digest = ops::sha256(&opened.disk(), &reporter)?;
            drop(reporter);
            let digest = image.disk_sha256.insert(hexadecimal(&digest)).clone();
            self.note(format!("SHA-256 of the disk {}: {digest}", image.path));
        }
        Ok(())
    }
}

fn hexadecimal(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// For each of the parts of a disk the layer that stores most of what is stored there.
fn map_of(opened: &OpenedDisk) -> Result<Vec<Option<u32>>, Failure> {
    let disk = opened.disk();
    let cell = disk.size().div_ceil(CELLS).max(1);
    let mut most: Vec<Option<(u32, u64)>> = vec![None; usize::try_from(CELLS).unwrap_or_default()];
    disk.extents(ByteRange::new(0, disk.size()), &mut |extent| {
        if extent.kind != ExtentKind::Data {
            return ControlFlow::Continue(());
        }
        let (start, end) = (extent.range.start, extent.range.start + extent.range.len);
        for index in start / cell..=(end - 1) / cell {
            let here = end.min((index + 1) * cell) - start.max(index * cell);
            let Some(entry) = usize::try_from(index).ok().and_then(|index| most.get_mut(index)) else {
                break;
            };
            *entry = match *entry {
                Some((depth, bytes)) if depth == extent.depth => Some((depth, bytes + here)),
                Some((depth, bytes)) if bytes >= here => Some((depth, bytes)),
                _ => Some((extent.depth, here)),
            };
        }
        ControlFlow::Continue(())
    })?;
    Ok(most.into_iter().map(|entry| entry.map(|(depth, _)| depth)).collect())
}
