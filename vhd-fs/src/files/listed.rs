//! Directories that were listed, kept by name: a path is followed a part at a time, and many paths lead through the same
//! directories. Nothing changes them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use super::entry::{Entry, FileType, Node};

/// Names that are kept of all directories together, about 100 bytes each. One directory is kept however large it is: it was in
/// memory when it was listed.
const MOST_NAMES: usize = 256 << 10;

/// What a name leads to; its kind, where the directory says it.
pub(super) type Found = (Node, Option<FileType>);

/// The names of one directory.
pub(super) struct Names {
    exact: HashMap<Vec<u8>, Found>,
    /// In one case, where case does not matter.
    folded: Option<HashMap<Vec<u8>, Found>>,
}

impl Names {
    pub(super) fn new(entries: Vec<Entry>, ignores_case: bool) -> Self {
        let folded = ignores_case.then(|| {
            first_of_each(
                entries
                    .iter()
                    .map(|entry| (fold(&entry.name), (entry.node, entry.kind))),
            )
        });
        let exact = first_of_each(entries.into_iter().map(|entry| (entry.name, (entry.node, entry.kind))));
        Self { exact, folded }
    }

    /// What a name leads to. Where case does not matter, an exact match goes before others.
    pub(super) fn get(&self, name: &[u8]) -> Option<Found> {
        let exact = self.exact.get(name);
        let found = exact.or_else(|| self.folded.as_ref()?.get(&fold(name)));
        found.copied()
    }
}

/// Of two that have one name, the first.
fn first_of_each(names: impl Iterator<Item = (Vec<u8>, Found)>) -> HashMap<Vec<u8>, Found> {
    let mut by_name = HashMap::new();
    for (name, found) in names {
        by_name.entry(name).or_insert(found);
    }
    by_name
}

fn fold(name: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(name) {
        Ok(text) => text.to_lowercase().into_bytes(),
        Err(_) => name.to_ascii_lowercase(),
    }
}

/// The directories that were listed last, the latest first.
#[derive(Default)]
pub(super) struct Listed(Mutex<VecDeque<(Node, Arc<Names>)>>);

impl Listed {
    /// The names of a directory, if they are kept.
    pub(super) fn get(&self, directory: Node) -> Option<Arc<Names>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.iter().position(|(node, _)| *node == directory)?;
        let found = kept.remove(place)?;
        let names = Arc::clone(&found.1);
        kept.push_front(found);
        Some(names)
    }

    /// Forgets all: a reader that was opened anew may number its files in another way.
    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Keeps the names of a directory, and forgets those of the ones that were not looked at for the longest time.
    pub(super) fn keep(&self, directory: Node, names: Arc<Names>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(node, _)| *node != directory);
        kept.push_front((directory, names));
        let mut all: usize = kept.iter().map(|(_, names)| names.weight()).sum();
        while all > MOST_NAMES
            && kept.len() > 1
            && let Some((_, names)) = kept.pop_back()
        {
            all -= names.weight();
        }
    }
}

impl Names {
    /// Names, and a little for the directory itself.
    fn weight(&self) -> usize {
        self.exact.len() + self.folded.as_ref().map_or(0, HashMap::len) + 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: u64, ignores_case: bool) -> Arc<Names> {
        let entries = (0..count).map(|number| Entry {
            name: format!("Name{number}").into_bytes(),
            node: Node(number),
            kind: None,
        });
        Arc::new(Names::new(entries.collect(), ignores_case))
    }

    #[test]
    fn an_exact_name_goes_before_one_in_another_case() {
        let entry = |name: &str, number| Entry {
            name: name.into(),
            node: Node(number),
            kind: None,
        };
        let entries = vec![entry("README", 1), entry("readme", 2), entry("readme", 3)];
        let names = Names::new(entries.clone(), true);
        assert_eq!(names.get(b"readme"), Some((Node(2), None)));
        assert_eq!(names.get(b"ReadMe"), Some((Node(1), None)));
        let names = Names::new(entries, false);
        assert_eq!(
            (names.get(b"ReadMe"), names.get(b"README")),
            (None, Some((Node(1), None)))
        );
    }

    #[test]
    fn the_latest_are_kept_within_the_bound() {
        let listed = Listed::default();
        let most = u64::try_from(MOST_NAMES).unwrap();
        for directory in 0..5 {
            listed.keep(Node(directory), names(most / 4, false));
            assert!(listed.get(Node(0)).is_some(), "it is used again and again");
        }
        assert!(listed.get(Node(4)).is_some() && listed.get(Node(1)).is_none());
        listed.keep(Node(9), names(most, true));
        assert!(listed.get(Node(9)).is_some() && listed.get(Node(0)).is_none());
    }
}
