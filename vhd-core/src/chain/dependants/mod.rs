//! Who relies on an image: the differencing images that name it as their parent, and the snapshot manifests that list it.
//!
//! Every operation that changes what an image reads asks here, and refuses unless the answer is "nobody".
//!
//! ```text
//!   scope.rs     which directories are searched, and which of them must be read completely
//!   walk.rs      going through them, within limits
//!   claim.rs     what one file says of its parent, read from a few hundred bytes; damaged files too
//!   answer.rs    nobody, these, or unknown for a reason; error.rs refuses on the last two
//! ```
//!
//! An identity in an image is not unique: copies have it too. A child beside the image is a dependant by the identity
//! alone. One in another directory whose places lead to another copy belongs to that copy. One whose places lead nowhere
//! counts everywhere. docs/dependants.md has the rules and measurements.

mod answer;
mod claim;
mod error;
mod scope;
mod walk;

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use answer::{Child, Dependants, Doubt, Listed};
pub use error::{DependantsError, Frozen};

use self::claim::{Claim, MIN_BYTES};
use self::scope::Scope;
use self::walk::{Seen, Walk, Walked};
use super::ChainError;
use super::examine::leads_to;
use crate::format::UniqueId;
use crate::image::Footers;
use crate::snapshot::membership;
use crate::storage::{Access, FileIdentity, HostFile, Sharing};

/// How much is looked at. A limit that is reached in a directory of the image, or below one, makes the answer unknown.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Files in the directories of the images and below them.
    pub files: usize,
    /// Directories below one another, from the directory of an image.
    pub depth: usize,
    /// How long the search may take.
    pub time: Duration,
    /// Files in the directories around: above an image's directory, below those, behind links.
    pub files_around: usize,
    /// How long the search around may take.
    pub time_around: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            files: 1 << 17,
            depth: 16,
            time: Duration::from_secs(30),
            files_around: 1 << 16,
            time_around: Duration::from_secs(5),
        }
    }
}

impl Limits {
    /// For an image that is opened for writing, which is done often: less is looked at around it.
    #[must_use]
    pub fn for_opening() -> Self {
        Self {
            files_around: 1 << 13,
            time_around: Duration::from_millis(250),
            ..Self::default()
        }
    }
}

/// A search for those who rely on one image, or on any of several.
#[derive(Clone, Debug, Default)]
pub struct Search {
    subjects: Vec<Subject>,
    /// Files whose directories are looked at too.
    beside: Vec<PathBuf>,
    limits: Limits,
}

/// An image that others may rely on.
#[derive(Clone, Debug)]
struct Subject {
    path: PathBuf,
    id: UniqueId,
    /// `None` for a file that is gone.
    file: Option<FileIdentity>,
    /// How many names the file has.
    names: u64,
    /// The directories that it is in: that of the name, and that of the file it leads to.
    dirs: Vec<FileIdentity>,
}

impl Search {
    /// A search that is about no image yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks for those who rely on the image at `path`, whose identity is `id`. With the nil identity, as a raw file has
    /// it, a child counts if its places lead to the file.
    #[must_use]
    pub fn image(mut self, path: &Path, id: UniqueId) -> Self {
        let metadata = fs::metadata(path).ok();
        self.subjects.push(Subject {
            path: path.to_owned(),
            id,
            file: metadata.as_ref().map(FileIdentity::of),
            names: metadata
                .filter(Metadata::is_file)
                .map_or(1, |metadata| metadata.nlink()),
            dirs: scope::directories_of(path)
                .iter()
                .filter_map(|dir| FileIdentity::of_path(dir).ok())
                .collect(),
        });
        self
    }

    /// Looks in the directories of these files too: those of the image's own parents.
    #[must_use]
    pub fn beside(mut self, paths: impl IntoIterator<Item = PathBuf>) -> Self {
        self.beside.extend(paths);
        self
    }

    /// Looks at so much and no more.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Searches. Nothing is locked or changed.
    #[must_use]
    pub fn run(&self) -> Dependants {
        let paths = self.subjects.iter().map(|subject| subject.path.as_path());
        let scope = Scope::of(paths, self.beside.iter().map(PathBuf::as_path));
        let mut finding = Finding::new(self);
        let walked = Walk::new(&self.limits, &mut |seen| finding.look(seen)).run(scope);
        finding.finish(walked)
    }
}

/// Directories that matter for a search.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Those of the images, by their names and by the files that these lead to.
    pub own: Vec<PathBuf>,
    /// Those around, which are looked at as far as it goes.
    pub around: Vec<PathBuf>,
}

/// Where a search for those who rely on the images at `paths` looks: for a process that must say beforehand what it reads.
#[must_use]
pub fn places_of<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Places {
    let scope = Scope::of(paths.into_iter(), std::iter::empty());
    let dirs = |roots: Vec<scope::Root>| roots.into_iter().map(|root| root.dir).collect();
    Places {
        own: dirs(scope.complete),
        around: dirs(scope.around),
    }
}

/// Who relies on the image at `path`. Nothing is locked or changed.
///
/// # Errors
/// [`ChainError`] when the image can't be read, or is no VHD.
pub fn dependants_of(path: &Path) -> Result<Dependants, ChainError> {
    let file = HostFile::open(path, Access::ReadOnly, Sharing::Unlocked)?;
    let footers = Footers::read(&file).map_err(|source| ChainError::Image {
        path: path.to_owned(),
        source,
    })?;
    Ok(Search::new().image(path, footers.footer.unique_id).run())
}

/// What was found so far.
struct Finding<'a> {
    subjects: &'a [Subject],
    children: Vec<Child>,
    /// The files of the children: one with several names counts once.
    files: HashSet<FileIdentity>,
    listed: Vec<Listed>,
    /// Leaves that a command was making when it was killed: nothing uses them.
    unused: Vec<PathBuf>,
    /// Files that a command was removing when it was killed: nothing refers to them.
    going: Vec<PathBuf>,
    doubts: Vec<Doubt>,
    /// How many names of each image were seen, and in which directories they are.
    names: Vec<u64>,
}

impl<'a> Finding<'a> {
    fn new(search: &'a Search) -> Self {
        Self {
            subjects: &search.subjects,
            children: Vec::new(),
            files: HashSet::new(),
            listed: Vec::new(),
            unused: Vec::new(),
            going: Vec::new(),
            doubts: Vec::new(),
            names: vec![0; search.subjects.len()],
        }
    }

    /// Looks at one regular file.
    fn look(&mut self, seen: &Seen<'_>) {
        let file = FileIdentity::of(seen.metadata);
        if let Some(subject) = self.subjects.iter().position(|subject| subject.file == Some(file)) {
            // A link leads to a name that is counted where it is.
            self.names[subject] += u64::from(!seen.is_link);
            if self.subjects.len() == 1 {
                return;
            }
        }
        if membership::is_manifest(seen.path) {
            self.look_at_manifest(seen);
        } else if seen.metadata.len() >= MIN_BYTES && !self.files.contains(&file) {
            self.look_at_image(seen, file);
        }
    }

    fn look_at_image(&mut self, seen: &Seen<'_>, file: FileIdentity) {
        let claim = match claim::read(seen.path) {
            Ok(claim) => claim,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => return self.doubt(seen, Doubt::unreadable(seen.path, &error)),
        };
        match claim {
            Claim::NoChild => {}
            Claim::Unclear => self.doubt(seen, Doubt::damaged(seen.path)),
            Claim::Child { ids, sound } => {
                let parent = self.subjects.iter().position(|subject| ids.contains(&subject.id));
                match parent.filter(|&parent| self.subjects[parent].file != Some(file)) {
                    Some(parent) => self.take(seen, file, parent, sound),
                    None if !sound => self.doubt(seen, Doubt::damaged(seen.path)),
                    None => {}
                }
            }
        }
    }

    /// Takes a child of the image `parent`, unless its places lead elsewhere.
    fn take(&mut self, seen: &Seen<'_>, file: FileIdentity, parent: usize, sound: bool) {
        let subject = &self.subjects[parent];
        let found = leads_to(seen.path, subject.id);
        let leads_there = found.is_some() && found == subject.file;
        let is_beside = directory_of(seen.path).is_some_and(|dir| subject.dirs.contains(&dir));
        let counts = if subject.id.is_nil() {
            leads_there
        } else {
            leads_there || found.is_none() || is_beside
        };
        if counts && self.files.insert(file) {
            self.children.push(Child {
                path: seen.path.to_owned(),
                image: parent,
                leads_there,
                damaged: !sound,
            });
        }
    }

    fn look_at_manifest(&mut self, seen: &Seen<'_>) {
        let subjects = self.subjects;
        let mut matches = |path: &Path, id: UniqueId| {
            let found = FileIdentity::of_path(path).ok();
            // A frozen file that was moved away is one all the same.
            let is_this = |subject: &Subject| found.is_none() && !id.is_nil() || subject.file == found;
            subjects.iter().position(|subject| subject.id == id && is_this(subject))
        };
        match membership::of(seen.path, &mut matches) {
            Ok(found) => {
                self.unused.extend(found.unused);
                self.going.extend(found.going);
                let listed = found.members.into_iter().map(|(image, member)| Listed {
                    image,
                    manifest: seen.path.to_owned(),
                    member,
                });
                self.listed.extend(listed);
            }
            Err(error) => {
                if subjects.iter().any(|subject| may_list(seen.path, subject)) {
                    self.doubts.push(Doubt::manifest(seen.path, &error));
                }
            }
        }
    }

    /// What is not clear in a directory that must be read completely makes the answer unknown.
    fn doubt(&mut self, seen: &Seen<'_>, doubt: Doubt) {
        if seen.must_be_known {
            self.doubts.push(doubt);
        }
    }

    fn finish(mut self, walked: Walked) -> Dependants {
        self.doubts.extend(walked.doubts);
        for (subject, seen) in self.subjects.iter().zip(&self.names) {
            if subject.names > *seen.max(&1) && !subject.id.is_nil() {
                self.doubts
                    .push(Doubt::names(&subject.path, subject.names, *seen.max(&1)));
            }
        }
        let (unused, going) = (self.unused, self.going);
        self.children.retain(|child| !going.contains(&child.path));
        self.children
            .retain(|child| !unused.contains(&child.path) || !claim::is_empty(&child.path));
        self.children.sort_by(|a, b| a.path.cmp(&b.path));
        let images = self.subjects.iter().map(|subject| subject.path.clone());
        Dependants {
            images: images.collect(),
            children: self.children,
            listed: self.listed,
            doubts: self.doubts,
            cut_short: walked.cut_short,
        }
    }
}

/// Whether a manifest that can't be read may list an image: one of its name, or any in the directory of a file that is
/// named like a leaf.
fn may_list(manifest: &Path, subject: &Subject) -> bool {
    if !directory_of(manifest).is_some_and(|dir| subject.dirs.contains(&dir)) {
        return false;
    }
    let real = subject.path.canonicalize();
    let real = real.as_deref().unwrap_or(&subject.path);
    subject.names > 1 || membership::is_leaf(real) || membership::manifest_of(real).file_name() == manifest.file_name()
}

/// The directory that a file was found in.
fn directory_of(path: &Path) -> Option<FileIdentity> {
    FileIdentity::of_path(path.parent()?).ok()
}
