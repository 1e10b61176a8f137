//! `V:/PATH`: a disk by the name of its volume. The one place that knows such names.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use csv_lock::{CsvError, KnownVolume, check_disk_path};

use super::Machine;
use super::machine::no_such_volume;
use crate::failure::Failure;
use crate::running::Name;

/// A disk on a volume, or a name for one.
#[derive(Clone, Debug)]
pub(crate) struct DiskName {
    pub(crate) volume: KnownVolume,
    /// From the root of the volume.
    pub(crate) path: String,
}

impl DiskName {
    /// What the user named, if it is `V:/PATH`. It is a path if there is a directory `V:`, and one inside an image if V is a
    /// file.
    ///
    /// # Errors
    /// There is no such volume; no disk can have the path; the registry can't be read.
    pub(crate) fn parse(given: &Path) -> Result<Option<Self>, Failure> {
        let Some((name, path)) = given.to_str().and_then(|text| text.split_once(":/")) else {
            return Ok(None);
        };
        let is_path = Path::new(name).is_file() || Path::new(&format!("{name}:")).symlink_metadata().is_ok();
        if is_path || name.parse::<Name>().is_err() {
            return Ok(None);
        }
        let machine = Machine::find()?.ok_or_else(|| no_such_volume(name))?;
        let (volume, path) = (machine.volume(name)?, path.trim_start_matches('/'));
        check_disk_path(path).map_err(|refusal| Failure::from(CsvError::from(refusal)))?;
        Ok(Some(Self {
            volume,
            path: path.to_owned(),
        }))
    }

    /// Whether there is a volume of this name here, and nothing else that is called so.
    pub(crate) fn names_a_volume(name: &str) -> bool {
        let is_path = Path::new(name).is_file() || Path::new(&format!("{name}:")).symlink_metadata().is_ok();
        let known = || {
            Machine::find()
                .ok()
                .flatten()
                .is_some_and(|machine| machine.volume(name).is_ok())
        };
        !is_path && name.parse::<Name>().is_ok() && known()
    }

    /// What a disk of a volume is called.
    pub(crate) fn text(volume: &Name, path: &Path) -> PathBuf {
        let mut text = OsString::from(format!("{volume}:/"));
        text.push(path);
        text.into()
    }

    /// The file of the disk.
    pub(crate) fn file(&self) -> PathBuf {
        self.volume.dir.join(&self.path)
    }

    /// The disk whose file is another one of the volume: the active file of the disk's snapshots.
    pub(crate) fn of_file(&self, file: &Path) -> Self {
        let path = file.strip_prefix(&self.volume.dir).ok().and_then(Path::to_str);
        Self {
            volume: self.volume.clone(),
            path: path.unwrap_or(&self.path).to_owned(),
        }
    }
}
