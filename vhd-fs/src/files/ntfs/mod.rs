//! NTFS. The crate ntfs-core decodes boot sector, records, attributes, run lists and index nodes; what is here walks
//! them: index trees node by node (nodes that are not part of the tree are left out), streams by position.

mod directory;
mod record;
mod reparse;
mod stream;

use ntfs_core::{Filetime, NtfsError, NtfsFs, StandardInformation};

use self::record::{DATA, FILE_NAME, REPARSE_POINT, Record, STANDARD_INFORMATION, VOLUME_NAME};
use self::reparse::Reparse;
use self::stream::Stream;
use super::entry::{Entry, FileType, Metadata, Node, Time, invented_mode};
use super::region::Region;
use super::{FileError, FileSystem};

pub(super) const FORMAT: &str = "NTFS";

const ROOT_RECORD: u64 = 5;
const VOLUME_RECORD: u64 = 3;
/// Records below this are the file system's own files.
const FIRST_USER_RECORD: u64 = 16;

const ATTRIBUTE_READ_ONLY: u32 = 0x1;
const NANOS: i128 = 1_000_000_000;

pub(super) struct Ntfs {
    fs: NtfsFs<Region>,
    region: Region,
    /// The last file whose content was read: most requests are for one file.
    last: Option<(Node, Stream)>,
}

impl Ntfs {
    /// Opens the file system. Its log is not replayed: the state on the disk is shown.
    pub(super) fn open(region: Region) -> Result<Self, FileError> {
        let fs = NtfsFs::open(region.clone()).map_err(failed)?;
        let cluster = fs.boot().cluster_size();
        // Windows makes clusters of up to 2 MiB; sizes of zero and of other kinds divide badly below.
        if !cluster.is_power_of_two() || !(256..=2 << 20).contains(&cluster) {
            return Err(FileError::damaged(FORMAT, format!("clusters of {cluster} bytes")));
        }
        Ok(Self { fs, region, last: None })
    }

    fn record(&self, node: Node) -> Result<Record, FileError> {
        Record::read(&self.fs, &self.region, node.0)
    }

    /// What a reparse point says, if the file has one.
    fn reparse(&self, record: &Record) -> Result<Option<Reparse>, FileError> {
        match record.stream(REPARSE_POINT, None)? {
            Some(stream) => {
                let cluster = self.fs.boot().cluster_size();
                Ok(Some(Reparse::parse(&stream.whole(
                    &self.region,
                    cluster,
                    reparse::MAX_LEN,
                )?)?))
            }
            None => Ok(None),
        }
    }

    fn kind(&self, record: &Record) -> Result<FileType, FileError> {
        Ok(match self.reparse(record)? {
            Some(reparse) if reparse.target.is_some() => FileType::Symlink,
            _ if record.is_directory() => FileType::Directory,
            _ => FileType::Regular,
        })
    }

    /// The content of a file, unless it is kept in a way that is not read here.
    fn content(&self, node: Node) -> Result<Stream, FileError> {
        let record = self.record(node)?;
        if record.is_directory() {
            return Err(FileError::IsDirectory);
        }
        if let Some(reparse) = self.reparse(&record)? {
            if reparse.target.is_some() {
                return Err(FileError::NotRegular);
            }
            if let Some(what) = reparse.content_elsewhere() {
                return Err(FileError::unsupported(FORMAT, what));
            }
        }
        // A file that was never written to may have no stream.
        Ok(record.stream(DATA, None)?.unwrap_or_default())
    }
}

impl FileSystem for Ntfs {
    fn format(&self) -> &'static str {
        FORMAT
    }

    fn label(&mut self) -> Option<String> {
        let record = self.record(Node(VOLUME_RECORD)).ok()?;
        let name = utf16(record.resident(VOLUME_NAME)?);
        (!name.is_empty()).then_some(name)
    }

    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    fn root(&self) -> Node {
        Node(ROOT_RECORD)
    }

    fn ignores_case(&self) -> bool {
        true
    }

    fn list(&mut self, directory: Node) -> Result<Vec<Entry>, FileError> {
        let record = self.record(directory)?;
        if !record.is_directory() {
            return Err(FileError::NotDirectory);
        }
        directory::list(&record, &self.region, self.fs.boot())
    }

    fn metadata(&mut self, node: Node) -> Result<Metadata, FileError> {
        let record = self.record(node)?;
        let kind = self.kind(&record)?;
        let size = match kind {
            FileType::Regular => record.stream(DATA, None)?.map_or(0, |stream| stream.len()),
            FileType::Symlink => self.read_link(node)?.len().try_into().unwrap_or(u64::MAX),
            _ => 0,
        };
        let info = record.resident(STANDARD_INFORMATION);
        let info = info.ok_or_else(|| FileError::damaged(FORMAT, format!("record {} has no times", node.0)))?;
        let info = StandardInformation::parse(info).map_err(failed)?;
        Ok(Metadata {
            kind,
            size,
            mode: invented_mode(kind, info.file_attributes & ATTRIBUTE_READ_ONLY != 0),
            uid: 0,
            gid: 0,
            links: record.names(FILE_NAME),
            accessed: time(info.accessed),
            modified: time(info.modified),
            changed: time(info.mft_modified),
            created: Some(time(info.created)),
            device: None,
        })
    }

    fn read_at(&mut self, node: Node, buf: &mut [u8], offset: u64) -> Result<usize, FileError> {
        if self.last.as_ref().is_none_or(|(last, _)| *last != node) {
            self.last = Some((node, self.content(node)?));
        }
        let cluster = self.fs.boot().cluster_size();
        match &mut self.last {
            Some((_, stream)) => stream.read_at(&self.region, cluster, buf, offset),
            None => Ok(0),
        }
    }

    fn read_link(&mut self, node: Node) -> Result<Vec<u8>, FileError> {
        let record = self.record(node)?;
        let target = self.reparse(&record)?.and_then(|reparse| reparse.target);
        target.ok_or(FileError::NotSymlink)
    }
}

/// Text in UTF-16; what is no character becomes U+FFFD.
fn utf16(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    char::decode_utf16(units)
        .map(|unit| unit.unwrap_or('\u{FFFD}'))
        .collect()
}

fn time(time: Filetime) -> Time {
    let nanos = time.to_unix_nanos();
    Time {
        seconds: i64::try_from(nanos.div_euclid(NANOS)).unwrap_or(0),
        nanos: u32::try_from(nanos.rem_euclid(NANOS)).unwrap_or(0),
    }
}

fn failed(error: NtfsError) -> FileError {
    match error {
        NtfsError::Io(error) => failed_io(error),
        other => FileError::damaged(FORMAT, other),
    }
}

fn failed_io(error: std::io::Error) -> FileError {
    FileError::from_io(FORMAT, error)
}
