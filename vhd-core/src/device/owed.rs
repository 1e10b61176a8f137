//! What a device owes that has taken the place of a leaf: its first flush makes that durable.

use vhd_block::DeviceError;

use crate::image::Image;
use crate::sync::{AtomicBool, Mutex, Ordering, lock};
use std::sync::Arc;

/// What makes it known, durably, that another file is the leaf.
pub type Commit = Box<dyn Fn() -> Result<(), DeviceError> + Send>;

/// What a device that has taken another's place owes: its first flush makes that durable.
pub(crate) struct Owed {
    paid: AtomicBool,
    /// Goes when it is done, with all that it keeps.
    due: Mutex<Option<Due>>,
}

struct Due {
    /// The leaf that was copied.
    former: Arc<Image>,
    commit: Commit,
}

impl Owed {
    pub(super) fn new(former: Arc<Image>, commit: Commit) -> Self {
        Self {
            paid: AtomicBool::new(false),
            due: Mutex::new(Some(Due { former, commit })),
        }
    }

    /// INV-54: no flush succeeds before it is durable which file has what was flushed. That the former leaf can be flushed
    /// says that what was read from it is what was written to it: a write that failed behind a reader's back shows in the
    /// next sync.
    pub(super) fn pay(
        &self,
        flush_former: impl FnOnce(&Image) -> Result<(), DeviceError>,
        flush: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        if self.paid.load(Ordering::Acquire) {
            return flush();
        }
        let mut due = lock(&self.due);
        if let Some(due) = &*due {
            flush_former(&due.former)?;
        }
        flush()?;
        if let Some(due) = &*due {
            (due.commit)()?;
            self.paid.store(true, Ordering::Release);
        }
        *due = None;
        Ok(())
    }
}
