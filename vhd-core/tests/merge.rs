//! Merging: every image that is left reads what it read, whatever the chain is, wherever power fails and whatever
//! the file system refuses. Test names cite the invariants of docs/merge.md.

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use common::disk::{assert_reads, assert_same, create, open, write_session};
use common::rng::{Rng, chance, seeded};
use common::temp_dir;
use common::tools::{have, qemu_reads, seven_zip_reads};
use vhd_core::ErrorKind;
use vhd_core::chain::{OpenOptions, create_child};
use vhd_core::check::{Severity, check};
use vhd_core::format::DiskType;
use vhd_core::image::{Preallocate, create_dynamic, create_fixed};
use vhd_core::ops::merge::{
    MergeError, MergeOptions, MergeReport, MergeRequest, merge, merge_to_new, plan, plan_to_new,
};
use vhd_core::units::usize_from;

static GO_ON: AtomicBool = AtomicBool::new(false);

const SIZE: u64 = (5 << 20) + 1536;
const BLOCKS: [u64; 4] = [512 << 10, 1 << 20, 2 << 20, 4 << 20];

fn options() -> MergeOptions<'static> {
    MergeOptions {
        cancel: &GO_ON,
        threads: 2,
        batch_bytes: 1 << 20,
    }
}

/// A chain of files, the base first, and what each reads.
struct Chain {
    paths: Vec<PathBuf>,
    contents: Vec<Vec<u8>>,
}

impl Chain {
    fn random(dir: &Path, rng: &mut Rng, depth: usize) -> Self {
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
    fn assert(&self, gone: std::ops::Range<usize>, others_read: impl Fn(usize) -> usize) {
        for (level, path) in self.paths.iter().enumerate() {
            assert_eq!(path.exists(), !gone.contains(&level), "{}", path.display());
            if path.exists() {
                assert_sound(path);
                assert_reads(path, &self.contents[others_read(level)]);
            }
        }
    }
}

fn assert_sound(path: &Path) {
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

fn run(request: &MergeRequest) -> Result<MergeReport, MergeError> {
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
