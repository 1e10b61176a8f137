//! Who this machine is in its cluster, and how it reaches the cluster's engine.

use std::path::PathBuf;

use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::volumes::parsed;
use super::{Registry, failed};
use crate::error::CsvError;
use crate::net::CertificateFiles;

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS machine (
    one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS access (
    one INTEGER PRIMARY KEY CHECK (one = 1), access TEXT NOT NULL
) STRICT;";

/// How this machine reaches the engine of its cluster, and other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineAccess {
    /// Who the machine is, for the engine and for other nodes.
    pub certificates: Option<CertificateFiles>,
    /// A user of the engine, and the file with the password.
    pub user: Option<(String, PathBuf)>,
    /// Also with servers whose leases are known to be defective. For tests.
    pub any_version: bool,
}

impl Registry {
    /// The identity of this machine. It is as old as the registry: with another one it is another machine, which knows nothing of
    /// the processes of this one.
    ///
    /// # Errors
    /// `Engine`.
    pub fn machine(&self) -> Result<Uuid, CsvError> {
        let connection = self.connection();
        let id = Uuid::new_v4().to_string();
        connection
            .execute("INSERT OR IGNORE INTO machine VALUES (1, ?1)", [id])
            .map_err(failed)?;
        let id: String = connection
            .query_row("SELECT id FROM machine", [], |row| row.get(0))
            .map_err(failed)?;
        parsed(&id)
    }

    /// How this machine reaches its cluster.
    ///
    /// # Errors
    /// `Engine`.
    pub fn access(&self) -> Result<EngineAccess, CsvError> {
        let found: Option<String> = self
            .connection()
            .query_row("SELECT access FROM access", [], |row| row.get(0))
            .optional()
            .map_err(failed)?;
        match found {
            None => Ok(EngineAccess::default()),
            Some(text) => serde_json::from_str(&text).map_err(|error| CsvError::Engine {
                reason: format!("the registry: {error}"),
            }),
        }
    }

    /// It does so from now on.
    ///
    /// # Errors
    /// `Engine`.
    pub fn set_access(&self, access: &EngineAccess) -> Result<(), CsvError> {
        let text = serde_json::to_string(access).expect("it has text keys alone");
        let sql = "INSERT OR REPLACE INTO access VALUES (1, ?1)";
        self.connection().execute(sql, params![text]).map_err(failed)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_the_same_as_long_as_its_registry() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| Registry::open(&dir.path().join(name)).unwrap();
        let machine = open("a.db").machine().unwrap();
        assert_eq!(open("a.db").machine().unwrap(), machine);
        assert_ne!(open("b.db").machine().unwrap(), machine);
        assert_eq!(open("a.db").access().unwrap(), EngineAccess::default());
        let access = EngineAccess {
            user: Some(("csv".into(), "/etc/vhd/password".into())),
            any_version: true,
            ..EngineAccess::default()
        };
        open("a.db").set_access(&EngineAccess::default()).unwrap();
        open("a.db").set_access(&access).unwrap();
        assert_eq!(open("a.db").access().unwrap(), access);
    }
}
