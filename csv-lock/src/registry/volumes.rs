//! The volumes that this machine knows, and the cluster that it belongs to.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use rusqlite::{OptionalExtension, Row, params};
use uuid::Uuid;

use super::{Registry, failed};
use crate::error::CsvError;
use crate::id::{ClusterId, VolumeId};

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS cluster (
    one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS volume (
    name TEXT PRIMARY KEY, id TEXT NOT NULL UNIQUE, dir BLOB NOT NULL, engine TEXT NOT NULL
) STRICT;";

const COLUMNS: &str = "name, id, dir, engine";

/// A volume that this machine knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownVolume {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub id: VolumeId,
    /// Its directory, from the root.
    pub dir: PathBuf,
    /// Its engine, as `--engine` names it.
    pub engine: String,
}

impl Registry {
    /// The cluster of this machine: `wanted` if it has none yet, else the one that it has.
    ///
    /// # Errors
    /// `Engine`.
    pub fn cluster(&self, wanted: ClusterId) -> Result<ClusterId, CsvError> {
        let connection = self.connection();
        connection
            .execute("INSERT OR IGNORE INTO cluster VALUES (1, ?1)", [wanted.to_string()])
            .map_err(failed)?;
        let id: String = connection
            .query_row("SELECT id FROM cluster", [], |row| row.get(0))
            .map_err(failed)?;
        Ok(ClusterId(parsed(&id)?))
    }

    /// The cluster of this machine, if it has one.
    ///
    /// # Errors
    /// `Engine`.
    pub fn known_cluster(&self) -> Result<Option<ClusterId>, CsvError> {
        let found: Option<String> = self
            .connection()
            .query_row("SELECT id FROM cluster", [], |row| row.get(0))
            .optional()
            .map_err(failed)?;
        found.map(|id| Ok(ClusterId(parsed(&id)?))).transpose()
    }

    /// Notes a volume. One that is known under the same name and identity gets the directory that is given.
    ///
    /// # Errors
    /// `NameTaken` if the name is another volume's; `Engine`.
    pub fn add_volume(&self, volume: &KnownVolume) -> Result<(), CsvError> {
        let sql = "INSERT INTO volume VALUES (?1, ?2, ?3, ?4)
            ON CONFLICT (id) DO UPDATE SET dir = ?3, engine = ?4 WHERE name = ?1";
        let values = params![
            volume.name,
            volume.id.to_string(),
            volume.dir.as_os_str().as_bytes(),
            volume.engine
        ];
        match self.connection().execute(sql, values) {
            Ok(1) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => {}
            Err(error) => return Err(failed(error)),
        }
        let name = volume.name.clone();
        Err(CsvError::NameTaken { name })
    }

    /// A volume by its name.
    ///
    /// # Errors
    /// `Engine`.
    pub fn volume(&self, name: &str) -> Result<Option<KnownVolume>, CsvError> {
        let sql = format!("SELECT {COLUMNS} FROM volume WHERE name = ?1");
        let found = self.connection().query_row(&sql, [name], read).optional();
        found.map_err(failed)?.map(Found::known).transpose()
    }

    /// All volumes, by name.
    ///
    /// # Errors
    /// `Engine`.
    pub fn volumes(&self) -> Result<Vec<KnownVolume>, CsvError> {
        let sql = format!("SELECT {COLUMNS} FROM volume ORDER BY name");
        let connection = self.connection();
        let mut statement = connection.prepare(&sql).map_err(failed)?;
        let rows = statement.query_map([], read).map_err(failed)?;
        rows.map(|row| row.map_err(failed)?.known()).collect()
    }
}

/// A row before it is checked.
struct Found(String, String, Vec<u8>, String);

fn read(row: &Row<'_>) -> rusqlite::Result<Found> {
    Ok(Found(row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
}

impl Found {
    fn known(self) -> Result<KnownVolume, CsvError> {
        Ok(KnownVolume {
            name: self.0,
            id: VolumeId(parsed(&self.1)?),
            dir: OsString::from_vec(self.2).into(),
            engine: self.3,
        })
    }
}

pub(super) fn parsed(id: &str) -> Result<Uuid, CsvError> {
    id.parse().map_err(|error| CsvError::Engine {
        reason: format!("the registry: {id:?} is no identity: {error}"),
    })
}
