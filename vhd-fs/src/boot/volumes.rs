//! The file systems of a disk, and files in them by the paths that boot loaders use.

use crate::files::{Entry, FileError, FileErrorKind, FileType, Files, Node};

/// Bytes of a file of configuration. The longest that generators write have some 100 KiB.
const MAX_CONFIGURATION: usize = 1 << 20;
/// What tells a system's root directory from others.
const MARKS: &[&str] = &["/sbin/init", "/usr/lib/systemd/systemd", "/etc/fstab"];

/// A file that a boot loader would read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFile {
    /// The position of its file system in what was given to [`find_boot`](super::find_boot).
    pub volume: usize,
    /// Its path there, as it was named.
    pub path: String,
    /// The file.
    pub node: Node,
    /// Bytes.
    pub size: u64,
}

/// The file systems of a disk.
pub(super) struct Volumes<'a> {
    volumes: &'a [(String, &'a Files)],
    remarks: Vec<String>,
}

impl<'a> Volumes<'a> {
    pub(super) fn new(volumes: &'a [(String, &'a Files)]) -> Self {
        let remarks = Vec::new();
        Self { volumes, remarks }
    }

    /// Their positions.
    pub(super) fn positions(&self) -> std::ops::Range<usize> {
        0..self.volumes.len()
    }

    /// A path for people.
    pub(super) fn shown(&self, volume: usize, path: &str) -> String {
        format!("{}:{path}", self.volumes[volume].0)
    }

    /// Notes what was passed over.
    pub(super) fn remark(&mut self, text: String) {
        self.remarks.push(text);
    }

    pub(super) fn into_remarks(self) -> Vec<String> {
        self.remarks
    }

    /// The file of a path as a configuration in `home` names it: there, or else in the first other file system that has
    /// it. Boot loaders name the file system by things that are not known here, such as the order of devices.
    pub(super) fn find(&mut self, home: usize, path: &str) -> Option<BootFile> {
        let path = without_device(path);
        let others = self.positions().filter(|volume| *volume != home);
        std::iter::once(home)
            .chain(others)
            .find_map(|volume| self.regular(volume, path))
    }

    /// A regular file of one file system, through links.
    pub(super) fn regular(&mut self, volume: usize, path: &str) -> Option<BootFile> {
        let files = self.volumes[volume].1;
        let found = files.resolve(path.as_bytes(), true);
        let found = found.and_then(|node| Ok((node, files.metadata(node)?)));
        let (node, metadata) = self.seen(volume, path, found)?;
        (metadata.kind == FileType::Regular).then(|| BootFile {
            volume,
            path: path.to_owned(),
            node,
            size: metadata.size,
        })
    }

    /// The names in a directory that end as a file's name can be written; none of one that is not there.
    pub(super) fn names(&mut self, volume: usize, directory: &str) -> Vec<String> {
        let files = self.volumes[volume].1;
        let listed = files
            .resolve(directory.as_bytes(), true)
            .and_then(|node| files.list(node));
        let listed = self.seen(volume, directory, listed).unwrap_or_default();
        let name = |entry: Entry| String::from_utf8(entry.name).ok();
        listed.into_iter().filter_map(name).collect()
    }

    /// The text of a file of configuration.
    pub(super) fn text(&mut self, volume: usize, path: &str) -> Option<String> {
        let file = self.regular(volume, path)?;
        let files = self.volumes[volume].1;
        let read = files.read_at(file.node, 0, MAX_CONFIGURATION + 1);
        let bytes = self.seen(volume, path, read)?;
        if bytes.len() > MAX_CONFIGURATION {
            let place = self.shown(volume, path);
            self.remark(format!("{place} is longer than {MAX_CONFIGURATION} bytes"));
            return None;
        }
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The file system that holds the system: the first that looks like it.
    pub(super) fn root(&self) -> Option<usize> {
        let has = |volume: &usize, path: &&str| self.volumes[*volume].1.resolve(path.as_bytes(), false).is_ok();
        self.positions()
            .find(|volume| MARKS.iter().any(|path| has(volume, path)))
    }

    /// What was read. That something is not there is nothing special; other failures are noted.
    fn seen<T>(&mut self, volume: usize, path: &str, result: Result<T, FileError>) -> Option<T> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        match error.kind() {
            FileErrorKind::NotFound | FileErrorKind::WrongType => {}
            _ => self.remark(format!("{}: {error}", self.shown(volume, path))),
        }
        None
    }
}

/// A path of GRUB without the device before it: `(hd0,gpt2)/vmlinuz`.
fn without_device(path: &str) -> &str {
    match path.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
        Some((_, path)) => path,
        None => path,
    }
}
