//! What Windows says of a sparse image.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::output;

/// File systems, as the system names them, that Windows may read next: there a hole is an attribute of the file. FUSE has
/// one name for all it mounts from devices, NTFS among them.
const WINDOWS_SYSTEMS: [&str; 6] = ["ntfs", "ntfs3", "fuseblk", "cifs", "smb2", "smb3"];

/// Warns of a new image that is sparse on a file system of Windows, which refuses to attach it. Returns the warning.
pub(super) fn warn_for_windows(image: &Path) -> Option<String> {
    let metadata = image.metadata().ok()?;
    let is_sparse = metadata.blocks() * 512 < metadata.len();
    if !is_sparse || !WINDOWS_SYSTEMS.contains(&file_system_of(metadata.dev())?.as_str()) {
        return None;
    }
    let warning = format!(
        "{} is a sparse file, which Windows does not attach: write it with `--preallocate full`, or clear the attribute on \
         Windows with `fsutil sparse setflag FILE 0`",
        image.display()
    );
    output::warning(&warning);
    Some(warning)
}

/// The name of the file system with this device number.
fn file_system_of(device: u64) -> Option<String> {
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (place, source) = line.split_once(" - ")?;
        (place.split(' ').nth(2) == Some(number.as_str())).then(|| source.split(' ').next().map(str::to_owned))?
    })
}
