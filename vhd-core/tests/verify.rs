//! Digest records: a change of any sector of any ancestor is told with exactly its block, and what changes no content
//! raises no alarm.
//!
//! VHD_VERIFY_ROUNDS says how many random changes are made (default 240).
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use common::disk::{create, open, random_operation, write_session};
use common::rng::{Rng, chance, random_bytes, seeded};
use common::tree::{Node, SIZE, random_tree};
use common::{announce, temp_dir};
use vhd_core::ErrorKind;
use vhd_core::chain::{ImageFormat, OpenOptions, OpenedDisk, create_child};
use vhd_core::check::check;
use vhd_core::device::ByteRange;
use vhd_core::format::{DynamicHeader, FOOTER_SIZE, Footer, HEADER_SIZE, Timestamp, UniqueId};
use vhd_core::image::{Preallocate, ReadSpan, create_dynamic, create_fixed};
use vhd_core::ops::Progress;
use vhd_core::ops::compact::{CompactOptions, CompactPlan, Survey, compact};
use vhd_core::ops::verify::{
    DIGEST_BLOCK, LayerReport, RecordReport, Verdict, VerifyError, VerifyOptions, record, record_path, verify,
};
use vhd_core::storage::{Access, HostFile, Sharing, StorageFile as _};
use vhd_core::units::{VirtualOffset, u64_from};

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;

static GO_ON: AtomicBool = AtomicBool::new(false);

fn options() -> VerifyOptions<'static> {
    VerifyOptions {
        cancel: &GO_ON,
        threads: 2,
        fast: false,
    }
}

fn record_layer(opened: &OpenedDisk, depth: usize, replace: bool) -> Result<RecordReport, VerifyError> {
    record(opened.layers().nth(depth).unwrap(), replace, &options(), &())
}

fn record_image(path: &Path) -> RecordReport {
    record_layer(&open(path, false), 0, false).unwrap()
}

fn look(opened: &OpenedDisk, depth: usize) -> Result<(LayerReport, Vec<ByteRange>), VerifyError> {
    let mut found = Vec::new();
    let report = verify(opened, depth, &options(), &(), &mut |range| found.push(range))?;
    let bytes: u64 = found.iter().map(|range| range.len).sum();
    assert_eq!(report.changed_bytes, bytes);
    assert_eq!(report.verdict == Verdict::Changed, bytes > 0);
    Ok((report, found))
}

/// The verdict of an image on its own file, and the ranges that changed.
fn look_at(path: &Path) -> (Verdict, Vec<ByteRange>) {
    let (report, found) = look(&open(path, false), 0).unwrap();
    (report.verdict, found)
}

fn error_of(path: &Path) -> ErrorKind {
    look(&open(path, false), 0).unwrap_err().kind()
}

/// The digest block that a byte lies in.
fn block_of(at: u64, size: u64) -> ByteRange {
    let start = at / DIGEST_BLOCK * DIGEST_BLOCK;
    ByteRange::new(start, DIGEST_BLOCK.min(size - start))
}

/// A tree in which zeroes were written too, and the deepest leaf of it.
fn tree(dir: &Path, rng: &mut Rng) -> (Vec<Node>, usize) {
    let nodes = random_tree(dir, rng, 5);
    let leaf = (0..nodes.len()).max_by_key(|&index| nodes[index].chain.len()).unwrap();
    // From the leaf down: what a child reads of a parent that changes later is no concern here.
    for &index in &nodes[leaf].chain.clone() {
        if chance(rng, 60) {
            let at = rng.u64(0..4) * MIB;
            let opened = open(&nodes[index].path, true);
            opened.disk().write_at(&vec![0; 1 << 20], at).unwrap();
            opened.close().unwrap();
        }
    }
    (nodes, leaf)
}

fn ancestors(nodes: &[Node], leaf: usize) -> Vec<PathBuf> {
    nodes[leaf].chain[1..]
        .iter()
        .map(|&index| nodes[index].path.clone())
        .collect()
}

/// Changes one sector through the disk; where.
fn change_through_disk(path: &Path, rng: &mut Rng) -> u64 {
    let opened = open(path, true);
    let at = rng.u64(0..SIZE / SECTOR) * SECTOR;
    opened.disk().write_at(&random_bytes(rng, 512), at).unwrap();
    opened.close().unwrap();
    at
}

/// Changes one byte that the file itself holds, behind the back of everyone; where on the disk. `None` if the file
/// holds nothing.
fn change_payload(opened: OpenedDisk, depth: usize, rng: &mut Rng) -> Option<u64> {
    let layer = opened.layers().nth(depth).unwrap();
    let mut at = rng.u64(0..SIZE / SECTOR) * SECTOR;
    for _ in 0..4096 {
        let (span, path) = (
            layer.layer.image()?.resolve_read(VirtualOffset(at), SIZE - at).unwrap(),
            layer.path,
        );
        if let ReadSpan::Data { file_offset, len } = span {
            let within = rng.u64(0..len.min(SECTOR));
            let file = fs::File::options().read(true).write(true).open(path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, file_offset.0 + within).unwrap();
            file.write_all_at(&[byte[0] ^ (1 << rng.u8(..8))], file_offset.0 + within)
                .unwrap();
            return Some(at + within);
        }
        at = (at + span.len()) % SIZE;
    }
    None
}

fn rounds() -> usize {
    let asked = std::env::var("VHD_VERIFY_ROUNDS").ok().and_then(|n| n.parse().ok());
    asked.unwrap_or(240)
}

#[test]
fn one_changed_sector_of_any_ancestor_is_told_with_its_block() {
    let mut rng = seeded(0xD16E57, "changes");
    let (mut through_disk, mut raw) = (0, 0);
    while through_disk + raw < rounds() {
        let dir = temp_dir();
        let (nodes, leaf) = tree(dir.path(), &mut rng);
        let below = ancestors(&nodes, leaf);
        let top = &nodes[leaf].path;
        for depth in 1..=below.len() {
            record_layer(&open(top, false), depth, false).unwrap();
        }
        for _ in 0..12.min(below.len() * 6) {
            let depth = rng.usize(1..=below.len());
            let path = &below[depth - 1];
            let before = fs::read(path).unwrap();
            let at = if chance(&mut rng, 40) {
                through_disk += 1;
                change_through_disk(path, &mut rng)
            } else {
                let Some(at) = change_payload(open(top, false), depth, &mut rng) else {
                    continue;
                };
                raw += 1;
                at
            };
            let opened = open(top, false);
            for other in 1..=below.len() {
                let (report, found) = look(&opened, other).unwrap();
                if other == depth {
                    assert_eq!(found, [block_of(at, SIZE)], "byte {at:#x} of {}", path.display());
                } else {
                    assert_eq!(report.verdict, Verdict::Unchanged, "depth {other}, changed {depth}");
                }
            }
            drop(opened);
            fs::write(path, before).unwrap();
        }
    }
    announce(&format!(
        "verify: {through_disk} sectors changed through disks, {raw} in payloads, all told"
    ));
    assert!(through_disk > 0 && raw > 0);
}

/// Compacts an image; the blocks that went.
fn compacted(path: &Path) -> u64 {
    let device = open(path, true).into_device().unwrap();
    let options = CompactOptions {
        free: &(),
        cancel: &GO_ON,
        threads: 1,
        batch_bytes: CompactOptions::DEFAULT_BATCH,
    };
    let survey = Survey::new(&device, &options, &());
    let Ok(survey) = survey else {
        return 0; // a fixed image
    };
    let plan = CompactPlan::new(&survey, false);
    compact(device, &plan, &options, &()).unwrap().dropped_blocks
}

/// Rewrites the footers, and the header if there is one, with other time stamps and another creator.
fn retell(path: &Path) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    let mut bytes = [0; FOOTER_SIZE];
    file.read_exact_at(&mut bytes, len - 512).unwrap();
    let mut footer = Footer::decode(&bytes).unwrap();
    footer.timestamp = Timestamp(footer.timestamp.0 ^ 0x55);
    footer.creator_application = *b"else";
    file.write_all_at(&footer.encode(), len - 512).unwrap();
    let Some(offset) = footer.data_offset else { return };
    file.write_all_at(&footer.encode(), 0).unwrap();
    let mut bytes = [0; HEADER_SIZE];
    file.read_exact_at(&mut bytes, offset).unwrap();
    let mut header = DynamicHeader::decode(&bytes).unwrap();
    header.parent_timestamp = Timestamp(77);
    file.write_all_at(&header.encode(), offset).unwrap();
}

/// Makes holes in the file where it is zero, as `fallocate --dig-holes` does, in pieces of 4 KiB.
fn dig_holes(path: &Path) {
    let file = HostFile::open(path, Access::ReadWrite, Sharing::Exclusive).unwrap();
    let mut page = [0; 4096];
    let mut at = 0;
    while at + 4096 <= file.len().unwrap() {
        file.read_exact_at(&mut page, at).unwrap();
        if page.iter().all(|&byte| byte == 0) {
            file.punch_hole(at, 4096).unwrap();
        }
        at += 4096;
    }
}

#[test]
fn what_changes_no_content_raises_no_alarm() {
    let mut rng = seeded(0xA1A4, "no alarm");
    let mut dropped = 0;
    for _ in 0..10 {
        let dir = temp_dir();
        let (mut nodes, leaf) = tree(dir.path(), &mut rng);
        let below = ancestors(&nodes, leaf);
        let top = nodes[leaf].path.clone();
        for depth in 1..=below.len() {
            record_layer(&open(&top, false), depth, false).unwrap();
        }
        let unchanged = |what: &str| {
            let opened = open(&top, false);
            for depth in 1..=below.len() {
                let (report, found) = look(&opened, depth).unwrap();
                assert_eq!(
                    (report.verdict, found),
                    (Verdict::Unchanged, vec![]),
                    "{what}, depth {depth}"
                );
            }
        };
        unchanged("at once");
        write_session(&top, &mut nodes[leaf].content, &mut rng, 10);
        unchanged("a child written");
        for path in &below {
            open(path, true).close().unwrap();
            check(&HostFile::open(path, Access::ReadOnly, Sharing::Exclusive).unwrap()).unwrap();
        }
        unchanged("opened for writing, closed, checked");
        for path in &below {
            dig_holes(path);
        }
        unchanged("holes");
        for path in &below {
            dropped += compacted(path);
        }
        unchanged("compacted");
        for path in &below {
            retell(path);
        }
        unchanged("time stamps");
    }
    assert!(dropped > 4, "compaction dropped {dropped} blocks: it tested little");
    announce(&format!("verify: no alarm after compaction dropped {dropped} blocks"));
}

/// A base with bytes in its first block, a child with zeroes in the first two.
fn hiding_child(dir: &Path) -> (PathBuf, PathBuf) {
    let (base, child) = (dir.join("base.vhd"), dir.join("child.avhd"));
    create(&base, |file| create_dynamic(file, 8 * MIB, 2 * MIB));
    let opened = open(&base, true);
    opened.disk().write_at(&[7; 4096], 8192).unwrap();
    opened.close().unwrap();
    create_child(&child, &base, None, &OpenOptions::new()).unwrap();
    let opened = open(&child, true);
    opened.disk().write_at(&vec![0; 2 << 20], 0).unwrap();
    opened.disk().write_at(&vec![0; 64 << 10], 3 * MIB).unwrap();
    opened.close().unwrap();
    (base, child)
}

/// Takes a block out of the table.
fn forget_block(path: &Path, block: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut bytes = [0; HEADER_SIZE];
    file.read_exact_at(&mut bytes, 512).unwrap();
    let header = DynamicHeader::decode(&bytes).unwrap();
    file.write_all_at(&[0xFF; 4], header.table_offset + 4 * block).unwrap();
}

#[test]
fn zeroes_that_go_count_only_where_they_hid_something() {
    for (block, harmless) in [(0, false), (1, true)] {
        let dir = temp_dir();
        let (_, child) = hiding_child(dir.path());
        record_image(&child);
        assert_eq!(look_at(&child), (Verdict::Unchanged, vec![]));
        forget_block(&child, block);
        let expected = if harmless {
            (Verdict::Unchanged, vec![])
        } else {
            (Verdict::Changed, vec![block_of(block * DIGEST_BLOCK, 8 * MIB)])
        };
        assert_eq!(look_at(&child), expected, "block {block}");
    }
    // Zeroes that come are a change: they hide from now on whatever the parent has.
    let dir = temp_dir();
    let (_, child) = hiding_child(dir.path());
    record_image(&child);
    let opened = open(&child, true);
    opened.disk().write_at(&[0; 512], 5 * MIB).unwrap();
    opened.close().unwrap();
    assert_eq!(look_at(&child), (Verdict::Changed, vec![block_of(5 * MIB, 8 * MIB)]));
}

#[test]
fn a_base_reads_the_same_whatever_it_is_stored_in() {
    let dir = temp_dir();
    let (dynamic, fixed) = (dir.path().join("a.vhd"), dir.path().join("b.vhd"));
    create(&dynamic, |file| create_dynamic(file, SIZE, 512 << 10));
    create(&fixed, |file| create_fixed(file, SIZE, Preallocate::Full));
    let id = UniqueId([9; 16]);
    for path in [&dynamic, &fixed] {
        let opened = open(path, true);
        opened.disk().write_at(&[0; 65536], MIB).unwrap();
        opened.disk().write_at(b"something", 4 * MIB + 7).unwrap();
        opened.close().unwrap();
        rename_disk(path, id);
    }
    record_image(&dynamic);
    fs::copy(record_path(&dynamic), record_path(&fixed)).unwrap();
    assert_eq!(look_at(&fixed), (Verdict::Unchanged, vec![]));
}

/// Gives a disk another identity.
fn rename_disk(path: &Path, id: UniqueId) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    let mut bytes = [0; FOOTER_SIZE];
    file.read_exact_at(&mut bytes, len - 512).unwrap();
    let mut footer = Footer::decode(&bytes).unwrap();
    footer.unique_id = id;
    file.write_all_at(&footer.encode(), len - 512).unwrap();
    if footer.data_offset.is_some() {
        file.write_all_at(&footer.encode(), 0).unwrap();
    }
}

#[test]
fn raw_parents_have_records_too() {
    let dir = temp_dir();
    let (base, child) = (dir.path().join("base.raw"), dir.path().join("child.avhd"));
    fs::write(&base, vec![5; (3 << 20) + 100]).unwrap();
    let raw = OpenOptions::new()
        .format(Some(ImageFormat::Raw))
        .parents([base.clone()]);
    create_child(&child, &base, None, &raw).unwrap();
    let opened = OpenOptions::new().parents([base.clone()]).open(&child).unwrap();
    assert_eq!(look(&opened, 1).unwrap().0.verdict, Verdict::NoRecord);
    record_layer(&opened, 1, false).unwrap();
    assert_eq!(look(&opened, 1).unwrap().0.verdict, Verdict::Unchanged);
    let last = u64_from((3 << 20) + 99);
    fs::File::options()
        .write(true)
        .open(&base)
        .unwrap()
        .write_all_at(&[6], last)
        .unwrap();
    let size = opened.layers().nth(1).unwrap().layer.disk_size();
    assert_eq!(look(&opened, 1).unwrap().1, [block_of(last, size)]);
}

#[test]
fn records_that_can_not_be_used_are_told_from_changes() {
    let dir = temp_dir();
    let (a, b) = (dir.path().join("a.vhd"), dir.path().join("b.vhd"));
    for path in [&a, &b] {
        create(path, |file| create_dynamic(file, 8 * MIB, 2 * MIB));
        assert_eq!(look_at(path).0, Verdict::NoRecord);
        record_image(path);
    }
    assert_eq!(
        record_layer(&open(&a, false), 0, false).unwrap_err().kind(),
        ErrorKind::Exists
    );
    record_layer(&open(&a, false), 0, true).unwrap();
    let good = fs::read(record_path(&a)).unwrap();
    // The whole of it, byte by byte: an error or a change, never a success.
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x41;
        fs::write(record_path(&a), bytes).unwrap();
        let kind = error_of(&a);
        assert!(
            matches!(kind, ErrorKind::DigestDamaged | ErrorKind::RecordUnknown),
            "byte {at}: {kind:?}"
        );
    }
    for wrong in [&b""[..], b"short", &[0; 5000]] {
        fs::write(record_path(&a), wrong).unwrap();
        assert_eq!(error_of(&a), ErrorKind::DigestDamaged);
    }
    fs::copy(record_path(&b), record_path(&a)).unwrap();
    assert_eq!(error_of(&a), ErrorKind::DigestOtherDisk);
    fs::remove_file(record_path(&a)).unwrap();
    fs::create_dir(record_path(&a)).unwrap();
    assert_eq!(error_of(&a), ErrorKind::InvalidArgument);
    fs::remove_dir(record_path(&a)).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, record_path(&a), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    assert_eq!(error_of(&a), ErrorKind::InvalidArgument);
}

#[test]
fn a_disk_of_another_size_has_changed() {
    let dir = temp_dir();
    let (small, large) = (dir.path().join("small.vhd"), dir.path().join("large.vhd"));
    for (path, size) in [(&small, SIZE), (&large, SIZE + 9 * MIB)] {
        create(path, |file| create_dynamic(file, size, 2 * MIB));
        let opened = open(path, true);
        opened.disk().write_at(&[1; 512], MIB).unwrap();
        opened.close().unwrap();
        rename_disk(path, UniqueId([4; 16]));
        record_image(path);
    }
    let exchanged = dir.path().join("record");
    fs::rename(record_path(&small), &exchanged).unwrap();
    fs::rename(record_path(&large), record_path(&small)).unwrap();
    fs::rename(&exchanged, record_path(&large)).unwrap();
    for path in [&small, &large] {
        assert_eq!(look_at(path), (Verdict::Changed, vec![ByteRange::new(SIZE, 9 * MIB)]));
    }
}

#[test]
fn a_base_that_got_a_parent_has_changed() {
    let dir = temp_dir();
    let (base, child) = (dir.path().join("base.vhd"), dir.path().join("child.avhd"));
    create(&base, |file| create_dynamic(file, SIZE, 2 * MIB));
    create_child(&child, &base, None, &OpenOptions::new()).unwrap();
    let id = open(&base, false).chain().unwrap().leaf().unique_id();
    record_image(&base);
    // Both are empty: what they hold themselves is the same.
    rename_disk(&child, id);
    fs::rename(record_path(&base), record_path(&child)).unwrap();
    assert_eq!(look_at(&child), (Verdict::Changed, vec![ByteRange::new(0, SIZE)]));
}

#[test]
fn every_name_of_a_file_leads_to_one_record() {
    let dir = temp_dir();
    let (a, link) = (dir.path().join("a.vhd"), dir.path().join("link.vhd"));
    create(&a, |file| create_dynamic(file, 8 * MIB, 2 * MIB));
    std::os::unix::fs::symlink("a.vhd", &link).unwrap();
    record_image(&link);
    assert!(dir.path().join("a.vhd.digest").exists() && !dir.path().join("link.vhd.digest").exists());
    assert_eq!(look_at(&a).0, Verdict::Unchanged);
    assert_eq!(look_at(&link).0, Verdict::Unchanged);
}

#[test]
fn fast_trusts_length_and_time_and_nothing_else() {
    let dir = temp_dir();
    let path = dir.path().join("a.vhd");
    create(&path, |file| create_fixed(file, 8 * MIB, Preallocate::Full));
    record_image(&path);
    let fast = VerifyOptions {
        fast: true,
        ..options()
    };
    let presumed = || verify(&open(&path, false), 0, &fast, &(), &mut |_| {}).unwrap().verdict;
    assert_eq!(presumed(), Verdict::Presumed);
    let file = fs::File::options().write(true).open(&path).unwrap();
    let time = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(b"x", MIB).unwrap();
    file.set_modified(time).unwrap();
    // That is why it is an option: whoever sets the time back is believed.
    assert_eq!(presumed(), Verdict::Presumed);
    assert_eq!(look_at(&path).0, Verdict::Changed);
    file.set_modified(time + std::time::Duration::from_nanos(1_000_000))
        .unwrap();
    assert_eq!(presumed(), Verdict::Changed);
}

#[test]
fn threads_make_no_difference() {
    let mut rng = seeded(0x7412, "threads");
    let dir = temp_dir();
    let path = dir.path().join("a.vhd");
    create(&path, |file| create_dynamic(file, 300 * MIB, 512 << 10));
    let mut model = vec![0; 300 << 20];
    let opened = open(&path, true);
    for _ in 0..150 {
        random_operation(&opened.disk(), &mut model, &mut rng);
    }
    opened.close().unwrap();
    let mut runs = Vec::new();
    for threads in [1, 2, 3, 8] {
        let opened = open(&path, false);
        let options = VerifyOptions { threads, ..options() };
        record(opened.layers().next().unwrap(), threads > 1, &options, &()).unwrap();
        let bytes = fs::read(record_path(&path)).unwrap();
        // Between the time stamps and the digest of all.
        runs.push(bytes[68..bytes.len() - 32].to_vec());
    }
    assert!(runs.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn the_largest_disk_is_recorded_in_a_moment_while_it_is_sparse() {
    let dir = temp_dir();
    let (dynamic, fixed) = (dir.path().join("a.vhd"), dir.path().join("b.vhd"));
    let size = 2040 << 30;
    create(&dynamic, |file| create_dynamic(file, size, 2 * MIB));
    create(&fixed, |file| create_fixed(file, size, Preallocate::Off));
    for path in [&dynamic, &fixed] {
        let opened = open(path, true);
        for at in [0, 1 << 40, size - 512] {
            opened.disk().write_at(&[3; 512], at).unwrap();
        }
        opened.close().unwrap();
        let started = Instant::now();
        let report = record_image(path);
        assert!(report.record_bytes < 300, "{report:?}");
        assert_eq!(report.stored_bytes, 3 * DIGEST_BLOCK);
        assert_eq!(look_at(path), (Verdict::Unchanged, vec![]));
        let elapsed = started.elapsed();
        announce(&format!("verify: 2040 GiB recorded and verified in {elapsed:?}"));
        assert!(elapsed.as_secs() < 20, "{elapsed:?}");
    }
}

/// Does something when the operation is at so many bytes.
struct At<'a> {
    action: &'a (dyn Fn() + Sync),
}

impl Progress for At<'_> {
    fn begin(&self, _total: u64) {
        (self.action)();
    }

    fn advance(&self, _bytes: u64) {}
}

#[test]
fn a_file_that_is_written_to_meanwhile_is_not_recorded() {
    let dir = temp_dir();
    let path = dir.path().join("a.vhd");
    create(&path, |file| create_fixed(file, 8 * MIB, Preallocate::Full));
    let write = || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .write_all_at(b"x", MIB)
            .unwrap();
    };
    let opened = open(&path, false);
    let layer = opened.layers().next().unwrap();
    let error = record(layer, false, &options(), &At { action: &write }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ContentChanged, "{error}");
    assert!(!record_path(&path).exists());
}

#[test]
fn a_cancelled_recording_leaves_the_old_record() {
    let dir = temp_dir();
    let path = dir.path().join("a.vhd");
    create(&path, |file| create_fixed(file, 8 * MIB, Preallocate::Full));
    record_image(&path);
    let before = fs::read(record_path(&path)).unwrap();
    let cancel = AtomicBool::new(false);
    let options = VerifyOptions {
        cancel: &cancel,
        ..options()
    };
    let stop = || cancel.store(true, Ordering::Relaxed);
    let opened = open(&path, false);
    let layer = opened.layers().next().unwrap();
    let error = record(layer, true, &options, &At { action: &stop }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let error = verify(&opened, 0, &options, &(), &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(fs::read(record_path(&path)).unwrap(), before);
    assert_eq!(dir.path().read_dir().unwrap().count(), 2);
}

/// The whole disk of a leaf is as its ancestors' records promise.
#[test]
fn a_chain_reads_as_it_did_while_all_is_unchanged() {
    let mut rng = seeded(0xF1A7, "flat");
    let dir = temp_dir();
    let (nodes, leaf) = tree(dir.path(), &mut rng);
    let top = &nodes[leaf].path;
    let flat = |path: &Path| common::disk::read_all(&open(path, false).disk());
    let before = flat(top);
    for depth in 0..nodes[leaf].chain.len() {
        record_layer(&open(top, false), depth, false).unwrap();
    }
    for path in ancestors(&nodes, leaf) {
        compacted(&path);
    }
    for depth in 0..nodes[leaf].chain.len() {
        assert_eq!(look(&open(top, false), depth).unwrap().0.verdict, Verdict::Unchanged);
    }
    assert!(flat(top) == before);
}
