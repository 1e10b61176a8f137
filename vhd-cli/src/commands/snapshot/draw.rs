//! The tree as a person sees it.

use std::fmt;

use super::show::{ShownSnapshot, ShownTree};
use crate::commands::stem::Stem;
use crate::human;

/// A drawing of a tree.
pub(super) struct Drawing<'a> {
    tree: &'a ShownTree,
}

/// What is drawn in a line.
enum Line<'a> {
    Snapshot(&'a ShownSnapshot),
    Now,
}

impl<'a> Drawing<'a> {
    pub(super) fn of(tree: &'a ShownTree) -> Self {
        Self { tree }
    }

    /// What was made from a snapshot, Now last.
    fn below(&self, parent: Option<&str>) -> Vec<Line<'a>> {
        let snapshots = self.tree.snapshots.iter();
        let made_from = snapshots.filter(|one| one.parent.as_deref() == parent);
        let now = (self.tree.now.parent.as_deref() == parent).then_some(Line::Now);
        made_from.map(Line::Snapshot).chain(now).collect()
    }

    fn write_snapshot(&self, f: &mut fmt::Formatter<'_>, one: &ShownSnapshot) -> fmt::Result {
        if one.deleted {
            let dependants = human::count(one.dependants, "dependant");
            write!(f, "(deleted: {}, {dependants})", one.name)?;
        } else {
            write!(f, "{}", one.name)?;
        }
        if let Some(created) = &one.created {
            write!(f, "  {created}")?;
        }
        write!(f, "  holds {}", human::binary(one.file.stored_bytes))?;
        if one.freed_by_delete > 0 {
            write!(f, ", deleting frees {}", human::binary(one.freed_by_delete))?;
        }
        writeln!(f, "  {}", one.file.file)
    }
}

impl fmt::Display for Drawing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut open = vec![(Stem::default(), self.below(None))];
        while let Some((stem, mut lines)) = open.pop() {
            if lines.is_empty() {
                continue;
            }
            let line = lines.remove(0);
            let own = stem.child(lines.is_empty());
            f.write_str(&own.before)?;
            match line {
                Line::Now => {
                    let file = &self.tree.now.file;
                    writeln!(f, "Now  holds {}  {}", human::binary(file.stored_bytes), file.file)?;
                    open.push((stem, lines));
                }
                Line::Snapshot(one) => {
                    self.write_snapshot(f, one)?;
                    open.push((stem, lines));
                    open.push((own, self.below(Some(&one.id))));
                }
            }
        }
        Ok(())
    }
}
