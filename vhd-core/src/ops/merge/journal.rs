//! The record of a merge: what it is, and how far it is.
//!
//! It stands beside the child, is there before the target's first change and goes after everything else
//! (INV-20), and says at every moment no more than what is durable.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::MergeError;
use super::dependants::Recorded;
use super::known::Known;
use crate::format::MAX_DISK_SIZE;
use crate::image::Footers;
use crate::job::{Head, Job, JobImage, JobKind, done_path};
use crate::record::{Checked, RecordKind, check_count, check_path};
use crate::storage::{Access, HostFile, Sharing, StorageError, relative_to, resolved};
use crate::units::SECTOR_SIZE;

const KIND: RecordKind = JobKind::Merge.record();

/// Nanoseconds by which a file must be older than its fingerprint: one that is written again within the tick of
/// the clock that stamped it looks the same.
const SETTLED: i64 = SECOND;

/// Nanoseconds of that tick on file systems that stamp in whole seconds, two of them at most (vfat).
const COARSE_TICK: i64 = 2 * SECOND;

const SECOND: i64 = 1_000_000_000;

/// What is known of an unfinished merge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Journal {
    /// What is written.
    pub(super) target: Known,
    /// What goes, the child first.
    pub(super) layers: Vec<Source>,
    /// What is to be pointed to the target.
    pub(super) children: Vec<PathBuf>,
    /// Children of the other layers and of the target: they hold what would read otherwise.
    pub(super) carried: Vec<PathBuf>,
    pub(super) phase: Phase,
    /// The run of the system in which the fingerprints were taken.
    pub(super) boot: Option<String>,
    /// The images that show that the merge is open.
    #[serde(flatten)]
    pub(super) head: Head,
}

/// A layer that is copied from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Source {
    #[serde(flatten)]
    pub(super) known: Known,
    /// `None` if its file was written so shortly before that a change could not be told.
    pub(super) fingerprint: Option<Fingerprint>,
}

/// How far a merge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Phase {
    /// Nothing is in the target yet: the carried children take over what they read.
    Carrying,
    /// What the layers hold below this byte of the disk is in the target, durably.
    Copying(u64),
    /// Everything is in the target, durably; the children are pointed to it, and then the layers go.
    Finishing,
    /// The layers were merged while the first of them was in use, and the disk has gone on in the target: what they hold is
    /// not the disk any more, and is not looked at. They go.
    Switched,
}

/// By what a file that was written is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fingerprint {
    bytes: u64,
    modified_ns: i64,
}

impl Fingerprint {
    fn now(path: &Path) -> Result<Self, MergeError> {
        let metadata = fs::metadata(path).map_err(|source| StorageError::at(path, "query", source))?;
        let seconds = metadata.mtime().saturating_mul(1_000_000_000);
        Ok(Self {
            bytes: metadata.len(),
            modified_ns: seconds.saturating_add(metadata.mtime_nsec()),
        })
    }

    /// What a later change will differ from, if that is certain.
    pub(super) fn settled(path: &Path) -> Result<Option<Self>, MergeError> {
        let fingerprint = Self::now(path)?;
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX);
        Ok(fingerprint.is_settled(now).then_some(fingerprint))
    }

    /// Whether a write after `now` would leave another time stamp.
    fn is_settled(self, now: i64) -> bool {
        let tick = match self.modified_ns % SECOND {
            0 => COARSE_TICK,
            _ => 0,
        };
        self.modified_ns <= now.saturating_sub(SETTLED + tick)
    }
}

impl Checked for Journal {
    fn check(&self) -> Result<(), String> {
        check_count("layers", self.layers.len(), 1)?;
        check_count("children", self.children.len(), 0)?;
        check_count("carried children", self.carried.len(), 0)?;
        let layers = self.layers.iter().map(|layer| &layer.known.path);
        let mut paths = layers
            .chain(&self.children)
            .chain(&self.carried)
            .chain([&self.target.path]);
        paths.try_for_each(|path| check_path(path))?;
        self.head.check()?;
        match self.phase {
            Phase::Copying(at) if at > MAX_DISK_SIZE || !at.is_multiple_of(SECTOR_SIZE) => Err(format!(
                "it is at byte {at}, expected whole sectors of a disk of at most {MAX_DISK_SIZE} bytes"
            )),
            _ => Ok(()),
        }
    }
}

impl Journal {
    /// Whom it knows of.
    pub(super) fn dependants(&self) -> Recorded<'_> {
        Recorded {
            children: &self.children,
            carried: &self.carried,
            finishing: self.phase == Phase::Finishing,
        }
    }

    /// Where the record of a merge of `child` is.
    pub(super) fn path(child: &Path) -> PathBuf {
        JobKind::Merge.record_path(child)
    }

    pub(super) fn read(child: &Path) -> Result<Option<Self>, MergeError> {
        Self::read_at(&Self::path(child), child)
    }

    /// The record of a merge that is done, and was killed before that had gone.
    pub(super) fn read_done(child: &Path) -> Result<Option<Self>, MergeError> {
        Self::read_at(&done_path(&Self::path(child)), child)
    }

    fn read_at(path: &Path, child: &Path) -> Result<Option<Self>, MergeError> {
        let mut journal: Option<Self> = KIND.read(path)?;
        if let (Some(journal), Some(dir)) = (&mut journal, child.parent()) {
            journal.each_path(|path| *path = resolved(path, dir));
        }
        Ok(journal)
    }

    /// Puts the record in its place, durably. Its paths go from the child's directory: in a copy of that directory the
    /// record is of the copies.
    pub(super) fn write(&self) -> Result<(), MergeError> {
        let mut stored = self.clone();
        if let Some(dir) = self.child().parent() {
            stored.each_path(|path| *path = relative_to(path, dir));
        }
        Ok(KIND.write(&Self::path(self.child()), &stored)?)
    }

    /// The files of the layers, the child's first, and of the target.
    pub(super) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let layers = self.layers.iter().map(|layer| &layer.known.path);
        layers.chain([&self.target.path])
    }

    fn each_path(&mut self, action: impl FnMut(&mut PathBuf)) {
        let layers = self.layers.iter_mut().map(|layer| &mut layer.known.path);
        let others = self.children.iter_mut().chain(&mut self.carried);
        layers.chain(others).chain([&mut self.target.path]).for_each(action);
    }

    /// The job that shows the merge on all its images. A guest may use the child, what is based on it, and the carried
    /// children; nobody changes the layers between and the target. INV-77: when the disk has gone on in the target, nobody
    /// uses the child either.
    pub(super) fn job(&self) -> Job {
        let middle = self.layers.iter().skip(1).map(|layer| &layer.known.path);
        let held = middle.chain([&self.target.path]).map(|path| JobImage::held(path));
        let in_use = self
            .children
            .iter()
            .chain(&self.carried)
            .map(|path| JobImage::in_use(path));
        let child = [match self.phase {
            Phase::Switched => JobImage::held(self.child()),
            _ => JobImage::in_use(self.child()),
        }];
        Job::new(
            JobKind::Merge,
            &Self::path(self.child()),
            child.into_iter().chain(held).chain(in_use),
        )
    }

    /// Makes the merge visible from all its images, and puts the record in its place.
    pub(super) fn announce(&mut self) -> Result<(), MergeError> {
        let job = self.job();
        self.head = job.head();
        job.announce(|| self.write())
    }

    /// Everything is done: the markers and the record go.
    pub(super) fn close(&self) -> Result<(), MergeError> {
        Ok(self.job().close()?)
    }

    /// INV-38: the children belong to the merge. That they are children, their headers say.
    pub(super) fn prove_children(&self) -> Result<(), MergeError> {
        let job = self.job();
        for path in self.children.iter().chain(&self.carried) {
            if path.symlink_metadata().is_ok() {
                job.prove_related(path)?;
            }
        }
        Ok(())
    }

    /// INV-38: what only the record names, and is removed, belongs to the merge.
    pub(super) fn prove<'a>(&self, paths: impl IntoIterator<Item = &'a PathBuf>) -> Result<(), MergeError> {
        let job = self.job();
        for path in paths {
            if path.symlink_metadata().is_ok() {
                job.prove(path)?;
            }
        }
        Ok(())
    }

    /// The child's file is there; not if another image has its name by now.
    pub(super) fn child_is_there(&self) -> bool {
        let file = HostFile::open(self.child(), Access::ReadOnly, Sharing::Unlocked);
        let footers = file.ok().and_then(|file| Footers::read(&file).ok());
        footers.is_some_and(|found| found.footer.unique_id == self.layers[0].known.id)
    }

    /// All is in the target, and nothing depends on the layers any more: this record alone says what is left to be done.
    pub(super) fn is_complete(&self) -> bool {
        match self.phase {
            Phase::Switched => true,
            Phase::Finishing => !self.child_is_there(),
            Phase::Carrying | Phase::Copying(_) => false,
        }
    }

    /// What is merged.
    pub(super) fn child(&self) -> &Path {
        self.layers.first().map_or(Path::new(""), |child| &child.known.path)
    }

    /// Takes the fingerprints of all layers anew, which nobody else can write to now.
    pub(super) fn renew(&mut self) -> Result<(), MergeError> {
        self.boot = boot();
        for layer in &mut self.layers {
            layer.fingerprint = Fingerprint::settled(&layer.known.path)?;
        }
        Ok(())
    }

    /// Whether it is certain that no layer was written to since. A loss of power may have lost a time stamp and kept
    /// what it stamped: then nothing is certain.
    pub(super) fn sources_unchanged(&self) -> Result<bool, MergeError> {
        if self.boot.is_none() || self.boot != boot() {
            return Ok(false);
        }
        for layer in &self.layers {
            if layer.fingerprint != Some(Fingerprint::now(&layer.known.path)?) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The error for a command that is not the one that began this merge.
    pub(super) fn unfinished(&self) -> MergeError {
        MergeError::Unfinished {
            record: Self::path(self.child()),
            child: self.child().to_owned(),
            target: self.target.path.clone(),
        }
    }
}

/// Which run of the system this is.
fn boot() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_settled_when_a_later_write_leaves_another_stamp() {
        let stamped = |modified_ns| Fingerprint { bytes: 0, modified_ns };
        // Within the tick that stamped it: fine stamps, whole seconds, two seconds.
        for (written, now, settled) in [
            (10 * SECOND + 5, 11 * SECOND, false),
            (10 * SECOND + 5, 11 * SECOND + 5, true),
            (10 * SECOND, 11 * SECOND, false),
            (10 * SECOND, 11 * SECOND + 999_999_999, false),
            (10 * SECOND, 13 * SECOND, true),
        ] {
            assert_eq!(stamped(written).is_settled(now), settled, "{written} at {now}");
        }
    }
}
