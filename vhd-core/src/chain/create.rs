//! Creating a child of an existing disk.

use std::path::{Path, PathBuf};

use super::{ChainError, OpenOptions, OpenedDisk};
use crate::ErrorKind;
use crate::format::{DEFAULT_BLOCK_SIZE, MAX_BLOCK_SIZE, MIN_CREATE_BLOCK_SIZE, Timestamp, UniqueId};
use crate::image::{CreateError, Image, ParentLink, create_differencing};
use crate::job::require_steady;
use crate::storage::{StagedFile, StorageError, StorageFile, relative_to};

/// Why a child can't be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateChildError {
    /// The parent can't be opened.
    #[error(transparent)]
    Parent(#[from] ChainError),
    /// The child's file can't be made.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The child can't be written.
    #[error("cannot create {}", path.display())]
    Create {
        /// The child.
        path: PathBuf,
        /// The cause.
        #[source]
        source: CreateError,
    },
}

impl CreateChildError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Parent(error) => error.kind(),
            Self::Storage(error) => error.kind(),
            Self::Create { source, .. } => source.kind(),
        }
    }
}

/// Creates a differencing image at `child` over the disk at `parent`, which `options` opens (with its own
/// parents: a child of a broken chain would be broken too). Blocks are of `block_size` bytes, or as large as
/// the parent's where an image can be created with such blocks. The image appears under its name complete and durable, or not at all.
pub fn create_child(
    child: &Path,
    parent: &Path,
    block_size: Option<u64>,
    options: &OpenOptions,
) -> Result<UniqueId, CreateChildError> {
    create_child_in(child, child, parent, block_size, options)
}

/// The same in `file`, for one who moves that to `child` when it is complete: the parent is found from there.
///
/// # Errors
/// Those of [`create_child`].
pub fn create_child_in(
    file: &Path,
    child: &Path,
    parent: &Path,
    block_size: Option<u64>,
    options: &OpenOptions,
) -> Result<UniqueId, CreateChildError> {
    let opened = options.clone().write(false).open(parent)?;
    let image = opened.layers().next().and_then(|leaf| leaf.layer.image());
    let link = parent_link(child, parent, &opened)?;
    create_over(file, image, opened.disk().size(), &link, block_size)
}

/// The same over a disk that is open already as `opened`, from `parent`.
pub(crate) fn create_child_of(
    child: &Path,
    parent: &Path,
    block_size: Option<u64>,
    opened: &OpenedDisk,
) -> Result<UniqueId, CreateChildError> {
    let image = opened.layers().next().and_then(|leaf| leaf.layer.image());
    let link = parent_link(child, parent, opened)?;
    create_over(child, image, opened.disk().size(), &link, block_size)
}

/// The same over a disk of `disk_size` bytes in an image, or in a raw file.
pub(crate) fn create_over(
    child: &Path,
    image: Option<&Image>,
    disk_size: u64,
    link: &ParentLink,
    block_size: Option<u64>,
) -> Result<UniqueId, CreateChildError> {
    let parent_blocks = image
        .and_then(|image| image.header())
        .map(|header| header.layout.block_size());
    let creatable = u64::from(MIN_CREATE_BLOCK_SIZE)..=u64::from(MAX_BLOCK_SIZE);
    let inherited = parent_blocks.filter(|size| creatable.contains(size));
    let block_size = block_size.or(inherited).unwrap_or(u64::from(DEFAULT_BLOCK_SIZE));
    let failed = |source| CreateChildError::Create {
        path: child.to_owned(),
        source,
    };
    let staged = StagedFile::create_beside(child)?;
    let id = create_differencing(&*staged.storage(), disk_size, block_size, link).map_err(failed)?;
    staged.publish(false, true)?;
    Ok(id)
}

/// What an image at `child` has to say of the disk at `parent`, which is open as `opened`.
///
/// # Errors
/// [`CreateChildError`]: a job is open that changes the parent, as a merge or a resize; the parent's name can't be stored.
pub fn parent_link(child: &Path, parent: &Path, opened: &OpenedDisk) -> Result<ParentLink, CreateChildError> {
    // INV-37: what is to be based on it must not change below it, and the job does not know of it.
    require_steady(parent).map_err(ChainError::from)?;
    link_to_disk(child, parent, opened)
}

/// The same for the holder of the job that is open on the parent.
pub(crate) fn link_to_disk(child: &Path, parent: &Path, opened: &OpenedDisk) -> Result<ParentLink, CreateChildError> {
    let image = opened.layers().next().and_then(|leaf| leaf.layer.image());
    link_to_open(child, parent, image, opened.file_at_depth(0))
}

/// The same of an image, or a raw file, that is open.
pub(crate) fn link_to_open(
    child: &Path,
    parent: &Path,
    image: Option<&Image>,
    file: Option<&dyn StorageFile>,
) -> Result<ParentLink, CreateChildError> {
    let id = image.map_or(UniqueId::NIL, Image::unique_id);
    // INV-34: of the file that is open, whatever has its name now.
    let modified = file.and_then(StorageFile::host_file);
    let modified = modified.and_then(|file| file.metadata().ok()?.modified().ok());
    let modified = modified.map_or_else(|| self::modified(parent), |time| Ok(Timestamp::from_system_time(time)))?;
    link_to(child, parent, id, modified)
}

/// What an image at `child` has to say of the file at `parent` when that has this identity and this time stamp.
pub(crate) fn link_to(
    child: &Path,
    parent: &Path,
    id: UniqueId,
    modified: Timestamp,
) -> Result<ParentLink, CreateChildError> {
    let names = parent_names(child, parent)?;
    let link = names.map_err(|source| CreateChildError::Create {
        path: child.to_owned(),
        source,
    })?;
    Ok(ParentLink { id, modified, ..link })
}

pub(super) fn modified(path: &Path) -> Result<Timestamp, ChainError> {
    let modified = path.metadata().and_then(|metadata| metadata.modified());
    let modified = modified.map_err(|source| ChainError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(Timestamp::from_system_time(modified))
}

/// The parent's name and the ways to it, as a VHD stores them.
fn parent_names(child: &Path, parent: &Path) -> Result<Result<ParentLink, CreateError>, ChainError> {
    let parent_dir = canonical_dir(parent)?;
    let child_dir = canonical_dir(child)?;
    let refused = |reason| CreateError::ParentName {
        name: parent.display().to_string(),
        reason,
    };
    let names = || {
        let name = parent
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| refused("it is not Unicode"))?;
        let relative = relative_to(&parent_dir, &child_dir).join(name);
        let absolute = parent_dir.join(name);
        let (Some(relative), Some(absolute)) = (relative.to_str(), absolute.to_str()) else {
            return Err(refused("its directory is not Unicode"));
        };
        if absolute.contains('\\') {
            return Err(refused("a backslash in it would be read as a separator"));
        }
        Ok(ParentLink {
            id: UniqueId::NIL,
            modified: Timestamp::UNSET,
            name: name.to_owned(),
            relative_path: relative.replace('/', "\\"),
            absolute_path: absolute.replace('/', "\\"),
        })
    };
    Ok(names())
}

fn canonical_dir(path: &Path) -> Result<PathBuf, ChainError> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    dir.canonicalize().map_err(|source| ChainError::Read {
        path: dir.to_owned(),
        source,
    })
}
