//! Where a command writes an image: a file that must not be in the way, or standard output.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Stat, fstat};
use vhd_core::chain::dependants::Search;
use vhd_core::chain::{ChainWarning, OpenedDisk};
use vhd_core::format::UniqueId;
use vhd_core::image::Footers;
use vhd_core::job::{JobError, require_no_job};
use vhd_core::storage::{Access, HostFile, Sharing, StorageError};

use crate::children::{self, ChildrenArgs};
use crate::codes::Kind;
use crate::failure::Failure;
use crate::input::{is_dash, names_a_file, split_snapshot};
use crate::output;

/// A destination with a name.
pub(super) struct Destination<'a> {
    path: &'a Path,
    /// A file of that name is there, and is to be replaced.
    exists: bool,
    children: ChildrenArgs,
}

impl<'a> Destination<'a> {
    /// The destination at `path`. Publishing refuses an existing one too where it is not to be replaced; this is to
    /// know that before terabytes are written.
    pub(super) fn new(path: &'a Path, force: bool, children: ChildrenArgs) -> Result<Self, Failure> {
        let exists = path.symlink_metadata().is_ok();
        if exists && !force {
            let path = path.to_owned();
            return Err(StorageError::Exists { path }.into());
        }
        // A device or a pipe would be replaced by a file of its name, which nobody wants.
        match path.metadata() {
            Ok(metadata) if exists && !metadata.is_file() => {
                let message = format!("{} is no regular file and is not replaced", path.display());
                Err(Failure::new(Kind::NotReplaceable, message))
            }
            _ => Ok(Self { path, exists, children }),
        }
    }

    /// The destination.
    pub(super) fn path(&self) -> &Path {
        self.path
    }

    /// The directory that it is in.
    pub(super) fn directory(&self) -> Option<&Path> {
        let parent = self.path.parent()?;
        Some(if parent.as_os_str().is_empty() {
            Path::new(".")
        } else {
            parent
        })
    }

    /// Refuses sources that are half changed, and to replace a file that one of them is read from; keeps everybody else
    /// away from what is about to be replaced: while somebody uses it, it is not.
    pub(super) fn guard<'b>(&self, sources: impl AsRef<[&'b OpenedDisk]>) -> Result<Option<HostFile>, Failure> {
        let sources = sources.as_ref();
        sources.iter().try_for_each(|source| refuse_half_changed(source))?;
        if !self.exists {
            return Ok(None);
        }
        for source in sources {
            refuse_source(source, rustix::fs::stat(self.path), &self.path.display().to_string())?;
        }
        let held = HostFile::open(self.path, Access::ReadWrite, Sharing::Exclusive);
        // INV-46: asked when it is held, so nobody makes a child of it afterwards.
        if !self.children.ignore_children {
            self.refuse_parent()?;
        }
        require_no_job([self.path])?;
        match held {
            Ok(file) => Ok(Some(file)),
            Err(error @ StorageError::Locked { .. }) => Err(error.into()),
            // Not writable, or a link to nowhere: its name can be given away all the same.
            Err(_) => Ok(None),
        }
    }
}

impl Destination<'_> {
    /// Refuses to replace an image that others are based on, or that a disk with snapshots consists of.
    fn refuse_parent(&self) -> Result<(), Failure> {
        let file = HostFile::open(self.path, Access::ReadOnly, Sharing::Unlocked).ok();
        let footers = file.and_then(|file| Footers::read(&file).ok());
        let id = footers.map_or(UniqueId::NIL, |footers| footers.footer.unique_id);
        let found = Search::new().image(self.path, id).run();
        let refused = found.refuse_listed().and_then(|()| found.refuse());
        refused.map_err(|error| children::explain(error).about(format_args!("{} is not replaced", self.path.display())))
    }
}

/// The file to write where the destination may be a directory: there the name of the source with `extension`;
/// `vm-monday.raw` for the snapshot `vm.vhd@monday`.
pub(super) fn in_directory(given: &Path, source: &Path, extension: &str) -> Result<PathBuf, Failure> {
    if is_dash(given) || !given.is_dir() {
        return Ok(given.to_owned());
    }
    let Some(name) = source.file_name().filter(|_| names_a_file(source)) else {
        let message = format!(
            "{} is a directory, and the source has no name for a file in it",
            given.display()
        );
        return Err(Failure::usage(message));
    };
    let stem = |name: &Path| name.file_stem().unwrap_or_default().to_owned();
    let mut file = match split_snapshot(source) {
        Some((disk, snapshot)) => {
            let mut file = stem(disk);
            file.push("-");
            file.push(snapshot);
            file
        }
        None => stem(Path::new(name)),
    };
    file.push(".");
    file.push(extension);
    Ok(given.join(file))
}

/// Standard output as the destination of an image.
pub(super) struct StandardOutput {
    file: File,
}

impl StandardOutput {
    /// Standard output, if it is no terminal.
    pub(super) fn open() -> Result<Self, Failure> {
        let stdout = io::stdout();
        if stdout.is_terminal() {
            let message = "a terminal is no place for a disk: redirect standard output";
            return Err(Failure::new(Kind::Terminal, message));
        }
        let owned = stdout.as_fd().try_clone_to_owned();
        Ok(Self {
            file: File::from(owned.map_err(|error| output::write_failed(&error))?),
        })
    }

    /// Refuses a source that is half changed, and to overwrite what is read.
    pub(super) fn refuse_source(&self, opened: &OpenedDisk) -> Result<(), Failure> {
        refuse_half_changed(opened)?;
        refuse_source(opened, fstat(&self.file), "standard output")
    }

    /// Where to write.
    pub(super) fn writer(&mut self) -> &mut dyn Write {
        &mut self.file
    }
}

/// Refuses to copy an image that an open job changes: by itself the target of an unfinished merge is neither the disk that
/// it was nor the one that it is going to be, and a copy would look like a sound disk for ever.
pub(super) fn refuse_half_changed(source: &OpenedDisk) -> Result<(), Failure> {
    for warning in source.warnings() {
        if let ChainWarning::JobOpen { path, kind, record } = warning {
            let (image, record) = (path.clone(), record.clone());
            return Err(JobError::Pending {
                image,
                kind: *kind,
                record,
            }
            .into());
        }
    }
    Ok(())
}

/// Refuses a destination that the source is read from, under whatever name.
pub(super) fn refuse_source(opened: &OpenedDisk, status: rustix::io::Result<Stat>, name: &str) -> Result<(), Failure> {
    let Ok(destination) = status else { return Ok(()) };
    for path in opened.paths() {
        let Ok(layer) = rustix::fs::stat(path) else { continue };
        if (layer.st_dev, layer.st_ino) == (destination.st_dev, destination.st_ino) {
            let message = format!("the destination {name} is {}, which is read", path.display());
            return Err(Failure::new(Kind::SameFile, message));
        }
    }
    Ok(())
}
