//! The record of one layer's digests: a header, the contents as runs of blocks, the BLAKE3 of all of it. The format
//! is in docs/verify.md. A record is read twice, once for its digest and once for its runs, and never held as a whole.

use std::io::{self, BufRead as _, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zerocopy::big_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::content::{Content, DIGEST_BLOCK, Digest, SET_BYTES, SectorSet};
use super::error::Doing as _;
use super::scan::Run;
use super::{FileStamp, VerifyError};
use crate::format::{Timestamp, UniqueId};
use crate::storage::StorageFile;
use crate::units::{SECTOR_SIZE, u64_from, usize_from};

const MAGIC: [u8; 8] = *b"vhddgst\n";
const VERSION: u32 = 1;
const BUFFER: usize = 64 << 10;
const DIGEST_BYTES: usize = size_of::<Digest>();
const HEADER_BYTES: usize = size_of::<RawHeader>();

/// What a file is that has no modification time that could tell anything.
const NO_TIME: u32 = u32::MAX;

/// Bytes: no file of the host is longer, so no raw disk is.
const MAX_DISK: u64 = i64::MAX.unsigned_abs();

/// What a run begins with.
mod tag {
    /// And the number of blocks.
    pub(super) const EMPTY: u8 = 0;
    /// And the number of blocks.
    pub(super) const COVERED: u8 = 1;
    /// One block: its digest.
    pub(super) const DATA: u8 = 2;
    /// One block: its digest and the set of its zeroes.
    pub(super) const MIXED: u8 = 3;
}

/// Bytes of the longest run.
const MAX_RUN_BYTES: usize = 1 + DIGEST_BYTES + SET_BYTES;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U32,
    block_size: U32,
    disk_id: [u8; 16],
    disk_size: U64,
    file_len: U64,
    modified_seconds: I64,
    modified_nanos: U32,
    created: U32,
    has_parent: U32,
}

/// What a record says of the disk it was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) disk_id: UniqueId,
    /// Bytes of the disk.
    pub(super) disk_size: u64,
    /// What the layer lacks is in a parent; else it reads zero.
    pub(super) has_parent: bool,
    pub(super) created: Timestamp,
    pub(super) stamp: FileStamp,
}

impl RecordHeader {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let (seconds, nanos) = self.stamp.modified.unwrap_or((0, NO_TIME));
        let raw = RawHeader {
            magic: MAGIC,
            version: U32::new(VERSION),
            block_size: U32::new(u32::try_from(DIGEST_BLOCK).expect("a constant")),
            disk_id: self.disk_id.0,
            disk_size: U64::new(self.disk_size),
            file_len: U64::new(self.stamp.len),
            modified_seconds: I64::new(seconds),
            modified_nanos: U32::new(nanos),
            created: U32::new(self.created.0),
            has_parent: U32::new(self.has_parent.into()),
        };
        zerocopy::transmute!(raw)
    }

    fn decode(bytes: &[u8; HEADER_BYTES], path: &Path) -> Result<Self, VerifyError> {
        let raw: &RawHeader = zerocopy::transmute_ref!(bytes);
        if raw.magic != MAGIC {
            return Err(damaged(path, 0, "it does not begin like a digest record"));
        }
        if raw.version != VERSION {
            return Err(VerifyError::Version {
                path: path.to_owned(),
                found: raw.version.get(),
                known: VERSION,
            });
        }
        if u64::from(raw.block_size.get()) != DIGEST_BLOCK {
            let reason = format!("blocks of {} bytes, expected {DIGEST_BLOCK}", raw.block_size.get());
            return Err(damaged(path, 12, reason));
        }
        if raw.disk_size.get() > MAX_DISK {
            let reason = format!("a disk of {} bytes, expected at most {MAX_DISK}", raw.disk_size.get());
            return Err(damaged(path, 32, reason));
        }
        if !raw.disk_size.get().is_multiple_of(SECTOR_SIZE) {
            let reason = format!("a disk of {} bytes, expected whole sectors", raw.disk_size.get());
            return Err(damaged(path, 32, reason));
        }
        let has_parent = match raw.has_parent.get() {
            0 => false,
            1 => true,
            other => {
                return Err(damaged(
                    path,
                    64,
                    format!("{other} for whether there is a parent, expected 0 or 1"),
                ));
            }
        };
        let nanos = raw.modified_nanos.get();
        Ok(Self {
            disk_id: UniqueId(raw.disk_id),
            disk_size: raw.disk_size.get(),
            has_parent,
            created: Timestamp(raw.created.get()),
            stamp: FileStamp {
                len: raw.file_len.get(),
                modified: (nanos != NO_TIME).then_some((raw.modified_seconds.get(), nanos)),
            },
        })
    }

    fn blocks(&self) -> u64 {
        self.disk_size.div_ceil(DIGEST_BLOCK)
    }
}

fn damaged(path: &Path, offset: u64, reason: impl Into<String>) -> VerifyError {
    VerifyError::Damaged {
        path: path.to_owned(),
        offset,
        reason: reason.into(),
    }
}

/// Writes a record.
pub(super) struct RecordWriter<'a> {
    out: BufWriter<Digesting<'a>>,
    /// Blocks of one content that stay a single run, not written yet.
    pending: Option<Run>,
}

/// Digests what goes into a file.
struct Digesting<'a> {
    file: &'a dyn StorageFile,
    written: u64,
    hasher: blake3::Hasher,
}

impl Write for Digesting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(bytes, self.written)?;
        self.hasher.update(bytes);
        self.written += u64_from(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> RecordWriter<'a> {
    /// Into an empty file.
    pub(super) fn new(file: &'a dyn StorageFile, header: &RecordHeader) -> io::Result<Self> {
        let digesting = Digesting {
            file,
            written: 0,
            hasher: blake3::Hasher::new(),
        };
        let mut out = BufWriter::with_capacity(BUFFER, digesting);
        out.write_all(&header.encode())?;
        Ok(Self { out, pending: None })
    }

    /// Appends the contents of the blocks that follow.
    pub(super) fn push(&mut self, run: Run) -> io::Result<()> {
        let counted = matches!(run.content, Content::Empty | Content::Covered);
        match &mut self.pending {
            Some(pending) if counted && pending.content == run.content => pending.blocks += run.blocks,
            _ => {
                self.write_pending()?;
                self.pending = Some(run);
            }
        }
        Ok(())
    }

    fn write_pending(&mut self) -> io::Result<()> {
        let Some(run) = self.pending.take() else { return Ok(()) };
        let mut counted = |tag: u8| {
            self.out.write_all(&[tag])?;
            self.out.write_all(&run.blocks.to_be_bytes())
        };
        match &run.content {
            Content::Empty => counted(tag::EMPTY),
            Content::Covered => counted(tag::COVERED),
            Content::Data(digest) => {
                self.out.write_all(&[tag::DATA])?;
                self.out.write_all(digest)
            }
            Content::Mixed { digest, covered } => {
                self.out.write_all(&[tag::MIXED])?;
                self.out.write_all(digest)?;
                self.out.write_all(covered.as_bytes())
            }
        }
    }

    /// Completes the record; the bytes of it.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        self.write_pending()?;
        self.out.flush()?;
        let digesting = self.out.get_mut();
        let digest: Digest = digesting.hasher.finalize().into();
        digesting.write_all(&digest)?;
        Ok(digesting.written)
    }
}

/// A record whose digest is right.
pub(super) struct Record {
    file: Arc<dyn StorageFile>,
    path: PathBuf,
    header: RecordHeader,
    /// Where the runs end in the file.
    end: u64,
}

impl Record {
    /// Reads the header, and checks the whole file against the digest at its end.
    pub(super) fn open(file: Arc<dyn StorageFile>, path: &Path) -> Result<Self, VerifyError> {
        let len = file.len().doing("read", path)?;
        let Some(end) = len
            .checked_sub(u64_from(DIGEST_BYTES))
            .filter(|&end| end >= u64_from(HEADER_BYTES))
        else {
            let least = HEADER_BYTES + DIGEST_BYTES;
            return Err(damaged(
                path,
                len,
                format!("it ends after {len} bytes, expected at least {least}"),
            ));
        };
        let mut bytes = [0; HEADER_BYTES];
        file.read_exact_at(&mut bytes, 0).doing("read", path)?;
        let header = RecordHeader::decode(&bytes, path)?;
        let longest = header.blocks().saturating_mul(u64_from(MAX_RUN_BYTES));
        if end - u64_from(HEADER_BYTES) > longest {
            let reason = format!("{len} bytes are more than a disk of {} bytes needs", header.disk_size);
            return Err(damaged(path, len, reason));
        }
        let mut hasher = blake3::Hasher::new();
        hasher
            .update_reader(FileRange::new(&*file, 0, end))
            .doing("read", path)?;
        let mut recorded: Digest = [0; DIGEST_BYTES];
        file.read_exact_at(&mut recorded, end).doing("read", path)?;
        if recorded != Digest::from(hasher.finalize()) {
            return Err(damaged(path, end, "its own digest is not that of its bytes"));
        }
        let path = path.to_owned();
        Ok(Self {
            file,
            path,
            header,
            end,
        })
    }

    pub(super) fn header(&self) -> &RecordHeader {
        &self.header
    }

    /// The recorded contents in the order of the disk.
    pub(super) fn runs(&self) -> RecordedRuns<'_> {
        let start = u64_from(HEADER_BYTES);
        RecordedRuns {
            record: self,
            reader: BufReader::with_capacity(BUFFER, FileRange::new(&*self.file, start, self.end)),
            at: start,
            left: self.header.blocks(),
        }
    }
}

/// The runs of a record.
pub(super) struct RecordedRuns<'a> {
    record: &'a Record,
    reader: BufReader<FileRange<'a>>,
    /// Where the next run is in the file.
    at: u64,
    /// Blocks of the disk that are not told yet.
    left: u64,
}

impl RecordedRuns<'_> {
    /// The next run; `None` behind the last block. A wrong digest has been found before, but a record may be made
    /// by a stranger.
    pub(super) fn next(&mut self) -> Result<Option<Run>, VerifyError> {
        let ended = self.reader.fill_buf().doing("read", &self.record.path)?.is_empty();
        if ended && self.left == 0 {
            return Ok(None);
        }
        if ended != (self.left == 0) {
            return Err(self.damaged(format!("{} blocks of the disk are left where the runs end", self.left)));
        }
        let start = self.at;
        let [tag] = self.take()?;
        let run = match tag {
            tag::EMPTY | tag::COVERED => Run {
                blocks: u64::from_be_bytes(self.take()?),
                content: if tag == tag::EMPTY {
                    Content::Empty
                } else {
                    Content::Covered
                },
            },
            tag::DATA => one(Content::Data(self.take()?)),
            tag::MIXED => one(Content::Mixed {
                digest: self.take()?,
                covered: SectorSet::from_bytes(self.take()?),
            }),
            other => {
                self.at = start;
                return Err(self.damaged(format!("a run of the unknown kind {other}")));
            }
        };
        if run.blocks == 0 || run.blocks > self.left {
            self.at = start;
            let reason = format!("a run of {} blocks, expected 1 to {}", run.blocks, self.left);
            return Err(self.damaged(reason));
        }
        self.left -= run.blocks;
        Ok(Some(run))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], VerifyError> {
        let mut bytes = [0; N];
        match self.reader.read_exact(&mut bytes) {
            Ok(()) => {
                self.at += u64_from(N);
                Ok(bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.damaged("it ends within a run".to_owned()))
            }
            Err(error) => Err(error).doing("read", &self.record.path),
        }
    }

    fn damaged(&self, reason: String) -> VerifyError {
        damaged(&self.record.path, self.at, reason)
    }
}

fn one(content: Content) -> Run {
    Run { blocks: 1, content }
}

/// Reads a part of a file from first to last.
struct FileRange<'a> {
    file: &'a dyn StorageFile,
    at: u64,
    end: u64,
}

impl<'a> FileRange<'a> {
    fn new(file: &'a dyn StorageFile, at: u64, end: u64) -> Self {
        Self { file, at, end }
    }
}

impl Read for FileRange<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize_from(self.end - self.at).min(buffer.len());
        self.file.read_exact_at(&mut buffer[..len], self.at)?;
        self.at += u64_from(len);
        Ok(len)
    }
}

#[cfg(test)]
#[path = "sidecar_tests.rs"]
mod tests;
