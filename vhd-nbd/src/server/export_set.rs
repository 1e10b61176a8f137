//! The exports of a server.

use std::sync::Arc;

use super::Export;

/// Exports by name. The first is the default: it is found under the empty name too.
///
/// A set whose only export has the empty name finds it under any name, because some clients can only ask for the empty
/// name and others can't.
#[derive(Clone, Debug, Default)]
pub struct ExportSet {
    exports: Vec<Arc<Export>>,
}

impl ExportSet {
    /// No exports.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an export; `false`, and nothing added, if there is one of its name.
    #[must_use]
    pub fn add(&mut self, export: Export) -> bool {
        if self.exports.iter().any(|other| other.name() == export.name()) {
            return false;
        }
        self.exports.push(Arc::new(export));
        true
    }

    /// The export that a client means by `name`.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Arc<Export>> {
        let named = self.exports.iter().find(|export| export.name() == name);
        let nameless = || matches!(&self.exports[..], [only] if only.name().is_empty());
        let default = || self.exports.first().filter(|_| name.is_empty() || nameless());
        named.or_else(default)
    }

    /// All exports, the default first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Export>> {
        self.exports.iter()
    }
}
