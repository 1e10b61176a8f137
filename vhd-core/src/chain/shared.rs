//! Images that several disks of a process read, each opened once.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::image::Image;
use crate::storage::{FileIdentity, StorageFile};

/// The images that disks opened with [`OpenOptions::share`](super::OpenOptions::share) have in common: an image that one of
/// them has open for reading is used by the next one too, with its descriptor, its lock and its block table. Snapshots of one
/// disk, which stand on the same files, then take little more together than the longest chain alone.
///
/// An image is closed, and its lock is given up, with the last disk that uses it.
#[derive(Default)]
pub struct SharedImages(Mutex<HashMap<FileIdentity, Weak<Image>>>);

impl SharedImages {
    /// The image that is open in this very file.
    pub(super) fn get(&self, file: &dyn StorageFile) -> Option<Arc<Image>> {
        let images = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        images.get(&FileIdentity::of_open(file)?)?.upgrade()
    }

    /// Lets others use an image that is open for reading.
    pub(super) fn add(&self, image: &Arc<Image>) {
        let Some(identity) = FileIdentity::of_open(&**image.file()) else {
            return;
        };
        let mut images = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        images.retain(|_, image| image.strong_count() > 0);
        images.insert(identity, Arc::downgrade(image));
    }
}

impl fmt::Debug for SharedImages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let images = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        write!(f, "SharedImages({})", images.len())
    }
}
