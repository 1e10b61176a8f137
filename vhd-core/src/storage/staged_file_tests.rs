use super::*;
use crate::ErrorKind;
use crate::storage::StorageFile as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use tempfile::TempDir;

/// Runs a test in a new directory, with nameless files and as on file systems without them.
fn both_ways(test: impl Fn(&Path, &dyn Fn(&Path) -> StagedFile)) {
    for nameless in [true, false] {
        let dir = TempDir::new().unwrap();
        test(dir.path(), &|target| {
            let staged = StagedFile::create(target, nameless).unwrap();
            staged.storage().write_all_at(b"new", 0).unwrap();
            staged
        });
    }
}

fn names(dir: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    names
}

#[test]
fn the_name_appears_with_the_content() {
    both_ways(|dir, create| {
        for (name, durable) in [("a", false), ("b", true)] {
            let target = dir.join(name);
            let staged = create(&target);
            let storage = staged.storage();
            assert!(!target.exists());
            assert_eq!(storage.path(), Some(target.as_path()));
            staged.publish(false, durable).unwrap();
            assert_eq!(fs::read(&target).unwrap(), b"new");
            storage.write_all_at(b"!", 3).unwrap();
            assert_eq!(fs::read(&target).unwrap(), b"new!");
        }
        assert_eq!(names(dir), ["a", "b"]);
    });
}

#[test]
fn an_unpublished_file_leaves_nothing() {
    both_ways(|dir, create| {
        drop(create(&dir.join("a")));
        assert_eq!(names(dir), [""; 0]);
    });
}

#[test]
fn a_nameless_file_has_no_name() {
    let dir = TempDir::new().unwrap();
    let staged = StagedFile::create_beside(&dir.path().join("a")).unwrap();
    if staged.partial.is_some() {
        return eprintln!("NOT TESTED: the file system of the temporary directory has no nameless files");
    }
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn nothing_is_replaced_unless_asked() {
    both_ways(|dir, create| {
        let target = dir.join("a");
        fs::write(&target, "old").unwrap();
        let error = create(&target).publish(false, true).unwrap_err();
        assert!(matches!(&error, StorageError::Exists { path } if *path == target));
        assert_eq!(error.kind(), ErrorKind::Exists);
        assert_eq!(fs::read(&target).unwrap(), b"old");
        assert_eq!(names(dir), ["a"]);
    });
}

#[test]
fn a_dangling_link_is_a_name_too() {
    both_ways(|dir, create| {
        let target = dir.join("a");
        std::os::unix::fs::symlink("nowhere", &target).unwrap();
        assert_eq!(
            create(&target).publish(false, false).unwrap_err().kind(),
            ErrorKind::Exists
        );
        create(&target).publish(true, false).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(names(dir), ["a"]);
    });
}

#[test]
fn a_replacement_keeps_the_rights_and_spares_open_handles() {
    both_ways(|dir, create| {
        let target = dir.join("a");
        fs::write(&target, "old").unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
        let old = HostFile::open(
            &target,
            crate::storage::Access::ReadOnly,
            crate::storage::Sharing::Exclusive,
        )
        .unwrap();
        create(&target).publish(true, true).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
        let mut buf = [0; 3];
        old.read_exact_at(&mut buf, 0).unwrap();
        assert_eq!(&buf, b"old");
        create(&dir.join("b")).publish(true, true).unwrap();
        assert_eq!(names(dir), ["a", "b"]);
    });
}

#[test]
fn a_directory_is_not_replaced() {
    both_ways(|dir, create| {
        let target = dir.join("a");
        fs::create_dir(&target).unwrap();
        assert!(matches!(
            create(&target).publish(true, false).unwrap_err(),
            StorageError::NotAFile { .. }
        ));
        assert_eq!(names(dir), ["a"]);
    });
}

#[test]
fn a_target_must_be_a_name_in_a_directory() {
    let dir = TempDir::new().unwrap();
    let create = |path: &Path| StagedFile::create_beside(path).unwrap_err();
    for path in ["/", "..", "a/", "a/.", "a/..", ""] {
        assert!(
            matches!(create(Path::new(path)), StorageError::NotAFile { .. }),
            "{path}"
        );
    }
    assert!(matches!(
        create(&dir.path().join("none/a")),
        StorageError::NotFound { .. }
    ));
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(create(&file.join("a")), StorageError::Io { .. }));
}

#[test]
fn long_names_fit() {
    both_ways(|dir, create| {
        let target = dir.join("n".repeat(255));
        create(&target).publish(false, false).unwrap();
        create(&target).publish(true, false).unwrap();
        assert_eq!(names(dir).len(), 1);
    });
}

#[test]
fn without_a_right_of_others_none_is_added() {
    both_ways(|dir, create| {
        let target = dir.join("a");
        create(&target).publish(false, false).unwrap();
        assert_eq!(
            fs::metadata(&target).unwrap().permissions().mode() & 0o111,
            0,
            "an image is no program"
        );
    });
}
