//! Whole merges of files: contents, `check`, other programs.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::common::disk::{assert_reads, assert_same, create, open, write_session};
use crate::common::rng::{Rng, chance, random_bytes, seeded};
use crate::common::temp_dir;
use crate::common::tools::{have, qemu_reads, seven_zip_reads};
use vhd_core::chain::{OpenOptions, create_child};
use vhd_core::check::{Severity, check};
use vhd_core::format::DiskType;
use vhd_core::image::{Preallocate, create_dynamic, create_fixed};
use vhd_core::ops::merge::{
    MergeError, MergeOptions, MergeReport, MergeRequest, merge, merge_to_new, plan, plan_to_new,
};
use vhd_core::ops::verify::record_path;
use vhd_core::units::usize_from;

pub(crate) static GO_ON: AtomicBool = AtomicBool::new(false);

pub(crate) const SIZE: u64 = (5 << 20) + 1536;
const BLOCKS: [u64; 4] = [512 << 10, 1 << 20, 2 << 20, 4 << 20];

pub(crate) fn options() -> MergeOptions<'static> {
    MergeOptions {
        cancel: &GO_ON,
        threads: 2,
        batch_bytes: 1 << 20,
    }
}

/// A chain of files, the base first, and what each reads.
pub(crate) struct Chain {
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) contents: Vec<Vec<u8>>,
}

impl Chain {
    pub(crate) fn random(dir: &Path, rng: &mut Rng, depth: usize) -> Self {
        let mut chain = Self {
            paths: Vec::new(),
            contents: Vec::new(),
        };
        for level in 0..=depth {
            let path = dir.join(format!("{level}.vhd"));
            let block_size = BLOCKS[rng.usize(..BLOCKS.len())];
            let mut content = match chain.paths.last() {
                None if chance(rng, 50) => {
                    create(&path, |file| create_dynamic(file, SIZE, block_size));
                    vec![0; usize_from(SIZE)]
                }
                None => {
                    create(&path, |file| create_fixed(file, SIZE, Preallocate::Off));
                    vec![0; usize_from(SIZE)]
                }
                Some(parent) => {
                    create_child(&path, parent, Some(block_size), &OpenOptions::new()).unwrap();
                    chain.contents[level - 1].clone()
                }
            };
            let operations = rng.usize(..20);
            write_session(&path, &mut content, rng, operations);
            chain.paths.push(path);
            chain.contents.push(content);
        }
        chain
    }

    /// Everything that is there reads what it must; `gone` is not there.
    pub(crate) fn assert(&self, gone: std::ops::Range<usize>, others_read: impl Fn(usize) -> usize) {
        for (level, path) in self.paths.iter().enumerate() {
            assert_eq!(path.exists(), !gone.contains(&level), "{}", path.display());
            if path.exists() {
                assert_sound(path);
                assert_reads(path, &self.contents[others_read(level)]);
            }
        }
    }
}

pub(crate) fn assert_sound(path: &Path) {
    let opened = open(path, false);
    assert_eq!(opened.warnings(), [], "{}", path.display());
    for layer in opened.layers() {
        let report = check(layer.layer.file()).unwrap();
        let worst = report.worst();
        assert!(
            worst <= Some(Severity::Note),
            "{}: {:?}",
            layer.path.display(),
            report.findings
        );
    }
}

pub(crate) fn run(request: &MergeRequest) -> Result<MergeReport, MergeError> {
    merge(&plan(request)?, &options(), &())
}

#[test]
fn a_child_goes_into_its_parent_and_a_range_into_an_ancestor() {
    let mut rng = seeded(0x3E, "merges");
    for round in 0..24 {
        let dir = temp_dir();
        let depth = 1 + round % 8;
        let chain = Chain::random(dir.path(), &mut rng, depth);
        let child = rng.usize(1..=depth);
        let target = if round % 2 == 0 { child - 1 } else { rng.usize(..child) };
        let mut request = MergeRequest::new(&chain.paths[child]);
        if target + 1 < child || round % 4 == 1 {
            request.into = Some(chain.paths[target].clone());
        }
        // Digests that are not true any more go with what they were of.
        for level in [child, target] {
            std::fs::write(record_path(&chain.paths[level]), "digests").unwrap();
        }
        let report = run(&request).unwrap();
        assert_eq!(report.removed.len(), child - target);
        assert_eq!(report.repointed.len(), usize::from(child < depth));
        chain.assert(
            target + 1..child + 1,
            |level| if level == target { child } else { level },
        );
        // Nothing is left of the merge.
        let left = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, depth + 1 - (child - target));
    }
}

#[test]
fn a_new_image_reads_the_same_and_nothing_else_changes() {
    let mut rng = seeded(0x0E, "new images");
    for round in 0..16 {
        let dir = temp_dir();
        let depth = 1 + round % 6;
        let chain = Chain::random(dir.path(), &mut rng, depth);
        let child = rng.usize(1..=depth);
        let lowest = if round % 2 == 0 { child - 1 } else { rng.usize(..child) };
        let before: Vec<Vec<u8>> = chain.paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
        let request = MergeRequest {
            into: Some(chain.paths[lowest].clone()),
            ..MergeRequest::new(&chain.paths[child])
        };
        let output = dir.path().join("new.vhd");
        let plan = plan_to_new(&request).unwrap();
        assert_eq!(plan.merged().count(), child - lowest + 1);
        let report = merge_to_new(&plan, &output, false, &options(), &()).unwrap();
        assert!(report.copied_bytes + report.zeroed_bytes <= plan.held_bytes());
        assert_sound(&output);
        assert_reads(&output, &chain.contents[child]);
        let opened = open(&output, false);
        let leaf = opened.chain().unwrap().leaf();
        let expected = if lowest == 0 {
            DiskType::Dynamic
        } else {
            DiskType::Differencing
        };
        assert_eq!(leaf.footer().disk_type, expected);
        assert_eq!(opened.paths().len(), lowest.max(1) + usize::from(lowest > 0));
        for (path, before) in chain.paths.iter().zip(before) {
            assert_same(&std::fs::read(path).unwrap(), &before, &path.display().to_string());
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), depth + 2);
        let again = merge_to_new(&plan, &output, false, &options(), &()).unwrap_err();
        assert_eq!(again.kind(), vhd_core::ErrorKind::Exists);
        merge_to_new(&plan, &output, true, &options(), &()).unwrap();
    }
}

/// Some versions of qemu take the geometry for the size, which is a little less.
fn assert_qemu_reads(image: &Path, content: &[u8]) {
    let read = qemu_reads(image);
    assert!(read.len() <= content.len() && read.len() * 100 >= content.len() * 99);
    assert_same(&read, &content[..read.len()], "qemu");
}

#[test]
fn other_programs_read_the_same_before_and_after() {
    if !have(&["qemu-img", "7zz"], "merged images in other programs") {
        return;
    }
    let mut rng = seeded(0x77, "other programs");
    for round in 0..8 {
        let dir = temp_dir();
        let depth = 1 + round % 4;
        let chain = Chain::random(dir.path(), &mut rng, depth);
        for (path, content) in chain.paths.iter().zip(&chain.contents) {
            assert_same(&seven_zip_reads(path), content, "7-Zip before");
        }
        let (child, target) = if round % 2 == 0 { (depth, 0) } else { (depth, depth - 1) };
        let output = dir.path().join("new.vhd");
        let mut request = MergeRequest::new(&chain.paths[child]);
        request.into = Some(chain.paths[target].clone());
        merge_to_new(&plan_to_new(&request).unwrap(), &output, false, &options(), &()).unwrap();
        assert_same(&seven_zip_reads(&output), &chain.contents[child], "7-Zip: a new image");
        if target == 0 {
            assert_qemu_reads(&output, &chain.contents[child]);
        }
        std::fs::remove_file(&output).unwrap();
        run(&request).unwrap();
        for path in chain.paths.iter().take(target + 1) {
            let level = chain.paths.iter().position(|other| other == path).unwrap();
            let reads = if level == target { child } else { level };
            assert_same(&seven_zip_reads(path), &chain.contents[reads], "7-Zip after");
        }
        if target == 0 {
            assert_qemu_reads(&chain.paths[0], &chain.contents[child]);
        }
    }
}

/// Zeroes over what the ancestors have are zeroes in the target: INV-08 for merges.
#[test]
fn inv_08_zeroes_of_a_child_are_zeroes_in_the_target() {
    let mut rng = seeded(0x08, "zeroes");
    let dir = temp_dir();
    let names = ["base.vhd", "middle.vhd", "leaf.vhd"].map(|name| dir.path().join(name));
    create(&names[0], |file| create_dynamic(file, SIZE, 2 << 20));
    let random = random_bytes(&mut rng, usize_from(SIZE));
    let opened = open(&names[0], true);
    opened.disk().write_at(&random, 0).unwrap();
    opened.close().unwrap();
    for (child, parent) in [(1, 0), (2, 1)] {
        create_child(&names[child], &names[parent], None, &OpenOptions::new()).unwrap();
    }
    let mut expected = random;
    let opened = open(&names[2], true);
    for (start, len) in [(512, 512), (4096, 4096), (1 << 20, 300 << 10), (2 << 20, 2 << 20)] {
        opened
            .disk()
            .write_at(&vec![0; len], vhd_core::units::u64_from(start))
            .unwrap();
        expected[start..start + len].fill(0);
    }
    opened.close().unwrap();
    run(&MergeRequest::new(&names[2])).unwrap();
    assert_reads(&names[1], &expected);
    run(&MergeRequest::new(&names[1])).unwrap();
    assert_reads(&names[0], &expected);
    assert_sound(&names[0]);
}

#[test]
fn a_raw_parent_that_is_named_takes_a_child() {
    let mut rng = seeded(0x4A, "raw parents");
    let dir = temp_dir();
    let (base, leaf) = (dir.path().join("base.raw"), dir.path().join("leaf.vhd"));
    let mut content = random_bytes(&mut rng, usize_from(SIZE));
    std::fs::write(&base, &content).unwrap();
    create_child(
        &leaf,
        &base,
        None,
        &OpenOptions::new().format(Some(vhd_core::chain::ImageFormat::Raw)),
    )
    .unwrap();
    let open = OpenOptions::new().parents([base.clone()]);
    let opened = open.clone().write(true).open(&leaf).unwrap();
    let bytes = random_bytes(&mut rng, 700 << 10);
    opened.disk().write_at(&bytes, 12345).unwrap();
    opened.close().unwrap();
    content[12345..12345 + bytes.len()].copy_from_slice(&bytes);
    let request = MergeRequest {
        open,
        ..MergeRequest::new(&leaf)
    };
    run(&request).unwrap();
    assert!(!leaf.exists());
    assert_same(&std::fs::read(&base).unwrap(), &content, "the raw base");
}
