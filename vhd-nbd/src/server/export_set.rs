//! The exports of a server.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use super::Export;
use crate::protocol::MAX_STRING;

/// Why an export can't have a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExportNameError {
    /// Another one has it.
    #[error("two exports are called {0:?}")]
    Taken(String),
    /// The protocol has no room for it.
    #[error("the name of an export has {0} bytes, more than {MAX_STRING}")]
    TooLong(usize),
    /// It would do something to the terminals of those who list the exports.
    #[error("the name {0:?} of an export has control characters in it")]
    Control(String),
}

impl ExportNameError {
    /// Checks a name by itself.
    ///
    /// # Errors
    /// It is too long, or has control characters in it.
    pub fn check(name: &str) -> Result<(), Self> {
        if name.len() > MAX_STRING {
            return Err(Self::TooLong(name.len()));
        }
        if name.chars().any(char::is_control) {
            return Err(Self::Control(name.to_owned()));
        }
        Ok(())
    }
}

/// Exports by name. The first is the default: it is found under the empty name too. Clones are the same set.
///
/// A set whose only export has the empty name finds it under any name, because some clients can only ask for the empty
/// name and others can't. Exports that are added later do not change that.
#[derive(Clone, Debug, Default)]
pub struct ExportSet {
    exports: Arc<RwLock<Exports>>,
}

#[derive(Debug, Default)]
struct Exports {
    listed: Vec<Arc<Export>>,
    /// How many of them were there before the server was.
    first: usize,
    /// Names of exports that were removed: they do not mean the default.
    removed: HashSet<String>,
}

impl ExportSet {
    /// No exports.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an export.
    ///
    /// # Errors
    /// Its name can't be one, or there is one of its name; nothing is added then.
    pub fn add(&mut self, export: Export) -> Result<(), ExportNameError> {
        self.add_later(export)?;
        self.change(|exports| exports.first = exports.listed.len());
        Ok(())
    }

    /// Adds an export to a set that is being served.
    ///
    /// # Errors
    /// Those of [`add`](Self::add).
    pub fn add_later(&self, export: Export) -> Result<(), ExportNameError> {
        ExportNameError::check(export.name())?;
        self.change(|exports| {
            if exports.named(export.name()).is_some() {
                return Err(ExportNameError::Taken(export.name().to_owned()));
            }
            exports.listed.push(Arc::new(export));
            Ok(())
        })
    }

    /// Adds an export to a set that is being served, in place of one of its name: that one is found by nobody who connects
    /// from now on.
    ///
    /// # Errors
    /// Its name can't be one.
    pub fn put(&self, export: Export) -> Result<(), ExportNameError> {
        ExportNameError::check(export.name())?;
        self.change(|exports| {
            exports.listed.retain(|other| other.name() != export.name());
            exports.listed.push(Arc::new(export));
        });
        Ok(())
    }

    /// Takes an export out of a set that is being served: nobody who connects from now on finds it, and whoever has it keeps
    /// it.
    pub fn remove(&self, name: &str) {
        self.change(|exports| {
            exports.listed.retain(|export| export.name() != name);
            exports.removed.insert(name.to_owned());
        });
    }

    /// Puts what `change` makes of an export in its place, for clients that connect from now on.
    pub fn replace(&self, name: &str, change: impl FnOnce(&Export) -> Export) {
        self.change(|exports| {
            if let Some(export) = exports.listed.iter_mut().find(|export| export.name() == name) {
                *export = Arc::new(change(export));
            }
        });
    }

    /// The export that a client means by `name`.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<Export>> {
        let exports = self.exports.read().unwrap_or_else(PoisonError::into_inner);
        let first = exports.listed.first();
        let nameless = exports.first == 1 && first.is_some_and(|only| only.name().is_empty());
        let default = first.filter(|_| name.is_empty() || (nameless && !exports.removed.contains(name)));
        exports.named(name).or(default).cloned()
    }

    /// All exports, the default first.
    pub fn iter(&self) -> impl Iterator<Item = Arc<Export>> {
        let exports = self.exports.read().unwrap_or_else(PoisonError::into_inner);
        exports.listed.clone().into_iter()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Exports) -> T) -> T {
        change(&mut self.exports.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Exports {
    fn named(&self, name: &str) -> Option<&Arc<Export>> {
        self.listed.iter().find(|export| export.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use vhd_block::Disk;
    use vhd_core::device::RawDevice;
    use vhd_core::storage::MemoryFile;

    use super::*;

    #[test]
    fn names_fit_the_protocol_and_a_terminal() {
        for (name, good) in [
            ("", true),
            ("disk@before upgrade", true),
            ("\u{e4}\u{4e2d}", true),
            (&"n".repeat(MAX_STRING), true),
            (&"n".repeat(MAX_STRING + 1), false),
            ("a\nb", false),
            ("a\0b", false),
            ("\u{1b}[2J", false),
            ("\u{9b}2J", false),
        ] {
            assert_eq!(ExportNameError::check(name).is_ok(), good, "{name:?}");
        }
    }

    fn disk(bytes: usize) -> Disk {
        let file = MemoryFile::from_bytes(vec![0; bytes]);
        Disk::new(Arc::new(RawDevice::new(Arc::new(file), false).unwrap()))
    }

    fn export(name: &str, disk: &Disk) -> Export {
        Export::new(name, disk.clone())
    }

    #[test]
    fn exports_come_and_are_replaced_while_clients_are_served() {
        let disks = [1, 2, 3].map(|blocks| disk(blocks * 512));
        let mut exports = ExportSet::new();
        exports.add(export("", &disks[0])).unwrap();
        let served = exports.clone();
        exports.add_later(export("vm@one", &disks[1])).unwrap();
        exports.add_later(export("vm@one", &disks[2])).unwrap_err();
        let size = |name| served.find(name).map(|export| export.disk().size());
        assert_eq!((size("vm@one"), size("any")), (Some(1024), Some(512)));
        // A client that has the former one keeps it.
        let former = served.find("vm@one").unwrap();
        exports.put(export("vm@one", &disks[2])).unwrap();
        exports.put(export("a\nb", &disks[2])).unwrap_err();
        assert_eq!((size("vm@one"), former.disk().size()), (Some(1536), 1024));
        assert_eq!(served.iter().count(), 2);
        let kept = served.find("vm@one").unwrap();
        exports.remove("vm@one");
        assert_eq!((size("vm@one"), kept.disk().size()), (None, 1536));
        exports.add_later(export("vm@one", &disks[1])).unwrap();
        assert_eq!((size("vm@one"), size("any")), (Some(1024), Some(512)));
    }
}
