//! The registry of one machine, in an SQLite file on a local disk: which volumes it knows, which of its nodes take part, which
//! processes have disks open, what happened, and where the coordinators are.
//!
//! It says who is where; it protects nothing. Lost or wrong it costs time, and the word of an operator where a process could
//! have been proven to be gone.

mod access;
mod changes;
mod events;
mod members;
mod sessions;
mod terms;
mod volumes;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

pub use access::EngineAccess;
pub use changes::Changes;
pub use events::Event;
pub use members::Member;
pub use sessions::OpenSession;
pub(crate) use terms::LastTerm;
pub use volumes::KnownVolume;

use crate::error::CsvError;

/// How long a process waits for another one's transaction.
const BUSY: Duration = Duration::from_secs(5);
/// How long until it tries again to open a registry that is being made.
const AGAIN: Duration = Duration::from_millis(10);

/// The registry of one machine. Any number of processes have it open.
pub struct Registry {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl Registry {
    /// Opens or creates it. Several processes may do so at once: the first one's change to a write-ahead log keeps the others
    /// out without SQLite's own waiting.
    ///
    /// # Errors
    /// `Engine` with what SQLite says.
    pub fn open(path: &Path) -> Result<Self, CsvError> {
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
        for schema in [
            terms::SCHEMA,
            volumes::SCHEMA,
            members::SCHEMA,
            sessions::SCHEMA,
            events::SCHEMA,
            access::SCHEMA,
        ] {
            connection.execute_batch(schema)?;
        }
        Ok(Self {
            path: path.to_owned(),
            connection: Mutex::new(connection),
        })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn signed(value: u64) -> i64 {
    value.cast_signed()
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// The time in milliseconds since 1970, for people.
pub(crate) fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, millis)
}

fn failed(error: rusqlite::Error) -> CsvError {
    CsvError::Engine {
        reason: format!("the registry: {error}"),
    }
}
