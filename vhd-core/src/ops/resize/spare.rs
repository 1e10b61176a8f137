//! Space for the way back.

use std::collections::BTreeMap;

use super::ResizeError;
use super::family::Member;
use crate::ErrorKind;
use crate::storage::{FileIdentity, SetAside, StorageError, io_kind};
use crate::units::u64_from;

/// Blocks of the file system that an image takes for a moment: a new header behind its end, and the footer.
const BLOCKS_OF_AN_IMAGE: u64 = 2;

/// Space on each file system that images are resized on. INV-48: a failed resize of several images becomes undone where it
/// has left no space too.
pub(super) struct Spare(Vec<SetAside>);

impl Spare {
    /// Takes it. Where a file system can't set any aside there is none.
    ///
    /// # Errors
    /// There is none left: nothing was begun.
    pub(super) fn take(members: &[&Member]) -> Result<Self, ResizeError> {
        let mut by_device: BTreeMap<Option<u64>, Vec<&Member>> = BTreeMap::new();
        for member in members {
            let device = FileIdentity::of_open(&*member.storage).map(FileIdentity::device);
            by_device.entry(device).or_default().push(member);
        }
        let taken = by_device.values().map(|members| take(members));
        Ok(Self(taken.filter_map(Result::transpose).collect::<Result<_, _>>()?))
    }

    /// Gives it all back, to be used at once.
    pub(super) fn give_back(self) {
        for mut space in self.0 {
            while space.give_back() {}
            space.commit();
        }
    }
}

/// For images on one file system.
fn take(members: &[&Member]) -> Result<Option<SetAside>, ResizeError> {
    let Some(first) = members.first() else { return Ok(None) };
    let Some(mut space) = first.storage.set_aside() else {
        return Ok(None);
    };
    match space.take_blocks(u64_from(members.len()) * BLOCKS_OF_AN_IMAGE) {
        Ok(()) => Ok(Some(space)),
        Err(error) if io_kind(&error) == ErrorKind::NoSpace => {
            Err(StorageError::at(&first.path, "take space for undoing a resize of", error).into())
        }
        Err(_) => Ok(None),
    }
}
