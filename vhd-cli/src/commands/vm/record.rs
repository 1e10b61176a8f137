//! What a saved machine's file says besides the machine: its name, and its disks as they were when it was saved.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use vhd_core::format::UniqueId;

use super::disk_spec::DiskSpec;
use super::worker::MachineName;
use crate::codes::Kind;
use crate::failure::Failure;

/// Changes when a field changes its meaning.
const VERSION: u32 = 1;

/// What a saved machine's file says besides the machine.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Record {
    version: u32,
    pub(super) name: MachineName,
    /// The file of the kernel that it was started with, for people.
    pub(super) kernel: String,
    pub(super) disks: Vec<SavedDisk>,
}

/// A disk of a saved machine.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct SavedDisk {
    pub(super) slot: usize,
    pub(super) spec: DiskSpec,
    /// What the guest sees as its serial number.
    pub(super) id: String,
    pub(super) read_only: bool,
    pub(super) ignore_children: bool,
    /// In hexadecimal digits.
    pub(super) identity: String,
    /// Bytes.
    pub(super) size: u64,
    /// The leaf's file and those of its ancestors; none for a disk on a server.
    pub(super) files: Vec<SavedFile>,
}

/// A file of a disk, as it was when the machine had closed it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct SavedFile {
    pub(super) path: PathBuf,
    stamp: Option<Stamp>,
}

/// What shows that a file was written.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
struct Stamp {
    /// Bytes.
    len: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Stamp {
    /// That of a regular file: others have none.
    fn of(path: &Path) -> Option<Self> {
        let metadata = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
        Some(Self {
            len: metadata.len(),
            seconds: metadata.mtime(),
            nanoseconds: metadata.mtime_nsec(),
        })
    }

    /// Copies may keep the time to the second.
    fn is_same(self, now: Self) -> bool {
        let is_cut = self.nanoseconds == 0 || now.nanoseconds == 0;
        let same_time = self.seconds == now.seconds && (is_cut || self.nanoseconds == now.nanoseconds);
        self.len == now.len && same_time
    }
}

impl SavedFile {
    /// A file that is open.
    pub(super) fn new(path: &Path) -> Self {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self { path, stamp: None }
    }

    /// The file as it is now.
    fn stamped(&self) -> Self {
        Self {
            path: self.path.clone(),
            stamp: Stamp::of(&self.path),
        }
    }

    /// Why it is not as it was, whatever it is called now.
    fn changed(&self, now: &Self) -> Option<String> {
        match (self.stamp, now.stamp) {
            (Some(before), Some(now_is)) if !before.is_same(now_is) => Some(format!(
                "{} was written since the machine was saved (it has {} bytes, then {}), or copied without its time",
                now.path.display(),
                now_is.len,
                before.len
            )),
            _ => None,
        }
    }
}

impl SavedDisk {
    /// With the files as they are now: they are closed.
    pub(super) fn stamped(mut self) -> Self {
        self.files = self.files.iter().map(SavedFile::stamped).collect();
        self
    }

    /// Refuses a disk of another size.
    pub(super) fn require_size(&self, now: u64) -> Result<(), Failure> {
        if self.size == now {
            return Ok(());
        }
        let message = format!("it has {now} bytes, and the machine's disk {}", self.size);
        Err(Failure::new(Kind::SavedDisk, message))
    }

    /// Whether each of its files is one that shows whether it was written since.
    pub(super) fn shows_changes(&self) -> bool {
        !self.files.is_empty() && self.files.iter().all(|file| file.stamp.is_some())
    }

    /// Refuses files that were written since, without opening the disk.
    pub(super) fn require_unchanged(&self) -> Result<(), Failure> {
        let changed = self.files.iter().find_map(|file| {
            let now = file.stamped();
            let is_gone = format!("{} is not there any more", file.path.display());
            file.changed(&now).or((now.stamp.is_none()).then_some(is_gone))
        });
        match changed {
            Some(change) => Err(Failure::new(Kind::SavedDisk, change).about(&self.spec.image)),
            None => Ok(()),
        }
    }

    /// It was put back to what it was, over which there is a new leaf. Its files before are where its ancestors may be.
    pub(super) fn goes_on_in(&mut self, leaf: &Path, identity: UniqueId) {
        self.spec = self.spec.of_leaf(leaf);
        self.identity = hex(&identity.0);
        self.files.insert(0, SavedFile::new(leaf));
    }

    /// Refuses a disk that is another one than this, or was written since. With `trust`, only another one.
    pub(super) fn require_same(&self, now: &Self, trust: bool) -> Result<(), Failure> {
        let refused = |message: String| Err(Failure::new(Kind::SavedDisk, message));
        if self.identity != now.identity {
            return refused(format!(
                "it has the identity {}, and the machine's disk {}",
                now.identity, self.identity
            ));
        }
        self.require_size(now.size)?;
        if trust {
            return Ok(());
        }
        if self.files.len() != now.files.len() {
            return refused(format!(
                "it has {} files, and the machine's disk {}",
                now.files.len(),
                self.files.len()
            ));
        }
        let mut changes = self
            .files
            .iter()
            .zip(&now.files)
            .filter_map(|(before, now)| before.changed(now));
        match changes.next() {
            Some(change) => refused(format!(
                "{change}; the guest would go on with what it knew of the disk before. --trust-disks if it is certain that \
                 nothing was changed"
            )),
            None => Ok(()),
        }
    }
}

impl Record {
    pub(super) fn new(name: MachineName, kernel: String, disks: Vec<SavedDisk>) -> Self {
        Self {
            version: VERSION,
            name,
            kernel,
            disks,
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record has text keys and serialises to memory")
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Failure> {
        let wrong = |error: &dyn std::fmt::Display| {
            Failure::new(
                Kind::SavedDamaged,
                format!("what it says of the machine's disks cannot be read: {error}"),
            )
        };
        let record: Self = serde_json::from_slice(bytes).map_err(|error| wrong(&error))?;
        if record.version != VERSION {
            let message = format!(
                "what it says of the machine's disks has version {}, and this program reads version {VERSION}",
                record.version
            );
            return Err(Failure::new(Kind::SavedVersion, message));
        }
        Ok(record)
    }
}

/// An identity in hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_length_and_time() {
        let stamp = |len, seconds, nanoseconds| Stamp {
            len,
            seconds,
            nanoseconds,
        };
        let saved = stamp(7, 100, 5);
        for (now, same) in [
            (saved, true),
            (stamp(7, 100, 0), true),
            (stamp(7, 100, 6), false),
            (stamp(7, 101, 5), false),
            (stamp(8, 100, 5), false),
        ] {
            assert_eq!(saved.is_same(now), same, "{now:?}");
        }
        assert!(Stamp::of(Path::new("/dev/null")).is_none());
    }

    #[test]
    fn records_come_back() {
        let name: MachineName = "web".parse().unwrap();
        let record = Record::new(name.clone(), "vmlinux".into(), Vec::new());
        assert_eq!(Record::parse(&record.bytes()).unwrap().name, name);
        let newer = String::from_utf8(record.bytes())
            .unwrap()
            .replace("\"version\":1", "\"version\":2");
        assert_eq!(
            Record::parse(newer.as_bytes()).unwrap_err().kind(),
            Some(Kind::SavedVersion)
        );
        assert_eq!(Record::parse(b"{}").unwrap_err().kind(), Some(Kind::SavedDamaged));
    }
}
