//! The forest as a person sees it.

use std::fmt;

use vhd_core::chain::forest::Forest;

use super::report::{DamageReport, FactsReport, FileReport, ParentReport, ParentState, TreeReport};
use crate::commands::stem::Stem;
use crate::human;

/// A file's place in the drawing.
pub(crate) struct Branch {
    pub(crate) file: usize,
    /// What is drawn before its name and its remarks.
    stem: Stem,
    /// It is drawn again where its circle closes.
    pub(crate) repeated: bool,
}

/// The files in the order of the drawing, each below its parent. A circle is cut where it comes back to its
/// first file.
pub(crate) fn branches(forest: &Forest) -> Vec<Branch> {
    let mut drawn = vec![false; forest.members().len()];
    let mut branches = Vec::new();
    let mut open: Vec<Branch> = forest.roots().iter().rev().map(|&root| Branch::root(root)).collect();
    while let Some(mut branch) = open.pop() {
        branch.repeated = std::mem::replace(&mut drawn[branch.file], true);
        if !branch.repeated {
            let children = forest.children(branch.file);
            let last = children.last();
            let below = children.iter().rev();
            open.extend(below.map(|child| branch.child(*child, Some(child) == last)));
        }
        branches.push(branch);
    }
    branches
}

impl Branch {
    /// How many files it is drawn below.
    pub(crate) fn depth(&self) -> usize {
        self.stem.depth
    }

    fn root(file: usize) -> Self {
        Self {
            file,
            stem: Stem::default(),
            repeated: false,
        }
    }

    fn child(&self, file: usize, last: bool) -> Self {
        Self {
            file,
            stem: self.stem.child(last),
            repeated: false,
        }
    }
}

impl fmt::Display for TreeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for branch in &self.branches {
            let file = &self.files[branch.file];
            if branch.repeated {
                writeln!(f, "{}{} (again: the circle closes here)", branch.stem.before, file.path)?;
                continue;
            }
            writeln!(f, "{}{file}", branch.stem.before)?;
            for remark in file.remarks() {
                writeln!(f, "{}  {remark}", branch.stem.below)?;
            }
        }
        for unreadable in &self.unreadable {
            writeln!(f, "! {}: {}", unreadable.path, unreadable.message)?;
        }
        if self.truncated {
            writeln!(f, "! there is more than was looked at")?;
        }
        self.write_summary(f)
    }
}

impl TreeReport {
    fn write_summary(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let summary = &self.summary;
        let (files, trees) = (
            human::count(summary.files, "image"),
            human::count(summary.trees, "tree"),
        );
        write!(f, "{files} in {trees}")?;
        let troubles = [
            (summary.damaged, "damaged"),
            (summary.orphans, "without their parent"),
            (summary.broken_links, "not leading to their parent"),
            (summary.cyclic, "in a circle"),
            (summary.copies, "with copies"),
            (summary.unreadable, "unreadable"),
        ];
        for (count, what) in troubles.iter().filter(|(count, _)| *count > 0) {
            write!(f, ", {count} {what}")?;
        }
        for format in &self.passed_over {
            let files = human::count(format.count, &format!("{} file", format.label));
            write!(f, ", {files} not read")?;
        }
        writeln!(f)
    }
}

impl fmt::Display for FileReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path)?;
        if self.outside {
            f.write_str(" (outside)")?;
        }
        match &self.facts {
            Some(facts) => write!(f, "  {facts}")?,
            None => write!(f, "  {}", human::binary(self.file_size))?,
        }
        match &self.modified {
            Some(modified) => write!(f, ", modified {modified}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for FactsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.disk_type, human::binary(self.virtual_size))?;
        match self.allocated_bytes {
            Some(bytes) => write!(f, ", holds {}", human::binary(bytes)),
            None => Ok(()),
        }
    }
}

impl FileReport {
    /// What is wrong with the file, or odd.
    fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if let Some(DamageReport { code, message, .. }) = &self.damage {
            remarks.push(format!("! {code}: {message}"));
        }
        if let Some(parent) = &self.parent {
            parent.add_remarks(&mut remarks);
        }
        if self.cyclic {
            remarks.push("! it is its own ancestor: the chain is a circle".to_owned());
        }
        if self.facts.as_ref().is_some_and(|facts| facts.footer_recovered) {
            remarks.push("- the footer at the end is not usable; its copy is in use".to_owned());
        }
        if !self.copies.is_empty() {
            let used = human::count(vhd_core::units::u64_from(self.children.len()), "image");
            let copies = self.copies.join(", ");
            remarks.push(format!(
                "- the same disk as {copies}; this file is the parent of {used}"
            ));
        }
        if !self.aliases.is_empty() {
            remarks.push(format!("- also named {}", self.aliases.join(", ")));
        }
        remarks.extend(self.warnings.iter().map(|warning| format!("- {warning}")));
        remarks
    }
}

impl ParentReport {
    fn add_remarks(&self, remarks: &mut Vec<String>) {
        let id = &self.id;
        remarks.push(match self.state {
            ParentState::Found => return,
            ParentState::Orphan => format!("! the parent {id} is missing; tried:"),
            ParentState::BrokenLink => {
                let holders = self.holders.join(", ");
                format!("! the parent {id} is {holders}, but the paths stored here do not lead there; tried:")
            }
            ParentState::Raw => "! the parent is a raw file: the image opens with --parent only; tried:".to_owned(),
        });
        let tried = self.tried.iter();
        remarks.extend(tried.map(|tried| format!("    {}: {}", tried.path, tried.outcome)));
    }
}
