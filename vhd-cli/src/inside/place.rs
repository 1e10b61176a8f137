//! `IMAGE[@NAME][:/PATH]`, where the image may be `V:/PATH` of a volume: a disk, and a path in its file systems.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use vhd_nbd::client::NbdUri;

use crate::volume::DiskName;

/// What separates an image from a path inside it. The slash is the path's first byte.
const SEPARATOR: &[u8] = b":/";
/// What an NBD URI has behind its scheme.
const SCHEME_END: &[u8] = b"://";

/// A disk, and perhaps a path inside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The image, `DISK@NAME`, or an NBD URI.
    pub(crate) image: PathBuf,
    /// The path, which starts with a slash.
    pub(crate) path: Option<Vec<u8>>,
}

impl Place {
    /// Takes apart what the user gave. A file that is really called so wins; otherwise the image ends at the first
    /// `:/`, or at a later one where only that is a file.
    pub(crate) fn parse(given: &Path) -> Self {
        let bytes = given.as_os_str().as_bytes();
        if given.symlink_metadata().is_ok() {
            return Self::whole(given);
        }
        let scheme = given.to_str().filter(|text| NbdUri::is_uri(text));
        let skipped = scheme
            .and(find(bytes, SCHEME_END, 0))
            .map_or(0, |at| at + SCHEME_END.len());
        let mut places = std::iter::successors(find(bytes, SEPARATOR, skipped), |&at| find(bytes, SEPARATOR, at + 1));
        let Some(first) = places.clone().next() else {
            return Self::whole(given);
        };
        // V:/PATH[:/PATH]: the first separator is part of the disk's name.
        let volume = std::str::from_utf8(&bytes[..first])
            .ok()
            .filter(|name| DiskName::names_a_volume(name));
        if scheme.is_none() && volume.is_some() {
            return match places.nth(1) {
                None => Self::whole(given),
                Some(at) => Self {
                    image: OsStr::from_bytes(&bytes[..at]).into(),
                    path: Some(bytes[at + 1..].to_vec()),
                },
            };
        }
        let names_a_file = |&at: &usize| Path::new(OsStr::from_bytes(&bytes[..at])).symlink_metadata().is_ok();
        let at = if scheme.is_some() {
            first
        } else {
            places.find(names_a_file).unwrap_or(first)
        };
        Self {
            image: OsStr::from_bytes(&bytes[..at]).into(),
            path: Some(bytes[at + 1..].to_vec()),
        }
    }

    fn whole(given: &Path) -> Self {
        Self {
            image: given.to_owned(),
            path: None,
        }
    }
}

/// Where `what` stands in `bytes` from `from` on.
fn find(bytes: &[u8], what: &[u8], from: usize) -> Option<usize> {
    let rest = bytes.get(from..)?;
    Some(from + rest.windows(what.len()).position(|part| part == what)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(given: &str) -> (String, Option<String>) {
        let place = Place::parse(Path::new(given));
        let path = place.path.map(|path| String::from_utf8(path).unwrap());
        (place.image.to_str().unwrap().to_owned(), path)
    }

    fn parts(image: &str, path: &str) -> (String, Option<String>) {
        (image.to_owned(), Some(path.to_owned()))
    }

    #[test]
    fn an_image_ends_where_the_path_begins() {
        assert_eq!(parsed("disk.vhd"), ("disk.vhd".to_owned(), None));
        assert_eq!(parsed("disk.vhd:/"), parts("disk.vhd", "/"));
        assert_eq!(
            parsed("disk.vhd@monday:/etc/fstab"),
            parts("disk.vhd@monday", "/etc/fstab")
        );
        assert_eq!(parsed("disk.vhd:/a:/b"), parts("disk.vhd", "/a:/b"));
        assert_eq!(parsed("C:disk.vhd"), ("C:disk.vhd".to_owned(), None));
    }

    #[test]
    fn a_uri_has_slashes_of_its_own() {
        assert_eq!(
            parsed("nbd://host:10809/export"),
            ("nbd://host:10809/export".to_owned(), None)
        );
        assert_eq!(parsed("nbd://host/export:/etc"), parts("nbd://host/export", "/etc"));
    }

    #[test]
    fn what_is_a_file_is_taken_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let odd = directory.path().join("odd:");
        std::fs::create_dir(&odd).unwrap();
        std::fs::write(odd.join("disk.vhd"), b"").unwrap();
        let odd = odd.to_str().unwrap();
        assert_eq!(parsed(&format!("{odd}/disk.vhd")), (format!("{odd}/disk.vhd"), None));
        std::fs::write(directory.path().join("plain"), b"").unwrap();
        let plain = directory.path().join("plain");
        let plain = plain.to_str().unwrap();
        assert_eq!(parsed(&format!("{plain}:/x")), parts(plain, "/x"));
    }
}
