//! Numbers for the files of formats that have none: FAT and exFAT know a file by its directory and name only.

use std::collections::HashMap;

use super::entry::Node;
use crate::bytes::{count, index};

/// Files that are numbered at most. About 100 bytes each.
const LIMIT: usize = 4 << 20;

/// Numbers files as they are listed: the same file has the same number as long as the table lives.
pub(super) struct NodeTable<T> {
    nodes: Vec<T>,
    numbers: HashMap<(u64, Vec<u8>), u64>,
}

impl<T: Clone> NodeTable<T> {
    /// A table in which the root directory has the number 1.
    pub(super) fn new(root: T) -> Self {
        Self {
            nodes: vec![root],
            numbers: HashMap::new(),
        }
    }

    /// The root directory.
    pub(super) fn root() -> Node {
        Node(1)
    }

    /// What has this number.
    pub(super) fn get(&self, node: Node) -> Option<T> {
        let place = node.0.checked_sub(1)?;
        self.nodes.get(index(place)).cloned()
    }

    /// The number of `name` in `directory`, or nothing when there are too many files.
    pub(super) fn number(&mut self, directory: Node, name: &[u8], node: &T) -> Option<Node> {
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
