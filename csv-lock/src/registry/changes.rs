//! Hearing that something in a registry has changed, without reading it again and again.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};

use super::Registry;
use crate::error::CsvError;

/// Bytes of news that are read at once; what they say does not matter.
const NEWS: usize = 4096;

/// Changes of a registry, by whatever process. Each one is a write to its log, which exists as long as a registry is open.
pub struct Changes {
    inotify: OwnedFd,
    /// Keeps the log from being removed.
    _registry: Registry,
}

impl Changes {
    /// Changes from now on.
    ///
    /// # Errors
    /// `Engine`.
    pub fn of(registry: Registry) -> Result<Self, CsvError> {
        let mut log = OsString::from(&registry.path);
        log.push("-wal");
        let watch = || {
            let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            add_watch(&inotify, &*log, WatchFlags::MODIFY)?;
            Ok(inotify)
        };
        let inotify = watch().map_err(|error: rustix::io::Errno| CsvError::Engine {
            reason: format!("the registry: hearing of changes of {}: {error}", log.display()),
        })?;
        Ok(Self {
            inotify,
            _registry: registry,
        })
    }

    /// Waits for a change, `limit` at most; whether there was one.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> bool {
        let limit = Timespec {
            tv_sec: limit.as_secs().cast_signed(),
            tv_nsec: limit.subsec_nanos().into(),
        };
        let ready = poll(&mut [PollFd::new(&self.inotify, PollFlags::IN)], Some(&limit));
        if !matches!(ready, Ok(1)) {
            return false;
        }
        let mut news = [0; NEWS];
        while rustix::io::read(&self.inotify, &mut news).is_ok_and(|len| len > 0) {}
        true
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::id::{NodeId, VolumeId};

    #[test]
    fn a_change_by_another_one_is_heard_and_silence_is_silence() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.db");
        let changes = Changes::of(Registry::open(&path).unwrap()).unwrap();
        let (volume, node) = (VolumeId(Uuid::from_u128(1)), NodeId("a".into()));
        for _ in 0..3 {
            while changes.wait(Duration::from_millis(50)) {}
            Registry::open(&path).unwrap().wished(volume).unwrap();
            assert!(!changes.wait(Duration::from_millis(50)), "it was only read");
            let other = Registry::open(&path).unwrap();
            other.wish(volume, &node, Duration::from_secs(9)).unwrap();
            assert!(changes.wait(Duration::from_secs(60)));
        }
    }
}
