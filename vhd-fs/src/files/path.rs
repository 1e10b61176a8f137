//! Paths inside a file system. Symbolic links are followed inside it and never lead out: an absolute one starts at its
//! root, and `..` of the root is the root.

use std::sync::Arc;

use super::entry::{FileType, Node};
use super::listed::Names;
use super::{FileError, Files};

/// Symbolic links that one path may have, as on Linux.
const MAX_LINKS: usize = 40;

impl Files {
    /// The node that a path names. Parts are separated by `/`; an empty path is the root. Symbolic links on the way
    /// are followed; the last part is followed if `follow`.
    ///
    /// # Errors
    /// [`FileError::NotFound`], [`FileError::NotDirectory`], [`FileError::TooManyLinks`], and what reading meets.
    pub fn resolve(&self, path: &[u8], follow: bool) -> Result<Node, FileError> {
        let mut ways = vec![self.root()];
        let mut links = 0;
        // Parts still to go, the next one last.
        let mut parts = reversed(path);
        while let Some(part) = parts.pop() {
            match part.as_slice() {
                b"." => {}
                b".." => {
                    if ways.len() > 1 {
                        ways.pop();
                    }
                }
                name => {
                    let directory = *ways.last().unwrap_or(&self.root());
                    let (node, kind) = self.look_up(directory, name)?;
                    let is_last = parts.is_empty();
                    if kind == FileType::Symlink && (follow || !is_last) {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(FileError::TooManyLinks { limit: MAX_LINKS });
                        }
                        let target = self.read_link(node)?;
                        if target.starts_with(b"/") {
                            ways.truncate(1);
                        }
                        parts.append(&mut reversed(&target));
                    } else if kind != FileType::Directory && !is_last {
                        return Err(FileError::NotDirectory);
                    } else {
                        ways.push(node);
                    }
                }
            }
        }
        Ok(*ways.last().unwrap_or(&self.root()))
    }

    /// A name in a directory. Where case does not matter, an exact match goes before others.
    ///
    /// # Errors
    /// [`FileError::NotFound`], [`FileError::NotDirectory`], and what reading meets.
    pub fn look_up(&self, directory: Node, name: &[u8]) -> Result<(Node, FileType), FileError> {
        let names = match self.listed.get(directory) {
            Some(names) => names,
            None => {
                let names = Arc::new(Names::new(self.list(directory)?, self.ignores_case()));
                self.listed.keep(directory, Arc::clone(&names));
                names
            }
        };
        let (node, kind) = names.get(name).ok_or(FileError::NotFound)?;
        let kind = match kind {
            Some(kind) => kind,
            None => self.metadata(node)?.kind,
        };
        Ok((node, kind))
    }
}

/// The parts of a path, the first one last.
fn reversed(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty());
    let mut parts: Vec<Vec<u8>> = parts.map(<[u8]>::to_vec).collect();
    parts.reverse();
    parts
}
