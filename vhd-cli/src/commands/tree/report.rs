//! What is told of a forest and of each file in it.

use std::path::Path;

use serde::Serialize;
use vhd_core::ErrorKind;
use vhd_core::chain::forest::{Facts, Forest, Link, Member, Skipped};
use vhd_core::chain::{ChainError, TriedParent};
use vhd_core::units::u64_from;

use super::draw::{Branch, branches};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::path_text;

/// The whole forest.
#[derive(Serialize)]
pub(crate) struct TreeReport {
    directory: String,
    pub(crate) summary: Summary,
    pub(crate) files: Vec<FileReport>,
    pub(crate) passed_over: Vec<PassedOverReport>,
    pub(crate) unreadable: Vec<UnreadableReport>,
    pub(crate) truncated: bool,
    /// The files in the order in which they are drawn.
    #[serde(skip)]
    pub(crate) branches: Vec<Branch>,
}

/// How many of what there are.
#[derive(Default, Serialize)]
pub(crate) struct Summary {
    pub(crate) files: u64,
    pub(crate) trees: u64,
    pub(crate) damaged: u64,
    pub(crate) orphans: u64,
    pub(crate) broken_links: u64,
    pub(crate) cyclic: u64,
    pub(crate) copies: u64,
    pub(crate) unreadable: u64,
    pub(crate) passed_over: u64,
}

/// The files of a format that is not read here.
#[derive(Serialize)]
pub(crate) struct PassedOverReport {
    format: &'static str,
    /// What people call it.
    #[serde(skip)]
    pub(crate) label: &'static str,
    pub(crate) count: u64,
    paths: Vec<String>,
}

/// A file.
#[derive(Serialize)]
pub(crate) struct FileReport {
    pub(crate) path: String,
    pub(crate) aliases: Vec<String>,
    pub(crate) outside: bool,
    pub(crate) file_size: u64,
    pub(crate) modified: Option<String>,
    #[serde(flatten)]
    pub(crate) facts: Option<FactsReport>,
    pub(crate) damage: Option<DamageReport>,
    pub(crate) parent: Option<ParentReport>,
    pub(crate) children: Vec<String>,
    /// The other files that are the same disk.
    pub(crate) copies: Vec<String>,
    pub(crate) cyclic: bool,
    pub(crate) warnings: Vec<String>,
}

/// What an image says of itself.
#[derive(Serialize)]
pub(crate) struct FactsReport {
    pub(crate) format: &'static str,
    #[serde(rename = "type")]
    pub(crate) disk_type: String,
    pub(crate) id: String,
    pub(crate) virtual_size: u64,
    pub(crate) allocated_bytes: Option<u64>,
    pub(crate) block_size: Option<u64>,
    pub(crate) created: Option<String>,
    pub(crate) footer_recovered: bool,
}

/// Why a file can't be opened.
#[derive(Serialize)]
pub(crate) struct DamageReport {
    pub(crate) code: &'static str,
    kind: &'static str,
    pub(crate) message: String,
    #[serde(skip)]
    exit: Exit,
}

/// How a child is tied to its parent.
#[derive(Serialize)]
pub(crate) struct ParentReport {
    pub(crate) id: String,
    pub(crate) state: ParentState,
    /// The file that opening the child would use.
    pub(crate) path: Option<String>,
    /// What in the child leads to it.
    place: Option<String>,
    /// Files that are the parent although the child does not lead to them.
    pub(crate) holders: Vec<String>,
    pub(crate) tried: Vec<TriedReport>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ParentState {
    /// Opening the child finds it.
    Found,
    /// It is there, but opening the child does not find it.
    BrokenLink,
    /// It is nowhere to be seen.
    Orphan,
    /// It is a raw file, which only the user can name.
    Raw,
}

/// A place where a parent was looked for.
#[derive(Serialize)]
pub(crate) struct TriedReport {
    pub(crate) path: String,
    place: String,
    pub(crate) outcome: String,
}

/// A directory that can't be read.
#[derive(Serialize)]
pub(crate) struct UnreadableReport {
    pub(crate) path: String,
    pub(crate) message: String,
}

impl TreeReport {
    pub(crate) fn of(directory: &Path, forest: &Forest) -> Self {
        let files: Vec<FileReport> = (0..forest.members().len())
            .map(|member| FileReport::of(forest, member, directory))
            .collect();
        let passed_over = passed_over(forest, directory);
        Self {
            directory: path_text(directory),
            summary: Summary::of(&files, &passed_over, forest),
            passed_over,
            unreadable: unreadable(forest.skipped()),
            truncated: forest.skipped().truncated,
            branches: branches(forest),
            files,
        }
    }

    /// What the process returns.
    pub(crate) fn exit(&self) -> Exit {
        let damaged = |exit| self.damages().any(|damage| damage.exit == exit);
        let summary = &self.summary;
        if damaged(Exit::Corrupt) {
            Exit::Corrupt
        } else if summary.orphans + summary.broken_links + summary.cyclic > 0 {
            Exit::Parent
        } else if self.damages().any(|damage| damage.exit != Exit::Refused)
            || !self.unreadable.is_empty()
            || self.truncated
        {
            Exit::Failed
        } else if self.damages().next().is_some() {
            Exit::Refused
        } else {
            Exit::Ok
        }
    }

    fn damages(&self) -> impl Iterator<Item = &DamageReport> {
        self.files.iter().filter_map(|file| file.damage.as_ref())
    }
}

impl Summary {
    fn of(files: &[FileReport], passed_over: &[PassedOverReport], forest: &Forest) -> Self {
        let count = |wanted: &dyn Fn(&FileReport) -> bool| u64_from(files.iter().filter(|file| wanted(file)).count());
        let state = |file: &FileReport| file.parent.as_ref().map(|parent| parent.state);
        let exit = |file: &FileReport| file.damage.as_ref().map(|damage| damage.exit);
        let is_unreadable = |file: &FileReport| {
            let is_foreign = |damage: &DamageReport| damage.kind == ErrorKind::ForeignFormat.name();
            exit(file).is_some_and(|exit| exit != Exit::Corrupt) && !file.damage.as_ref().is_some_and(is_foreign)
        };
        Self {
            files: u64_from(files.len()),
            trees: u64_from(forest.roots().len()),
            damaged: count(&|file| exit(file) == Some(Exit::Corrupt)),
            orphans: count(&|file| matches!(state(file), Some(ParentState::Orphan | ParentState::Raw))),
            broken_links: count(&|file| state(file) == Some(ParentState::BrokenLink)),
            cyclic: count(&|file| file.cyclic),
            copies: count(&|file| !file.copies.is_empty()),
            unreadable: count(&|file| is_unreadable(file)) + u64_from(forest.skipped().unreadable.len()),
            passed_over: passed_over.iter().map(|format| format.count).sum(),
        }
    }
}

impl FileReport {
    fn of(forest: &Forest, index: usize, directory: &Path) -> Self {
        let member = &forest.members()[index];
        let path_of = |index: &usize| shown(&forest.members()[*index], directory);
        let copies = forest.copies(index).iter().filter(|&&copy| copy != index);
        Self {
            path: shown(member, directory),
            aliases: member.aliases.iter().map(|path| below(path, directory)).collect(),
            outside: member.outside,
            file_size: member.file_size,
            modified: member.modified.and_then(human::utc),
            facts: member.state.as_ref().ok().map(FactsReport::of),
            damage: member.state.as_ref().err().map(DamageReport::of),
            parent: ParentReport::of(forest, index, directory),
            children: forest.children(index).iter().map(path_of).collect(),
            copies: copies.map(path_of).collect(),
            cyclic: forest.is_cyclic(index),
            warnings: forest.warnings(index).iter().map(ToString::to_string).collect(),
        }
    }
}

impl FactsReport {
    fn of(facts: &Facts) -> Self {
        Self {
            format: facts.format.name(),
            disk_type: facts.disk_type.to_string(),
            id: facts.id.to_string(),
            virtual_size: facts.disk_size,
            allocated_bytes: facts.allocated_bytes,
            block_size: facts.block_size,
            created: human::utc(facts.created),
            footer_recovered: facts.footer_recovered,
        }
    }
}

impl DamageReport {
    fn of(error: &ChainError) -> Self {
        let failure = Failure::library(error.kind(), error);
        let code = failure.kind().map(|kind| kind.code());
        Self {
            code: code.map_or("", |code| code.code),
            kind: error.kind().name(),
            message: failure.message().to_owned(),
            exit: failure.exit(),
        }
    }
}

impl ParentReport {
    fn of(forest: &Forest, index: usize, directory: &Path) -> Option<Self> {
        let facts = forest.members()[index].state.as_ref().ok()?;
        let id = facts.parent.as_ref()?.id;
        let path_of = |index: &usize| shown(&forest.members()[*index], directory);
        let report = Self {
            id: id.to_string(),
            state: ParentState::Found,
            path: None,
            place: None,
            holders: Vec::new(),
            tried: Vec::new(),
        };
        match forest.link(index) {
            Link::Base | Link::Unknown => None,
            Link::Found { parent, place } => Some(Self {
                path: Some(path_of(parent)),
                place: Some(place.clone()),
                ..report
            }),
            Link::Broken { holders, tried, .. } => Some(Self {
                state: match holders.is_empty() {
                    _ if id.is_nil() => ParentState::Raw,
                    true => ParentState::Orphan,
                    false => ParentState::BrokenLink,
                },
                holders: holders.iter().map(path_of).collect(),
                tried: tried.iter().map(TriedReport::of).collect(),
                ..report
            }),
        }
    }
}

impl TriedReport {
    fn of(tried: &TriedParent) -> Self {
        Self {
            path: path_text(&tried.path),
            place: tried.reason.clone(),
            outcome: tried.outcome.to_string(),
        }
    }
}

/// What is no VHD, by format: files named like images of other formats, and such as are only named like a VHD.
fn passed_over(forest: &Forest, directory: &Path) -> Vec<PassedOverReport> {
    let named_vhd = forest.members().iter().filter_map(|member| match &member.state {
        Err(ChainError::Foreign { format, .. }) => Some((*format, shown(member, directory))),
        _ => None,
    });
    let others = forest.skipped().foreign.iter();
    let others = others.map(|image| (image.format, below(&image.path, directory)));
    let mut formats: Vec<PassedOverReport> = Vec::new();
    for (format, path) in named_vhd.chain(others) {
        match formats.iter_mut().find(|known| known.format == format.id()) {
            Some(known) => {
                known.count += 1;
                known.paths.push(path);
            }
            None => formats.push(PassedOverReport {
                format: format.id(),
                label: format.label(),
                count: 1,
                paths: vec![path],
            }),
        }
    }
    formats.sort_by_key(|known| known.format);
    formats
}

fn unreadable(skipped: &Skipped) -> Vec<UnreadableReport> {
    let paths = skipped.unreadable.iter();
    paths
        .map(|unreadable| UnreadableReport {
            path: path_text(&unreadable.path),
            message: unreadable.source.to_string(),
        })
        .collect()
}

/// A member's path as it is told: below the directory where it is.
pub(crate) fn shown(member: &Member, directory: &Path) -> String {
    if member.outside {
        path_text(&member.path)
    } else {
        below(&member.path, directory)
    }
}

fn below(path: &Path, directory: &Path) -> String {
    path_text(path.strip_prefix(directory).unwrap_or(path))
}
