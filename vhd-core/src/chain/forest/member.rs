//! What one file says of itself.

use std::path::PathBuf;
use std::sync::Arc;

use crate::chain::foreign::{self, ForeignFacts};
use crate::chain::{ChainError, ImageFormat, image_error};
use crate::format::{DiskType, Timestamp, UniqueId};
use crate::image::{FooterSource, Footers, Image, OpenMode, ParentPath};
use crate::storage::{Access, HostFile, Sharing, StorageFile};

/// A file with an image's name.
#[derive(Debug)]
#[non_exhaustive]
pub struct Member {
    /// Where it was found first.
    pub path: PathBuf,
    /// Other names of the same file below the directory.
    pub aliases: Vec<PathBuf>,
    /// It is not below the directory, but a parent of one that is.
    pub outside: bool,
    /// Bytes in the file; 0 if it can't be opened.
    pub file_size: u64,
    /// When the file was last modified.
    pub modified: Option<Timestamp>,
    /// What it says, or why that is not to be had.
    pub state: Result<Facts, ChainError>,
    /// The identity in the footer of a file that is damaged elsewhere.
    damaged_id: Option<UniqueId>,
}

/// What an image says of itself.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The format.
    pub format: ImageFormat,
    /// The identity; of a VHDX, its data write GUID.
    pub id: UniqueId,
    /// The type.
    pub disk_type: DiskType,
    /// Bytes on the disk.
    pub disk_size: u64,
    /// Bytes of block data that have space in the file (of a fixed image: the whole disk); `None` if all of the file would
    /// have to be looked through for that.
    pub allocated_bytes: Option<u64>,
    /// Bytes in a block; `None` for a fixed image.
    pub block_size: Option<u64>,
    /// When the image was made.
    pub created: Timestamp,
    /// The footer at the end is damaged or missing; its copy serves.
    pub footer_recovered: bool,
    /// What a differencing image says of its parent.
    pub parent: Option<ParentFacts>,
}

/// What a differencing image says of its parent.
#[derive(Clone, Debug)]
pub struct ParentFacts {
    /// The parent's identity; nil for a raw file.
    pub id: UniqueId,
    /// Another identity that it may have, in a VHDX.
    pub second_id: Option<UniqueId>,
    /// When the parent's file was modified, as far as the child knows.
    pub modified: Timestamp,
    /// Where it is, as written, best first.
    pub paths: Vec<ParentPath>,
}

impl Member {
    /// Reads the file: both footers, the header, the locators and the table. No lock is taken for a look.
    pub(super) fn read(path: PathBuf, outside: bool) -> Self {
        let mut member = Self {
            aliases: Vec::new(),
            outside,
            file_size: 0,
            modified: None,
            damaged_id: None,
            state: Err(ChainError::Read {
                path: path.clone(),
                source: std::io::ErrorKind::Other.into(),
            }),
            path,
        };
        member.state = member.examine();
        member
    }

    fn examine(&mut self) -> Result<Facts, ChainError> {
        let file = Arc::new(HostFile::open(&self.path, Access::ReadOnly, Sharing::Unlocked)?);
        let read = |source| ChainError::Read {
            path: self.path.clone(),
            source,
        };
        self.file_size = file.len().map_err(read)?;
        self.modified = file.modified().ok().map(Timestamp::from_system_time);
        let image = Image::open(Arc::clone(&file) as _, &OpenMode::ancestor());
        let facts = image.and_then(|image| {
            let paths = image.parent_paths()?;
            Ok(Facts::of(&image, paths))
        });
        let source = match facts {
            Ok(facts) => return Ok(facts),
            Err(source) => source,
        };
        match image_error(&*file, &self.path, source) {
            ChainError::ReadOnlyFormat { .. } => {
                let layer = foreign::read_alone(file, &self.path)?;
                Ok(Facts::of_foreign(layer.facts()))
            }
            error => {
                self.damaged_id = Footers::read(&*file).ok().map(|footers| footers.footer.unique_id);
                Err(error)
            }
        }
    }

    /// The identity, as far as it is known. The nil one is none.
    #[must_use]
    pub fn id(&self) -> Option<UniqueId> {
        let id = match &self.state {
            Ok(facts) => Some(facts.id),
            Err(_) => self.damaged_id,
        };
        id.filter(|id| !id.is_nil())
    }
}

impl Facts {
    fn of_foreign(facts: &ForeignFacts) -> Self {
        Self {
            format: facts.format,
            id: facts.id,
            disk_type: facts.disk_type,
            disk_size: facts.disk_size,
            allocated_bytes: facts.allocated_blocks.map(|blocks| blocks * facts.block_size),
            block_size: Some(facts.block_size),
            created: Timestamp::UNSET,
            footer_recovered: false,
            parent: facts.parent.as_ref().map(|parent| ParentFacts {
                id: parent.id,
                second_id: parent.second_id,
                modified: Timestamp::UNSET,
                paths: parent.paths.clone(),
            }),
        }
    }

    fn of(image: &Image, paths: Vec<ParentPath>) -> Self {
        let parent = image.header().filter(|_| image.is_differencing());
        Self {
            format: ImageFormat::Vhd,
            id: image.unique_id(),
            disk_type: image.footer().disk_type,
            disk_size: image.disk_size(),
            allocated_bytes: Some(image.allocated_bytes()),
            block_size: image.header().map(|header| header.layout.block_size()),
            created: image.footer().timestamp,
            footer_recovered: image.footers().source == FooterSource::Copy,
            parent: parent.map(|header| ParentFacts {
                id: header.parent_id,
                second_id: None,
                modified: header.parent_timestamp,
                paths,
            }),
        }
    }
}
