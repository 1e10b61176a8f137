//! A file that becomes a disk: of a volume through its coordinator, or simply a file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use csv_lock::{Ask, CsvError, Fence as _, HasEnded, KnownVolume, incoming};
use uuid::Uuid;

use super::name::DiskName;
use super::table::table_of;
use super::{Machine, PAUSE, Session};
use crate::failure::Failure;

/// What names of files end in that wait.
pub(super) const SUFFIX: &str = ".vhd";

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
    machine: Machine,
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
        let mut session = Session::begin(&machine, &disk)?;
        sweep(&machine, &disk, &mut session)?;
        let name = format!("{}{SUFFIX}", session.id().id);
        Ok(Self {
            place: disk.file(),
            on_volume: Some(Incoming {
                file: disk.volume.dir.join(incoming(&name)),
                name,
                disk,
                session,
                machine,
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
        let asked = incoming.session.ask(ask, PAUSE);
        let volume = incoming.disk.volume.name.clone();
        if let Err(CsvError::NoCoordinator { .. }) = &asked {
            // It may still take effect, and then needs the file. Whoever comes when that is known removes it.
            self.on_volume = None;
        }
        asked.map_err(|error| Failure::from(error).about(volume))?;
        Ok(())
    }
}

impl Drop for NewDisk {
    fn drop(&mut self) {
        // Under its final name it is not there any more. Its present name is used once, so nobody else's file goes.
        if let Some(incoming) = &self.on_volume
            && remove_file(&incoming.file).is_ok()
        {
            let _ = incoming.machine.registry().end_session(incoming.session.id().id);
        }
    }
}

/// Removes what commands left that were killed: the name of a file begins with its session, whose process is proven to have ended.
///
/// The coordinator hears of it first: what the session asked for has taken effect then, or never will, and with it the move of
/// the file to its name.
fn sweep(machine: &Machine, disk: &DiskName, session: &mut Session) -> Result<(), Failure> {
    for name in prepared(&disk.volume)? {
        let known = session_of(&name)
            .map(|id| machine.registry().session(id))
            .transpose()?
            .flatten();
        let Some(known) = known else { continue };
        let Ok(proof) = HasEnded.fence(&known.session.node, &known.process) else {
            continue;
        };
        session.fenced(&known.session, &proof.to_string(), PAUSE)?;
        forget(machine, &disk.volume, known.session.id)?;
    }
    Ok(())
}

/// Forgets a session that is fenced, with what it prepared.
pub(crate) fn forget(machine: &Machine, volume: &KnownVolume, session: Uuid) -> Result<(), Failure> {
    for name in prepared(volume)?
        .into_iter()
        .filter(|name| session_of(name) == Some(session))
    {
        let file = volume.dir.join(incoming(&name));
        remove_file(&file).map_err(|error| Failure::io("remove", &file, &error))?;
    }
    Ok(machine.registry().end_session(session)?)
}

/// The names of the files that wait.
fn prepared(volume: &KnownVolume) -> Result<Vec<String>, Failure> {
    let dir = volume.dir.join(incoming(""));
    let names = fs::read_dir(&dir).map_err(|error| Failure::io("list", &dir, &error))?;
    let names = names.filter_map(Result::ok);
    Ok(names.filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// The session that a file is of: jobs on one have files of their own beside it.
fn session_of(name: &str) -> Option<Uuid> {
    name.split('.').next()?.parse().ok()
}

/// Removes a file that may be gone already.
fn remove_file(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
