//! Unmounting what something may look at for a moment: a process that another test is just starting has the open files of
//! this one until it runs its program.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(20);

/// Whether what is mounted at `place` could be unmounted in that time.
pub(crate) fn unmounted_within(time: Duration, place: &Path) -> bool {
    let end = Instant::now() + time;
    loop {
        let output = Command::new("umount").arg(place).output();
        if output.is_ok_and(|output| output.status.success()) {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(PAUSE);
    }
}
