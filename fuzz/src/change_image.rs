//! Any bytes as an image that is changed: repaired, compacted, resized, merged into. Its content is kept, or the change is
//! refused.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use vhd_core::chain::{OpenOptions, create_child};
use vhd_core::check::{Severity, check};
use vhd_core::device::{Disk, Layer, LayeredDevice};
use vhd_core::image::{Image, OpenMode};
use vhd_core::ops::compact::{CompactOptions, CompactPlan, Survey, compact};
use vhd_core::ops::merge::{MergeOptions, MergeRequest, merge, plan};
use vhd_core::ops::repair::{Facts, Journal, RepairPlan};
use vhd_core::ops::resize::resize_file;
use vhd_core::storage::{MemoryFile, StorageFile};

use super::lab::{self, Lab};

static GO_ON: AtomicBool = AtomicBool::new(false);
/// Bytes of a disk that are compared; larger ones are compared so far.
const LOOK: u64 = 1 << 20;

/// The first byte says what is done, the second how; the rest is the image.
pub fn change_image(input: &[u8]) {
    let [what, how, image @ ..] = input else {
        return;
    };
    match what % 4 {
        0 => repair(image),
        1 => compacting(image),
        2 => resize(image, *how),
        _ => merging(image, *how),
    }
}

fn device(file: Arc<MemoryFile>, mode: &OpenMode) -> Option<LayeredDevice> {
    let image = Image::open(file, mode).ok()?;
    let parent = image
        .is_differencing()
        .then(|| Layer::raw(Arc::new(MemoryFile::from_bytes(vec![0xA7; 1 << 16]))).expect("memory has a length"));
    Some(LayeredDevice::new(image, parent.into_iter().collect()))
}

/// What the image reads; `None` if it does not open.
fn content(file: &Arc<MemoryFile>) -> Option<Vec<u8>> {
    let disk = Disk::new(Arc::new(device(Arc::clone(file), &OpenMode::read_only())?));
    let mut bytes = vec![0; usize::try_from(disk.size().min(LOOK)).expect("LOOK fits")];
    disk.read_at(&mut bytes, 0).expect("what opens can be read");
    Some(bytes)
}

fn repair(bytes: &[u8]) {
    let file = lab::memory(bytes);
    let before = content(&Arc::new(file.duplicate()));
    let Ok(plan) = RepairPlan::new(Arc::clone(&file) as Arc<dyn StorageFile>, &Facts::default()) else {
        return;
    };
    assert!(file.to_vec() == bytes, "planning changes nothing");
    let journal = Journal::decode(&plan.journal().encode()).expect("it was just made");
    journal.apply(&*file).expect("memory can be written");
    let report = check(&*file).expect("memory can be read");
    assert!(report.worst().is_none_or(|worst| worst <= Severity::Leak), "{report:?}");
    let after = content(&file).expect("what is repaired opens");
    let doubted = |at: usize| {
        let at = at as u64;
        let mut doubts = plan.doubts().iter();
        doubts.any(|doubt| doubt.range.start <= at && at < doubt.range.end())
    };
    if let Some(before) = before {
        assert_eq!(before.len(), after.len(), "the size of the disk");
        let differ = before.iter().zip(&after).position(|(a, b)| a != b);
        let all_doubted = || {
            before
                .iter()
                .zip(&after)
                .enumerate()
                .all(|(at, (a, b))| a == b || doubted(at))
        };
        assert!(
            differ.is_none() || all_doubted(),
            "it reads something else, which is not in doubt: {plan:?}"
        );
    }
    let second = RepairPlan::new(Arc::new(file.duplicate()), &Facts::default()).expect("it is sound");
    assert!(second.is_empty(), "{:?}", second.findings());
    journal.undo(&*file).expect("memory can be written");
    assert!(file.to_vec() == bytes, "undone");
}

fn compacting(bytes: &[u8]) {
    let file = lab::memory(bytes);
    let Some(before) = content(&Arc::new(file.duplicate())) else {
        return;
    };
    let options = CompactOptions {
        free: &(),
        cancel: &GO_ON,
        threads: 1,
        batch_bytes: 1 << 20,
    };
    let Some(device) = device(Arc::clone(&file), &OpenMode::read_write()) else {
        return;
    };
    if let Ok(survey) = Survey::new(&device, &options, &()) {
        let plan = CompactPlan::new(&survey, false);
        let _ = compact(device, &plan, &options, &());
    }
    assert!(content(&file).as_ref() == Some(&before), "it reads something else");
}

fn resize(bytes: &[u8], how: u8) {
    let file = lab::memory(bytes);
    let Some(before) = content(&Arc::new(file.duplicate())) else {
        return;
    };
    let Ok(image) = Image::open(Arc::new(file.duplicate()), &OpenMode::read_only()) else {
        return;
    };
    let size = image.disk_size();
    let change = u64::from(how / 2) * 512 * 37;
    let new = if how.is_multiple_of(2) {
        size + change
    } else {
        size.saturating_sub(change)
    };
    drop(image);
    let storage = Arc::clone(&file) as Arc<dyn StorageFile>;
    let resized = resize_file(&storage, None, new);
    let Some(after) = content(&file) else {
        // A fixed image has a moment without a footer, but not at the end of a resize.
        assert!(resized.is_err(), "what was resized opens");
        return;
    };
    let common = before.len().min(after.len());
    assert!(before[..common] == after[..common], "it reads something else");
}

/// A child of the image goes into it.
fn merging(bytes: &[u8], how: u8) {
    let lab = Lab::new();
    let (target, child) = (lab.path("target.vhd"), lab.path("above.avhd"));
    lab.put("target.vhd", bytes);
    let options = OpenOptions::new();
    if create_child(&child, &target, Some(512 << 10), &options).is_err() {
        return;
    }
    let Ok(opened) = options.clone().write(true).open(&child) else {
        return;
    };
    let disk = opened.disk();
    let at = u64::from(how) * 512 % disk.size();
    let written = disk.write_at(
        &[how; 512][..512.min(usize::try_from(disk.size() - at).unwrap_or(512))],
        at,
    );
    drop(disk);
    if written.and_then(|()| opened.close()).is_err() {
        return;
    }
    let expected = lab::content_of(&child).expect("it was just written");
    let merging = MergeOptions {
        cancel: &GO_ON,
        threads: 1,
        batch_bytes: 1 << 20,
    };
    let merged = plan(&MergeRequest::new(&child)).and_then(|plan| merge(&plan, &merging, &()));
    let left = if child.exists() { &child } else { &target };
    let content = lab::content_of(left);
    assert!(merged.is_err() || left == &target, "the child is gone");
    assert!(
        content.as_ref() == Some(&expected),
        "it reads something else: {merged:?}"
    );
}
