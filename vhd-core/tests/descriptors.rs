//! Chains whose files were opened elsewhere: read and written without a path, under the same locks, with the same checks.

mod common;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use common::disk::{assert_same, create, open, random_operation, read_all};
use common::rng::{random_bytes, seeded};
use common::temp_dir;
use common::tree::random_tree;
use rustix::fs::OFlags;
use vhd_core::ErrorKind;
use vhd_core::chain::{ChainError, Closed, ImageFormat, OpenOptions, OpenedDisk, create_child};
use vhd_core::format::{FOOTER_SIZE, HEADER_SIZE};
use vhd_core::image::create_dynamic;
use vhd_core::units::usize_from;

const MIB: u64 = 1 << 20;

fn descriptor(path: &Path, write: bool) -> OwnedFd {
    File::options().read(true).write(write).open(path).unwrap().into()
}

fn with_flags(path: &Path, write: bool, flags: OFlags) -> OwnedFd {
    let flags = i32::try_from(flags.bits()).unwrap();
    let opened = File::options().read(true).write(write).custom_flags(flags).open(path);
    opened.unwrap().into()
}

/// The leaf and its parents, the leaf open for writing.
fn descriptors<P: AsRef<Path>>(paths: &[P]) -> Vec<OwnedFd> {
    let numbered = paths.iter().enumerate();
    numbered
        .map(|(depth, path)| descriptor(path.as_ref(), depth == 0))
        .collect()
}

/// For writing, by one who has looked for dependants.
fn writing() -> OpenOptions {
    OpenOptions::new().write(true).ignore_children(true)
}

fn refused(options: &OpenOptions, files: Vec<OwnedFd>) -> (ErrorKind, String) {
    let error = options.open_descriptors(files).unwrap_err();
    (error.kind(), vhd_core::error::with_causes(&error))
}

/// A base, a child of it, and a child of that, the youngest first.
fn three(dir: &Path) -> Vec<PathBuf> {
    let [base, child, leaf] = ["base", "child", "leaf"].map(|name| dir.join(format!("{name}.vhd")));
    create(&base, |file| create_dynamic(file, 8 * MIB, 512 << 10));
    create_child(&child, &base, None, &OpenOptions::new()).unwrap();
    create_child(&leaf, &child, None, &OpenOptions::new()).unwrap();
    vec![leaf, child, base]
}

/// Every chain of a random tree, written to by descriptors alone: no name leads to any of the files any more.
#[test]
fn a_chain_is_used_although_no_name_leads_to_its_files() {
    let dir = temp_dir();
    let mut rng = seeded(0, "descriptors");
    let nodes = random_tree(dir.path(), &mut rng, 6);
    let open_files: Vec<Vec<OwnedFd>> = nodes
        .iter()
        .map(|node| descriptors(&node.chain.iter().map(|&index| &nodes[index].path).collect::<Vec<_>>()))
        .collect();
    dir.close().unwrap();
    // The youngest first: what is written to one changes what its children read.
    for (node, files) in nodes.iter().zip(open_files).rev() {
        let again: Vec<OwnedFd> = files.iter().map(|file| file.try_clone().unwrap()).collect();
        let reader = OpenOptions::new().open_descriptors(again).unwrap();
        assert_same(&read_all(&reader.disk()), &node.content, "for reading");
        assert_eq!(reader.close().unwrap(), Closed::Now);
        let opened = writing().open_descriptors(files).unwrap();
        let mut content = node.content.clone();
        for _ in 0..8 {
            random_operation(&opened.disk(), &mut content, &mut rng);
        }
        opened.disk().flush().unwrap();
        assert_same(&read_all(&opened.disk()), &content, "for writing");
        let names: Vec<PathBuf> = (0..node.chain.len())
            .map(|number| format!("descriptor {number}").into())
            .collect();
        assert_eq!(opened.paths(), names);
    }
}

#[test]
fn each_parent_has_the_identity_that_its_child_records() {
    let dir = temp_dir();
    let paths = three(dir.path());
    let [leaf, child, base] = [&paths[0], &paths[1], &paths[2]];
    let stranger = dir.path().join("stranger.vhd");
    create(&stranger, |file| create_dynamic(file, 8 * MIB, 512 << 10));
    let reading = OpenOptions::new();
    for (files, kind, said) in [
        (
            vec![leaf, base, child],
            ErrorKind::ParentMismatch,
            "descriptor 1 (given as the parent): another disk",
        ),
        (
            vec![leaf, child, &stranger],
            ErrorKind::ParentMismatch,
            "descriptor 2 (given as the parent): another disk",
        ),
        (vec![leaf, child], ErrorKind::ParentMissing, "has to be descriptor 2"),
        (
            vec![leaf],
            ErrorKind::ParentMissing,
            "descriptor 0 is a differencing image",
        ),
        (
            vec![leaf, child, base, &stranger],
            ErrorKind::Descriptor,
            "descriptor 3 is not part of the chain: descriptor 2",
        ),
        (
            vec![base, child],
            ErrorKind::Descriptor,
            "descriptor 1 is not part of the chain: descriptor 0",
        ),
        (
            vec![leaf, leaf, base],
            ErrorKind::ChainCycle,
            "descriptor 1 is its own ancestor",
        ),
        (
            vec![leaf, child, child],
            ErrorKind::ChainCycle,
            "descriptor 2 is its own ancestor",
        ),
        (vec![], ErrorKind::Descriptor, "descriptor 0"),
    ] {
        for options in [&reading, &writing()] {
            let (found, message) = refused(options, descriptors(&files));
            assert_eq!(found, kind, "{message}");
            assert!(message.contains(said), "{message}");
            assert!(!message.contains(&*dir.path().to_string_lossy()), "{message}");
        }
    }
    // Nothing of that is locked or changed.
    assert_eq!(open(leaf, true).close().unwrap(), Closed::Now);
}

#[test]
fn descriptors_are_open_as_they_have_to_be() {
    let dir = temp_dir();
    let paths = three(dir.path());
    let behind = || descriptors(&paths[1..]);
    let pipe = || OwnedFd::from(std::io::pipe().unwrap().0);
    let write_only = || OwnedFd::from(File::options().write(true).open(&paths[0]).unwrap());
    for (leaf, write, said) in [
        (descriptor(&paths[0], false), true, "not open for reading and writing"),
        (with_flags(&paths[0], true, OFlags::APPEND), true, "O_APPEND"),
        (with_flags(&paths[0], true, OFlags::DIRECT), true, "O_DIRECT"),
        (with_flags(&paths[0], false, OFlags::PATH), false, "O_PATH"),
        (write_only(), false, "not open for reading"),
        (write_only(), true, "not open for reading and writing"),
        (pipe(), false, "neither a regular file nor a block device"),
        (
            descriptor(Path::new("/dev/zero"), false),
            false,
            "neither a regular file nor a block device",
        ),
        (
            descriptor(dir.path(), false),
            false,
            "neither a regular file nor a block device",
        ),
    ] {
        let options = if write { writing() } else { OpenOptions::new() };
        let files = std::iter::once(leaf).chain(behind()).collect();
        let (_, message) = refused(&options, files);
        assert!(message.contains("descriptor 0") && message.contains(said), "{message}");
    }
    // The same for a parent.
    let parent = OwnedFd::from(File::options().write(true).open(&paths[1]).unwrap());
    let files = vec![descriptor(&paths[0], true), parent, descriptor(&paths[2], false)];
    let (kind, message) = refused(&writing(), files);
    assert_eq!(kind, ErrorKind::Descriptor);
    assert!(
        message.contains("descriptor 1") && message.contains("not open for reading"),
        "{message}"
    );
}

/// INV-35: without a path nobody knows who relies on the leaf, and what no VHD is could be half a VHD.
#[test]
fn inv_35_what_only_a_path_tells_the_caller_says() {
    let dir = temp_dir();
    let paths = three(dir.path());
    let (kind, message) = refused(&OpenOptions::new().write(true), descriptors(&paths));
    assert_eq!(kind, ErrorKind::Descriptor);
    assert!(
        message.contains("descriptor 0") && message.contains("ignore_children"),
        "{message}"
    );
    let raw = dir.path().join("disk.raw");
    fs::write(&raw, vec![7; 4096]).unwrap();
    let (kind, message) = refused(&OpenOptions::new(), descriptors(&[&raw]));
    assert_eq!(kind, ErrorKind::NotVhd, "{message}");
    let as_raw = writing().format(Some(ImageFormat::Raw));
    let opened = as_raw.open_descriptors(descriptors(&[&raw])).unwrap();
    opened.disk().write_at(&[9; 512], 512).unwrap();
    assert_eq!(opened.close().unwrap(), Closed::Now);
    assert_eq!(fs::read(&raw).unwrap()[511..514], [7, 9, 9]);
    let (kind, _) = refused(&as_raw, descriptors(&[&raw, &paths[2]]));
    assert_eq!(kind, ErrorKind::Descriptor);
}

#[test]
fn damage_is_named_by_the_descriptor_that_has_it() {
    let dir = temp_dir();
    let paths = three(dir.path());
    let whole = fs::read(&paths[1]).unwrap();
    let mut damaged = whole.clone();
    damaged[FOOTER_SIZE..FOOTER_SIZE + HEADER_SIZE].fill(0xA5);
    fs::write(&paths[1], &damaged).unwrap();
    let error = OpenOptions::new().open_descriptors(descriptors(&paths)).unwrap_err();
    assert!(matches!(error, ChainError::Image { .. }), "{error:?}");
    assert!(error.to_string().contains("descriptor 1"), "{error}");
    // A footer at the end that is none any more: the copy is in use, with a warning as ever.
    let mut recovered = whole;
    let end = recovered.len();
    recovered[end - FOOTER_SIZE..].fill(0);
    fs::write(&paths[1], &recovered).unwrap();
    let opened = OpenOptions::new().open_descriptors(descriptors(&paths)).unwrap();
    let warnings: Vec<String> = opened.warnings().iter().map(ToString::to_string).collect();
    assert!(
        warnings.iter().any(|warning| warning.contains("descriptor 1")),
        "{warnings:?}"
    );
}

#[test]
fn the_same_locks_are_taken_and_respected() {
    let dir = temp_dir();
    let paths = three(dir.path());
    let by_path = |write, path: &Path| {
        let opened = OpenOptions::new().write(write).ignore_children(true).open(path);
        opened.map(drop).map_err(|error| error.kind())
    };
    let opened = writing().open_descriptors(descriptors(&paths)).unwrap();
    for (path, write) in [
        (&paths[0], false),
        (&paths[0], true),
        (&paths[1], true),
        (&paths[2], true),
    ] {
        assert_eq!(by_path(write, path), Err(ErrorKind::Locked), "{}", path.display());
    }
    assert_eq!(by_path(false, &paths[1]), Ok(()));
    drop(opened);
    let holder = open(&paths[0], true);
    let (kind, message) = refused(&OpenOptions::new(), descriptors(&paths));
    assert_eq!(kind, ErrorKind::Locked);
    assert!(message.contains("descriptor 0"), "{message}");
    drop(holder);
    let holder = open(&paths[2], true);
    let (kind, message) = refused(&writing(), descriptors(&paths));
    assert_eq!(kind, ErrorKind::Locked);
    assert!(message.contains("descriptor 2"), "{message}");
    drop(holder);
    let unlocked = OpenOptions::new().force_share(true);
    let _writer = open(&paths[0], true);
    unlocked.open_descriptors(descriptors(&paths)).unwrap();
}

/// The files of a disk that was opened with everything that paths tell go to another owner, who may open nothing. Nobody
/// gets in between.
#[test]
fn a_disk_is_handed_over_with_its_locks() {
    let dir = temp_dir();
    let paths = three(dir.path());
    let mut rng = seeded(1, "handed over");
    let content = random_bytes(&mut rng, usize_from(3 * MIB));
    let opened = OpenOptions::new().write(true).open(&paths[0]).unwrap();
    opened.disk().write_at(&content, MIB).unwrap();
    let files = opened.into_descriptors().unwrap();
    let locked = |path: &Path| {
        let error = OpenOptions::new()
            .write(true)
            .ignore_children(true)
            .open(path)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Locked);
    };
    paths.iter().for_each(|path| locked(path));
    let opened: OpenedDisk = writing().open_descriptors(files).unwrap();
    paths.iter().for_each(|path| locked(path));
    let mut read = vec![0; content.len()];
    opened.disk().read_at(&mut read, MIB).unwrap();
    assert_same(&read, &content, "handed over");
    assert_eq!(opened.close().unwrap(), Closed::Now);
    for path in &paths {
        open(path, true).close().unwrap();
    }
    // What nobody takes is given up with the descriptors.
    drop(open(&paths[0], true).into_descriptors().unwrap());
    open(&paths[0], true).close().unwrap();
}

#[test]
fn a_close_says_whether_somebody_still_has_the_disk() {
    let dir = temp_dir();
    let paths = three(dir.path());
    let opened = open(&paths[0], true);
    let clone = opened.disk();
    clone.write_at(&[1; 512], 0).unwrap();
    assert_eq!(opened.close().unwrap(), Closed::StillInUse);
    assert!(
        OpenOptions::new().open(&paths[0]).is_err(),
        "it is locked until the last clone goes"
    );
    drop(clone);
    let opened = open(&paths[0], true);
    let clone = opened.disk();
    let error = opened.into_descriptors().unwrap_err();
    assert_eq!(error.kind(), vhd_block::ErrorKind::Unsupported);
    drop(clone);
    let raw = dir.path().join("disk.raw");
    fs::write(&raw, vec![7; 4096]).unwrap();
    for path in [&raw, &paths[0]] {
        let opened = open(path, true);
        let clone = opened.disk();
        assert_eq!(opened.close().unwrap(), Closed::StillInUse);
        drop(clone);
        assert_eq!(open(path, true).close().unwrap(), Closed::Now);
    }
}
