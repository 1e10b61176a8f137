//! Whether a file system does what the protocol relies on, as far as one node can see.
//!
//! Whether *other* nodes see a new name at once cannot be proven from one of them: `docs/cluster.md` says how to mount.

use std::io::{self, ErrorKind};

use super::layout::ROOT;
use super::{VolumeFile, VolumeIo};
use crate::error::{CsvError, VolumeContext};

const FILE: &str = ".csv/probe";
const OTHER: &str = ".csv/probe.other";
const DIR: &str = ".csv/probe.dir";

/// Tries each thing once, and removes what it made.
///
/// # Errors
/// `FileSystem` with what did not work.
pub(super) fn probe<V: VolumeIo>(volume: &V) -> Result<(), CsvError> {
    clear(volume)?;
    let result = try_all(volume);
    clear(volume)?;
    result
}

fn try_all<V: VolumeIo>(volume: &V) -> Result<(), CsvError> {
    let file = works("creating a file", volume.create_new(FILE))?;
    refuses(
        "a file was created twice",
        volume.create_new(FILE).map(drop),
        ErrorKind::AlreadyExists,
    )?;
    works("writing", file.write_at(b"first", 0))?;
    works("extending a file with its space (fallocate)", file.extend_to(8192))?;
    works("extending a file with its space (fallocate)", file.extend_to(4096))?;
    holds(
        "extending a file made it shorter",
        file.len().at("reading", FILE)? == 8192,
    )?;
    works("syncing", file.sync())?;
    let mut bytes = [0; 5];
    works("reading", works("opening", volume.open(FILE))?.read_at(&mut bytes, 0))?;
    holds("a second descriptor does not see what was written", bytes == *b"first")?;

    works("creating a file", volume.create_new(OTHER))?;
    let onto = volume.rename(FILE, OTHER, false);
    refuses(
        "renaming without replacement (RENAME_NOREPLACE)",
        onto,
        ErrorKind::AlreadyExists,
    )?;
    works("renaming", volume.rename(FILE, OTHER, true))?;
    holds(
        "a renamed file has its old name too",
        !works("looking", volume.exists(FILE))?,
    )?;
    works("creating a directory", volume.make_dir(DIR))?;
    works("removing a directory", volume.remove_dir(DIR))?;
    let into = volume.rename(OTHER, &format!("{DIR}/gone"), false);
    refuses("a file was renamed into a removed directory", into, ErrorKind::NotFound)?;
    works("syncing a directory", volume.sync_dir(ROOT))
}

fn clear<V: VolumeIo>(volume: &V) -> Result<(), CsvError> {
    let removed = [
        volume.remove_file(FILE),
        volume.remove_file(OTHER),
        volume.remove_dir(DIR),
    ];
    for result in removed {
        match result {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result.at("removing", FILE)?,
        }
    }
    Ok(())
}

fn works<T>(what: &str, result: io::Result<T>) -> Result<T, CsvError> {
    result.map_err(|error| CsvError::FileSystem {
        missing: format!("{what}: {error}"),
    })
}

fn refuses(what: &str, result: io::Result<()>, wanted: ErrorKind) -> Result<(), CsvError> {
    let missing = match result {
        Err(error) if error.kind() == wanted => return Ok(()),
        Err(error) => format!("{what}: {error}"),
        Ok(()) => what.to_owned(),
    };
    Err(CsvError::FileSystem { missing })
}

fn holds(what: &str, true_here: bool) -> Result<(), CsvError> {
    if true_here {
        return Ok(());
    }
    Err(CsvError::FileSystem {
        missing: what.to_owned(),
    })
}
