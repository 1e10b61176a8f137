//! The exports of a server.

use std::sync::Arc;

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

    /// Adds an export.
    ///
    /// # Errors
    /// Its name can't be one, or there is one of its name; nothing is added then.
    pub fn add(&mut self, export: Export) -> Result<(), ExportNameError> {
        ExportNameError::check(export.name())?;
        if self.exports.iter().any(|other| other.name() == export.name()) {
            return Err(ExportNameError::Taken(export.name().to_owned()));
        }
        self.exports.push(Arc::new(export));
        Ok(())
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

#[cfg(test)]
mod tests {
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
}
