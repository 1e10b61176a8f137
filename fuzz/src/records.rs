//! Any record with a right digest beside an image, and the job that goes by it.

use std::sync::atomic::AtomicBool;

use sha2::{Digest as _, Sha256};
use vhd_core::chain::OpenOptions;
use vhd_core::ops::merge::{MergeOptions, MergeRequest, merge, plan};
use vhd_core::ops::new_id::{NewId, NewIdOptions};
use vhd_core::ops::repair::{Journal, JournalState};
use vhd_core::ops::resize::{Request, Resize};
use vhd_core::ops::verify::{VerifyOptions, record_path, verify};
use vhd_core::record::RecordKind;
use vhd_core::snapshot::{SnapshotTree, Work, survey};

use super::lab::{self, Lab};

static GO_ON: AtomicBool = AtomicBool::new(false);

/// The first byte says which record the rest is the content of. The job refuses it, or does what it says without losing
/// what an image reads.
pub fn records(input: &[u8]) {
    let Some((kind, body)) = input.split_first() else {
        return;
    };
    match kind % 6 {
        0 => merging(body),
        1 => resizing(body),
        2 => new_identity(body),
        3 => snapshots(body),
        4 => undo(body),
        _ => digests(body),
    }
}

/// Puts a record with this content beside an image; what is no JSON is no record.
fn put(lab: &Lab, name: &'static str, file: &str, body: &[u8]) -> Option<serde_json::Value> {
    let content: serde_json::Value = serde_json::from_slice(body).ok()?;
    let kind = RecordKind { name, version: 1 };
    kind.write(&lab.path(file), &content).ok()?;
    Some(content)
}

fn merging(body: &[u8]) {
    let lab = Lab::new();
    let expected = lab.content("child.avhd").expect("it is sound");
    if put(&lab, "merge", "child.avhd.merge", body).is_none() {
        return;
    }
    let options = MergeOptions {
        cancel: &GO_ON,
        threads: 1,
        batch_bytes: 1 << 20,
    };
    let Ok(plan) = plan(&MergeRequest::new(&lab.path("child.avhd"))) else {
        return;
    };
    let target = plan.target().to_owned();
    if merge(&plan, &options, &()).is_ok() {
        assert_eq!(
            lab::content_of(&target).as_ref(),
            Some(&expected),
            "the target reads what the child did"
        );
    }
}

fn resizing(body: &[u8]) {
    let lab = Lab::new();
    let expected = lab.content("fixed.vhd").expect("it is sound");
    let Some(record) = put(&lab, "resize", "fixed.vhd.resize", body) else {
        return;
    };
    let size = record
        .get("size")
        .and_then(serde_json::Value::as_u64)
        .unwrap_or(1 << 20);
    let (image, options) = (lab.path("fixed.vhd"), OpenOptions::new());
    let request = Request {
        image: &image,
        size: size.min(1 << 22),
        shrink: false,
        tree: false,
        fix_gpt: false,
        options: &options,
        cancel: &GO_ON,
    };
    let _ = Resize::prepare(&request, true).and_then(|resize| resize.run(&()));
    if let Some(content) = lab.content("fixed.vhd") {
        let common = content.len().min(expected.len());
        assert!(content[..common] == expected[..common], "what the disk had is there");
    }
}

fn new_identity(body: &[u8]) {
    let lab = Lab::new();
    let expected = lab.content("base.vhd").expect("it is sound");
    if put(&lab, "new-id", "base.vhd.new-id", body).is_none() {
        return;
    }
    let options = NewIdOptions {
        leave_others: true,
        ..NewIdOptions::default()
    };
    let _ = NewId::plan(&lab.path("base.vhd"), &options).and_then(NewId::run);
    assert_eq!(
        lab.content("base.vhd"),
        Some(expected),
        "an identity changes, and no content"
    );
}

fn snapshots(body: &[u8]) {
    let lab = Lab::new();
    if put(&lab, "snapshots", "base.vhd.snapshots", body).is_none() {
        return;
    }
    let (disk, stranger) = (lab.path("base.vhd"), lab.content("stranger.vhd"));
    let _ = survey(&disk);
    let work = Work {
        steps: &(),
        progress: &(),
        cancel: &GO_ON,
    };
    if let Ok(tree) = SnapshotTree::open(&disk, work) {
        let manifest = tree.manifest();
        let depths = manifest.depths();
        assert!(
            manifest
                .snapshots
                .iter()
                .all(|snapshot| depths.contains_key(&snapshot.id))
        );
        if !manifest.mentions("stranger.vhd") && !String::from_utf8_lossy(body).contains("stranger.vhd") {
            assert_eq!(lab.content("stranger.vhd"), stranger, "it is not of this tree");
        }
    }
}

/// The undo file of a repair: what it does it takes back.
fn undo(body: &[u8]) {
    let digest = Sha256::digest(body);
    let Ok(journal) = Journal::decode(&[body, &digest[..]].concat()) else {
        return;
    };
    if journal.new_len().max(journal.original_len()) > 1 << 30 {
        return;
    }
    let before = vec![0; usize::try_from(journal.original_len().min(1 << 20)).expect("it is small")];
    let file = lab::memory(&before);
    if !matches!(journal.state(&*file), Ok(JournalState::Untouched)) {
        return;
    }
    journal.apply(&*file).expect("memory can be written");
    journal.undo(&*file).expect("it was applied");
    assert!(file.to_vec() == before, "undone");
}

fn digests(body: &[u8]) {
    let lab = Lab::new();
    let path = record_path(&lab.path("base.vhd"));
    let name = path.file_name().and_then(|name| name.to_str()).expect("it is text");
    let digest = blake3::hash(body);
    lab.put(name, &[body, &digest.as_bytes()[..]].concat());
    let opened = OpenOptions::new().open(&lab.path("base.vhd")).expect("it is sound");
    let options = VerifyOptions {
        cancel: &GO_ON,
        threads: 1,
        fast: false,
    };
    let _ = verify(&opened, 0, &options, &(), &mut |_| {});
}
