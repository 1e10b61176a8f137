//! The lines of a drawn tree: what stands before a name, and before what is said below it.

/// Levels that are drawn below one another: deeper ones would leave the page.
const DRAWN_LEVELS: usize = 24;

/// What is drawn before a name in a tree.
#[derive(Default)]
pub(super) struct Stem {
    /// Levels above it.
    pub(super) depth: usize,
    /// Before the name.
    pub(super) before: String,
    /// Before what is said below the name.
    pub(super) below: String,
}

impl Stem {
    /// That of something drawn below this; the last one has no line on to another.
    pub(super) fn child(&self, last: bool) -> Self {
        let depth = self.depth + 1;
        let (before, below) = if depth > DRAWN_LEVELS {
            (format!("{}[{depth}] ", self.below), self.below.clone())
        } else if last {
            (format!("{}`-- ", self.below), format!("{}    ", self.below))
        } else {
            (format!("{}|-- ", self.below), format!("{}|   ", self.below))
        };
        Self { depth, before, below }
    }
}
