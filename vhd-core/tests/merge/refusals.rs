//! What is not merged, and that nothing is changed then.

use std::fs;
use std::path::{Path, PathBuf};

use crate::chains::{Chain, SIZE, options, run};
use crate::common::build::{Parent, Sparse, fixed, id};
use crate::common::disk::{assert_reads, create};
use crate::common::rng::{random_bytes, seeded};
use crate::common::temp_dir;
use crate::mutations::{Mutation, Subject};
use vhd_core::ErrorKind;
use vhd_core::chain::{OpenOptions, create_child};
use vhd_core::image::{create_differencing, create_dynamic};
use vhd_core::ops::merge::{MergeError, MergeRequest, merge, plan};
use vhd_core::units::u64_from;

pub(crate) fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths.filter(|path| path.is_file()).collect();
    files.sort();
    files
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

/// The error of a merge that changes nothing.
pub(crate) fn refused(dir: &Path, request: &MergeRequest) -> MergeError {
    let before = files(dir);
    let error = run(request).unwrap_err();
    assert!(before == files(dir), "{error}: something was changed");
    error
}

#[test]
fn what_has_no_place_to_go_is_refused() {
    let mut rng = seeded(1, "refusals");
    let dir = temp_dir();
    let chain = Chain::random(dir.path(), &mut rng, 2);
    let [base, middle, leaf] = [0, 1, 2].map(|level| chain.paths[level].clone());
    let into = |child: &Path, ancestor: &Path| MergeRequest {
        into: Some(ancestor.to_owned()),
        ..MergeRequest::new(child)
    };
    let kind = |request: MergeRequest| refused(dir.path(), &request).kind();
    assert_eq!(kind(MergeRequest::new(&base)), ErrorKind::NotRelated);
    assert_eq!(kind(into(&leaf, &leaf)), ErrorKind::NotRelated);
    assert_eq!(kind(into(&middle, &leaf)), ErrorKind::NotRelated);
    assert_eq!(
        kind(MergeRequest::new(&dir.path().join("none.vhd"))),
        ErrorKind::NotFound
    );
    let mut stranger = MergeRequest::new(&leaf);
    stranger.extra_children.push(base.clone());
    assert_eq!(kind(stranger), ErrorKind::NotRelated);
    let used = OpenOptions::new().open(&leaf).unwrap();
    assert_eq!(run(&MergeRequest::new(&leaf)).unwrap_err().kind(), ErrorKind::Locked);
    drop(used);
    chain.assert(0..0, |level| level);
}

#[test]
fn images_that_would_read_something_else_are_named() {
    let mut rng = seeded(2, "siblings");
    let dir = temp_dir();
    let chain = Chain::random(dir.path(), &mut rng, 3);
    fs::create_dir(dir.path().join("below")).unwrap();
    let sibling = dir.path().join("below/sibling.vhd");
    for level in 0..3 {
        create_child(&sibling, &chain.paths[level], None, &OpenOptions::new()).unwrap();
        let request = MergeRequest {
            into: Some(chain.paths[0].clone()),
            ..MergeRequest::new(&chain.paths[3])
        };
        let error = refused(dir.path(), &request);
        assert_eq!(error.kind(), ErrorKind::HasChildren);
        assert!(error.to_string().contains("sibling.vhd"), "{error}");
        fs::remove_file(&sibling).unwrap();
    }
    // A child of the image that goes is carried along, also from a directory below.
    create_child(&sibling, &chain.paths[3], None, &OpenOptions::new()).unwrap();
    run(&MergeRequest::new(&chain.paths[3])).unwrap();
    assert_reads(&sibling, &chain.contents[3]);
}

#[test]
fn a_child_elsewhere_is_pointed_if_it_is_named() {
    let mut rng = seeded(3, "named children");
    let (dir, other) = (temp_dir(), temp_dir());
    let chain = Chain::random(dir.path(), &mut rng, 2);
    let child = other.path().join("child.vhd");
    create_child(&child, &chain.paths[2], None, &OpenOptions::new()).unwrap();
    let mut request = MergeRequest::new(&chain.paths[2]);
    request.extra_children = vec![child.clone()];
    let report = run(&request).unwrap();
    assert_eq!(report.repointed, [child.canonicalize().unwrap()]);
    assert_reads(&child, &chain.contents[2]);
}

#[test]
fn layers_of_different_sizes_are_refused() {
    let dir = temp_dir();
    let (base, leaf) = (dir.path().join("base.vhd"), dir.path().join("leaf.vhd"));
    create(&base, |file| create_dynamic(file, SIZE, 2 << 20));
    let opened = OpenOptions::new().open(&base).unwrap();
    let link = vhd_core::chain::parent_link(&leaf, &base, &opened).unwrap();
    drop(opened);
    create(&leaf, |file| create_differencing(file, SIZE + 512, 2 << 20, &link));
    let error = refused(dir.path(), &MergeRequest::new(&leaf));
    assert_eq!(error.kind(), ErrorKind::SizeMismatch);
    assert!(error.to_string().contains("vhd resize"), "{error}");
}

#[test]
fn another_merge_that_is_unfinished_comes_first() {
    let mut rng = seeded(4, "two merges");
    let dir = temp_dir();
    let chain = Chain::random(dir.path(), &mut rng, 3);
    let request = MergeRequest {
        into: Some(chain.paths[0].clone()),
        ..MergeRequest::new(&chain.paths[2])
    };
    let stop = std::sync::atomic::AtomicBool::new(true);
    let stopped = vhd_core::ops::merge::MergeOptions {
        cancel: &stop,
        ..options()
    };
    assert!(merge(&plan(&request).unwrap(), &stopped, &()).unwrap().cancelled);
    for other in [MergeRequest::new(&chain.paths[2]), MergeRequest::new(&chain.paths[3])] {
        assert_eq!(refused(dir.path(), &other).kind(), ErrorKind::JobPending);
    }
    let record = dir.path().join("2.vhd.merge");
    let whole = fs::read(&record).unwrap();
    fs::write(&record, &whole[..whole.len() - 1]).unwrap();
    assert_eq!(refused(dir.path(), &request).kind(), ErrorKind::RecordDamaged);
    fs::write(&record, whole).unwrap();
    run(&request).unwrap();
    chain.assert(1..3, |level| if level == 0 { 2 } else { level });
}

/// Damaged images as child and as parent: what can't be merged changes nothing, what can reads the same.
#[test]
fn damaged_images_change_nothing() {
    const BLOCK: usize = 4096;
    const SIZE: usize = 6 * BLOCK;
    let mut rng = seeded(5, "damage");
    let content = random_bytes(&mut rng, SIZE);
    let spec = Sparse::child(u64_from(SIZE), BLOCK, id(2), Parent::named(id(1), "parent.vhd"));
    let spec = spec
        .store_whole(&mut rng, 3)
        .store_sector(9, &random_bytes(&mut rng, 512));
    let parent = Sparse::new(u64_from(SIZE), BLOCK)
        .store_whole(&mut rng, 1)
        .store_whole(&mut rng, 3);
    let over_fixed = Subject::sparse("child", &spec, Some(fixed(&content, id(1))));
    let dynamic = Subject::sparse("parent", &parent, None);
    let child = spec.lay().bytes;
    let dir = temp_dir();
    let (mut merged, mut failed) = (0, 0);
    for (subject, number) in [(&over_fixed, 0), (&dynamic, 1)] {
        let metadata: Vec<usize> = subject.metadata().collect();
        let bytes = (0..400).map(|_| {
            let at = metadata[rng.usize(..metadata.len())];
            let all: Vec<Mutation> = Mutation::all_of_byte(at).collect();
            let mutation = all[rng.usize(..all.len())];
            if rng.bool() {
                mutation.sealed().unwrap()
            } else {
                mutation
            }
        });
        let cuts = (0..100).map(|n| Mutation::Cut(n * subject.bytes.len() / 100));
        let all: Vec<Mutation> = bytes.chain(cuts).chain((0..200).map(Mutation::Fields)).collect();
        for mutation in all.into_iter().chain((0..100).map(Mutation::Noise)) {
            let Some(damaged) = mutation.apply(subject) else {
                continue;
            };
            let (upper, lower) = match number {
                0 => (&damaged, over_fixed.parent.as_ref().unwrap()),
                _ => (&child, &damaged),
            };
            fs::write(dir.path().join("child.vhd"), upper).unwrap();
            fs::write(dir.path().join("parent.vhd"), lower).unwrap();
            if merged_or_unchanged(dir.path(), &format!("{} {mutation:x?}", subject.name)) {
                merged += 1;
            } else {
                failed += 1;
            }
            for (path, _) in files(dir.path()) {
                fs::remove_file(path).unwrap();
            }
        }
    }
    crate::common::announce(&format!("damaged images: {merged} merged, {failed} refused"));
    assert!(merged > 50 && failed > 300);
}

/// Whether the merge was done, with the same content; else nothing is changed.
fn merged_or_unchanged(dir: &Path, what: &str) -> bool {
    let (child, parent) = (dir.join("child.vhd"), dir.join("parent.vhd"));
    let reads = OpenOptions::new().open(&child).ok().and_then(|opened| {
        let disk = opened.disk();
        let mut bytes = vec![0; usize::try_from(disk.size()).ok().filter(|size| *size <= 1 << 20)?];
        disk.read_at(&mut bytes, 0).ok()?;
        Some(bytes)
    });
    let before = files(dir);
    match run(&MergeRequest::new(&child)) {
        Ok(_) => {
            if let Some(reads) = reads {
                assert_reads(&parent, &reads);
            }
            true
        }
        Err(error) => {
            assert!(before == files(dir), "{what}: {error}: something was changed");
            false
        }
    }
}
