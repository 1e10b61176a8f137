//! Where a parent may be: the places an image names, as paths on this machine.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use super::error::{ParentOutcome, TriedParent};
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

/// All places to look for the parent of a VHD.
pub(super) fn candidates<'a>(
    child: &'a Path,
    named: &[ParentPath],
    parents: &'a [PathBuf],
    parent_dirs: &'a [PathBuf],
) -> impl Iterator<Item = Candidate> + 'a {
    candidates_with(child, named, parents, parent_dirs, is_image)
}

/// All places to look for the parent of `child`, best first, each once. A directory is read when its turn comes: most
/// parents are where their children say, and a chain of thousands of images in one directory would list it for each. `is_image` says which of its files are looked at.
pub(super) fn candidates_with<'a>(
    child: &'a Path,
    named: &[ParentPath],
    parents: &'a [PathBuf],
    parent_dirs: &'a [PathBuf],
    is_image: fn(&Path) -> bool,
) -> impl Iterator<Item = Candidate> + 'a {
    let paths: Rc<[Named]> = named.iter().map(Named::of).collect();
    let child_dir = child.parent().unwrap_or(Path::new(""));
    let in_dirs = {
        let paths = Rc::clone(&paths);
        parent_dirs.iter().flat_map(move |dir| {
            let paths = Rc::clone(&paths);
            (0..paths.len()).flat_map(move |index| paths[index].base_name_in(dir, "in a parent directory", true))
        })
    };
    let as_named = (0..paths.len()).flat_map(move |index| {
        let beside = paths[index].base_name_in(child_dir, "base name", false);
        paths[index].from(child_dir).chain(beside)
    });
    let mut seen = HashSet::new();
    let explicit = parents.iter().map(|path| Candidate::named(path.clone()));
    let all = explicit
        .chain(in_dirs)
        .chain(as_named)
        .chain(parent_dirs.iter().flat_map(move |dir| images_of(dir, is_image)));
    all.filter(move |candidate| seen.insert(candidate.path.clone()))
        .take(MAX_CANDIDATES)
}

impl Candidate {
    fn named(path: PathBuf) -> Self {
        Self {
            path,
            reason: "named explicitly".to_owned(),
            explicit: true,
            named: true,
            as_raw: false,
        }
    }

    /// A file that was opened elsewhere, under the name that it has here.
    pub(super) fn given(name: PathBuf) -> Self {
        Self {
            reason: "given as the parent".to_owned(),
            ..Self::named(name)
        }
    }

    /// What came of it.
    pub(super) fn tried(self, outcome: ParentOutcome) -> TriedParent {
        TriedParent {
            path: self.path,
            reason: self.reason,
            outcome,
        }
    }

    fn found(path: PathBuf, reason: &str, explicit: bool) -> Self {
        Self {
            path,
            reason: reason.to_owned(),
            explicit,
            named: false,
            as_raw: false,
        }
    }
}

/// A path that an image names.
struct Named {
    source: String,
    path: String,
}

impl Named {
    fn of(path: &ParentPath) -> Self {
        Self {
            source: describe(path.source),
            path: to_unix(&path.path),
        }
    }

    /// The path as it goes from `dir`.
    fn from(&self, dir: &Path) -> impl Iterator<Item = Candidate> + use<> {
        matching(dir, &self.path, self.source.clone(), false)
    }

    /// The file of that name in `dir`.
    fn base_name_in(&self, dir: &Path, how: &str, explicit: bool) -> impl Iterator<Item = Candidate> + use<> {
        matching(dir, base_name(&self.path), format!("{}, {how}", self.source), explicit)
    }
}

/// `path` below `dir`, or as it is if absolute; then, where there is no such file, what differs in case only.
fn matching(dir: &Path, path: &str, reason: String, explicit: bool) -> impl Iterator<Item = Candidate> + use<> {
    let exact = (!path.is_empty()).then(|| dir.join(path));
    let first = exact.clone().map(|exact| Candidate::found(exact, &reason, explicit));
    let others = move || {
        let missing = exact.filter(|exact| !exact.exists());
        let others = missing.map(|exact| matches_ignoring_case(&exact)).unwrap_or_default();
        let reason = format!("{reason}, other case");
        others
            .into_iter()
            .map(move |other| Candidate::found(other, &reason, explicit))
    };
    first.into_iter().chain(std::iter::once_with(others).flatten())
}

/// Every image in a directory the user named: the identity tells which is the parent.
fn images_of(dir: &Path, is_image: fn(&Path) -> bool) -> impl Iterator<Item = Candidate> + use<> {
    let entries = dir.read_dir().into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| is_image(path))
        .collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| Candidate::found(path, "found in a parent directory", true))
}

/// Whether a file has the name of a VHD.
pub(super) fn is_image(path: &Path) -> bool {
    has_extension(path, &["vhd", "avhd", "vud"])
}

/// Whether a file has the name of a VHDX.
pub(super) fn is_vhdx(path: &Path) -> bool {
    has_extension(path, &["vhdx", "avhdx"])
}

fn has_extension(path: &Path, known: &[&str]) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy());
    extension.is_some_and(|extension| known.iter().any(|known| extension.eq_ignore_ascii_case(known)))
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
        PathSource::Key(key) => key.to_owned(),
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
        let found: Vec<Candidate> = candidates(Path::new("/nowhere/child.vhd"), &named, &[], &[]).collect();
        assert_eq!(paths(&found), ["/nowhere/base.vhd", "/vm/base.vhd"]);
        assert!(found.iter().all(|candidate| !candidate.explicit));
    }

    #[test]
    fn what_the_user_names_comes_first() {
        let named = [named(PlatformCode::W2ru, "..\\up\\base.vhd")];
        let (parents, dirs) = (["/x/p.vhd".into()], ["/y".into()]);
        let found: Vec<Candidate> = candidates(Path::new("/a/child.vhd"), &named, &parents, &dirs).collect();
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
        let child = dir.path().join("child.vhd");
        assert!(candidates(&child, &named, &[], &[]).any(|candidate| candidate.path == dir.path().join("Vm/Base.VHD")));
    }
}
