//! The registry of one machine: where the coordinators of its volumes are, in an SQLite file on a local disk.
//!
//! It tells who is where; it protects nothing. Lost or wrong it costs time.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};

use super::Leader;
use crate::error::CsvError;
use crate::fence::Process;
use crate::id::{Epoch, NodeId, VolumeId};

/// How long a process waits for another one's transaction.
const BUSY: Duration = Duration::from_secs(5);
/// How long until it tries again to open a registry that is being made.
const AGAIN: Duration = Duration::from_millis(10);

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS term (
    volume TEXT PRIMARY KEY, node TEXT NOT NULL, revision INTEGER NOT NULL,
    boot TEXT NOT NULL, pid INTEGER NOT NULL, started INTEGER NOT NULL, alive_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS leader (
    volume TEXT PRIMARY KEY, node TEXT NOT NULL, address TEXT NOT NULL, epoch INTEGER NOT NULL
) STRICT;";

/// The registry of one machine.
pub(super) struct Registry {
    connection: Mutex<Connection>,
}

/// The last term that began on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LastTerm {
    pub(super) node: NodeId,
    pub(super) revision: u64,
    pub(super) process: Process,
    /// When its holder last said that it is alive, on `CLOCK_BOOTTIME`.
    pub(super) alive: Duration,
}

impl Registry {
    /// Opens or creates it. Several processes may do so at once: the first one's change to a write-ahead log keeps the others
    /// out without SQLite's own waiting.
    pub(super) fn open(path: &Path) -> Result<Self, CsvError> {
        let begin = Instant::now();
        loop {
            match Self::try_open(path) {
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && begin.elapsed() < BUSY => {
                    std::thread::sleep(AGAIN);
                }
                opened => return opened.map_err(failed),
            }
        }
    }

    fn try_open(path: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.execute_batch(SCHEMA)?;
        Ok(Self {
            connection: Mutex::new(connection),
        })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new term of `node`, which holds the volume's lock. Its revision.
    pub(super) fn begin(
        &self,
        volume: VolumeId,
        node: &NodeId,
        process: &Process,
        now: Duration,
    ) -> Result<u64, CsvError> {
        let sql = "INSERT INTO term VALUES (?1, ?2, 1, ?3, ?4, ?5, ?6)
            ON CONFLICT (volume) DO UPDATE SET node = ?2, revision = revision + 1, boot = ?3, pid = ?4, started = ?5, alive_ms = ?6
            RETURNING revision";
        let values = params![
            volume.to_string(),
            node.0,
            process.boot,
            process.pid,
            signed(process.started),
            millis(now)
        ];
        let revision: i64 = self
            .connection()
            .query_row(sql, values, |row| row.get(0))
            .map_err(failed)?;
        Ok(revision.cast_unsigned())
    }

    /// The holder is alive. False if the term is not the last one.
    pub(super) fn alive(&self, volume: VolumeId, revision: u64, now: Duration) -> Result<bool, CsvError> {
        let sql = "UPDATE term SET alive_ms = ?3 WHERE volume = ?1 AND revision = ?2";
        let values = params![volume.to_string(), signed(revision), millis(now)];
        Ok(self.connection().execute(sql, values).map_err(failed)? == 1)
    }

    /// The last term.
    pub(super) fn last_term(&self, volume: VolumeId) -> Result<Option<LastTerm>, CsvError> {
        let sql = "SELECT node, revision, boot, pid, started, alive_ms FROM term WHERE volume = ?1";
        let read = |row: &Row<'_>| {
            Ok(LastTerm {
                node: NodeId(row.get(0)?),
                revision: row.get::<_, i64>(1)?.cast_unsigned(),
                process: Process {
                    boot: row.get(2)?,
                    pid: row.get(3)?,
                    started: row.get::<_, i64>(4)?.cast_unsigned(),
                },
                alive: Duration::from_millis(row.get::<_, i64>(5)?.cast_unsigned()),
            })
        };
        self.connection()
            .query_row(sql, [volume.to_string()], read)
            .optional()
            .map_err(failed)
    }

    /// Says where the coordinator is; an older epoch never replaces a newer one. False if there is a newer one.
    pub(super) fn publish(&self, volume: VolumeId, leader: &Leader) -> Result<bool, CsvError> {
        let sql = "INSERT INTO leader VALUES (?1, ?2, ?3, ?4)
            ON CONFLICT (volume) DO UPDATE SET node = ?2, address = ?3, epoch = ?4 WHERE epoch < ?4";
        let values = params![
            volume.to_string(),
            leader.node.0,
            leader.address,
            signed(leader.epoch.0)
        ];
        Ok(self.connection().execute(sql, values).map_err(failed)? == 1)
    }

    /// Where the coordinator was last.
    pub(super) fn leader(&self, volume: VolumeId) -> Result<Option<Leader>, CsvError> {
        let sql = "SELECT node, address, epoch FROM leader WHERE volume = ?1";
        let read = |row: &Row<'_>| {
            Ok(Leader {
                node: NodeId(row.get(0)?),
                address: row.get(1)?,
                epoch: Epoch(row.get::<_, i64>(2)?.cast_unsigned()),
            })
        };
        self.connection()
            .query_row(sql, [volume.to_string()], read)
            .optional()
            .map_err(failed)
    }
}

fn signed(value: u64) -> i64 {
    value.cast_signed()
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn failed(error: rusqlite::Error) -> CsvError {
    CsvError::Engine {
        reason: format!("the registry: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn many_open_a_registry_at_once_and_no_older_epoch_replaces_a_newer_one() {
        for _ in 0..10 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("registry.db");
            let volume = VolumeId(Uuid::from_u128(1));
            let publish = |epoch: u64| {
                let leader = Leader {
                    node: NodeId(format!("n{epoch}")),
                    address: "x".into(),
                    epoch: Epoch(epoch),
                };
                Registry::open(&path).unwrap().publish(volume, &leader).unwrap()
            };
            std::thread::scope(|scope| {
                for epoch in 1..=8 {
                    let publish = &publish;
                    scope.spawn(move || publish(epoch));
                }
            });
            assert_eq!(
                Registry::open(&path).unwrap().leader(volume).unwrap().unwrap().epoch,
                Epoch(8)
            );
            assert!(!publish(8) && publish(9));
        }
    }
}
