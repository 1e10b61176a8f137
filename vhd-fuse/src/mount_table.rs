//! Which mounts of ours the kernel has: `/proc/self/mountinfo`. Paths in it are bytes, not text: one mount with a name that
//! is no UTF-8, anywhere on the machine, must not hide the others.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// What the source of every mount of ours begins with: its type alone is only `fuse` where root mounts.
pub(crate) const SOURCE: &str = "vhd:";

const TABLE: &str = "/proc/self/mountinfo";
/// What separates the fields of a mount from those of its file system.
const SEPARATOR: &[u8] = b" - ";

/// Whether the kernel has a mount of ours at exactly this place. It is asked without touching the place, which answers
/// nothing once its server is gone.
pub(crate) fn is_mount_of_ours(place: &Path) -> bool {
    let place = resolved(place);
    let table = fs::read(TABLE).unwrap_or_default();
    table
        .split(|&byte| byte == b'\n')
        .any(|line| mount_of_ours(line).is_some_and(|at| Path::new(&at) == place))
}

/// The absolute path, without symbolic links. Where the place itself cannot be looked at, its parent still can.
fn resolved(place: &Path) -> PathBuf {
    if let Ok(resolved) = place.canonicalize() {
        return resolved;
    }
    let absolute = std::path::absolute(place).unwrap_or_else(|_| place.to_owned());
    let parent = absolute.parent().and_then(|parent| parent.canonicalize().ok());
    match parent.zip(absolute.file_name()) {
        Some((parent, name)) => parent.join(name),
        None => absolute,
    }
}

/// Where the mount of this line is, if it is one of ours.
fn mount_of_ours(line: &[u8]) -> Option<OsString> {
    let middle = line.windows(SEPARATOR.len()).position(|part| part == SEPARATOR)?;
    let at = line[..middle].split(|&byte| byte == b' ').nth(4)?;
    let mut what = line[middle + SEPARATOR.len()..].split(|&byte| byte == b' ');
    let kind = what.next()?;
    let is_fuse = kind == b"fuse" || kind.starts_with(b"fuse.");
    let is_ours = what.next()?.starts_with(SOURCE.as_bytes());
    (is_fuse && is_ours).then(|| OsString::from_vec(unescaped(at)))
}

/// A path of the table, which has blanks and such as three octal digits.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut rest = text;
    while let Some((&first, behind)) = rest.split_first() {
        let octal = behind.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let octal = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal.filter(|_| first == b'\\') {
            Some(byte) => {
                plain.push(byte);
                rest = &behind[3..];
            }
            None => {
                plain.push(first);
                rest = behind;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    fn place(line: &[u8]) -> Option<Vec<u8>> {
        mount_of_ours(line).map(|at| at.as_bytes().to_vec())
    }

    #[test]
    fn places_are_read_as_the_kernel_writes_them() {
        assert_eq!(unescaped(b"/mnt/a\\040b\\134c"), b"/mnt/a b\\c");
        assert_eq!(unescaped(b"/mnt/a\\"), b"/mnt/a\\");
        assert_eq!(unescaped(b"/mnt/\xff\\040"), b"/mnt/\xff ");
        assert!(!is_mount_of_ours(Path::new("/proc")));
    }

    #[test]
    fn only_mounts_of_ours_are_taken_for_them() {
        let ours = b"36 25 0:45 / /mnt/\xfe\\040x ro,nosuid shared:7 - fuse vhd:disk.vhd ro,user_id=0";
        assert_eq!(place(ours).unwrap(), b"/mnt/\xfe x");
        let helper = b"36 25 0:45 / /mnt rw - fuse.vhd vhd:a ro";
        assert_eq!(place(helper).unwrap(), b"/mnt");
        for other in [
            b"36 25 0:45 / /mnt rw - fuse sshfs:x ro".as_slice(),
            b"36 25 8:1 / /mnt rw - ext4 vhd:x ro",
            b"36 25 8:1 / /vhd:mnt rw - fuse",
            b"",
            b" - ",
        ] {
            assert_eq!(place(other), None);
        }
    }
}
