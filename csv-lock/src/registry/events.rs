//! What happened to volumes, for people.

use rusqlite::params;

use super::{Registry, failed, now_ms};
use crate::error::CsvError;
use crate::id::{NodeId, VolumeId};

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS event (
    number INTEGER PRIMARY KEY AUTOINCREMENT, volume TEXT NOT NULL, time_ms INTEGER NOT NULL, node TEXT NOT NULL,
    kind TEXT NOT NULL, text TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS event_of_volume ON event (volume, number);";

/// So many events of a volume are kept.
const KEPT: i64 = 1000;

/// Something that happened to a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Counts up.
    pub number: i64,
    /// When, in milliseconds since 1970.
    pub time_ms: i64,
    /// The node that it is about.
    pub node: NodeId,
    /// What kind of event, for programs.
    pub kind: String,
    /// The rest, for people.
    pub text: String,
}

impl Registry {
    /// Notes an event, and forgets the oldest ones.
    ///
    /// # Errors
    /// `Engine`.
    pub fn note(&self, volume: VolumeId, node: &NodeId, kind: &str, text: &str) -> Result<(), CsvError> {
        let connection = self.connection();
        let volume = volume.to_string();
        let insert = "INSERT INTO event (volume, time_ms, node, kind, text) VALUES (?1, ?2, ?3, ?4, ?5)";
        let forget = "DELETE FROM event WHERE volume = ?1 AND number <= (
            SELECT number FROM event WHERE volume = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)";
        connection
            .execute(insert, params![volume, now_ms(), node.0, kind, text])
            .and_then(|_| connection.execute(forget, params![volume, KEPT]))
            .map_err(failed)?;
        Ok(())
    }

    /// The events of a volume, oldest first.
    ///
    /// # Errors
    /// `Engine`.
    pub fn events(&self, volume: VolumeId) -> Result<Vec<Event>, CsvError> {
        let connection = self.connection();
        let sql = "SELECT number, time_ms, node, kind, text FROM event WHERE volume = ?1 ORDER BY number";
        let mut statement = connection.prepare(sql).map_err(failed)?;
        let rows = statement.query_map([volume.to_string()], |row| {
            Ok(Event {
                number: row.get(0)?,
                time_ms: row.get(1)?,
                node: NodeId(row.get(2)?),
                kind: row.get(3)?,
                text: row.get(4)?,
            })
        });
        rows.map_err(failed)?.map(|row| row.map_err(failed)).collect()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_newest_events_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("registry.db")).unwrap();
        let (one, other) = (VolumeId(Uuid::from_u128(1)), VolumeId(Uuid::from_u128(2)));
        let node = NodeId("n".into());
        registry.connection().execute_batch("PRAGMA synchronous = OFF").unwrap();
        registry.note(other, &node, "joined", "kept").unwrap();
        for number in 0..KEPT + 5 {
            registry.note(one, &node, "joined", &number.to_string()).unwrap();
        }
        let events = registry.events(one).unwrap();
        assert_eq!((events.len(), events[0].text.as_str()), (1000, "5"));
        assert_eq!(registry.events(other).unwrap().len(), 1);
    }
}
