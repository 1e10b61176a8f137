//! The crash file loses, tears and reorders as a disk may, and no more.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex};

use vhd_core::storage::{Segment, StorageFile};
use vhd_testkit::bytes::{Content, SECTOR, identify, is_zero, pattern};
use vhd_testkit::crash_file::{CrashFile, CrashLimits, CrashSnapshot, Kept, Support};
use vhd_testkit::{Operation, OperationKind};

const LIMITS: CrashLimits = CrashLimits {
    exhaustive_bits: 10,
    random: 200,
    seed: 7,
    newest_only: false,
};

/// The generation in each sector of a file: 0 for zeroes.
fn generations(bytes: &[u8]) -> Vec<u64> {
    let tell = |(index, sector): (usize, &[u8])| match identify(sector) {
        Content::Zero => 0,
        Content::Pattern { offset, generation } if offset == (index * SECTOR) as u64 => generation,
        other => panic!("sector {index} holds {other}"),
    };
    bytes.chunks(SECTOR).enumerate().map(tell).collect()
}

fn outcomes(file: &CrashFile) -> HashSet<Vec<u64>> {
    file.crash_states(&LIMITS)
        .map(|state| generations(&state.bytes()))
        .collect()
}

fn set<const N: usize>(outcomes: [&[u64]; N]) -> HashSet<Vec<u64>> {
    outcomes.into_iter().map(<[u64]>::to_vec).collect()
}

fn write(file: &dyn StorageFile, sector: u64, sectors: usize, generation: u64) {
    let offset = sector * SECTOR as u64;
    file.write_all_at(&pattern(offset, sectors * SECTOR, generation), offset)
        .unwrap();
}

#[test]
fn a_synced_file_has_one_state() {
    let file = CrashFile::new();
    write(&file, 0, 3, 1);
    file.sync().unwrap();
    assert_eq!(outcomes(&file), set([&[1, 1, 1]]));
    assert_eq!(file.pending(), 0);
}

#[test]
fn unsynced_writes_are_lost_in_any_subset_and_torn() {
    let file = CrashFile::from_bytes(&pattern(0, 2 * SECTOR, 1));
    write(&file, 0, 2, 2);
    assert_eq!(outcomes(&file), set([&[1, 1], &[2, 1], &[1, 2], &[2, 2]]));
    write(&file, 0, 1, 3);
    assert_eq!(
        outcomes(&file),
        set([&[1, 1], &[2, 1], &[3, 1], &[1, 2], &[2, 2], &[3, 2]])
    );
}

#[test]
fn a_length_persists_without_its_data_and_data_only_with_its_length() {
    let file = CrashFile::from_bytes(&pattern(0, SECTOR, 1));
    write(&file, 2, 1, 2);
    assert_eq!(outcomes(&file), set([&[1], &[1, 0, 0], &[1, 0, 2]]));
}

#[test]
fn a_set_length_may_be_lost_in_both_directions() {
    let file = CrashFile::from_bytes(&pattern(0, 3 * SECTOR, 1));
    file.set_len(512).unwrap();
    assert_eq!(outcomes(&file), set([&[1], &[1, 1, 1]]));
    file.set_len(1024).unwrap();
    // The space between was cut off: it is as it was, or zero, but never half of each.
    assert_eq!(outcomes(&file), set([&[1, 1, 1], &[1], &[1, 0]]));
    file.sync().unwrap();
    assert_eq!(outcomes(&file), set([&[1, 0]]));
}

#[test]
fn data_written_before_a_cut_does_not_come_back_with_a_later_growth() {
    let file = CrashFile::from_bytes(&pattern(0, SECTOR, 1));
    write(&file, 1, 1, 2);
    file.set_len(512).unwrap();
    file.set_len(1024).unwrap();
    assert_eq!(generations(&file.bytes()), [1, 0]);
    let all_lengths = file.crash_states(&LIMITS).filter(|state| state.choice().lengths == 3);
    all_lengths.for_each(|state| assert_eq!(generations(&state.bytes()), [1, 0], "{state}"));
}

#[test]
fn holes_and_zeroes_are_torn_like_writes() {
    for zero in [CrashFile::punch_hole, CrashFile::zero_range] {
        let file = CrashFile::from_bytes(&pattern(0, 2 * SECTOR, 1));
        zero(&file, 0, 1 << 40).unwrap();
        assert_eq!(file.len().unwrap(), 1024);
        assert_eq!(outcomes(&file), set([&[1, 1], &[0, 1], &[1, 0], &[0, 0]]));
    }
}

#[test]
fn a_sector_is_atomic_also_where_a_write_covers_a_part_of_it() {
    let file = CrashFile::from_bytes(&[1; 1024]);
    file.write_all_at(&[2; 600], 300).unwrap();
    let states: HashSet<Vec<u8>> = file.crash_states(&LIMITS).map(|state| state.bytes()).collect();
    assert_eq!(states.len(), 4);
    for bytes in states {
        assert!(bytes[300..512].iter().all(|byte| *byte == bytes[300]));
        assert!(bytes[512..900].iter().all(|byte| *byte == bytes[512]));
        assert!(bytes[..300].iter().chain(&bytes[900..]).all(|byte| *byte == 1));
    }
}

#[test]
fn large_workloads_give_the_structured_and_the_random_states() {
    let file = CrashFile::from_bytes(&pattern(0, 64 * SECTOR, 1));
    (0..32).for_each(|index| write(&file, 2 * index, 2, 2 + index));
    let states: Vec<Vec<u64>> = file
        .crash_states(&LIMITS)
        .map(|state| generations(&state.bytes()))
        .collect();
    let unique: HashSet<&Vec<u64>> = states.iter().collect();
    assert_eq!(unique.len(), states.len(), "each content once");
    let lost = |state: &[u64]| state.iter().filter(|generation| **generation == 1).count();
    for count in [0, 1, 2, 62, 63, 64] {
        assert!(
            states.iter().any(|state| lost(state) == count),
            "no state with {count} sectors lost"
        );
    }
    for index in 0..32 {
        let alone = |state: &&Vec<u64>| lost(state) == 62 && state[2 * index] != 1 && state[2 * index + 1] != 1;
        assert!(states.iter().any(|state| alone(&state)), "write {index} alone");
    }
    let torn = states
        .iter()
        .filter(|state| state.chunks(2).filter(|pair| pair[0] != pair[1]).count() > 1)
        .count();
    assert!(torn > 50, "only {torn} states with several torn writes");
}

#[test]
fn equal_seeds_give_equal_states_and_choices_repeat() {
    let file = CrashFile::new();
    (0..20).for_each(|index| write(&file, index * 3, 2, 1 + index));
    let run = |seed| -> Vec<Vec<u8>> {
        file.crash_states(&CrashLimits { seed, ..LIMITS })
            .map(|state| state.bytes())
            .collect()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    let snapshot = file.snapshot();
    for state in snapshot.crash_states(&LIMITS) {
        assert_eq!(snapshot.crash_state(state.choice().clone()).bytes(), state.bytes());
    }
}

#[test]
fn a_crashed_file_goes_on_and_crashes_again() {
    let file = CrashFile::new();
    write(&file, 0, 1, 1);
    let lost = file.crash_states(&LIMITS).find(|state| state.file_len() == 0).unwrap();
    assert!(lost.choice().kept.iter().all(|kept| *kept == Kept::Nothing));
    let again = lost.file();
    assert_eq!(again.len().unwrap(), 0);
    write(&again, 0, 1, 2);
    assert_eq!(outcomes(&again), set([&[], &[0], &[2]]));
    assert_eq!(outcomes(&file), set([&[], &[0], &[1]]), "the first file is untouched");
}

#[test]
fn the_display_of_a_state_tells_what_persisted() {
    let file = CrashFile::new();
    write(&file, 0, 2, 1);
    let state = file.crash_states(&LIMITS).last().unwrap();
    let text = state.to_string();
    for part in [
        "operation 1: length 0x400: kept",
        "operation 1: write 0x0+0x400: torn",
        "seed 0x7",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn the_observer_sees_every_boundary_once() {
    let seen: Arc<Mutex<Vec<(Operation, usize)>>> = Arc::default();
    let log = Arc::clone(&seen);
    let observer = move |snapshot: &CrashSnapshot| {
        log.lock().unwrap().push((snapshot.operation(), snapshot.pending()));
    };
    let file = CrashFile::new().with_observer(Box::new(observer));
    write(&file, 0, 1, 1);
    file.punch_hole(0, 512).unwrap();
    file.sync().unwrap();
    file.read_exact_at(&mut [0; 512], 0).unwrap();
    let wanted = [
        (Operation::new(OperationKind::Write, 0, 512), 2),
        (Operation::new(OperationKind::PunchHole, 0, 512), 3),
        (Operation::new(OperationKind::Sync, 0, 0), 0),
    ];
    assert_eq!(*seen.lock().unwrap(), wanted);
    assert_eq!(file.operations(), 3);
}

#[test]
fn an_observer_that_panicked_is_not_called_while_the_stack_unwinds() {
    struct SyncOnDrop(CrashFile);
    impl Drop for SyncOnDrop {
        fn drop(&mut self) {
            self.0.sync().unwrap();
        }
    }
    let file = CrashFile::new().with_observer(Box::new(|snapshot| panic!("on purpose: {snapshot:?}")));
    let engine = SyncOnDrop(file.clone());
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || write(&engine.0, 0, 1, 1)));
    assert!(result.is_err());
    assert_eq!(file.pending(), 0, "the drop has synced");
}

#[test]
fn the_newest_states_of_all_boundaries_are_all_states() {
    let limits = CrashLimits {
        newest_only: true,
        ..LIMITS
    };
    let newest: Arc<Mutex<HashSet<Vec<u8>>>> = Arc::default();
    let all = Arc::clone(&newest);
    let observer = move |snapshot: &CrashSnapshot| {
        all.lock()
            .unwrap()
            .extend(snapshot.crash_states(&limits).map(|state| state.bytes()));
    };
    let file = CrashFile::from_bytes(&pattern(0, SECTOR, 1)).with_observer(Box::new(observer));
    file.sync().unwrap();
    (0..4).for_each(|sector| write(&file, sector, 1, 2));
    let whole: HashSet<Vec<u8>> = file.crash_states(&LIMITS).map(|state| state.bytes()).collect();
    assert_eq!(*newest.lock().unwrap(), whole);
}

#[test]
fn it_is_a_storage_file() {
    let file = CrashFile::new();
    assert_eq!(
        file.read_exact_at(&mut [0], 0).unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
    file.write_all_at(&[1; 4096], 8192).unwrap();
    assert_eq!(file.segment_at(0).unwrap(), (Segment::Hole, 8192));
    assert_eq!(file.segment_at(9000).unwrap(), (Segment::Data, 12288));
    assert_eq!(file.segment_at(12288).unwrap(), (Segment::Hole, 12288));
    file.allocate(12288, 100).unwrap();
    assert_eq!(file.len().unwrap(), 12388);
    assert_eq!(file.allocated_bytes(), 4096);
    let copy = CrashFile::new();
    copy.share_range_from(&file, 8192, 0, 4096).unwrap();
    assert_eq!(copy.bytes(), [1; 4096]);
    assert!(file.write_all_at(&[1], u64::MAX).is_err() && file.set_len(u64::MAX).is_err());
    file.write_all_at(&[], 1 << 40).unwrap();
    assert_eq!(file.len().unwrap(), 12388);
    let plain = file.with_support(Support::NONE);
    for result in [plain.punch_hole(0, 1), plain.zero_range(0, 1), plain.allocate(0, 1)] {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
    assert!(is_zero(&plain.bytes()[..8192]));
}

/// How a record becomes valid: sector 0 points to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    DataSyncPointer,
    PointerSyncData,
    OneBatch,
    LengthOnlyWritten,
}

/// Publishes three records by the protocol. The data of record n is two sectors past the old end.
fn publish(file: &dyn StorageFile, protocol: Protocol) {
    for record in 1..=3 {
        let place = 2 * record - 1;
        let data = |_: ()| write(file, place, 2, record);
        let pointer = |_: ()| write(file, 0, 1, record);
        let sync = |_: ()| file.sync().unwrap();
        match protocol {
            Protocol::DataSyncPointer => (data(()), sync(()), pointer(()), sync(())),
            Protocol::PointerSyncData => (pointer(()), sync(()), data(()), sync(())),
            Protocol::OneBatch => (data(()), pointer(()), sync(()), ()),
            // The pointer is published when the space is there, though not yet the data.
            Protocol::LengthOnlyWritten => {
                file.set_len((place + 2) * SECTOR as u64).unwrap();
                (sync(()), data(()), pointer(()), sync(()))
            }
        };
    }
}

/// How many crash states, over all boundaries, show a pointer to a record that is not whole.
fn wrong_states(protocol: Protocol) -> (usize, usize) {
    let counts: Arc<Mutex<(usize, usize)>> = Arc::default();
    let total = Arc::clone(&counts);
    let observer = move |snapshot: &CrashSnapshot| {
        for state in snapshot.crash_states(&LIMITS) {
            let sectors = generations(&state.bytes());
            let pointer = usize::try_from(sectors.first().copied().unwrap_or(0)).unwrap();
            let whole = |record: usize| sectors.get(2 * record - 1..=2 * record) == Some(&[record as u64; 2][..]);
            let mut counts = total.lock().unwrap();
            counts.0 += usize::from(!(1..=pointer).all(whole));
            counts.1 += 1;
        }
    };
    let file = CrashFile::from_bytes(&[0; SECTOR]).with_observer(Box::new(observer));
    publish(&file, protocol);
    file.set_observer(None);
    Arc::into_inner(counts).unwrap().into_inner().unwrap()
}

#[test]
fn publishing_after_a_sync_never_shows_a_part_and_the_other_orders_do() {
    let (wrong, all) = wrong_states(Protocol::DataSyncPointer);
    assert_eq!(wrong, 0, "of {all}");
    assert!(all > 20, "only {all} states");
    for protocol in [
        Protocol::PointerSyncData,
        Protocol::OneBatch,
        Protocol::LengthOnlyWritten,
    ] {
        let (wrong, all) = wrong_states(protocol);
        assert!(wrong > 0, "{protocol:?} was not caught in {all} states");
    }
}

#[test]
fn an_enumeration_is_fast_enough_for_many_scripts() {
    let file = CrashFile::from_bytes(&pattern(0, 1 << 20, 1));
    (0..10).for_each(|index| write(&file, index * 150, 8, 2));
    let limits = CrashLimits {
        exhaustive_bits: 10,
        random: 20_000,
        ..LIMITS
    };
    let begin = std::time::Instant::now();
    let states = file
        .crash_states(&limits)
        .filter(|state| state.file().len().unwrap() > 0)
        .count();
    let rate = states as f64 / begin.elapsed().as_secs_f64();
    println!("{states} states of 1 MiB, {rate:.0} in a second");
    assert!(states > 10_000);
}
