//! Where a parent may be: the places an image names, as paths on this machine.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use crate::image::{ParentPath, PathSource};

/// Decides which implicitly found parents may be opened: an image can name any path, and not every image
/// comes from a friend. Explicitly named parents need no permission.
pub trait ParentGate: Send + Sync {
    /// Whether `candidate`, which `child` names as its parent, may be looked at.
    fn allows(&self, child: &Path, candidate: &Path) -> bool;
}

/// Follows whatever an image names; the identity must match in any case.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllowAll;

impl ParentGate for AllowAll {
    fn allows(&self, _child: &Path, _candidate: &Path) -> bool {
        true
    }
}

/// Follows nothing an image names.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExplicitOnly;

impl ParentGate for ExplicitOnly {
    fn allows(&self, _child: &Path, _candidate: &Path) -> bool {
        false
    }
}

/// A place to look for a parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) path: PathBuf,
    pub(super) reason: String,
    /// The user named it, or the directory it is in.
    pub(super) explicit: bool,
    /// The user named this very file: it may be a raw one, which has no identity to tell it by.
    pub(super) named: bool,
    /// The user said that it is a raw disk, whatever it looks like.
    pub(super) as_raw: bool,
}

/// The most places that are tried for one parent.
const MAX_CANDIDATES: usize = 4096;

/// All places to look for the parent of `child`, best first, each once.
pub(super) fn candidates(
    child: &Path,
    named: &[ParentPath],
    parents: &[PathBuf],
    parent_dirs: &[PathBuf],
) -> Vec<Candidate> {
    let mut found = Candidates::default();
    for path in parents {
        found.push_named(path.clone());
    }
    let paths: Vec<(String, String)> = named
        .iter()
        .map(|path| (describe(path.source), to_unix(&path.path)))
        .collect();
    for dir in parent_dirs {
        for (reason, path) in &paths {
            found.push_matching(dir, base_name(path), &format!("{reason}, in a parent directory"), true);
        }
    }
    let child_dir = child.parent().unwrap_or(Path::new(""));
    for (reason, path) in &paths {
        found.push_matching(child_dir, path, reason, false);
        found.push_matching(child_dir, base_name(path), &format!("{reason}, base name"), false);
    }
    for dir in parent_dirs {
        found.push_images_of(dir);
    }
    found.list
}

#[derive(Default)]
struct Candidates {
    list: Vec<Candidate>,
    seen: HashSet<PathBuf>,
}

impl Candidates {
    fn push_named(&mut self, path: PathBuf) {
        self.add(Candidate {
            path,
            reason: "named explicitly".to_owned(),
            explicit: true,
            named: true,
            as_raw: false,
        });
    }

    fn push(&mut self, path: PathBuf, reason: &str, explicit: bool) {
        self.add(Candidate {
            path,
            reason: reason.to_owned(),
            explicit,
            named: false,
            as_raw: false,
        });
    }

    fn add(&mut self, candidate: Candidate) {
        if self.list.len() < MAX_CANDIDATES && self.seen.insert(candidate.path.clone()) {
            self.list.push(candidate);
        }
    }

    /// `path` below `dir`, or as it is if absolute; where there is no such file, what differs in case only.
    fn push_matching(&mut self, dir: &Path, path: &str, reason: &str, explicit: bool) {
        if path.is_empty() {
            return;
        }
        let exact = dir.join(path);
        let missing = !exact.exists();
        self.push(exact.clone(), reason, explicit);
        if missing {
            for other in matches_ignoring_case(&exact) {
                self.push(other, &format!("{reason}, other case"), explicit);
            }
        }
    }

    /// Every image in a directory the user named: the identity tells which is the parent.
    fn push_images_of(&mut self, dir: &Path) {
        let Ok(entries) = dir.read_dir() else { return };
        let mut paths: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| is_image(path))
            .collect();
        paths.sort();
        for path in paths {
            self.push(path, "found in a parent directory", true);
        }
    }
}

/// Whether a file has the name of an image.
pub(super) fn is_image(path: &Path) -> bool {
    let extension = path
        .extension()
        .map(|extension| extension.to_string_lossy().to_lowercase());
    matches!(extension.as_deref(), Some("vhd" | "avhd" | "vud"))
}

/// The paths that are there and equal `path` but for the case of their components.
fn matches_ignoring_case(path: &Path) -> Vec<PathBuf> {
    let mut matches = vec![PathBuf::new()];
    for component in path.components() {
        let mut next = Vec::new();
        for base in &matches {
            let exact = base.join(component);
            if exact.exists() {
                next.push(exact);
            } else if let Component::Normal(name) = component {
                next.extend(children_ignoring_case(base, &name.to_string_lossy()));
            }
        }
        next.truncate(MAX_CANDIDATES);
        matches = next;
    }
    matches
}

fn children_ignoring_case(dir: &Path, name: &str) -> Vec<PathBuf> {
    let dir_or_here = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    let wanted = name.to_lowercase();
    let Ok(entries) = dir_or_here.read_dir() else {
        return Vec::new();
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    names
        .filter(|found| found.to_string_lossy().to_lowercase() == wanted)
        .map(|found| dir.join(found))
        .collect()
}

/// A path as Windows writes it, as a path here: slashes, no drive letter, no `./`.
fn to_unix(path: &str) -> String {
    let slashes = path.replace('\\', "/");
    let rest = match slashes.as_bytes() {
        [letter, b':', ..] if letter.is_ascii_alphabetic() => &slashes[2..],
        _ => &slashes,
    };
    rest.strip_prefix("./").unwrap_or(rest).to_owned()
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn describe(source: PathSource) -> String {
    match source {
        PathSource::Locator(code) => format!("locator {code}"),
        PathSource::HeaderName => "header name".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::PlatformCode;

    fn named(code: PlatformCode, path: &str) -> ParentPath {
        ParentPath {
            source: PathSource::Locator(code),
            path: path.to_owned(),
        }
    }

    fn paths(candidates: &[Candidate]) -> Vec<&str> {
        candidates
            .iter()
            .map(|candidate| candidate.path.to_str().unwrap())
            .collect()
    }

    #[test]
    fn windows_paths_become_paths_here_and_each_is_tried_once() {
        let named = [
            named(PlatformCode::W2ru, ".\\base.vhd"),
            named(PlatformCode::W2ku, "C:\\vm\\base.vhd"),
        ];
        let found = candidates(Path::new("/nowhere/child.vhd"), &named, &[], &[]);
        assert_eq!(paths(&found), ["/nowhere/base.vhd", "/vm/base.vhd"]);
        assert!(found.iter().all(|candidate| !candidate.explicit));
    }

    #[test]
    fn what_the_user_names_comes_first() {
        let named = [named(PlatformCode::W2ru, "..\\up\\base.vhd")];
        let found = candidates(Path::new("/a/child.vhd"), &named, &["/x/p.vhd".into()], &["/y".into()]);
        assert_eq!(
            paths(&found),
            ["/x/p.vhd", "/y/base.vhd", "/a/../up/base.vhd", "/a/base.vhd"]
        );
    }

    #[test]
    fn another_case_is_found() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("Vm")).unwrap();
        std::fs::write(dir.path().join("Vm/Base.VHD"), b"x").unwrap();
        let named = [named(PlatformCode::W2ru, ".\\vM\\base.vhd")];
        let found = candidates(&dir.path().join("child.vhd"), &named, &[], &[]);
        assert!(
            found
                .iter()
                .any(|candidate| candidate.path == dir.path().join("Vm/Base.VHD"))
        );
    }
}
