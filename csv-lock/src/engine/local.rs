//! The engine for one machine with several processes: nothing to install.
//!
//! The coordinator holds a lock of an open file (`F_OFD_SETLK`) on `.csv/coord.lock`. The kernel gives it to one process and takes
//! it away when that process ends, however it ends: no clock and no heartbeat decide. A process that is stopped (SIGSTOP) keeps it;
//! if it has not said for [`LocalEngine::patience`] that it is alive, another node kills it, which is a fence with proof, and the
//! lock is free.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::{Engine, Leader, Term};
use crate::clock::{Clock, SystemClock};
use crate::error::{CsvError, VolumeContext};
use crate::fence::{Fence, LocalKill, Process};
use crate::id::{NodeId, VolumeId};
use crate::registry::{LastTerm, Registry};

const LOCK: &str = ".csv/coord.lock";
/// How often a coordinator says that it is alive.
const ALIVE: Duration = Duration::from_millis(500);

/// The engine for one machine. One value speaks for one node and one volume.
pub struct LocalEngine {
    lock: PathBuf,
    registry: Registry,
    node: NodeId,
    process: Process,
    /// How long a holder of the lock may be silent before it is killed; `None`: for ever.
    patience: Option<Duration>,
    held: Mutex<Option<File>>,
    /// A silent holder, and when it was first seen so.
    silent: Mutex<Option<(LastTerm, Duration)>>,
}

impl LocalEngine {
    /// The engine of `node` for the volume in the directory `volume`. `registry` is a file on a local disk, the same for all
    /// processes of the machine. A coordinator that is silent for `patience` is killed by whoever campaigns.
    ///
    /// # Errors
    /// `Engine` if the registry can't be opened.
    pub fn open(volume: &Path, registry: &Path, node: NodeId, patience: Option<Duration>) -> Result<Self, CsvError> {
        Ok(Self {
            lock: volume.join(LOCK),
            registry: Registry::open(registry)?,
            node,
            process: Process::this()?,
            patience,
            held: Mutex::new(None),
            silent: Mutex::new(None),
        })
    }

    fn held(&self) -> MutexGuard<'_, Option<File>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, if nobody has it.
    fn try_lock(&self) -> Result<Option<File>, CsvError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.lock);
        let file = file.at("opening", LOCK)?;
        let record = libc::flock {
            l_type: i16::try_from(libc::F_WRLCK).expect("small"),
            l_whence: i16::try_from(libc::SEEK_SET).expect("small"),
            l_start: 0,
            l_len: 1,
            l_pid: 0,
        };
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&record)) {
            Ok(_) => Ok(Some(file)),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(errno) => Err(std::io::Error::from(errno)).at("locking", LOCK),
        }
    }

    /// Kills a holder of the lock that has been silent too long, if it was silent for a whole second while it was watched.
    fn look_at_holder(&self, volume: VolumeId, patience: Duration) -> Result<(), CsvError> {
        let now = SystemClock.now();
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        let last = self.registry.last_term(volume)?;
        let Some(last) = last.filter(|last| last.alive.saturating_add(patience) < now) else {
            *silent = None;
            return Ok(());
        };
        match &*silent {
            // Not a term that just began and has not said so yet: the same one, as silent as before.
            Some((seen, since)) if *seen == last => {
                if since.saturating_add(Duration::from_secs(1)) < now {
                    *silent = None;
                    let proof = LocalKill.fence(&last.node, &last.process)?;
                    tracing::warn!(node = %last.node, %proof, "a silent coordinator was killed");
                }
            }
            _ => *silent = Some((last, now)),
        }
        Ok(())
    }

    fn term(revision: u64) -> Term {
        Term {
            revision,
            until: Duration::MAX,
            renew_at: SystemClock.now().saturating_add(ALIVE),
        }
    }
}

impl Engine for LocalEngine {
    fn campaign(&self, volume: VolumeId) -> Result<Option<Term>, CsvError> {
        let Some(file) = self.try_lock()? else {
            if let Some(patience) = self.patience {
                self.look_at_holder(volume, patience)?;
            }
            return Ok(None);
        };
        let revision = self
            .registry
            .begin(volume, &self.node, &self.process, SystemClock.now())?;
        *self.held() = Some(file);
        Ok(Some(Self::term(revision)))
    }

    fn renew(&self, volume: VolumeId, term: &Term) -> Result<Option<Term>, CsvError> {
        let alive = self.registry.alive(volume, term.revision, SystemClock.now())?;
        Ok(alive.then(|| Self::term(term.revision)))
    }

    fn resign(&self, _: VolumeId, _: &Term) -> Result<(), CsvError> {
        // The last close of the file ends the lock.
        *self.held() = None;
        Ok(())
    }

    fn publish(&self, volume: VolumeId, _: &Term, leader: &Leader) -> Result<(), CsvError> {
        if self.registry.publish(volume, leader)? {
            return Ok(());
        }
        Err(CsvError::Engine {
            reason: format!("a newer epoch than {} is registered", leader.epoch),
        })
    }

    fn leader(&self, volume: VolumeId) -> Result<Option<Leader>, CsvError> {
        self.registry.leader(volume)
    }
}
