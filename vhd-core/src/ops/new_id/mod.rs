//! A new identity for an image, and for the chosen children the way to it.
//!
//! A copy of an image has the identity of its original: which of the two a child is based on, nothing tells. The
//! files change one after the other, and a record beside the image says what is to become of all of them:
//!
//! ```text
//!   write the record | each child: new identity, name and places of its parent | the image: new identity | remove it
//! ```
//!
//! Each change of a file is one atomic step. Doing it again after a crash finishes what the record says.
//! docs/reparent.md has the reasons for the order (INV-30).

mod error;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

pub use error::NewIdError;

use super::alone::Alone;
use crate::chain::dependants::Search;
use crate::chain::{ChainError, link_to};
use crate::format::{Footer, Timestamp, UniqueId};
use crate::image::Amendment;
use crate::job::{Head, Job, JobImage, JobKind, require_no_job, sweep};
use crate::record::{Checked, RecordKind, check_count, check_path};
use crate::storage::{Access, FileIdentity, StorageError, StorageFile as _};
use crate::units::UnixSeconds;

/// What is written before the first file changes.
const RECORD: RecordKind = JobKind::NewId.record();

/// What becomes of the children of the image.
#[derive(Clone, Debug, Default)]
pub struct NewIdOptions {
    /// Children that are to be based on the image under its new identity.
    pub children: Vec<PathBuf>,
    /// So are all images that are found to rely on it: see [`dependants`](crate::chain::dependants).
    pub all_children: bool,
    /// The others are left as they are, known or not: they look for another file with the old identity.
    pub leave_others: bool,
}

/// The record beside the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    old_id: UniqueId,
    new_id: UniqueId,
    /// The image's file gets this time stamp, and its children say so.
    modified: UnixSeconds,
    /// Below the image's directory by their names there, others absolute.
    children: Vec<String>,
    /// The images that show that the change is open.
    #[serde(flatten)]
    head: Head,
}

impl Checked for Record {
    fn check(&self) -> Result<(), String> {
        if self.new_id.is_nil() || self.new_id == self.old_id {
            return Err(format!("it changes the identity {} to {}", self.old_id, self.new_id));
        }
        check_count("children", self.children.len(), 0)?;
        self.children
            .iter()
            .try_for_each(|child| check_path(Path::new(child)))?;
        self.head.check()
    }
}

/// A change of identity that is about to be made or finished.
#[derive(Debug)]
pub struct NewId {
    image: PathBuf,
    old: UniqueId,
    new: UniqueId,
    modified: UnixSeconds,
    children: Vec<PathBuf>,
    leaves_others: bool,
    resumed: bool,
}

impl NewId {
    /// What is to be done to the image at `image`: what an unfinished change of it says, or else a new one, for
    /// which every file is looked at. Nothing is changed.
    ///
    /// # Errors
    /// [`NewIdError`] when a file can't be opened, a named child is none, or there are others.
    pub fn plan(image: &Path, options: &NewIdOptions) -> Result<Self, NewIdError> {
        if let Some(unfinished) = Self::unfinished(image)? {
            unfinished.prove_children()?;
            unfinished.check_choice(options)?;
            return Ok(unfinished);
        }
        let old = Alone::open(image, Access::ReadOnly)?.image.unique_id();
        let mut plan = Self {
            image: image.to_owned(),
            old,
            new: UniqueId::random(),
            modified: UnixSeconds::from_system_time(SystemTime::now()),
            children: Vec::new(),
            leaves_others: options.leave_others,
            resumed: false,
        };
        plan.choose(options)?;
        require_no_job(plan.children.iter().chain([&plan.image]))?;
        for child in &plan.children {
            plan.check_child(child, &Alone::open(child, Access::ReadOnly)?, &[old])?;
        }
        Ok(plan)
    }

    /// The identity that the image had.
    #[must_use]
    pub fn old_id(&self) -> UniqueId {
        self.old
    }

    /// The identity that it gets.
    #[must_use]
    pub fn new_id(&self) -> UniqueId {
        self.new
    }

    /// The children that are to follow it.
    #[must_use]
    pub fn children(&self) -> &[PathBuf] {
        &self.children
    }

    /// The record: while it is there, the change is not finished.
    #[must_use]
    pub fn record_path(&self) -> PathBuf {
        record_path(&self.image)
    }

    /// An earlier run began it.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Does it, durably. All files are opened and looked at before the first one changes.
    ///
    /// # Errors
    /// [`NewIdError`]; if a record is there then, doing it again finishes what it says.
    pub fn run(self) -> Result<(), NewIdError> {
        let image = Alone::open(&self.image, Access::ReadWrite)?;
        self.check_image(&image)?;
        let children = self.open_children()?;
        self.refuse_newcomers()?;
        let (path, job) = (record_path(&self.image), self.job());
        sweep(JobKind::NewId, &path)?;
        // INV-36: markers and record are durable before the first file changes.
        job.announce(|| match self.resumed {
            true => Ok(()),
            false => Ok::<_, NewIdError>(RECORD.write(&path, &self.record(job.head())?)?),
        })?;
        // INV-30: children first. Until the image follows, no file has the identity that they look for, and they are
        // refused; the other way round they could be read over the original, which may have changed.
        for (path, child) in children {
            self.repoint(path, child)?;
        }
        self.rename(image)?;
        Ok(job.close()?)
    }

    /// The change as a job that all its files show. In between a child leads to an identity that no file has: nobody
    /// writes to one.
    fn job(&self) -> Job {
        let images = self
            .children
            .iter()
            .chain([&self.image])
            .map(|path| JobImage::held(path));
        Job::new(JobKind::NewId, &record_path(&self.image), images)
    }

    fn unfinished(image: &Path) -> Result<Option<Self>, NewIdError> {
        let path = record_path(image);
        let Some(record) = RECORD.read::<Record>(&path)? else {
            return Ok(None);
        };
        let dir = image.parent().unwrap_or(Path::new(""));
        Ok(Some(Self {
            image: image.to_owned(),
            old: record.old_id,
            new: record.new_id,
            modified: record.modified,
            children: record.children.iter().map(|child| dir.join(child)).collect(),
            leaves_others: false,
            resumed: true,
        }))
    }

    /// INV-38: what only the record names follows the image if it leads to the record.
    fn prove_children(&self) -> Result<(), NewIdError> {
        let job = self.job();
        Ok(self.children.iter().try_for_each(|child| job.prove_related(child))?)
    }

    /// What is named now must have been named then: a second choice can't be mixed with the first.
    fn check_choice(&self, options: &NewIdOptions) -> Result<(), NewIdError> {
        let known: HashSet<FileIdentity> = self.children.iter().filter_map(|path| identity(path).ok()).collect();
        for child in &options.children {
            if !known.contains(&identity(child)?) {
                let reason = format!("does not name {}: finish it without --child first", child.display());
                return Err(self.in_the_way(reason));
            }
        }
        Ok(())
    }

    fn in_the_way(&self, reason: String) -> NewIdError {
        NewIdError::Unfinished {
            image: self.image.clone(),
            record: record_path(&self.image),
            reason,
        }
    }

    /// The named children, each once, and all others if they are wanted.
    fn choose(&mut self, options: &NewIdOptions) -> Result<(), NewIdError> {
        let mut known = HashSet::new();
        for child in &options.children {
            if known.insert(identity(child)?) {
                self.children.push(child.clone());
            }
        }
        let found = Search::new().image(&self.image, self.old).run();
        if !options.leave_others {
            found.refuse_listed()?;
            found.refuse_unknown()?;
        }
        let mut others = found.child_paths();
        others.retain(|path| identity(path).is_ok_and(|identity| !known.contains(&identity)));
        if options.all_children {
            self.children.append(&mut others);
        }
        if others.is_empty() || options.leave_others {
            return Ok(());
        }
        Err(NewIdError::OtherChildren {
            image: self.image.clone(),
            children: others,
        })
    }

    /// The file is a child of one of these identities.
    fn check_child(&self, path: &Path, child: &Alone, ids: &[UniqueId]) -> Result<(), NewIdError> {
        let header = child.image.header().filter(|_| child.image.is_differencing());
        let reason = match header.map(|header| header.parent_id) {
            _ if identity(path)? == identity(&self.image)? => "it is that image itself".to_owned(),
            None => format!("it is a {} image", child.image.footer().disk_type),
            Some(found) if !ids.contains(&found) => format!("its parent is the disk {found}"),
            Some(_) => return Ok(()),
        };
        Err(NewIdError::NotAChild {
            child: path.to_owned(),
            image: self.image.clone(),
            id: self.old,
            reason,
        })
    }

    fn check_image(&self, image: &Alone) -> Result<(), NewIdError> {
        let found = image.image.unique_id();
        if found == self.old || self.resumed && found == self.new {
            return Ok(());
        }
        let (old, new) = (self.old, self.new);
        Err(self.in_the_way(format!(
            "is from {old} to {new}, but it is the disk {found}: if it was replaced, remove the record"
        )))
    }

    /// The children, each under its lock.
    fn open_children(&self) -> Result<Vec<(&Path, Alone)>, NewIdError> {
        let ids = [self.old, self.new];
        let allowed = if self.resumed { &ids[..] } else { &ids[..1] };
        let mut opened = Vec::new();
        for path in &self.children {
            let child = Alone::open(path, Access::ReadWrite)?;
            self.check_child(path, &child, allowed)?;
            opened.push((path.as_path(), child));
        }
        Ok(opened)
    }

    /// INV-46: nobody has become a child since the plan. The image is held now, so nobody does from here on; those that
    /// came before an earlier run wrote its record were asked for then.
    fn refuse_newcomers(&self) -> Result<(), NewIdError> {
        if self.leaves_others || self.resumed {
            return Ok(());
        }
        let known = self
            .children
            .iter()
            .map(|path| identity(path))
            .collect::<Result<_, _>>()?;
        let found = Search::new().image(&self.image, self.old).run();
        found.refuse_listed()?;
        Ok(found.refuse_others(&known)?)
    }

    fn record(&self, head: Head) -> Result<Record, NewIdError> {
        let text = |path: &PathBuf| {
            let unrecordable = || NewIdError::Name { path: path.clone() };
            let name = self.recorded_name(path).ok_or_else(unrecordable)?;
            name.to_str().map(str::to_owned).ok_or_else(unrecordable)
        };
        Ok(Record {
            old_id: self.old,
            new_id: self.new,
            modified: self.modified,
            children: self.children.iter().map(text).collect::<Result<_, _>>()?,
            head,
        })
    }

    fn recorded_name(&self, child: &Path) -> Option<PathBuf> {
        let dir = match self.image.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let (dir, child) = (dir.canonicalize().ok()?, child.canonicalize().ok()?);
        Some(child.strip_prefix(&dir).map_or(child.clone(), Path::to_owned))
    }

    fn repoint(&self, path: &Path, child: Alone) -> Result<(), NewIdError> {
        let modified = Timestamp::from_system_time(self.modified.to_system_time());
        let link = link_to(path, &self.image, self.new, modified)?;
        let amendment = Amendment {
            parent: Some(link),
            ..child.image.amendment()
        };
        amend(path, child, &amendment)
    }

    fn rename(&self, image: Alone) -> Result<(), NewIdError> {
        let file = image.file.clone();
        let now = image.image.amendment();
        let amendment = Amendment {
            footer: Footer {
                unique_id: self.new,
                ..now.footer.clone()
            },
            ..now
        };
        amend(&self.image, image, &amendment)?;
        let Some(host) = file.host_file() else {
            return Ok(());
        };
        // As the children say. Nothing but a warning depends on it.
        let set = host.set_modified(self.modified.to_system_time());
        set.map_err(|source| StorageError::at(&self.image, "set the time of", source).into())
    }
}

fn amend(path: &Path, alone: Alone, amendment: &Amendment) -> Result<(), NewIdError> {
    alone.image.amend(amendment).map_err(|source| NewIdError::Amend {
        path: path.to_owned(),
        source,
    })
}

fn record_path(image: &Path) -> PathBuf {
    let real = image.canonicalize();
    JobKind::NewId.record_path(real.as_deref().unwrap_or(image))
}

fn identity(path: &Path) -> Result<FileIdentity, ChainError> {
    FileIdentity::of_path(path).map_err(|source| ChainError::Read {
        path: path.to_owned(),
        source,
    })
}
