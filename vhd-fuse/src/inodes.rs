//! Which number is which node. The kernel holds a number until it forgets it as often as it was told it.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::{Mutex, PoisonError};

use crate::Node;

/// The number of the root directory, by the protocol.
pub(crate) const ROOT: u64 = 1;

struct Known {
    node: Node,
    parent: u64,
    name: OsString,
    lookups: u64,
}

#[derive(Default)]
struct Tables {
    by_number: HashMap<u64, Known>,
    by_name: HashMap<(u64, OsString), u64>,
    last: u64,
}

/// The nodes that the kernel knows.
pub(crate) struct Inodes(Mutex<Tables>);

impl Inodes {
    pub(crate) fn new(root: Node) -> Self {
        let root = Known {
            node: root,
            parent: ROOT,
            name: OsString::new(),
            // Never forgotten.
            lookups: 1,
        };
        Self(Mutex::new(Tables {
            by_number: HashMap::from([(ROOT, root)]),
            by_name: HashMap::new(),
            last: ROOT,
        }))
    }

    /// The node with this number.
    pub(crate) fn get(&self, number: u64) -> Option<Node> {
        self.with(number, Clone::clone)
    }

    /// What `look` takes of the node with this number.
    pub(crate) fn with<T>(&self, number: u64, look: impl FnOnce(&Node) -> T) -> Option<T> {
        let tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tables.by_number.get(&number).map(|known| look(&known.node))
    }

    /// The number of the directory that a node is in.
    pub(crate) fn parent(&self, number: u64) -> u64 {
        let tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tables.by_number.get(&number).map_or(ROOT, |known| known.parent)
    }

    /// The number of a node that the kernel is told of. A name that was told before keeps its number.
    pub(crate) fn look_up(&self, parent: u64, name: &OsStr, node: &Node) -> u64 {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (parent, name.to_owned());
        // Something else under the name of what was there before is not to be shown from the kernel's memory of that.
        if let Some(&number) = tables.by_name.get(&key)
            && let Some(known) = tables.by_number.get_mut(&number)
            && known.node.instance == node.instance
        {
            known.lookups += 1;
            // What a directory shows under this name may be something else by now.
            known.node = node.clone();
            return number;
        }
        tables.last += 1;
        let number = tables.last;
        let known = Known {
            node: node.clone(),
            parent,
            name: name.to_owned(),
            lookups: 1,
        };
        tables.by_number.insert(number, known);
        tables.by_name.insert(key, number);
        number
    }

    /// The kernel forgets a number so many times.
    pub(crate) fn forget(&self, number: u64, times: u64) {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = tables.by_number.get_mut(&number).filter(|_| number != ROOT) else {
            return;
        };
        known.lookups = known.lookups.saturating_sub(times);
        if known.lookups == 0
            && let Some(known) = tables.by_number.remove(&number)
        {
            let key = (known.parent, known.name);
            if tables.by_name.get(&key) == Some(&number) {
                tables.by_name.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::*;
    use crate::{Content, Kind};

    fn file(byte: u8) -> Node {
        let bytes: Arc<[u8]> = Arc::from([byte]);
        Node::of_mount(Kind::File(Content::Bytes(bytes)), SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn another_thing_of_the_same_name_has_another_number() {
        let inodes = Inodes::new(file(0));
        let name = OsStr::new("a");
        let first = inodes.look_up(ROOT, name, &file(1).instance(1));
        let second = inodes.look_up(ROOT, name, &file(2).instance(2));
        assert_ne!(first, second);
        assert!(inodes.get(first).is_some(), "the kernel may hold it");
        inodes.forget(first, 1);
        assert_eq!(inodes.look_up(ROOT, name, &file(2).instance(2)), second);
    }

    #[test]
    fn a_name_keeps_its_number_until_it_is_forgotten() {
        let inodes = Inodes::new(file(0));
        let a = inodes.look_up(ROOT, OsStr::new("a"), &file(1));
        let b = inodes.look_up(ROOT, OsStr::new("b"), &file(2));
        assert_ne!(a, b);
        assert_eq!(inodes.look_up(ROOT, OsStr::new("a"), &file(3)), a);
        assert_eq!(inodes.parent(a), ROOT);
        inodes.forget(a, 1);
        assert!(inodes.get(a).is_some());
        inodes.forget(a, 1);
        assert!(inodes.get(a).is_none());
        assert_ne!(inodes.look_up(ROOT, OsStr::new("a"), &file(1)), a);
        inodes.forget(ROOT, 100);
        assert!(inodes.get(ROOT).is_some());
    }
}
