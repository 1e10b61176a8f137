//! The terms of coordinators on this machine, and where the present ones listen.

use std::time::Duration;

use rusqlite::{OptionalExtension, Row, params};

use super::{Registry, failed, millis, signed};
use crate::engine::Leader;
use crate::error::CsvError;
use crate::fence::Process;
use crate::id::{Epoch, NodeId, VolumeId};

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS term (
    volume TEXT PRIMARY KEY, node TEXT NOT NULL, revision INTEGER NOT NULL,
    boot TEXT NOT NULL, pid INTEGER NOT NULL, started INTEGER NOT NULL, alive_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS leader (
    volume TEXT PRIMARY KEY, node TEXT NOT NULL, address TEXT NOT NULL, epoch INTEGER NOT NULL
) STRICT;";

/// The last term that began on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LastTerm {
    pub(crate) node: NodeId,
    pub(crate) revision: u64,
    pub(crate) process: Process,
    /// When its holder last said that it is alive, on `CLOCK_BOOTTIME`.
    pub(crate) alive: Duration,
}

impl Registry {
    /// A new term of `node`, which holds the volume's lock. Its revision.
    pub(crate) fn begin(
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
    pub(crate) fn alive(&self, volume: VolumeId, revision: u64, now: Duration) -> Result<bool, CsvError> {
        let sql = "UPDATE term SET alive_ms = ?3 WHERE volume = ?1 AND revision = ?2";
        let values = params![volume.to_string(), signed(revision), millis(now)];
        Ok(self.connection().execute(sql, values).map_err(failed)? == 1)
    }

    /// The last term.
    pub(crate) fn last_term(&self, volume: VolumeId) -> Result<Option<LastTerm>, CsvError> {
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
    ///
    /// # Errors
    /// `Engine`.
    pub fn publish(&self, volume: VolumeId, leader: &Leader) -> Result<bool, CsvError> {
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
    ///
    /// # Errors
    /// `Engine`.
    pub fn leader(&self, volume: VolumeId) -> Result<Option<Leader>, CsvError> {
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
