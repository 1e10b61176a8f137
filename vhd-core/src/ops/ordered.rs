//! The bytes of a disk from first to last: one thread reads ahead of the one that uses them.

use std::io::Write;
use std::sync::mpsc::sync_channel;
use std::thread;

use super::{OpsError, Progress};
use crate::device::{DeviceError, Disk};
use crate::format::{DiskType, Footer, Timestamp, UniqueId};
use crate::image::check_size;
use crate::units::{u64_from, usize_from};

/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// Chunks that may wait to be used.
const READ_AHEAD: usize = 4;

/// Hands the bytes of the disk to `consume`, in order, a chunk at a time.
pub(super) fn for_each_chunk(
    disk: &Disk,
    progress: &dyn Progress,
    mut consume: impl FnMut(&[u8]) -> Result<(), OpsError>,
) -> Result<(), OpsError> {
    progress.begin(disk.size());
    thread::scope(|scope| {
        let (full_sender, full) = sync_channel::<Result<Vec<u8>, DeviceError>>(READ_AHEAD);
        let (empty_sender, empty) = sync_channel::<Vec<u8>>(READ_AHEAD + 2);
        scope.spawn(move || {
            let mut offset = 0;
            while offset < disk.size() {
                let mut buffer = empty.try_recv().unwrap_or_default();
                buffer.resize(usize_from(disk.size() - offset).min(CHUNK), 0);
                let read = disk.read_at(&mut buffer, offset);
                offset += u64_from(buffer.len());
                let failed = read.is_err();
                // An error here means that no one wants the bytes any more.
                if full_sender.send(read.map(|()| buffer)).is_err() || failed {
                    return;
                }
            }
        });
        for chunk in full {
            let chunk = chunk.map_err(OpsError::Source)?;
            consume(&chunk)?;
            progress.advance(u64_from(chunk.len()));
            let _ = empty_sender.try_send(chunk);
        }
        Ok(())
    })
}

/// What a disk is streamed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamFormat {
    /// The bytes of the disk.
    Raw,
    /// A fixed VHD: the bytes of the disk and a footer.
    Fixed,
}

/// Writes the whole disk to `out`, zeroes included, and flushes it.
pub fn stream(disk: &Disk, format: StreamFormat, out: &mut dyn Write, progress: &dyn Progress) -> Result<(), OpsError> {
    if format == StreamFormat::Fixed {
        check_size(disk.size()).map_err(|source| OpsError::Create {
            path: "the output".into(),
            source,
        })?;
    }
    for_each_chunk(disk, progress, |chunk| out.write_all(chunk).map_err(OpsError::Output))?;
    if format == StreamFormat::Fixed {
        let footer = Footer::new(DiskType::Fixed, disk.size(), UniqueId::random(), Timestamp::now());
        out.write_all(&footer.encode()).map_err(OpsError::Output)?;
    }
    out.flush().map_err(OpsError::Output)
}
