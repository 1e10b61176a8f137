//! Where dependants are looked for.
//!
//! ```text
//!   <two above>/            its own files, and those of the directories in it
//!     <above>/              recursively, three levels below
//!       <directory>/        that of an image: completely, with everything below it
//! ```
//!
//! The directory of an image and what is below it must be read completely, or the answer is unknown. What is around it is
//! looked at as far as it goes: what is found there counts, what can't be read there does not refuse anything, since it
//! belongs to others (the home directories of a machine, the programs of a system). For the same reason the way up ends
//! at the root, at another file system and at a directory that everybody may write to (sticky, like /tmp).

use std::collections::HashSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Levels below the directory above an image's, and below the one above that.
const DEPTHS_ABOVE: [usize; 2] = [3, 1];

/// The bit of directories in which only the owner of a file may remove it.
const STICKY: u32 = 0o1000;

/// A directory to look into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) dir: PathBuf,
    /// Levels of directories below it; `None` for all that the limits allow.
    pub(super) depth: Option<usize>,
}

/// The directories that are looked into.
#[derive(Debug, Default)]
pub(super) struct Scope {
    /// Those that must be read completely.
    pub(super) complete: Vec<Root>,
    /// Those that are looked at as far as it goes, the nearest first.
    pub(super) around: Vec<Root>,
}

impl Scope {
    /// For the images at `subjects`, with the directories of `beside`.
    pub(super) fn of<'a>(subjects: impl Iterator<Item = &'a Path>, beside: impl Iterator<Item = &'a Path>) -> Self {
        let mut scope = Self::default();
        let own = directories(subjects);
        for dir in &own {
            // Below a directory that everybody shares, most belongs to others.
            scope.complete.push(Root {
                dir: dir.clone(),
                depth: is_shared(dir).then_some(0),
            });
        }
        let mut others = directories(beside);
        others.retain(|dir| !own.contains(dir));
        scope.around.extend(others.iter().map(|dir| Root {
            dir: dir.clone(),
            depth: Some(DEPTHS_ABOVE[0]),
        }));
        for level in 0..DEPTHS_ABOVE.len() {
            for dir in own.iter().chain(&others) {
                scope.climb(dir, level);
            }
        }
        scope
    }

    /// The directory `level` + 1 levels above `dir`.
    fn climb(&mut self, dir: &Path, level: usize) {
        let above = dir.ancestors().nth(level + 1);
        let steps = dir.ancestors().take(level + 2).collect::<Vec<_>>();
        let open = steps.windows(2).all(|pair| may_climb(pair[0], pair[1]));
        if let Some(above) = above.filter(|_| open) {
            let root = Root {
                dir: above.to_owned(),
                depth: Some(DEPTHS_ABOVE[level]),
            };
            if !self.around.contains(&root) {
                self.around.push(root);
            }
        }
    }
}

/// The directories of files, each once. A chain may have thousands of files in one.
fn directories<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<PathBuf> {
    let mut named = HashSet::new();
    let mut dirs = Vec::new();
    for path in paths {
        let is_link = path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
        if named.insert(path.parent()) || is_link {
            dirs.extend(directories_of(path));
        }
    }
    let mut seen = HashSet::new();
    dirs.retain(|dir| seen.insert(dir.clone()));
    dirs
}

/// The directory of the name that was given, and that of the file it leads to.
pub(super) fn directories_of(path: &Path) -> Vec<PathBuf> {
    let given = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.canonicalize(),
        _ => Path::new(".").canonicalize(),
    };
    let real = path.canonicalize().ok();
    let real = real.as_deref().and_then(Path::parent).map(Path::to_owned);
    let mut dirs: Vec<PathBuf> = given.into_iter().chain(real).collect();
    dirs.dedup();
    // A device belongs to no directory of images.
    dirs.retain(|dir| !dir.starts_with("/dev") || dir.starts_with("/dev/shm"));
    dirs
}

fn is_shared(dir: &Path) -> bool {
    dir.parent().is_none() || dir.metadata().is_ok_and(|metadata| is_sticky(&metadata))
}

fn is_sticky(metadata: &Metadata) -> bool {
    metadata.mode() & STICKY != 0
}

fn may_climb(dir: &Path, above: &Path) -> bool {
    let (Ok(here), Ok(there)) = (dir.metadata(), above.metadata()) else {
        return false;
    };
    above.parent().is_some() && here.dev() == there.dev() && !is_sticky(&here) && !is_sticky(&there)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    fn dirs(roots: &[Root], top: &Path) -> Vec<(String, Option<usize>)> {
        let name = |dir: &Path| {
            dir.strip_prefix(top)
                .map_or("outside".to_owned(), |dir| dir.display().to_string())
        };
        roots.iter().map(|root| (name(&root.dir), root.depth)).collect()
    }

    #[test]
    fn two_levels_above_and_no_further_than_a_shared_directory() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        fs::set_permissions(&top, fs::Permissions::from_mode(0o1777)).unwrap();
        fs::create_dir_all(top.join("a/b/c")).unwrap();
        let of = |name: &str| Scope::of([top.join(name).as_path()].into_iter(), [].into_iter());
        let deep = of("a/b/c/x.vhd");
        assert_eq!(dirs(&deep.complete, &top), [("a/b/c".to_owned(), None)]);
        assert_eq!(
            dirs(&deep.around, &top),
            [("a/b".to_owned(), Some(3)), ("a".to_owned(), Some(1))]
        );
        assert_eq!(dirs(&of("a/b/x.vhd").around, &top), [("a".to_owned(), Some(3))]);
        assert_eq!(dirs(&of("a/x.vhd").around, &top), []);
        let shared = of("x.vhd");
        assert_eq!(dirs(&shared.complete, &top), [(String::new(), Some(0))]);
        assert_eq!(dirs(&shared.around, &top), []);
    }

    #[test]
    fn the_root_is_never_gone_through() {
        let scope = Scope::of([Path::new("/no-such-image.vhd")].into_iter(), [].into_iter());
        assert_eq!(
            scope.complete,
            [Root {
                dir: "/".into(),
                depth: Some(0)
            }]
        );
        let scope = Scope::of([Path::new("/etc/no-such-image.vhd")].into_iter(), [].into_iter());
        assert!(scope.around.iter().all(|root| root.dir != Path::new("/")), "{scope:?}");
    }
}
