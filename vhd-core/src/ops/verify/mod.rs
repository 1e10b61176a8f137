//! Whether an ancestor changed since its digests were recorded. A parent that is written after its child was made
//! corrupts every child in silence; nothing in the images themselves tells.
//!
//! ```text
//!   content.rs   what one layer holds in 2 MiB of the disk, as a digest      pure
//!   scan.rs      the content of a whole layer, in order, by several threads  reads only
//!   sidecar.rs   `<file name>.digest`: bytes <-> runs of contents            hostile input
//!   compare.rs   a record against the layer as it is now                     reads only
//! ```
//!
//! Digests are of the layer's own content, not of what the chain reads: so a change is attributed to the file that
//! changed. docs/adr/0015 has the reasons, docs/verify.md the format.

mod compare;
mod content;
mod error;
mod scan;
mod sidecar;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use content::DIGEST_BLOCK;
pub use error::VerifyError;

use super::Progress;
use crate::chain::{ChainLayer, OpenedDisk};
use crate::device::ByteRange;
use crate::format::Timestamp;
use crate::storage::{Access, HostFile, Sharing, StagedFile, StorageError, beside};
use compare::Changes;
use content::Content;
use error::Doing;
use sidecar::{Record, RecordHeader, RecordWriter};

/// How digests are made and verified.
#[derive(Clone, Copy)]
pub struct VerifyOptions<'a> {
    /// Set by another thread: the work ends with [`VerifyError::Cancelled`], and nothing is changed.
    pub cancel: &'a AtomicBool,
    /// Threads that read and digest; 0 for as many as are useful.
    pub threads: usize,
    /// Trust a file whose length and modification time are those of the record, and do not read it.
    pub fast: bool,
}

impl VerifyOptions<'_> {
    fn check_cancelled(&self) -> Result<(), VerifyError> {
        match self.cancel.load(Ordering::Relaxed) {
            true => Err(VerifyError::Cancelled),
            false => Ok(()),
        }
    }
}

/// What [`record`] wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordReport {
    /// Bytes of the record.
    pub record_bytes: u64,
    /// Bytes of the disk in blocks that hold something; the others were not read.
    pub stored_bytes: u64,
}

/// What became of a layer since its record was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is no record beside the file: nothing is known.
    NoRecord,
    /// Every digest is as recorded.
    Unchanged,
    /// The file has the recorded length and modification time. It was not read.
    Presumed,
    /// Something is not as recorded.
    Changed,
}

/// What [`verify`] found of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerReport {
    /// What became of it.
    pub verdict: Verdict,
    /// When the record was made; `None` without one.
    pub recorded: Option<Timestamp>,
    /// Bytes of the disk in blocks that changed.
    pub changed_bytes: u64,
}

/// Where the record of an image is: beside the file that the path leads to, `<file name>.digest`.
#[must_use]
pub fn record_path(image: &Path) -> PathBuf {
    // A symbolic link leads to the record that the file itself has.
    let file = match image.is_symlink() {
        true => std::fs::canonicalize(image).unwrap_or_else(|_| image.to_owned()),
        false => image.to_owned(),
    };
    beside(&file, ".digest")
}

/// Digests what a layer of an open disk holds, and writes the record beside its file, durable before it gets its
/// name. With `replace` an old record is replaced in one step.
///
/// The layer must not change meanwhile: open the disk for reading, with its locks.
///
/// # Errors
/// `Exists` if there is a record and `replace` is false; [`VerifyError::Changing`] if the file was written to
/// while it was read. On any error the old record, or none, is there as before.
pub fn record(
    layer: ChainLayer<'_>,
    replace: bool,
    options: &VerifyOptions<'_>,
    progress: &dyn Progress,
) -> Result<RecordReport, VerifyError> {
    let target = record_path(layer.path);
    if !replace && target.symlink_metadata().is_ok() {
        return Err(StorageError::Exists { path: target }.into());
    }
    let stamp = FileStamp::of(layer)?;
    let header = RecordHeader {
        disk_id: layer.layer.unique_id(),
        disk_size: layer.layer.disk_size(),
        has_parent: scan::is_differencing(layer.layer),
        created: Timestamp::now(),
        stamp,
    };
    let staged = StagedFile::create_beside(&target)?;
    let storage = staged.storage();
    let mut writer = RecordWriter::new(&*storage, &header).doing("write", &target)?;
    let mut stored_blocks = 0;
    scan::scan(layer, options, progress, &mut |run| {
        if run.content != Content::Empty {
            stored_blocks += run.blocks;
        }
        writer.push(run).doing("write", &target)
    })?;
    let record_bytes = writer.finish().doing("write", &target)?;
    if FileStamp::of(layer)? != stamp {
        return Err(VerifyError::Changing {
            path: layer.path.to_owned(),
        });
    }
    options.check_cancelled()?;
    // INV-19: content before name, name before anything that relies on it.
    staged.publish(replace, true)?;
    Ok(RecordReport {
        record_bytes,
        stored_bytes: stored_blocks * DIGEST_BLOCK,
    })
}

/// Compares the layer at `depth` of an open disk (0 for its own file) with the record beside its file, and hands
/// the ranges of the disk that changed, ascending and coalesced, in blocks of [`DIGEST_BLOCK`], to `visitor`.
///
/// # Errors
/// A record that is damaged, of another disk, or of another version. That there is none is no error but a verdict.
///
/// # Panics
/// If the disk has no layer of that depth.
pub fn verify(
    opened: &OpenedDisk,
    depth: usize,
    options: &VerifyOptions<'_>,
    progress: &dyn Progress,
    visitor: &mut dyn FnMut(ByteRange),
) -> Result<LayerReport, VerifyError> {
    let layer = opened.layers().nth(depth).expect("the disk has a layer of this depth");
    let layers = opened.chain().map_or(&[][..], |chain| chain.layers());
    let path = record_path(layer.path);
    let Some(record) = open_record(&path)? else {
        return Ok(LayerReport {
            verdict: Verdict::NoRecord,
            recorded: None,
            changed_bytes: 0,
        });
    };
    let header = record.header();
    let found = layer.layer.unique_id();
    if header.disk_id != found {
        return Err(VerifyError::OtherDisk {
            path,
            recorded: header.disk_id,
            image: layer.path.to_owned(),
            found,
        });
    }
    let report = |verdict, changed_bytes| LayerReport {
        verdict,
        recorded: Some(header.created),
        changed_bytes,
    };
    if options.fast && header.stamp.is_known() && FileStamp::of(layer)? == header.stamp {
        return Ok(report(Verdict::Presumed, 0));
    }
    let mut changes = Changes::new(visitor);
    compare::compare(layer, &layers[depth + 1..], &record, options, progress, &mut changes)?;
    let changed_bytes = changes.finish();
    let verdict = if changed_bytes == 0 {
        Verdict::Unchanged
    } else {
        Verdict::Changed
    };
    Ok(report(verdict, changed_bytes))
}

/// The record in a file, all of it checked against its own digest; `None` if there is no file.
fn open_record(path: &Path) -> Result<Option<Record>, VerifyError> {
    match HostFile::open(path, Access::ReadOnly, Sharing::Unlocked) {
        Ok(file) => Record::open(Arc::new(file), path).map(Some),
        Err(StorageError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// By what a file that nobody wrote to is known without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    /// Bytes in the file.
    len: u64,
    /// Seconds since 1970, and nanoseconds; `None` where the host does not tell, or not of the content.
    modified: Option<(i64, u32)>,
}

impl FileStamp {
    fn of(layer: ChainLayer<'_>) -> Result<Self, VerifyError> {
        let file = layer.layer.file();
        let len = file.len().doing("query", layer.path)?;
        let modified = match file.host_file() {
            None => None,
            Some(host) => {
                let metadata = host.metadata().doing("query", layer.path)?;
                // The time of a block device's node says nothing of its content.
                metadata.is_file().then_some((
                    metadata.mtime(),
                    u32::try_from(metadata.mtime_nsec()).unwrap_or_default(),
                ))
            }
        };
        Ok(Self { len, modified })
    }

    /// The stamp can tell that a file is another one.
    fn is_known(self) -> bool {
        self.modified.is_some()
    }
}
