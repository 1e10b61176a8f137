//! Where things lie in a volume.

use std::io;

use super::VolumeIo;
use crate::error::Refusal;
use crate::id::{Epoch, OpId};

/// Everything of the protocol is below this directory.
pub(crate) const ROOT: &str = ".csv";
/// One journal per epoch. A name here is never removed: it is what ends the epoch before.
pub(crate) const EPOCHS: &str = ".csv/epoch";
/// Files that nodes have prepared and a coordinator gives their names.
pub(crate) const INCOMING: &str = ".csv/incoming";

/// The longest path of a disk, in bytes.
const MAX_PATH: usize = 1024;

/// The journal of an epoch.
pub(crate) fn epoch_file(epoch: Epoch) -> String {
    format!("{EPOCHS}/{:020}", epoch.0)
}

/// The epoch whose journal has this name (without directory).
pub(crate) fn epoch_of(name: &str) -> Option<Epoch> {
    let number = name.parse().ok()?;
    (name.len() == 20).then_some(Epoch(number))
}

/// The directory of deleted files of an epoch.
pub(crate) fn stage_dir(epoch: Epoch) -> String {
    format!("{ROOT}/stage.{:020}", epoch.0)
}

/// The stage directories on the volume of epochs before `epoch`, oldest first.
pub(crate) fn stage_dirs<V: VolumeIo>(volume: &V, epoch: Epoch) -> io::Result<Vec<Epoch>> {
    let mut found: Vec<Epoch> = volume
        .list(ROOT)?
        .iter()
        .filter_map(|name| epoch_of(name.strip_prefix("stage.")?))
        .filter(|&found| found < epoch)
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// Where the coordinator of `epoch` moves the file that operation `id` deletes.
pub(crate) fn trash(epoch: Epoch, id: OpId) -> String {
    format!("{}/{id}.old", stage_dir(epoch))
}

/// The path of a file that a node prepares, for [`Op::Create`](crate::Op::Create) and [`Op::Replace`](crate::Op::Replace).
#[must_use]
pub fn incoming(name: &str) -> String {
    format!("{INCOMING}/{name}")
}

/// The directory of a path.
pub(crate) fn parent_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

/// Whether `path` can be a disk on a volume: relative, no `.` or `..`, nothing in `.csv`, at most 1024 bytes.
///
/// # Errors
/// `BadPath` with the path.
pub fn check_disk_path(path: &str) -> Result<(), Refusal> {
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    let good = path.len() <= MAX_PATH && path.split('/').all(plain) && path.split('/').next() != Some(ROOT);
    if good {
        return Ok(());
    }
    Err(Refusal::BadPath { path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_on_the_volume_and_out_of_the_protocol() {
        for good in ["a.vhd", "dir/a.vhd", ".hidden", "x/.csv"] {
            assert_eq!(check_disk_path(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "/a",
            "a/",
            "../a",
            "a/../b",
            "a//b",
            ".csv/format",
            ".csv",
            "a\0b",
            "./a",
            &"x".repeat(1025),
        ] {
            assert!(check_disk_path(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_of_epochs_are_found_again() {
        let name = epoch_file(Epoch(42));
        assert_eq!(epoch_of(name.rsplit_once('/').unwrap().1), Some(Epoch(42)));
        assert_eq!(epoch_of("42"), None);
        assert_eq!(epoch_of("0000000000000000004x"), None);
    }
}
