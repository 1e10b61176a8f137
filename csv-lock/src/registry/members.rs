//! Which nodes of this machine take part in which volume, and who shall coordinate it next.

use std::time::Duration;

use rusqlite::{OptionalExtension, params};

use super::{Registry, failed, millis, now_ms};
use crate::error::CsvError;
use crate::id::{NodeId, VolumeId};

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS member (
    volume TEXT NOT NULL, node TEXT NOT NULL, joined_ms INTEGER NOT NULL, condition TEXT NOT NULL,
    PRIMARY KEY (volume, node)
) STRICT;
CREATE TABLE IF NOT EXISTS wish (
    volume TEXT PRIMARY KEY, node TEXT NOT NULL, until_ms INTEGER NOT NULL
) STRICT;";

/// A node that takes part in a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// When it joined, in milliseconds since 1970.
    pub joined_ms: i64,
    /// What its agent said last about its part in the volume; for people, empty if it never did.
    pub condition: String,
}

impl Registry {
    /// A node takes part from now on. False if it did already.
    ///
    /// # Errors
    /// `Engine`.
    pub fn join(&self, volume: VolumeId, node: &NodeId) -> Result<bool, CsvError> {
        let sql = "INSERT OR IGNORE INTO member VALUES (?1, ?2, ?3, '')";
        let values = params![volume.to_string(), node.0, now_ms()];
        Ok(self.connection().execute(sql, values).map_err(failed)? == 1)
    }

    /// A node takes no part any more. False if it took none.
    ///
    /// # Errors
    /// `Engine`.
    pub fn leave(&self, volume: VolumeId, node: &NodeId) -> Result<bool, CsvError> {
        let sql = "DELETE FROM member WHERE volume = ?1 AND node = ?2";
        let values = params![volume.to_string(), node.0];
        Ok(self.connection().execute(sql, values).map_err(failed)? == 1)
    }

    /// The nodes that take part in a volume, by name.
    ///
    /// # Errors
    /// `Engine`.
    pub fn members(&self, volume: VolumeId) -> Result<Vec<Member>, CsvError> {
        let connection = self.connection();
        let sql = "SELECT node, joined_ms, condition FROM member WHERE volume = ?1 ORDER BY node";
        let mut statement = connection.prepare(sql).map_err(failed)?;
        let rows = statement.query_map([volume.to_string()], |row| {
            Ok(Member {
                node: NodeId(row.get(0)?),
                joined_ms: row.get(1)?,
                condition: row.get(2)?,
            })
        });
        rows.map_err(failed)?.map(|row| row.map_err(failed)).collect()
    }

    /// What an agent has to say about its part in a volume.
    ///
    /// # Errors
    /// `Engine`.
    pub fn set_condition(&self, volume: VolumeId, node: &NodeId, condition: &str) -> Result<(), CsvError> {
        let sql = "UPDATE member SET condition = ?3 WHERE volume = ?1 AND node = ?2 AND condition <> ?3";
        let values = params![volume.to_string(), node.0, condition];
        self.connection().execute(sql, values).map_err(failed)?;
        Ok(())
    }

    /// For `limit` no other node than this one shall become the coordinator.
    ///
    /// # Errors
    /// `Engine`.
    pub fn wish(&self, volume: VolumeId, node: &NodeId, limit: Duration) -> Result<(), CsvError> {
        let sql = "INSERT OR REPLACE INTO wish VALUES (?1, ?2, ?3)";
        let until = now_ms().saturating_add(millis(limit));
        let values = params![volume.to_string(), node.0, until];
        self.connection().execute(sql, values).map_err(failed)?;
        Ok(())
    }

    /// The wish is fulfilled, or given up.
    ///
    /// # Errors
    /// `Engine`.
    pub fn end_wish(&self, volume: VolumeId, node: &NodeId) -> Result<(), CsvError> {
        let sql = "DELETE FROM wish WHERE volume = ?1 AND node = ?2";
        let values = params![volume.to_string(), node.0];
        self.connection().execute(sql, values).map_err(failed)?;
        Ok(())
    }

    /// Who shall coordinate the volume, while somebody wishes it.
    ///
    /// # Errors
    /// `Engine`.
    pub fn wished(&self, volume: VolumeId) -> Result<Option<NodeId>, CsvError> {
        let sql = "SELECT node FROM wish WHERE volume = ?1 AND until_ms > ?2";
        let values = params![volume.to_string(), now_ms()];
        self.connection()
            .query_row(sql, values, |row| row.get(0).map(NodeId))
            .optional()
            .map_err(failed)
    }
}
