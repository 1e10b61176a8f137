//! What children recorded of their parents, and what is there.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use vhd_core::ErrorKind;
use vhd_core::chain::forest::Link;
use vhd_core::chain::{ChainWarning, ImageFormat, OpenOptions, ParentOutcome, TriedParent};
use vhd_core::format::UniqueId;
use vhd_core::ops::verify::{self, Verdict, VerifyOptions, record_path};

use super::remedy::{Safety, Step, on_image};
use super::shell::path_word;
use super::{Advice, Diagnosis, Finding, Remedy, Weight};
use crate::codes::Kind;
use crate::failure::Failure;

fn name_of(kind: ErrorKind) -> &'static str {
    Kind::Library(kind).code().name
}

impl Diagnosis {
    /// Looks at how each image is tied to its parent, parents before children.
    pub(super) fn examine_links(&mut self) {
        let mut order: Vec<usize> = (0..self.forest.members().len()).collect();
        order.sort_by_cached_key(|&member| self.depth(member));
        let mut verified = BTreeMap::new();
        for member in order {
            if self.forest.is_cyclic(member) {
                self.circle(member);
                continue;
            }
            match self.forest.link(member) {
                Link::Base | Link::Unknown => {}
                Link::Found { parent, .. } => {
                    let parent = *parent;
                    let verdict = *verified
                        .entry(parent)
                        .or_insert_with(|| self.verify_parent(member, parent));
                    self.compare(member, parent, verdict);
                }
                // The tree has the places that were tried.
                Link::Broken { wanted, tried, .. } => self.broken(member, *wanted, tried.iter().any(is_other_disk)),
            }
        }
    }

    /// The parent of a member, or the file that is to be it again.
    pub(super) fn parent_in_spirit(&self, member: usize) -> Option<usize> {
        match self.forest.link(member) {
            Link::Found { parent, .. } => Some(*parent),
            Link::Broken { .. } => self.best_holder(member),
            Link::Base | Link::Unknown => None,
        }
    }

    /// Of the files that are the parent of a member that does not find it, the one that agrees best with what it recorded.
    fn best_holder(&self, member: usize) -> Option<usize> {
        let Link::Broken { holders, .. } = self.forest.link(member) else {
            return None;
        };
        let facts = self.forest.members()[member].state.as_ref().ok()?;
        let score = |&holder: &usize| {
            let other = &self.forest.members()[holder];
            let same_size = other
                .state
                .as_ref()
                .is_ok_and(|other| other.disk_size == facts.disk_size);
            let same_time = facts
                .parent
                .as_ref()
                .zip(other.modified)
                .is_some_and(|(parent, time)| parent.modified == time);
            (same_size, same_time)
        };
        // The first of several that are as good.
        holders
            .iter()
            .copied()
            .rev()
            .filter(|&holder| holder != member)
            .max_by_key(score)
    }

    /// Whether another image relies on a member, or would if it found it.
    pub(super) fn has_children(&self, member: usize) -> bool {
        (0..self.forest.members().len()).any(|child| self.parent_in_spirit(child) == Some(member))
    }

    fn circle(&mut self, member: usize) {
        let message = "it is its own ancestor: the chain is a circle";
        self.findings.push(Finding::new(
            member,
            name_of(ErrorKind::ChainCycle),
            Weight::Parent,
            message,
        ));
        let advice = "give one image of the circle the parent that it was made over: `vhd reparent IMAGE PARENT`";
        self.advice.push(Advice::new(member, advice));
    }

    /// A child that does not find its parent.
    fn broken(&mut self, member: usize, wanted: UniqueId, is_other_disk: bool) {
        let Some(holder) = self.best_holder(member) else {
            let (code, message) = match (wanted.is_nil(), is_other_disk) {
                (true, _) => (
                    ErrorKind::ParentMissing,
                    "its parent is a raw file, which only the user can name".to_owned(),
                ),
                (_, true) => (
                    ErrorKind::ParentMismatch,
                    format!("the file in the place of its parent is not the disk {wanted}"),
                ),
                (_, false) => (
                    ErrorKind::ParentMissing,
                    format!("its parent, the disk {wanted}, is not here"),
                ),
            };
            self.findings
                .push(Finding::new(member, name_of(code), Weight::Parent, message));
            let command = on_image("reparent", self.path(member), "PARENT");
            let advice = match wanted.is_nil() {
                true => "open it with `--parent raw:FILE`".to_owned(),
                false => format!(
                    "find the file of the disk {wanted} (a backup, another directory: `vhd doctor DIR`), then `{command}`"
                ),
            };
            self.advice.push(Advice::new(member, advice));
            return;
        };
        let name = self.path(holder).display();
        let message = format!("its parent, the disk {wanted}, is {name}, and nothing recorded in it leads there");
        self.findings.push(Finding::new(
            member,
            name_of(ErrorKind::ParentMissing),
            Weight::Parent,
            message,
        ));
        self.relink(member, holder);
    }

    fn relink(&mut self, member: usize, holder: usize) {
        let Ok(facts) = &self.forest.members()[member].state else {
            return;
        };
        let (path, parent) = (self.path(member), path_word(self.path(holder)));
        if facts.format != ImageFormat::Vhd {
            let format = facts.format.label();
            let advice = format!("{format} images are never written here: read it with `--parent {parent}`");
            self.advice.push(Advice::new(member, advice));
            return;
        }
        let holder_size = self.forest.members()[holder]
            .state
            .as_ref()
            .ok()
            .map(|holder| holder.disk_size);
        if holder_size.is_some_and(|size| size != facts.disk_size) {
            let advice =
                format!("{parent} has its parent's identity and another size: find the file that it was made over");
            self.advice.push(Advice::new(member, advice));
            return;
        }
        if self.path(holder).to_str().is_none() {
            let advice = format!("the name {parent} is not Unicode, and an image can't record it: rename the file");
            self.advice.push(Advice::new(member, advice));
            return;
        }
        let command = on_image("reparent", path, &parent);
        let safety = self
            .risk_of_line(holder)
            .map_or(Safety::Records, |risk| risk.max(Safety::Records));
        let Link::Broken { holders, .. } = self.forest.link(member) else {
            return;
        };
        let others = holders.iter().filter(|&&other| other != holder && other != member);
        let others: Vec<String> = others.map(|&other| self.path(other).display().to_string()).collect();
        let purpose = match others.is_empty() {
            true => "record where its parent is".to_owned(),
            false => format!("record where its parent is; the same disk is {}", others.join(", ")),
        };
        self.remedies
            .push(Remedy::new(member, Step::Link, safety, purpose, command));
    }

    /// A child and the parent that it finds.
    fn compare(&mut self, member: usize, parent: usize, verdict: Verdict) {
        for warning in self.forest.warnings(member) {
            let found = match warning {
                ChainWarning::ParentTimestamp { .. } if verdict == Verdict::Changed => continue,
                ChainWarning::ParentTimestamp { .. } => ("parent-time", Weight::Repairable),
                ChainWarning::ParentSize { .. } => (name_of(ErrorKind::SizeMismatch), Weight::Refused),
                _ => continue,
            };
            self.findings.push(Finding::new(member, found.0, found.1, warning));
            match found.1 {
                Weight::Repairable => {
                    let remedy = self.accept_time(member, parent, verdict);
                    self.remedies.push(remedy);
                }
                _ => {
                    let command = on_image("convert", self.path(member), "NEW.vhd");
                    let advice =
                        format!("it can be read, and is not written over a parent of another size: `{command}`");
                    self.advice.push(Advice::new(member, advice));
                }
            }
        }
        if verdict == Verdict::Changed {
            let parent = self.path(parent).display().to_string();
            let message = format!(
                "its parent {parent} does not hold what was recorded of it: it reads wrong where it relies on it"
            );
            self.findings.push(Finding::new(
                member,
                name_of(ErrorKind::ContentChanged),
                Weight::Changed,
                message,
            ));
            let advice = format!(
                "bring {parent} back from a backup; `{}` says where it changed",
                on_image("verify", self.path(member), "")
            );
            self.advice.push(Advice::new(member, advice));
        }
    }

    /// The parent's time is another than the child recorded: it was copied, or written to.
    fn accept_time(&self, member: usize, parent: usize, verdict: Verdict) -> Remedy {
        let command = on_image("reparent", self.path(member), &path_word(self.path(parent)));
        let (safety, purpose) = match verdict {
            Verdict::Unchanged | Verdict::Presumed => (
                Safety::Records,
                "record the present time of its parent, which holds what its digests say",
            ),
            _ => (
                Safety::Accepts,
                "record the present time of its parent; nothing proves that it was not written to",
            ),
        };
        Remedy::new(member, Step::Link, safety, purpose, command)
    }

    /// Whether a parent holds what the digests beside it say, if there are any. A file of the recorded length and time is not read.
    fn verify_parent(&mut self, child: usize, parent: usize) -> Verdict {
        if record_path(self.path(parent)).symlink_metadata().is_err() {
            return Verdict::NoRecord;
        }
        let options = VerifyOptions {
            cancel: &AtomicBool::new(false),
            threads: 0,
            fast: true,
        };
        let opened = OpenOptions::new().open(self.path(child)).map_err(Failure::from);
        let report = opened.and_then(|opened| Ok(verify::verify(&opened, 1, &options, &(), &mut |_| {})?));
        match report {
            Ok(report) => report.verdict,
            Err(failure) => {
                // A chain that can't be opened has findings of its own.
                if !matches!(failure.kind(), Some(Kind::Library(ErrorKind::Locked))) && self.is_sound(child) {
                    self.findings.push(Finding::of_failure(parent, &failure));
                    let advice = format!(
                        "make its record anew if it holds what it should: `{}`",
                        on_image("verify", self.path(child), "--record --update")
                    );
                    self.advice.push(Advice::new(parent, advice));
                }
                Verdict::NoRecord
            }
        }
    }

    /// Whether a member and its ancestors can be opened, as far as is known.
    fn is_sound(&self, member: usize) -> bool {
        let mut at = Some(member);
        for _ in 0..self.forest.members().len() {
            let Some(member) = at else { return true };
            if self.forest.members()[member].state.is_err() || matches!(self.forest.link(member), Link::Broken { .. }) {
                return false;
            }
            at = self.forest.link(member).parent();
        }
        false
    }
}

/// Whether a file in the parent's place is another disk.
fn is_other_disk(tried: &TriedParent) -> bool {
    matches!(
        tried.outcome,
        ParentOutcome::OtherDisk(_) | ParentOutcome::OtherContent(_)
    )
}
