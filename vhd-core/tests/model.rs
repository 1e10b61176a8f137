//! Random work on a disk, compared with a plain vector of bytes after every step: any byte offset and length,
//! reopening, children of any block size over the frozen disk, and crashes.
//!
//! PROPTEST_CASES makes the run longer.
#![cfg(not(loom))]

mod support;

use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::Config;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use support::any_parent;
use support::forge::Forge;
use vhd_core::check::{Severity, check};
use vhd_core::device::{BlockDevice, ByteRange, Disk, LayeredDevice, ZeroOptions};
use vhd_core::image::{OpenMode, create_differencing};
use vhd_core::storage::StorageFile;
use vhd_core::units::{u64_from, usize_from};
use vhd_testkit::bytes::{assert_same, is_zero, pattern};
use vhd_testkit::rng::rng;
use vhd_testkit::{CrashFile, CrashLimits, CrashModel, ModelDisk};

const SECTOR: usize = 512;
/// More than one block of the smallest size that our creator takes, and no multiple of any block.
const SIZE: usize = (600 << 10) + SECTOR;
/// Deeper chains only make the run slower.
const MOST_LAYERS: usize = 6;

#[derive(Clone, Debug)]
enum Step {
    Write {
        range: Range<usize>,
        fua: bool,
    },
    Zero {
        range: Range<usize>,
        may_unmap: bool,
        fua: bool,
    },
    Discard(Range<usize>),
    Read(Range<usize>),
    Flush,
    /// Close properly and open again.
    Reopen,
    /// Freeze the disk and go on in a child with blocks of this size.
    Child(u32),
    /// Lose power; the seed says what is lost.
    Crash(u64),
}

/// What steps make sense: the bytes are beside the disk, since a crash decides itself what becomes of them.
struct Steps;

impl ReferenceStateMachine for Steps {
    /// The layers of the chain.
    type State = usize;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<usize> {
        Just(1).boxed()
    }

    fn transitions(_: &usize) -> BoxedStrategy<Step> {
        prop_oneof![
            8 => (range(), prop::bool::weighted(0.1)).prop_map(|(range, fua)| Step::Write { range, fua }),
            2 => (range(), any::<bool>(), prop::bool::weighted(0.2))
                .prop_map(|(range, may_unmap, fua)| Step::Zero { range, may_unmap, fua }),
            1 => range().prop_map(Step::Discard),
            1 => range().prop_map(Step::Read),
            2 => Just(Step::Flush),
            1 => Just(Step::Reopen),
            1 => block_size().prop_map(Step::Child),
            1 => any::<u64>().prop_map(Step::Crash),
        ]
        .boxed()
    }

    fn preconditions(layers: &usize, step: &Step) -> bool {
        !matches!(step, Step::Child(_)) || *layers < MOST_LAYERS
    }

    fn apply(layers: usize, step: &Step) -> usize {
        layers + usize::from(matches!(step, Step::Child(_)))
    }
}

/// Any bytes; often few, often the same ones, sometimes whole sectors.
fn range() -> impl Strategy<Value = Range<usize>> {
    let start = prop_oneof![0..16_usize << 10, 0..SIZE - 1, SIZE - 3000..SIZE - 1];
    let len = prop_oneof![1..1500_usize, 1..100_usize << 10];
    (start, len, any::<bool>()).prop_map(|(start, len, aligned)| {
        let end = (start + len).min(SIZE);
        if aligned {
            start / SECTOR * SECTOR..end.next_multiple_of(SECTOR)
        } else {
            start..end
        }
    })
}

/// Blocks that our creator makes, and ones that only others make.
fn block_size() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![512, 4096, 64 << 10, 512 << 10, 1 << 20])
}

/// A disk, and what it has to read.
struct Bench {
    bytes: Vec<u8>,
    crashes: CrashModel,
    generation: u64,
    leaf: CrashFile,
    /// The leaf has seen a crash: space may be lost in it.
    crashed: bool,
    /// Nearest first.
    parents: Vec<Arc<dyn StorageFile>>,
    /// Missing while it is closed.
    device: Option<Arc<LayeredDevice>>,
    disk: Disk,
}

impl Bench {
    fn new() -> Self {
        let leaf = CrashFile::from_bytes(&Forge::dynamic(u64_from(SIZE), 4096).build());
        let (device, disk) = open(&leaf, &[]);
        Self {
            bytes: vec![0; SIZE],
            crashes: CrashModel::new(u64_from(SIZE)),
            generation: 0,
            leaf,
            crashed: false,
            parents: Vec::new(),
            device: Some(device),
            disk,
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Write { range, fua } => {
                self.generation += 1;
                let data = pattern(u64_from(range.start), range.len(), self.generation);
                self.bytes[range.clone()].copy_from_slice(&data);
                let sectors = self.expect(&range);
                let written = self
                    .disk
                    .write_vectored_at(&[IoSlice::new(&data)], u64_from(range.start), fua);
                written.unwrap();
                self.promise(fua, &sectors);
            }
            Step::Zero { range, may_unmap, fua } => {
                self.bytes[range.clone()].fill(0);
                let sectors = self.expect(&range);
                let options = ZeroOptions {
                    may_unmap,
                    fua,
                    ..ZeroOptions::default()
                };
                self.disk.write_zeroes(bytes_of(&range), options).unwrap();
                self.promise(fua, &sectors);
            }
            Step::Discard(range) => self.discard(&range),
            Step::Read(range) => {
                let mut found = vec![0xAA; range.len()];
                self.disk.read_at(&mut found, u64_from(range.start)).unwrap();
                assert!(found == self.bytes[range], "a read of part of the disk");
            }
            Step::Flush => {
                self.disk.flush().unwrap();
                self.crashes.flushed();
            }
            Step::Reopen => {
                self.close();
                self.reopen();
            }
            Step::Child(block_size) => self.child(block_size),
            Step::Crash(seed) => self.crash(seed),
        }
    }

    /// Tells the model of a change of `range`, whose bytes are new already: whole sectors may be old or new.
    fn expect(&mut self, range: &Range<usize>) -> Range<usize> {
        let sectors = range.start / SECTOR * SECTOR..range.end.next_multiple_of(SECTOR);
        self.crashes
            .write(u64_from(sectors.start), &self.bytes[sectors.clone()]);
        sectors
    }

    fn promise(&mut self, fua: bool, sectors: &Range<usize>) {
        if fua {
            self.crashes.durable(u64_from(sectors.start), u64_from(sectors.len()));
        }
    }

    /// Whole sectors in the range read zero or as before afterwards, all others as before.
    fn discard(&mut self, range: &Range<usize>) {
        let inner = range.start.next_multiple_of(SECTOR)..range.end / SECTOR * SECTOR;
        if !inner.is_empty() {
            self.crashes.discard(u64_from(inner.start), u64_from(inner.len()));
        }
        self.disk.discard(bytes_of(range)).unwrap();
        for start in inner.step_by(SECTOR) {
            let mut now = [0; SECTOR];
            self.disk.read_at(&mut now, u64_from(start)).unwrap();
            if is_zero(&now) {
                self.bytes[start..start + SECTOR].fill(0);
            }
        }
    }

    /// Closes the disk and checks its file; [`reopen`](Self::reopen) comes next.
    fn close(&mut self) {
        let closed = Disk::new(Arc::new(ModelDisk::new(0)));
        drop(std::mem::replace(&mut self.disk, closed));
        let device = self.device.take().and_then(Arc::into_inner);
        device.expect("no one else has the device").close().unwrap();
        self.crashes.flushed();
        self.check_file();
    }

    fn check_file(&self) {
        let report = check(&self.leaf).unwrap();
        let worst = if self.crashed { Severity::Leak } else { Severity::Note };
        assert!(report.worst() <= Some(worst), "{:?}", report.findings);
    }

    fn reopen(&mut self) {
        let (device, disk) = open(&self.leaf, &self.parents);
        (self.device, self.disk) = (Some(device), disk);
    }

    fn child(&mut self, block_size: u32) {
        self.close();
        let child = if block_size < 512 << 10 {
            CrashFile::from_bytes(&Forge::differencing(u64_from(SIZE), block_size).build())
        } else {
            let file = CrashFile::new();
            create_differencing(&file, u64_from(SIZE), block_size.into(), &any_parent()).unwrap();
            file.sync().unwrap();
            file
        };
        let parent = std::mem::replace(&mut self.leaf, child);
        self.crashed = false;
        self.parents.insert(0, Arc::new(parent));
        self.reopen();
    }

    fn crash(&mut self, seed: u64) {
        let limits = CrashLimits {
            exhaustive_bits: 5,
            random: 20,
            seed,
            newest_only: false,
        };
        let states: Vec<_> = self.leaf.crash_states(&limits).collect();
        let state = &states[rng(seed).usize(..states.len())];
        self.leaf = state.file();
        self.reopen();
        let found = self.read_all();
        let checked = self.crashes.check(&found);
        checked.unwrap_or_else(|violation| panic!("{violation}\n{state}"));
        self.crashed = true;
        self.check_file();
        self.crashes.adopt(&found);
        self.bytes = found;
    }

    fn read_all(&self) -> Vec<u8> {
        let mut found = vec![0xAA; SIZE];
        self.disk.read_at(&mut found, 0).unwrap();
        found
    }
}

fn open(leaf: &CrashFile, parents: &[Arc<dyn StorageFile>]) -> (Arc<LayeredDevice>, Disk) {
    let device = support::open(Arc::new(leaf.clone()), parents, &OpenMode::read_write());
    let device = Arc::new(device.expect("the chain opens"));
    let disk = Disk::new(Arc::clone(&device) as Arc<dyn BlockDevice>);
    (device, disk)
}

fn bytes_of(range: &Range<usize>) -> ByteRange {
    ByteRange::new(u64_from(range.start), u64_from(range.len()))
}

impl StateMachineTest for Bench {
    type SystemUnderTest = Self;
    type Reference = Steps;

    fn init_test(_: &usize) -> Self {
        Self::new()
    }

    fn apply(mut bench: Self, _: &usize, step: Step) -> Self {
        Bench::apply(&mut bench, step);
        bench
    }

    fn check_invariants(bench: &Self, layers: &usize) {
        assert_same(&bench.read_all(), &bench.bytes, "the disk");
        let depth = bench.device.as_ref().map(|device| device.layers().len());
        assert_eq!(depth, Some(*layers));
        assert_eq!(usize_from(bench.disk.size()), SIZE);
    }
}

prop_state_machine! {
    #![proptest_config(Config { cases: 400, failure_persistence: None, ..Config::default() })]

    #[test]
    fn a_disk_is_a_vector_of_bytes(sequential 1..40 => Bench);
}
