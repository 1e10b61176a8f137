//! The processes of this machine that have disks of volumes open, so that one that has ended can be proven to be gone.

use rusqlite::{OptionalExtension, Row, params};
use uuid::Uuid;

use super::volumes::parsed;
use super::{Registry, failed, signed};
use crate::error::CsvError;
use crate::fence::Process;
use crate::id::{NodeId, Session, VolumeId};

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS session (
    id TEXT PRIMARY KEY, volume TEXT NOT NULL, node TEXT NOT NULL,
    boot TEXT NOT NULL, pid INTEGER NOT NULL, started INTEGER NOT NULL
) STRICT;";

const COLUMNS: &str = "id, node, boot, pid, started";

/// A session, and the process that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenSession {
    /// The session.
    pub session: Session,
    /// The process.
    pub process: Process,
}

impl Registry {
    /// Notes a session of a process, before it asks for anything.
    ///
    /// # Errors
    /// `Engine`.
    pub fn open_session(&self, volume: VolumeId, session: &Session, process: &Process) -> Result<(), CsvError> {
        let sql = "INSERT OR REPLACE INTO session VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        let values = params![
            session.id.to_string(),
            volume.to_string(),
            session.node.0,
            process.boot,
            process.pid,
            signed(process.started)
        ];
        self.connection().execute(sql, values).map_err(failed)?;
        Ok(())
    }

    /// A session holds nothing any more.
    ///
    /// # Errors
    /// `Engine`.
    pub fn end_session(&self, id: Uuid) -> Result<(), CsvError> {
        let sql = "DELETE FROM session WHERE id = ?1";
        self.connection().execute(sql, [id.to_string()]).map_err(failed)?;
        Ok(())
    }

    /// A session by its identity.
    ///
    /// # Errors
    /// `Engine`.
    pub fn session(&self, id: Uuid) -> Result<Option<OpenSession>, CsvError> {
        let sql = format!("SELECT {COLUMNS} FROM session WHERE id = ?1");
        let found = self.connection().query_row(&sql, [id.to_string()], read).optional();
        found.map_err(failed)?.map(finish).transpose()
    }
}

type Found = (String, String, String, i32, i64);

fn read(row: &Row<'_>) -> rusqlite::Result<Found> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
}

fn finish((id, node, boot, pid, started): Found) -> Result<OpenSession, CsvError> {
    Ok(OpenSession {
        session: Session {
            node: NodeId(node),
            id: parsed(&id)?,
        },
        process: Process {
            boot,
            pid,
            started: started.cast_unsigned(),
        },
    })
}
