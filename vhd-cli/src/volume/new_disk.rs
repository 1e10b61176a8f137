//! A file that becomes a disk: of a volume through its coordinator, or simply a file.

use std::fs;
use std::path::{Path, PathBuf};

use csv_lock::{Ask, CsvError, incoming};
use uuid::Uuid;

use super::name::DiskName;
use super::table::table_of;
use super::{Machine, PAUSE, Session};
use crate::failure::Failure;

/// A file that is about to be written.
pub(crate) struct NewDisk {
    /// Where it shall be in the end.
    place: PathBuf,
    on_volume: Option<Incoming>,
}

/// A file that waits in a volume's directory for such files.
struct Incoming {
    disk: DiskName,
    name: String,
    file: PathBuf,
    session: Session,
}

impl NewDisk {
    /// The file that the user named.
    pub(crate) fn new(given: &Path) -> Result<Self, Failure> {
        let Some(disk) = DiskName::parse(given)? else {
            return Ok(Self {
                place: given.to_owned(),
                on_volume: None,
            });
        };
        let machine = Machine::open()?;
        let node = machine.member(&disk.volume, None)?;
        let name = format!("{}.vhd", Uuid::new_v4());
        Ok(Self {
            place: disk.file(),
            on_volume: Some(Incoming {
                session: Session::new(&machine, &disk.volume, node)?,
                file: disk.volume.dir.join(incoming(&name)),
                name,
                disk,
            }),
        })
    }

    /// Where it shall be in the end.
    pub(crate) fn place(&self) -> &Path {
        &self.place
    }

    /// Where to write it.
    pub(crate) fn file(&self) -> &Path {
        match &self.on_volume {
            Some(incoming) => &incoming.file,
            None => &self.place,
        }
    }

    /// Whether its file must be durable before it is [published](Self::publish).
    pub(crate) fn is_on_volume(&self) -> bool {
        self.on_volume.is_some()
    }

    /// The file is complete, and durable if it is on a volume: that gives it its name. With `replace` it takes the place of the
    /// disk of that name, if there is one.
    pub(crate) fn publish(mut self, replace: bool) -> Result<(), Failure> {
        let Some(incoming) = &mut self.on_volume else {
            return Ok(());
        };
        let (path, name) = (incoming.disk.path.clone(), incoming.name.clone());
        let table = table_of(&incoming.file)?;
        let exists = replace && self.place.symlink_metadata().is_ok();
        if exists {
            incoming.session.adopt(&incoming.disk)?;
        }
        let ask = match exists {
            true => Ask::Replace {
                path,
                incoming: name,
                table,
                generation: None,
            },
            false => Ask::Create {
                path,
                incoming: name,
                table,
            },
        };
        let about = |error: CsvError| Failure::from(error).about(incoming.disk.volume.name.as_str());
        incoming.session.ask(ask, PAUSE).map_err(about)?;
        Ok(())
    }
}

impl Drop for NewDisk {
    fn drop(&mut self) {
        // Under its final name it is not there any more. Its present name is used once, so nobody else's file goes.
        if let Some(incoming) = &self.on_volume {
            let _ = fs::remove_file(&incoming.file);
        }
    }
}
