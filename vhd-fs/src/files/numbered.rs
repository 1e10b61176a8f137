//! File systems whose files have no numbers: FAT and exFAT know a file by its directory and name only. Numbers are given
//! here, as files are listed.

use std::collections::HashMap;

use super::entry::{Entry, FileType, Metadata, Node, Time, invented_mode};
use super::{FileError, FileSystem};
use crate::bytes::{count, index};

/// Files that are numbered at most. About 100 bytes each.
const LIMIT: usize = 4 << 20;

/// Numbers files as they are listed: the same file has the same number as long as the table lives.
struct NodeTable<T> {
    nodes: Vec<T>,
    numbers: HashMap<(u64, Vec<u8>), u64>,
}

impl<T: Clone> NodeTable<T> {
    /// A table in which the root directory has the number 1.
    fn new(root: T) -> Self {
        Self {
            nodes: vec![root],
            numbers: HashMap::new(),
        }
    }

    /// The root directory.
    fn root() -> Node {
        Node(1)
    }

    /// What has this number.
    fn get(&self, node: Node) -> Option<T> {
        let place = node.0.checked_sub(1)?;
        self.nodes.get(index(place)).cloned()
    }

    /// The number of `name` in `directory`, or nothing when there are too many files.
    fn number(&mut self, directory: Node, name: &[u8], node: &T) -> Option<Node> {
        let key = (directory.0, name.to_vec());
        if let Some(&number) = self.numbers.get(&key) {
            return Some(Node(number));
        }
        if self.nodes.len() >= LIMIT {
            return None;
        }
        self.nodes.push(node.clone());
        let number = count(self.nodes.len());
        self.numbers.insert(key, number);
        Some(Node(number))
    }
}

/// What is known of a file beside its name.
pub(super) struct Facts {
    pub(super) kind: FileType,
    /// Bytes; of a directory whatever its entry says.
    pub(super) size: u64,
    pub(super) read_only: bool,
    /// Created, last read, last written, as far as recorded.
    pub(super) created: Option<Time>,
    pub(super) accessed: Option<Time>,
    pub(super) modified: Option<Time>,
}

/// A name and what it leads to.
pub(super) type Listed<H> = (Vec<u8>, H);

/// A reader whose files are known by handles of its own.
pub(super) trait HandleReader: Send {
    /// What leads to a file.
    type Handle: Clone + Send;
    const FORMAT: &'static str;

    fn label(&mut self) -> Option<String>;
    fn facts(handle: &Self::Handle) -> Facts;
    fn entries(&mut self, directory: &Self::Handle) -> Result<Vec<Listed<Self::Handle>>, FileError>;
    fn read(&mut self, file: &Self::Handle, buf: &mut [u8], offset: u64) -> Result<usize, FileError>;
}

/// Such a reader as a file system.
pub(super) struct Numbered<R: HandleReader> {
    reader: R,
    nodes: NodeTable<R::Handle>,
    notes: Vec<String>,
}

impl<R: HandleReader> Numbered<R> {
    pub(super) fn new(reader: R, root: R::Handle, notes: Vec<String>) -> Self {
        let nodes = NodeTable::new(root);
        Self { reader, nodes, notes }
    }

    fn handle(&self, node: Node) -> Result<R::Handle, FileError> {
        self.nodes.get(node).ok_or(FileError::NotFound)
    }
}

impl<R: HandleReader> FileSystem for Numbered<R> {
    fn format(&self) -> &'static str {
        R::FORMAT
    }

    fn label(&mut self) -> Option<String> {
        self.reader.label()
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    fn root(&self) -> Node {
        NodeTable::<R::Handle>::root()
    }

    fn ignores_case(&self) -> bool {
        true
    }

    fn list(&mut self, directory: Node) -> Result<Vec<Entry>, FileError> {
        let handle = self.handle(directory)?;
        if R::facts(&handle).kind != FileType::Directory {
            return Err(FileError::NotDirectory);
        }
        let mut entries = Vec::new();
        for (name, handle) in self.reader.entries(&handle)? {
            let number = self.nodes.number(directory, &name, &handle);
            entries.push(Entry {
                node: number.ok_or_else(|| FileError::unsupported(R::FORMAT, "more files than can be numbered"))?,
                kind: Some(R::facts(&handle).kind),
                name,
            });
        }
        Ok(entries)
    }

    fn metadata(&mut self, node: Node) -> Result<Metadata, FileError> {
        let facts = R::facts(&self.handle(node)?);
        let modified = facts.modified.unwrap_or_default();
        Ok(Metadata {
            kind: facts.kind,
            size: if facts.kind == FileType::Regular { facts.size } else { 0 },
            mode: invented_mode(facts.kind, facts.read_only),
            uid: 0,
            gid: 0,
            links: 1,
            accessed: facts.accessed.unwrap_or_default(),
            modified,
            changed: modified,
            created: facts.created,
            device: None,
        })
    }

    fn read_at(&mut self, node: Node, buf: &mut [u8], offset: u64) -> Result<usize, FileError> {
        let handle = self.handle(node)?;
        R::facts(&handle).kind.require_regular()?;
        self.reader.read(&handle, buf, offset)
    }

    fn read_link(&mut self, _node: Node) -> Result<Vec<u8>, FileError> {
        Err(FileError::NotSymlink)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_its_number() {
        let mut table = NodeTable::new('/');
        let root = NodeTable::<char>::root();
        let a = table.number(root, b"a", &'a').unwrap();
        let b = table.number(root, b"b", &'b').unwrap();
        assert_ne!(a, b);
        assert_eq!(table.number(root, b"a", &'a'), Some(a));
        let inner = table.number(a, b"a", &'c').unwrap();
        assert_eq!(
            (table.get(root), table.get(a), table.get(inner)),
            (Some('/'), Some('a'), Some('c'))
        );
        assert_eq!((table.get(Node(0)), table.get(Node(99))), (None, None));
    }
}
