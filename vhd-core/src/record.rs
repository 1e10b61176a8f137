//! Small documents beside images: what a job has done so far, what the snapshots of a disk are called.
//!
//! A record is a line that names its kind, its version and the SHA-256 of what follows, and then JSON. It is
//! replaced as a whole: at every moment the old or the new one is there (INV-19). People can read it; a byte
//! changed by hand makes it refused, not misunderstood.
//!
//! The digest finds damage, not malice: whoever can write beside an image can write a record. So what a record says is
//! input. Each kind has rules ([`Checked`]), and nothing that breaks them is handed out (INV-33).

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use crate::ErrorKind;
use crate::storage::{StagedFile, StorageError, StorageFile as _, read_existing};
use crate::units::{u64_from, usize_from};

/// The first word of every record.
const MAGIC: &str = "vhd-record";

/// Bytes: a record is never larger, and nothing larger is read. A thousand snapshots take less than 1 MiB.
const MAX_RECORD: u64 = 16 << 20;

/// Which record it is, and how its fields are to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordKind {
    /// One lower-case word.
    pub name: &'static str,
    /// Higher when programs that know the former can't understand it.
    pub version: u32,
}

/// What every record must obey to be believed: numbers within their ranges, lists that are not empty, texts and names of a
/// bounded length. Whether the files that it names are what it says is for the job to compare.
pub trait Checked {
    /// # Errors
    /// The rule that is broken, with what was found and what was expected.
    fn check(&self) -> Result<(), String>;
}

/// A document without rules: whoever writes one answers for it, as tests do that forge records.
impl Checked for serde_json::Value {
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Bytes in the longest path that Linux opens.
const MAX_PATH: usize = 4096;

/// A path in a record: not empty, without NUL, and not longer than the host can open.
///
/// # Errors
/// The rule that is broken.
pub fn check_path(path: &Path) -> Result<(), String> {
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.is_empty() {
        return Err("a path is empty".to_owned());
    }
    if bytes.len() > MAX_PATH {
        return Err(format!("a path has {} bytes, expected at most {MAX_PATH}", bytes.len()));
    }
    if bytes.contains(&0) {
        return Err(format!("the path {path:?} has a zero byte in it"));
    }
    Ok(())
}

/// A list in a record that has an entry for each of so many files: between `least` and `MAX_FILES`.
///
/// # Errors
/// The number that was found.
pub fn check_count(what: &str, count: usize, least: usize) -> Result<(), String> {
    if (least..=MAX_FILES).contains(&count) {
        return Ok(());
    }
    Err(format!("it names {count} {what}, expected {least} to {MAX_FILES}"))
}

/// Files that a record names at most: no chain is longer than 4,096 images, and a directory of so many children is no
/// disk that anybody works with.
const MAX_FILES: usize = 16_384;

/// Why a record can't be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The file is not what was written.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The record.
        path: PathBuf,
        /// What was found, and what was expected.
        reason: String,
    },
    /// The file is a record of another kind, or a newer program's.
    #[error("{} holds \"{found}\", and this program knows \"{expected}\"", path.display())]
    Unknown {
        /// The record.
        path: PathBuf,
        /// Kind and version in the file.
        found: String,
        /// Kind and version that can be read.
        expected: String,
    },
    /// It would not be believed when it is read again.
    #[error("{} can't be written: {reason}", path.display())]
    Unwritable {
        /// The record.
        path: PathBuf,
        /// The rule that it breaks.
        reason: String,
    },
    /// The file can't be read or written.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl RecordError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Damaged { .. } => ErrorKind::RecordDamaged,
            Self::Unknown { .. } => ErrorKind::RecordUnknown,
            Self::Unwritable { .. } => ErrorKind::Unsupported,
            Self::Storage(error) => error.kind(),
        }
    }
}

impl RecordKind {
    /// The record at `path`; `None` if there is no such file.
    ///
    /// # Errors
    /// [`RecordError`] when it is not exactly what was written, nothing that this program understands, or breaks a rule of
    /// its kind.
    pub fn read<T: DeserializeOwned + Checked>(&self, path: &Path) -> Result<Option<T>, RecordError> {
        let Some(bytes) = read_bounded(path)? else {
            return Ok(None);
        };
        let damaged = |reason: &str| RecordError::Damaged {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        let text = std::str::from_utf8(&bytes).map_err(|_| damaged("it is not UTF-8"))?;
        let (line, body) = text.split_once('\n').ok_or_else(|| damaged("it has no first line"))?;
        let words: Vec<&str> = line.split(' ').collect();
        let &[MAGIC, name, version, stored] = words.as_slice() else {
            return Err(damaged("its first line is not that of a record"));
        };
        let computed = digest(body);
        if stored != computed {
            return Err(damaged(&format!(
                "its content has the digest {computed}, its first line {stored}"
            )));
        }
        if name != self.name || version != self.version.to_string() {
            return Err(RecordError::Unknown {
                path: path.to_owned(),
                found: format!("{name} {version}"),
                expected: format!("{} {}", self.name, self.version),
            });
        }
        let record: T = serde_json::from_str(body).map_err(|error| damaged(&error.to_string()))?;
        record.check().map_err(|reason| damaged(&reason))?;
        Ok(Some(record))
    }

    /// Puts `record` at `path`, durably, in the place of what is there.
    ///
    /// # Errors
    /// [`RecordError::Storage`], or [`RecordError::Unwritable`]; then the former record is there, whole.
    pub fn write<T: Serialize + Checked>(&self, path: &Path, record: &T) -> Result<(), RecordError> {
        // INV-19: content before name, name before anything that relies on it.
        Ok(self.stage(path, record)?.publish(true, true)?)
    }

    /// The same, but the name is durable only when the caller has synced the directory.
    ///
    /// # Errors
    /// Those of [`write`](Self::write).
    pub(crate) fn put<T: Serialize + Checked>(&self, path: &Path, record: &T) -> Result<(), RecordError> {
        let staged = self.stage(path, record)?;
        let synced = staged.storage().sync();
        synced.map_err(|source| StorageError::at(path, "sync", source))?;
        Ok(staged.publish(true, false)?)
    }

    fn stage<T: Serialize + Checked>(&self, path: &Path, record: &T) -> Result<StagedFile, RecordError> {
        let unwritable = |reason: String| RecordError::Unwritable {
            path: path.to_owned(),
            reason,
        };
        record.check().map_err(unwritable)?;
        let mut body = serde_json::to_string_pretty(record).map_err(|error| unwritable(error.to_string()))?;
        body.push('\n');
        let text = self.sealed(&body);
        if u64_from(text.len()) > MAX_RECORD {
            return Err(unwritable(format!(
                "it has {} bytes, a record at most {MAX_RECORD}",
                text.len()
            )));
        }
        let staged = StagedFile::create_beside(path)?;
        let written = staged.storage().write_all_at(text.as_bytes(), 0);
        written.map_err(|source| StorageError::at(path, "write", source))?;
        Ok(staged)
    }
}

impl RecordKind {
    /// A record of this kind with this content.
    fn sealed(&self, body: &str) -> String {
        format!("{MAGIC} {} {} {}\n{body}", self.name, self.version, digest(body))
    }
}

fn read_bounded(path: &Path) -> Result<Option<Vec<u8>>, RecordError> {
    match read_existing(path, MAX_RECORD)? {
        Some(bytes) if bytes.len() > usize_from(MAX_RECORD) => Err(RecordError::Damaged {
            path: path.to_owned(),
            reason: format!(
                "it has {} bytes or more, a record at most {MAX_RECORD}",
                u64_from(bytes.len())
            ),
        }),
        read => Ok(read),
    }
}

fn digest(body: &str) -> String {
    let digest = Sha256::digest(body.as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::fs;

    const KIND: RecordKind = RecordKind {
        name: "test",
        version: 2,
    };

    impl Checked for BTreeMap<String, u64> {
        fn check(&self) -> Result<(), String> {
            match self.get("c") {
                Some(_) => Err("there is a c".to_owned()),
                None => Ok(()),
            }
        }
    }

    fn sample() -> BTreeMap<String, u64> {
        [("a".to_owned(), 1), ("b".to_owned(), u64::MAX)].into()
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        assert_eq!(KIND.read::<BTreeMap<String, u64>>(&path).unwrap(), None);
        KIND.write(&path, &sample()).unwrap();
        assert_eq!(KIND.read(&path).unwrap(), Some(sample()));
        KIND.write(&path, &BTreeMap::<String, u64>::new()).unwrap();
        assert_eq!(KIND.read(&path).unwrap(), Some(BTreeMap::<String, u64>::new()));
    }

    #[test]
    fn inv_19_a_record_with_any_byte_changed_or_missing_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        KIND.write(&path, &sample()).unwrap();
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                fs::write(&path, changed).unwrap();
                KIND.read::<BTreeMap<String, u64>>(&path).unwrap_err();
            }
            fs::write(&path, &bytes[..at]).unwrap();
            KIND.read::<BTreeMap<String, u64>>(&path).unwrap_err();
        }
    }

    #[test]
    fn inv_33_what_breaks_a_rule_is_damaged_however_right_its_digest_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let forged: BTreeMap<String, u64> = [("c".to_owned(), 1)].into();
        let error = KIND.write(&path, &forged).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        fs::write(&path, KIND.sealed(&serde_json::to_string(&forged).unwrap())).unwrap();
        let error = KIND.read::<BTreeMap<String, u64>>(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RecordDamaged);
        assert!(error.to_string().contains("there is a c"), "{error}");
    }

    #[test]
    fn paths_and_lists_have_limits() {
        check_path(Path::new("../a.vhd")).unwrap();
        for bad in ["", "a\0b", &"x".repeat(MAX_PATH + 1)] {
            check_path(Path::new(bad)).unwrap_err();
        }
        check_count("files", 1, 1).unwrap();
        check_count("files", 0, 1).unwrap_err();
        check_count("files", MAX_FILES + 1, 0).unwrap_err();
    }

    #[test]
    fn records_of_other_kinds_and_versions_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        for other in [RecordKind { name: "other", ..KIND }, RecordKind { version: 3, ..KIND }] {
            other.write(&path, &sample()).unwrap();
            let error = KIND.read::<BTreeMap<String, u64>>(&path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::RecordUnknown);
        }
    }
}
