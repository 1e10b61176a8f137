//! How a child is tied to its parent: by the places it names, as the opener goes through them.

use std::path::PathBuf;

use super::Member;
use crate::chain::ImageFormat;
use crate::chain::disagree::{Actual, Recorded, disagreements};
use crate::chain::error::{ChainWarning, TriedParent};
use crate::chain::examine::examine;
use crate::chain::foreign::{self, ForeignParent};
use crate::chain::locate::{AllowAll, candidates};
use crate::format::UniqueId;

/// How a member is tied to its parent.
#[derive(Debug)]
pub enum Link {
    /// It has none: a fixed or dynamic image.
    Base,
    /// It is damaged: what its parent is can't be told.
    Unknown,
    /// The opener finds the parent.
    Found {
        /// The member that is the parent.
        parent: usize,
        /// What in the child leads to it.
        place: String,
    },
    /// The opener does not find it.
    Broken {
        /// The parent's identity; nil for a raw file, which only the user can name.
        wanted: UniqueId,
        /// The members with that identity: the parent is there, but the child's places do not lead to it.
        /// Empty for an orphan.
        holders: Vec<usize>,
        /// The places tried.
        tried: Vec<TriedParent>,
    },
}

/// What the places of a child lead to.
pub(super) enum Resolved {
    Link(Link),
    At { path: PathBuf, place: String },
    Nowhere { wanted: UniqueId, tried: Vec<TriedParent> },
}

/// Goes through the places a child names, as the opener would.
pub(super) fn resolve(child: &Member) -> Resolved {
    let Ok(facts) = &child.state else {
        return Resolved::Link(Link::Unknown);
    };
    let Some(parent) = &facts.parent else {
        return Resolved::Link(Link::Base);
    };
    let mut tried = Vec::new();
    for candidate in candidates(&child.path, &parent.paths, &[], &[]) {
        let examined = match facts.format {
            format @ (ImageFormat::Vhdx | ImageFormat::Qcow2 | ImageFormat::Vmdk) => {
                let wanted = ForeignParent {
                    format,
                    id: parent.id,
                    second_id: parent.second_id,
                    paths: parent.paths.clone(),
                };
                foreign::examine(&child.path, &candidate, &wanted, &AllowAll)
            }
            _ => examine(&child.path, &candidate, parent.id, &AllowAll).map(drop),
        };
        match examined {
            Ok(()) => {
                return Resolved::At {
                    path: candidate.path,
                    place: candidate.reason,
                };
            }
            Err(outcome) => tried.push(TriedParent {
                path: candidate.path,
                reason: candidate.reason,
                outcome,
            }),
        }
    }
    Resolved::Nowhere {
        wanted: parent.id,
        tried,
    }
}

impl Link {
    /// The member that is the parent.
    #[must_use]
    pub fn parent(&self) -> Option<usize> {
        match self {
            Self::Found { parent, .. } => Some(*parent),
            Self::Base | Self::Unknown | Self::Broken { .. } => None,
        }
    }

    /// Where child and parent disagree in size or time.
    pub(super) fn disagreements(&self, child: &Member, members: &[Member]) -> Vec<ChainWarning> {
        let parent = self.parent().map(|parent| &members[parent]);
        let (Some(parent), Ok(facts)) = (parent, &child.state) else {
            return Vec::new();
        };
        let Ok(parent_facts) = &parent.state else {
            return Vec::new();
        };
        let recorded = Recorded {
            path: &child.path,
            disk_size: facts.disk_size,
            parent_timestamp: facts.parent.as_ref().map(|parent| parent.modified),
        };
        let actual = Actual {
            path: &parent.path,
            disk_size: parent_facts.disk_size,
            modified: parent.modified,
            in_footer: Some(parent_facts.created),
        };
        disagreements(&recorded, &actual)
    }
}
