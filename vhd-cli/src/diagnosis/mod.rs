//! What is wrong with the images below a directory, and what puts it right. `vhd doctor` and `vhd report` show it.
//!
//! ```text
//!   finding.rs   what is wrong, and how bad      remedy.rs   commands and advice
//!   examine.rs   one image looked at             links.rs    what children recorded, and what is there
//!   shell.rs     paths as words of a command line
//! ```
//!
//! Nothing is changed. An image that another program uses is not checked: it looks damaged while it changes.

mod examine;
mod finding;
mod links;
mod remedy;
mod shell;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use vhd_core::chain::forest::{Forest, Limits};

pub(crate) use finding::{Finding, Weight};
pub(crate) use remedy::{Advice, Remedy};

use crate::commands::check::Checked;
use crate::commands::tree::{TreeReport, shown};
use crate::exit::Exit;
use crate::failure::Failure;
use remedy::Safety;

/// The images below a directory, what is wrong with them, and what puts it right.
pub(crate) struct Diagnosis {
    pub(crate) directory: PathBuf,
    pub(crate) forest: Forest,
    pub(crate) tree: TreeReport,
    /// What the check of each member found; `None` for one that was not checked.
    pub(crate) checked: Vec<Option<Checked>>,
    /// By image, in the order of the tree.
    pub(crate) findings: Vec<Finding>,
    /// The safest first.
    pub(crate) remedies: Vec<Remedy>,
    /// What no command puts right.
    pub(crate) advice: Vec<Advice>,
}

impl Diagnosis {
    /// Looks at all files below `directory`, whatever they are called, and calls `begin` before each image is checked.
    ///
    /// # Errors
    /// Only if the directory itself can't be read.
    pub(crate) fn of(directory: &Path, begin: impl FnMut(&Path)) -> Result<Self, Failure> {
        let forest = Forest::scan_any_name(directory, Limits::default())?;
        let mut diagnosis = Self {
            directory: directory.to_owned(),
            tree: TreeReport::of(directory, &forest),
            checked: Vec::new(),
            findings: Vec::new(),
            remedies: Vec::new(),
            advice: Vec::new(),
            forest,
        };
        diagnosis.examine_all(begin);
        diagnosis.examine_links();
        diagnosis.name_images();
        diagnosis.sort();
        Ok(diagnosis)
    }

    /// What the process returns: that of the worst finding, and 1 if not all was looked at.
    pub(crate) fn exit(&self) -> Exit {
        let worst = self.findings.iter().map(|finding| finding.severity).min();
        let incomplete = !self.tree.unreadable.is_empty() || self.tree.truncated;
        let worst = worst.into_iter().chain(incomplete.then_some(Weight::Failed)).min();
        worst.map_or(Exit::Ok, Weight::exit)
    }

    /// How many images have findings other than notes.
    pub(crate) fn images_with_findings(&self) -> usize {
        let mut members: Vec<usize> = self.real_findings().map(|finding| finding.member).collect();
        members.sort_unstable();
        members.dedup();
        members.len()
    }

    /// The findings but for notes.
    pub(crate) fn real_findings(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity != Weight::Note)
    }

    /// The file of a member.
    fn path(&self, member: usize) -> &Path {
        &self.forest.members()[member].path
    }

    /// Paths are shown from the directory, as in the tree.
    fn name_images(&mut self) {
        let names: Vec<String> = self
            .forest
            .members()
            .iter()
            .map(|member| shown(member, &self.directory))
            .collect();
        for finding in &mut self.findings {
            finding.path.clone_from(&names[finding.member]);
        }
        for remedy in &mut self.remedies {
            remedy.path.clone_from(&names[remedy.member]);
        }
        for advice in &mut self.advice {
            advice.path.clone_from(&names[advice.member]);
        }
    }

    /// Findings by image in the order of the tree, remedies by safety; of two that are as safe, parents before their children.
    fn sort(&mut self) {
        let drawn = self.tree.branches.iter().filter(|branch| !branch.repeated);
        let places: BTreeMap<usize, usize> = drawn.enumerate().map(|(place, branch)| (branch.file, place)).collect();
        let place = |member: usize| places.get(&member).copied().unwrap_or(usize::MAX);
        self.findings
            .sort_by_key(|finding| (place(finding.member), finding.severity));
        self.advice.sort_by_key(|advice| place(advice.member));
        let depths: Vec<usize> = (0..self.forest.members().len())
            .map(|member| self.depth(member))
            .collect();
        self.remedies
            .sort_by_key(|remedy| (remedy.safety, remedy.step, depths[remedy.member], place(remedy.member)));
    }

    /// How many ancestors a member has, those included that it does not find.
    fn depth(&self, member: usize) -> usize {
        let mut depth = 0;
        let mut at = self.parent_in_spirit(member);
        while let (Some(parent), true) = (at, depth < self.forest.members().len()) {
            depth += 1;
            at = self.parent_in_spirit(parent);
        }
        depth
    }

    /// The most that repairing a member, or one of its ancestors, risks.
    fn risk_of_line(&self, member: usize) -> Option<Safety> {
        let mut at = Some(member);
        let mut worst = None;
        for _ in 0..self.forest.members().len() {
            let Some(member) = at else { break };
            let repairs = self.remedies.iter().filter(|remedy| remedy.member == member);
            worst = repairs
                .map(|remedy| remedy.safety)
                .filter(|safety| *safety <= Safety::Assumes)
                .max()
                .max(worst);
            at = self.parent_in_spirit(member);
        }
        worst
    }
}
