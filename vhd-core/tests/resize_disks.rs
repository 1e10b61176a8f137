//! Resizing files: whole trees, fixed images, partition tables, what other programs read, a full file system. Test
//! names cite the invariants of docs/resize.md.

mod common;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::build::{Parent, Sparse, fixed, id};
use common::disk::{assert_reads, assert_same, create, open, read_all, write_session};
use common::rng::{chance, random_bytes, seeded};
use common::tools::{have, qemu_convert, qemu_reads, run, seven_zip_reads};
use common::tree::{Node, random_tree};
use vhd_core::ErrorKind;
use vhd_core::chain::{OpenOptions, create_child};
use vhd_core::check::{Severity, check};
use vhd_core::image::{Footers, Image, OpenError, OpenMode, Preallocate, create_dynamic, create_fixed};
use vhd_core::ops::Progress;
use vhd_core::ops::resize::{Request, Resize, ResizeError, ResizeReport, TailUse, resize_file};
use vhd_core::storage::{Access, HostFile, MemoryFile, Sharing, StorageFile};
use vhd_core::units::{u64_from, usize_from};
use vhd_testkit::{CrashFile, CrashLimits, CrashSnapshot};

const MIB: u64 = 1 << 20;

/// What is asked for besides image and size.
#[derive(Clone, Copy, Default)]
struct Ask {
    shrink: bool,
    tree: bool,
    fix_gpt: bool,
}

const TREE: Ask = Ask {
    shrink: false,
    tree: true,
    fix_gpt: false,
};
const SHRINK: Ask = Ask {
    shrink: true,
    tree: false,
    fix_gpt: false,
};
const SHRINK_TREE: Ask = Ask { tree: true, ..SHRINK };
const FIX_GPT: Ask = Ask {
    shrink: false,
    tree: false,
    fix_gpt: true,
};

fn prepare(image: &Path, size: u64, ask: Ask) -> Result<Resize, ResizeError> {
    let request = Request {
        image,
        size,
        shrink: ask.shrink,
        tree: ask.tree,
        fix_gpt: ask.fix_gpt,
        options: &OpenOptions::new(),
        cancel: &AtomicBool::new(false),
    };
    Resize::prepare(&request, true)
}

fn resize(image: &Path, size: u64, ask: Ask) -> Result<ResizeReport, ResizeError> {
    prepare(image, size, ask)?.run(&())
}

fn clean(path: &Path) {
    let report = check(&HostFile::open(path, Access::ReadOnly, Sharing::Exclusive).unwrap());
    let bad = |finding: &&vhd_core::check::Finding| finding.severity == Severity::Corrupt;
    assert_eq!(report.unwrap().findings.iter().find(bad), None, "{}", path.display());
}

fn grown(content: &[u8], size: u64) -> Vec<u8> {
    let mut content = content.to_vec();
    content.resize(usize_from(size), 0);
    content
}

/// The size that qemu shows.
fn qemu_size(image: &Path) -> u64 {
    let shown = run(
        "qemu-img",
        ["info", "-f", "vpc", "--output=json", image.to_str().unwrap()],
    );
    let text = String::from_utf8(shown).unwrap();
    let at = text.rfind("\"virtual-size\":").unwrap();
    let digits = text[at + 15..].trim_start().chars().take_while(char::is_ascii_digit);
    digits.collect::<String>().parse().unwrap()
}

#[test]
fn other_programs_read_the_same_before_and_after() {
    if !have(&["7zz", "qemu-img"], "what other programs read of resized images") {
        return;
    }
    let dir = common::temp_dir();
    let mut rng = seeded(0x7E, "peers");
    for round in 0..8_u64 {
        let path = dir.path().join(format!("{round}.vhd"));
        let size = 5 * MIB + 512 * rng.u64(0..2000);
        match round % 4 {
            0 => create(&path, |file| create_fixed(file, size, Preallocate::Off)),
            3 => {
                // Its sizes go by the geometry.
                let raw = dir.path().join("empty.raw");
                fs::write(&raw, vec![0; usize_from(8 * MIB)]).unwrap();
                qemu_convert(&raw, "raw", &path, "vpc", &[]);
            }
            _ => create(&path, |file| create_dynamic(file, size, 512 << 10)),
        }
        let mut content = read_all(&open(&path, false).disk());
        write_session(&path, &mut content, &mut rng, 12);
        let size = u64_from(content.len());
        assert_same(&seven_zip_reads(&path), &content, "before");
        for (size, ask) in [
            (size + 512, Ask::default()),
            (size + 70 * MIB + 1024, Ask::default()),
            (size + 1536, SHRINK),
        ] {
            resize(&path, size, ask).unwrap();
            let expected = grown(&content, size);
            assert_reads(&path, &expected);
            clean(&path);
            assert_same(&seven_zip_reads(&path), &expected, "7zz");
            assert_eq!(qemu_size(&path), size, "round {round}");
            assert_same(&qemu_reads(&path), &expected, "qemu");
        }
    }
}

/// Why a leaf is not resized without its parents: a child that is larger is refused by the best other reader.
#[test]
fn a_child_larger_than_its_parent_is_not_read_by_others() {
    if !have(&["7zz"], "children larger than their parents") {
        return;
    }
    let dir = common::temp_dir();
    let parent = dir.path().join("parent.vhd");
    fs::write(&parent, fixed(&[1; 64 << 10], id(1))).unwrap();
    for (name, size, is_read) in [("same.vhd", 64 << 10, true), ("larger.vhd", 128 << 10, false)] {
        let child = dir.path().join(name);
        let image = Sparse::child(size, 16 << 10, id(2), Parent::named(id(1), "parent.vhd"));
        fs::write(&child, image.lay().bytes).unwrap();
        let read = std::process::Command::new("7zz")
            .args(["x", "-tvhd", "-so"])
            .arg(&child)
            .output()
            .unwrap();
        assert_eq!(read.status.success(), is_read, "{name}");
    }
    let child = dir.path().join("same.vhd");
    for (path, kind) in [(&child, ErrorKind::TiedSizes), (&parent, ErrorKind::HasChildren)] {
        let before = fs::read(path).unwrap();
        let error = resize(path, 128 << 10, Ask::default()).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert_same(&fs::read(path).unwrap(), &before, "refused");
    }
}

fn check_tree(nodes: &[Node], size: u64) {
    for node in nodes {
        assert_reads(&node.path, &grown(&node.content, size));
        clean(&node.path);
        let opened = open(&node.path, false);
        assert_eq!(opened.warnings(), [], "{}", node.path.display());
    }
}

fn no_records(dir: &Path) {
    let mut names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.all(|name| !name.to_str().unwrap().ends_with(".resize")));
}

#[test]
fn trees_grow_and_shrink_together() {
    let sevenzip = have(&["7zz"], "resized trees");
    let mut rng = seeded(0x7E3, "trees");
    for round in 0..6 {
        let dir = common::temp_dir();
        let nodes = random_tree(dir.path(), &mut rng, 2 + round);
        let old = u64_from(nodes[0].content.len());
        let size = old + MIB * rng.u64(1..40);
        let image = &nodes[rng.usize(..nodes.len())].path;
        let report = resize(image, size, TREE).unwrap();
        assert_eq!(report.plan.files.len(), nodes.len());
        check_tree(&nodes, size);
        for node in nodes.iter().filter(|_| sevenzip) {
            assert_same(&seven_zip_reads(&node.path), &grown(&node.content, size), "7zz");
        }
        let less = old + 512 * rng.u64(0..9);
        let image = &nodes[rng.usize(..nodes.len())].path;
        assert_eq!(
            resize(image, less, TREE).unwrap_err().kind(),
            ErrorKind::InvalidArgument
        );
        resize(image, less, SHRINK_TREE).unwrap();
        check_tree(&nodes, less);
        no_records(dir.path());
    }
}

/// The size that an image says of its own disk.
fn own_size(path: &Path) -> u64 {
    let file = HostFile::open(path, Access::ReadOnly, Sharing::Exclusive).unwrap();
    Footers::read(&file).unwrap().footer.current_size
}

/// Panics when a number of files is done, as a crash between two files.
struct CrashAfter(AtomicUsize);

impl CrashAfter {
    fn files(count: usize) -> Self {
        Self(AtomicUsize::new(count))
    }
}

impl Progress for CrashAfter {
    fn begin(&self, _total: u64) {
        assert_ne!(self.0.load(Ordering::Relaxed), 0, "crash");
    }

    fn advance(&self, _bytes: u64) {
        assert_ne!(self.0.fetch_sub(1, Ordering::Relaxed), 1, "crash");
    }
}

fn crash_after(image: &Path, size: u64, ask: Ask, files: usize) {
    let resize = prepare(image, size, ask).unwrap();
    let result = catch_unwind(AssertUnwindSafe(|| resize.run(&CrashAfter::files(files))));
    assert!(result.is_err());
}

#[test]
fn inv_28_a_tree_goes_on_after_a_crash_between_any_two_files() {
    let mut rng = seeded(0x28, "tree crashes");
    for round in 0..4 {
        let dir = common::temp_dir();
        let nodes = random_tree(dir.path(), &mut rng, 3 + round % 2);
        let mut size = u64_from(nodes[0].content.len());
        for files in 0..=nodes.len() {
            for grows in [true, false] {
                let (before, ask) = (size, if grows { TREE } else { SHRINK_TREE });
                size = if grows { size + 4 * MIB } else { size - 3 * MIB };
                let image = nodes[rng.usize(..nodes.len())].path.clone();
                crash_after(&image, size, ask, files);
                for node in &nodes {
                    // Each disk reads as with the old or the new size, over parents of either.
                    let read = read_all(&open(&node.path, false).disk());
                    assert!([before, size].contains(&u64_from(read.len())));
                    assert_same(&read, &grown(&node.content, u64_from(read.len())), "between");
                    clean(&node.path);
                }
                for node in &nodes {
                    let sizes = node.chain.iter().map(|&index| own_size(&nodes[index].path));
                    assert!(sizes.is_sorted(), "a child is larger than its parent");
                }
                let error = resize(&image, size + MIB, TREE).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ResizeUnfinished, "{error}");
                let report = resize(&nodes[rng.usize(..nodes.len())].path, size, ask).unwrap();
                assert!(report.plan.resumed);
                check_tree(&nodes, size);
                no_records(dir.path());
            }
        }
        // Work goes on: the leaf is writable again.
        let last = &nodes[nodes.len() - 1];
        write_session(&last.path, &mut grown(&last.content, size), &mut rng, 5);
    }
}

fn fixed_image(dir: &Path, content: &[u8]) -> PathBuf {
    let path = dir.join("fixed.vhd");
    fs::write(&path, fixed(content, id(1))).unwrap();
    path
}

#[test]
fn inv_28_a_fixed_image_without_its_footer_says_how_to_go_on() {
    let mut rng = seeded(0x281, "fixed");
    let dir = common::temp_dir();
    let content = random_bytes(&mut rng, 40 << 10);
    let path = fixed_image(dir.path(), &content);
    let child = dir.path().join("child.vhd");
    create_child(&child, &path, Some(512 << 10), &OpenOptions::new()).unwrap();
    for (round, image) in [&path, &child].into_iter().enumerate() {
        let size = (64 << 10) * (1 + u64_from(round));
        crash_after(image, size, TREE, 1);
        // As if length and footer had not reached the disk both.
        let lost = fs::OpenOptions::new().write(true).open(&path).unwrap();
        lost.write_all_at(&[0; 512], size).unwrap();
        for image in [&path, &child] {
            let error = OpenOptions::new().open(image).unwrap_err();
            assert!(
                error
                    .to_string()
                    .contains(&format!("vhd resize {} {size}", path.display())),
                "{error}"
            );
        }
        assert_eq!(
            OpenOptions::new().open(&path).unwrap_err().kind(),
            ErrorKind::ResizeUnfinished
        );
        resize(image, size, TREE).unwrap();
        assert_reads(&path, &grown(&content, size));
        assert_reads(&child, &grown(&content, size));
        no_records(dir.path());
    }
}

/// A fixed image on a file that loses power: whole with the old or the new size, or without a footer and a record
/// covers it; and always it is finished from the footer in the record.
#[test]
fn inv_28_power_fails_while_fixed_images_grow_and_shrink() {
    let mut rng = seeded(0x282, "fixed crashes");
    let (mut states, mut without) = (0_u64, 0_u64);
    for round in 0..60 {
        let sectors = rng.usize(1..20);
        let content = random_bytes(&mut rng, 512 * sectors);
        let old = u64_from(content.len());
        let grows = round % 2 == 0;
        let other = old + 512 * rng.u64(1..20);
        let (from, to) = if grows { (old, other) } else { (other, old) };
        let mut image = fixed(&grown(&content, from), id(1));
        if chance(&mut rng, 20) {
            image.pop();
        }
        let former = Footers::read(&MemoryFile::from_bytes(image.clone())).unwrap().raw;
        let file = CrashFile::from_bytes(&image);
        let counts = Arc::new(std::sync::Mutex::new((0_u64, 0_u64)));
        let (seen, expected) = (Arc::clone(&counts), content.clone());
        file.set_observer(Some(Box::new(move |snapshot: &CrashSnapshot| {
            for state in snapshot.crash_states(&CrashLimits::default()) {
                let crashed: Arc<dyn StorageFile> = Arc::new(state.file());
                let mut seen = seen.lock().unwrap();
                seen.0 += 1;
                match Footers::read(&*crashed) {
                    Ok(footers) => assert!([from, to].contains(&footers.footer.current_size)),
                    Err(OpenError::NoFooter { .. }) if grows => seen.1 += 1,
                    Err(error) => panic!("{error:?}: {state}"),
                }
                let mut read = vec![0; expected.len()];
                crashed.read_exact_at(&mut read, 0).unwrap();
                assert_same(&read, &expected, &state.to_string());
                resize_file(&crashed, Some(&former), to).unwrap();
                assert_fixed(&crashed, &grown(&expected, to));
            }
        })));
        let storage: Arc<dyn StorageFile> = Arc::new(file.clone());
        resize_file(&storage, None, to).unwrap();
        file.set_observer(None);
        assert_fixed(&storage, &grown(&content, to));
        let (more, more_without) = *counts.lock().unwrap();
        (states, without) = (states + more, without + more_without);
    }
    common::announce(&format!(
        "fixed images: {states} crash states, {without} of them without a footer"
    ));
    assert!(without > 0);
}

fn assert_fixed(file: &Arc<dyn StorageFile>, content: &[u8]) {
    let mut bytes = vec![0; usize_from(file.len().unwrap())];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes.len(), content.len() + 512);
    assert_same(&bytes[..content.len()], content, "fixed");
    let footer = Footers::read(&**file).unwrap().footer;
    assert_eq!(footer.current_size, u64_from(content.len()));
}

#[test]
fn inv_27_what_is_in_use_is_not_cut_off() {
    let mut rng = seeded(0x271, "in use");
    let dir = common::temp_dir();
    let base = dir.path().join("base.vhd");
    create(&base, |file| create_dynamic(file, 8 * MIB, 512 << 10));
    let write = |path: &Path, byte: u8, at: u64| {
        let opened = open(path, true);
        opened.disk().write_at(&[byte; 512], at).unwrap();
        opened.close().unwrap();
    };
    write(&base, 1, 6 * MIB);
    write(&base, 2, 7 * MIB + 512);
    let Err(ResizeError::TailInUse { uses, .. }) = resize(&base, 6 * MIB + 512, SHRINK) else {
        panic!("what is in use was cut off");
    };
    assert_eq!(uses.len(), 1);
    assert!(matches!(&uses[0], TailUse::Data(range) if range.start == 7 * MIB + 512 && range.len == 512));
    // A child hides it, but the parent's own disk would lose it.
    let child = dir.path().join("child.vhd");
    create_child(&child, &base, Some(512 << 10), &OpenOptions::new()).unwrap();
    write(&child, 0, 7 * MIB + 512);
    let before = [fs::read(&base).unwrap(), fs::read(&child).unwrap()];
    assert_eq!(
        resize(&child, 7 * MIB, SHRINK_TREE).unwrap_err().kind(),
        ErrorKind::TailInUse
    );
    assert_same(&fs::read(&base).unwrap(), &before[0], "base");
    assert_same(&fs::read(&child).unwrap(), &before[1], "child");
    fs::remove_file(&child).unwrap();
    write(&base, 0, 7 * MIB + 512);
    resize(&base, 6 * MIB + 512, SHRINK).unwrap();
    // A fixed image that was cut half-way has its new footer in what goes: the same command goes on.
    let content = random_bytes(&mut rng, 8 << 10);
    let path = fixed_image(dir.path(), &grown(&content, 32 << 10));
    let whole = fs::read(&path).unwrap();
    resize(&path, 8 << 10, SHRINK).unwrap();
    let cut = fs::read(&path).unwrap();
    let mut half = whole.clone();
    half[8 << 10..(8 << 10) + 512].copy_from_slice(&cut[8 << 10..]);
    fs::write(&path, &half).unwrap();
    assert_eq!(resize(&path, 4 << 10, SHRINK).unwrap_err().kind(), ErrorKind::TailInUse);
    assert_eq!(
        resize(&path, 16 << 10, SHRINK).map(|report| report.plan.size).unwrap(),
        16 << 10
    );
    fs::write(&path, &half).unwrap();
    resize(&path, 8 << 10, SHRINK).unwrap();
    assert_same(&fs::read(&path).unwrap(), &cut, "finished");
}

/// A raw disk with a GPT and one partition up to `end` MiB.
fn gpt_disk(dir: &Path, mib: u64, end: u64) -> (PathBuf, Vec<u8>) {
    let raw = dir.join("gpt.raw");
    fs::write(&raw, vec![0; usize_from(mib * MIB)]).unwrap();
    let partition = format!("--new=1:2048:{}", end * 2048 - 1);
    run(
        "sgdisk",
        [
            "--clear",
            &partition,
            "--typecode=1:8300",
            "--change-name=1:data",
            raw.to_str().unwrap(),
        ],
    );
    let path = dir.join("gpt.vhd");
    let mut content = fs::read(&raw).unwrap();
    create(&path, |file| create_dynamic(file, mib * MIB, 512 << 10));
    let opened = open(&path, true);
    content[usize_from(2 * MIB)..usize_from(2 * MIB) + 4096].fill(7);
    opened.disk().write_at(&content, 0).unwrap();
    opened.close().unwrap();
    (path, content)
}

/// Both tools find nothing wrong, and what is in the partition is there.
fn verify_gpt(path: &Path, content: &[u8], partition_end: u64) {
    let raw = path.with_extension("check.raw");
    let read = read_all(&open(path, false).disk());
    fs::write(&raw, &read).unwrap();
    let said = String::from_utf8(run("sgdisk", ["-v", raw.to_str().unwrap()])).unwrap();
    assert!(said.contains("No problems found"), "{said}");
    run("sfdisk", ["--verify", raw.to_str().unwrap()]);
    let inside = usize_from(MIB)..usize_from(partition_end * MIB);
    assert_same(&read[inside.clone()], &content[inside], "partition");
}

#[test]
fn partition_tables_follow_the_end_of_the_disk() {
    if !have(&["sgdisk", "sfdisk"], "moved partition tables") {
        return;
    }
    let dir = common::temp_dir();
    let (path, content) = gpt_disk(dir.path(), 16, 8);
    resize(&path, 40 * MIB, Ask::default()).unwrap();
    assert!(prepare(&path, 40 * MIB, Ask::default()).unwrap().plan().gpt_misplaced);
    assert!(resize(&path, 40 * MIB, FIX_GPT).unwrap().gpt_moved);
    verify_gpt(&path, &content, 8);
    assert!(!resize(&path, 40 * MIB, FIX_GPT).unwrap().gpt_moved);
    assert!(resize(&path, 40 * MIB + 512, FIX_GPT).unwrap().gpt_moved);
    verify_gpt(&path, &content, 8);
    let Err(ResizeError::TailInUse { uses, .. }) = resize(&path, 9 * MIB, SHRINK) else {
        panic!("the backup of the table was cut off");
    };
    assert!(matches!(uses[0], TailUse::GptBackup(_)), "{uses:?}");
    let both = Ask {
        fix_gpt: true,
        ..SHRINK
    };
    for size in [7 * MIB, 8 * MIB] {
        let before = read_all(&open(&path, false).disk());
        let error = resize(&path, size, both).unwrap_err();
        let wanted = [ErrorKind::TailInUse, ErrorKind::PartitionTable];
        assert!(wanted.contains(&error.kind()), "{error}");
        assert_reads(&path, &before);
    }
    for size in [40 * MIB, 9 * MIB, 9 * MIB - 512, 8 * MIB + 33 * 512] {
        assert!(resize(&path, size, both).unwrap().gpt_moved);
        verify_gpt(&path, &content, 8);
        clean(&path);
    }
    // In a tree the leaf that was asked for is written, and no image that others are based on.
    let child = dir.path().join("child.vhd");
    create_child(&child, &path, Some(512 << 10), &OpenOptions::new()).unwrap();
    let whole = Ask { tree: true, ..FIX_GPT };
    assert_eq!(
        resize(&path, 64 * MIB, whole).unwrap_err().kind(),
        ErrorKind::HasChildren
    );
    let parent = read_all(&open(&path, false).disk());
    assert!(resize(&child, 64 * MIB, whole).unwrap().gpt_moved);
    verify_gpt(&child, &content, 8);
    assert_reads(&path, &grown(&parent, 64 * MIB));
    let all = Ask { shrink: true, ..whole };
    assert_eq!(
        resize(&child, 32 * MIB, all).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
}

/// The backup's header says that its entries are those of the first table: clearing the old backup would clear them.
#[test]
fn inv_44_a_backup_that_names_the_first_tables_entries_is_not_moved() {
    if !have(&["sgdisk"], "a hostile partition table") {
        return;
    }
    let dir = common::temp_dir();
    let (path, mut content) = gpt_disk(dir.path(), 16, 8);
    let header = content.len() - 512;
    content[header + 72..header + 80].copy_from_slice(&2_u64.to_le_bytes());
    content[header + 16..header + 20].fill(0);
    let sum = crc32fast::hash(&content[header..header + 92]);
    content[header + 16..header + 20].copy_from_slice(&sum.to_le_bytes());
    let opened = open(&path, true);
    opened.disk().write_at(&content, 0).unwrap();
    opened.close().unwrap();
    for (size, ask) in [
        (40 * MIB, FIX_GPT),
        (16 * MIB, FIX_GPT),
        (
            12 * MIB,
            Ask {
                fix_gpt: true,
                ..SHRINK
            },
        ),
    ] {
        let error = resize(&path, size, ask).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PartitionTable, "{size}: {error}");
        assert_reads(&path, &content);
    }
    resize(&path, 40 * MIB, Ask::default()).unwrap();
    assert_reads(&path, &grown(&content, 40 * MIB));
}

#[test]
fn inv_26_damaged_images_are_refused_untouched() {
    let mut rng = seeded(0x266, "damage");
    let image = Sparse::new(6 * 4096 - 1536, 4096).fill_randomly(&mut rng, 70);
    let laid = image.lay();
    let flat = image.flat(&[]);
    let metadata = (0..laid.table + 512).chain(laid.tail..laid.bytes.len());
    let (mut refused, mut resized) = (0, 0);
    for at in metadata {
        for flip in [0x01, 0x80, 0xFF] {
            let mut bytes = laid.bytes.clone();
            bytes[at] ^= flip;
            let file: Arc<dyn StorageFile> = Arc::new(MemoryFile::from_bytes(bytes.clone()));
            let opens = Image::open(Arc::clone(&file), &OpenMode::read_only());
            let before = opens.map(|image| read_all(&common::disk::disk_of(image, Vec::new())));
            let result = resize_file(&file, None, 70 << 10);
            match (before, result) {
                (Err(_), Ok(())) => panic!("byte {at} ^ {flip:#x}: resized without being opened"),
                (Err(_), Err(_)) => {
                    let mut after = vec![0; bytes.len()];
                    file.read_exact_at(&mut after, 0).unwrap();
                    assert_same(&after, &bytes, "refused");
                    refused += 1;
                }
                (Ok(before), Ok(())) => {
                    let image = Image::open(file, &OpenMode::read_only()).unwrap();
                    let read = read_all(&common::disk::disk_of(image, Vec::new()));
                    assert_same(&read, &grown(&before, 70 << 10), &format!("byte {at} ^ {flip:#x}"));
                    resized += 1;
                }
                (Ok(_), Err(error)) => panic!("byte {at} ^ {flip:#x}: {error:?}"),
            }
        }
    }
    assert!(refused > 100 && resized > 100, "{refused} {resized}, {}", flat.len());
}

/// A file system of so many KiB, unmounted when dropped; `None` without the right to mount.
struct SmallMount {
    dir: tempfile::TempDir,
}

impl SmallMount {
    fn new(kib: u64) -> Option<Self> {
        let dir = common::temp_dir();
        let options = format!("size={kib}k,nr_inodes=1000");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(dir.path())
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            common::announce("NOT TESTED: a full file system: no right to mount one");
            return None;
        }
        Some(Self { dir })
    }

    /// Leaves so many KiB.
    fn fill(&self, free_kib: u64) {
        let free = rustix::fs::statvfs(self.dir.path()).unwrap();
        let bytes = (free.f_bavail * free.f_bsize).saturating_sub(free_kib << 10);
        fs::write(self.dir.path().join("filler"), vec![1; usize_from(bytes)]).unwrap();
    }

    fn empty(&self) {
        fs::remove_file(self.dir.path().join("filler")).unwrap();
    }
}

impl Drop for SmallMount {
    fn drop(&mut self) {
        std::process::Command::new("umount").arg(self.dir.path()).status().ok();
    }
}

#[test]
fn a_full_file_system_leaves_everything_as_it_was() {
    let Some(mount) = SmallMount::new(64 << 10) else { return };
    let mut rng = seeded(0xF0, "full");
    let (mut failed, mut done) = (0, 0);
    for round in 0..60_u64 {
        let dir = mount.dir.path().join(round.to_string());
        fs::create_dir(&dir).unwrap();
        let nodes = random_tree(&dir, &mut rng, 3);
        let old = u64_from(nodes[0].content.len());
        let size = old + 2048 * MIB + 512;
        mount.fill(rng.u64(0..40) * 64);
        match resize(&nodes[2].path, size, TREE) {
            Ok(_) => done += 1,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
                check_tree(&nodes, old);
                no_records(&dir);
                failed += 1;
                mount.empty();
                mount.fill(16 << 10);
                resize(&nodes[2].path, size, TREE).unwrap();
            }
        }
        for node in &nodes {
            let opened = open(&node.path, false);
            let mut read = vec![0; node.content.len()];
            opened.disk().read_at(&mut read, 0).unwrap();
            assert_same(&read, &node.content, "content");
            assert_eq!(opened.disk().size(), size);
        }
        no_records(&dir);
        fs::remove_dir_all(&dir).unwrap();
        mount.empty();
    }
    assert!(failed > 5 && done > 5, "{failed} failed, {done} done");
}
