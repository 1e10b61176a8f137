//! All images below a directory, and which is whose child.
//!
//! ```text
//! scan.rs     the files that have an image's name, without going in circles
//! member.rs   what one file says of itself: footer, header, locators, table
//! link.rs     where the opener would find its parent, place by place, and what it would say if nowhere
//! ```
//!
//! Nothing is locked and nothing is written: a forest is a look at files that others may be using.

mod link;
mod member;
mod scan;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

pub use link::Link;
pub use member::{Facts, Member, ParentFacts};
pub use scan::{ForeignImage, Skipped, UnreadablePath};

use super::error::{ChainError, ChainWarning};
use crate::format::UniqueId;
use crate::storage::FileIdentity;
use scan::Names;

/// How much is looked at. The limits are there so that a hostile directory ends in a remark and not in all
/// memory taken.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Files with an image's name.
    pub files: usize,
    /// Directories below one another.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            files: 1 << 20,
            depth: 128,
        }
    }
}

/// The images below a directory, and those elsewhere that they have as parents.
#[derive(Debug)]
pub struct Forest {
    members: Vec<Member>,
    links: Vec<Link>,
    children: Vec<Vec<usize>>,
    roots: Vec<usize>,
    cyclic: Vec<bool>,
    warnings: Vec<Vec<ChainWarning>>,
    copies: HashMap<UniqueId, Vec<usize>>,
    skipped: Skipped,
}

impl Forest {
    /// Looks at all images below `dir`.
    ///
    /// # Errors
    /// Only if `dir` itself can't be read: what is wrong below it is part of the forest.
    pub fn scan(dir: &Path, limits: Limits) -> Result<Self, ChainError> {
        Self::scan_names(dir, limits, Names::OfImages)
    }

    /// Looks at all files below `dir`, whatever they are called: what is in them tells which are images.
    ///
    /// # Errors
    /// As [`scan`](Self::scan).
    pub fn scan_any_name(dir: &Path, limits: Limits) -> Result<Self, ChainError> {
        Self::scan_names(dir, limits, Names::Any)
    }

    fn scan_names(dir: &Path, limits: Limits, names: Names) -> Result<Self, ChainError> {
        let found = scan::image_files(dir, limits, names)?;
        let mut planting = Planting::default();
        for path in found.paths {
            planting.add(path, false);
        }
        let links = planting.link();
        Ok(Self::assemble(planting.members, links, found.skipped))
    }

    fn assemble(members: Vec<Member>, links: Vec<Link>, skipped: Skipped) -> Self {
        let mut children = vec![Vec::new(); members.len()];
        for (child, link) in links.iter().enumerate() {
            if let Some(parent) = link.parent() {
                children[parent].push(child);
            }
        }
        let (cyclic, cycle_roots) = cycles(&links);
        let mut roots: Vec<usize> = (0..members.len())
            .filter(|&member| links[member].parent().is_none())
            .collect();
        roots.extend(cycle_roots);
        roots.sort_unstable();
        let warnings = members
            .iter()
            .zip(&links)
            .map(|(child, link)| link.disagreements(child, &members));
        Self {
            warnings: warnings.collect(),
            copies: copies(&members),
            members,
            links,
            children,
            roots,
            cyclic,
            skipped,
        }
    }

    /// The images, by path; those outside the directory last.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The members that no member is the parent of, and the first one of each circle.
    #[must_use]
    pub fn roots(&self) -> &[usize] {
        &self.roots
    }

    /// The members whose parent a member is.
    #[must_use]
    pub fn children(&self, member: usize) -> &[usize] {
        &self.children[member]
    }

    /// How a member is tied to its parent.
    #[must_use]
    pub fn link(&self, member: usize) -> &Link {
        &self.links[member]
    }

    /// A member is its own ancestor.
    #[must_use]
    pub fn is_cyclic(&self, member: usize) -> bool {
        self.cyclic[member]
    }

    /// Where a member and its parent disagree in size or time.
    #[must_use]
    pub fn warnings(&self, member: usize) -> &[ChainWarning] {
        &self.warnings[member]
    }

    /// All members with this one's identity, itself included, if there are several.
    #[must_use]
    pub fn copies(&self, member: usize) -> &[usize] {
        let id = self.members[member].id();
        id.and_then(|id| self.copies.get(&id)).map_or(&[], Vec::as_slice)
    }

    /// What was not looked at.
    #[must_use]
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }
}

/// The members as they are found.
#[derive(Default)]
struct Planting {
    members: Vec<Member>,
    by_identity: HashMap<FileIdentity, usize>,
}

impl Planting {
    /// Adds the file at `path`, or one more name of a file that is there, and says which member it is.
    fn add(&mut self, path: PathBuf, outside: bool) -> usize {
        let identity = FileIdentity::of_path(&path).ok();
        if let Some(&known) = identity.and_then(|identity| self.by_identity.get(&identity)) {
            if !outside {
                self.members[known].aliases.push(path);
            }
            return known;
        }
        let index = self.members.len();
        if let Some(identity) = identity {
            self.by_identity.insert(identity, index);
        }
        self.members.push(Member::read(path, outside));
        index
    }

    /// Ties every member to its parent; parents outside the directory become members, and so do theirs.
    fn link(&mut self) -> Vec<Link> {
        let mut holders: HashMap<UniqueId, Vec<usize>> = copies_and_singles(&self.members);
        let mut links = Vec::new();
        while links.len() < self.members.len() {
            let child = links.len();
            let link = match link::resolve(&self.members[child]) {
                link::Resolved::Link(link) => link,
                link::Resolved::At { path, place } => {
                    let known = self.members.len();
                    let parent = self.add(path, true);
                    if let (true, Some(id)) = (parent == known, self.members[parent].id()) {
                        holders.entry(id).or_default().push(parent);
                    }
                    Link::Found { parent, place }
                }
                link::Resolved::Nowhere { wanted, tried } => Link::Broken {
                    wanted,
                    holders: holders.get(&wanted).cloned().unwrap_or_default(),
                    tried,
                },
            };
            links.push(link);
        }
        links
    }
}

fn copies_and_singles(members: &[Member]) -> HashMap<UniqueId, Vec<usize>> {
    let mut holders: HashMap<UniqueId, Vec<usize>> = HashMap::new();
    for (index, member) in members.iter().enumerate() {
        if let Some(id) = member.id() {
            holders.entry(id).or_default().push(index);
        }
    }
    holders
}

fn copies(members: &[Member]) -> HashMap<UniqueId, Vec<usize>> {
    let mut holders = copies_and_singles(members);
    holders.retain(|_, holders| holders.len() > 1);
    holders
}

/// Which members are their own ancestors, and the first member of each circle.
fn cycles(links: &[Link]) -> (Vec<bool>, Vec<usize>) {
    // The walk in which a member was first reached; a walk that meets itself has gone in a circle.
    let mut walks: Vec<Option<usize>> = vec![None; links.len()];
    let mut cyclic = vec![false; links.len()];
    let mut firsts = BTreeMap::new();
    for start in 0..links.len() {
        let mut at = start;
        while walks[at].is_none() {
            walks[at] = Some(start);
            match links[at].parent() {
                Some(parent) => at = parent,
                None => break,
            }
        }
        if walks[at] != Some(start) || links[at].parent().is_none() {
            continue;
        }
        let entry = at;
        let mut first = at;
        while let (false, Some(parent)) = (cyclic[at], links[at].parent()) {
            cyclic[at] = true;
            first = first.min(at);
            at = parent;
        }
        firsts.insert(entry, first);
    }
    (cyclic, firsts.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(parent: usize) -> Link {
        Link::Found {
            parent,
            place: String::new(),
        }
    }

    #[test]
    fn circles_have_one_root_each() {
        // 0 <- 1 <- 2; 3 -> 4 -> 5 -> 4; 6 -> 6; 7 -> 2
        let links = [
            Link::Base,
            found(0),
            found(1),
            found(4),
            found(5),
            found(4),
            found(6),
            found(2),
        ];
        let (cyclic, roots) = cycles(&links);
        assert_eq!(cyclic, [false, false, false, false, true, true, true, false]);
        assert_eq!(roots, [4, 6]);
    }
}
