//! Jobs that are open, and others that come meanwhile: each image that a job changes or removes shows it (docs/jobs.md).
#![cfg(not(loom))]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use common::disk::{assert_reads, create, open, open_alone, read_all, write_session};
use common::rng::{Rng, seeded};
use common::temp_dir;
use tempfile::TempDir;
use vhd_core::ErrorKind;
use vhd_core::chain::{ChainWarning, OpenOptions, create_child, parent_link};
use vhd_core::image::{create_dynamic, create_fixed};
use vhd_core::job::{JobKind, open_job, require_no_job};
use vhd_core::ops::Progress;
use vhd_core::ops::merge::{MergeOptions, MergeRequest, merge, merge_to_new, plan, plan_to_new};
use vhd_core::ops::new_id::{NewId, NewIdOptions};
use vhd_core::ops::reparent::Relink;
use vhd_core::ops::resize::{Request, Resize, ResizeError};
use vhd_core::record::RecordKind;
use vhd_core::storage::{Access, HostFile, Sharing};
use vhd_core::units::usize_from;

const SIZE: u64 = 3 << 20;
const BLOCK: u64 = 512 << 10;
static GO_ON: AtomicBool = AtomicBool::new(false);

/// A chain `0.vhd <- 1.avhd <- ...` with known contents, and a directory for it.
struct Lab {
    dir: TempDir,
    paths: Vec<PathBuf>,
    contents: Vec<Vec<u8>>,
    rng: Rng,
}

impl Lab {
    fn new(seed: u64, layers: usize) -> Self {
        let dir = temp_dir();
        let base = dir.path().join("0.vhd");
        create(&base, |file| create_dynamic(file, SIZE, BLOCK));
        let mut lab = Self {
            dir,
            paths: vec![base],
            contents: vec![vec![0; usize_from(SIZE)]],
            rng: seeded(seed, "jobs"),
        };
        lab.write(0);
        for level in 1..layers {
            lab.child_of(level - 1, &format!("{level}.avhd"));
        }
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&mut self, index: usize) {
        write_session(&self.paths[index], &mut self.contents[index], &mut self.rng, 12);
    }

    /// Another image, based on one that is there; its number.
    fn child_of(&mut self, parent: usize, name: &str) -> usize {
        let path = self.path(name);
        create_child(&path, &self.paths[parent], None, &OpenOptions::new()).unwrap();
        self.paths.push(path);
        self.contents.push(self.contents[parent].clone());
        self.write(self.paths.len() - 1);
        self.paths.len() - 1
    }

    fn request(&self, child: usize, into: usize) -> MergeRequest {
        MergeRequest {
            into: Some(self.paths[into].clone()),
            ..MergeRequest::new(&self.paths[child])
        }
    }

    fn carrying(&self, child: usize, into: usize) -> MergeRequest {
        MergeRequest {
            carry: true,
            ..self.request(child, into)
        }
    }

    fn assert_reads(&self, index: usize) {
        assert_reads(&self.paths[index], &self.contents[index]);
    }

    /// The names in the directory that are no images.
    fn documents(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.ends_with("vhd")).collect()
    }
}

/// Stops a merge after its first batch.
struct Stop<'a>(&'a AtomicBool);

impl Progress for Stop<'_> {
    fn begin(&self, _total: u64) {}

    fn advance(&self, _bytes: u64) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Begins a merge, which a crash would leave like that too.
fn begin(request: &MergeRequest) {
    let cancel = AtomicBool::new(false);
    let options = MergeOptions {
        cancel: &cancel,
        threads: 1,
        batch_bytes: 64 << 10,
    };
    let report = merge(&plan(request).unwrap(), &options, &Stop(&cancel)).unwrap();
    assert!(report.cancelled, "the merge is unfinished");
}

/// How a merge is done without a stop.
const WHOLE: MergeOptions<'static> = MergeOptions {
    cancel: &GO_ON,
    threads: 1,
    batch_bytes: 1 << 20,
};

fn finish(request: &MergeRequest) -> Result<(), vhd_core::ops::merge::MergeError> {
    merge(&plan(request)?, &WHOLE, &()).map(drop)
}

#[test]
fn inv_37_no_second_merge_touches_an_image_of_an_open_one() {
    // 0 <- 1 <- 2 <- 3, and 4 beside 1, 5 beside 2, 6 on 3.
    for (child, into) in [(3, 0), (3, 1), (2, 0), (1, 0)] {
        let mut lab = Lab::new(0x50 + child as u64, 4);
        lab.child_of(0, "4.avhd");
        lab.child_of(1, "5.avhd");
        lab.child_of(3, "6.avhd");
        let first = lab.carrying(child, into);
        begin(&first);
        for (other, below) in [(4, 0), (5, 1), (5, 0), (6, 3), (6, 0), (3, 2), (2, 1), (1, 0), (3, 0)] {
            // The same one; and one that has no image in common with a merge far below it.
            if (other, below) == (child, into) || child == 1 && below == 3 {
                continue;
            }
            let error = plan(&lab.carrying(other, below)).map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::JobPending, "{other} into {below}: {error}");
        }
        for leaf in [3, 4, 5, 6] {
            lab.assert_reads(leaf);
        }
        finish(&first).unwrap();
        for leaf in [4, 5, 6] {
            lab.assert_reads(leaf);
        }
        assert_reads(&lab.paths[into], &lab.contents[child]);
        assert_eq!(lab.documents(), Vec::<String>::new());
    }
}

#[test]
fn inv_37_no_other_job_and_no_writer_touches_the_images_of_an_open_merge() {
    let mut lab = Lab::new(0x51, 4);
    let free = lab.child_of(0, "4.avhd");
    let first = lab.carrying(3, 1);
    begin(&first);
    let pending = |error: ErrorKind, what: &str| assert_eq!(error, ErrorKind::JobPending, "{what}");
    for (index, path) in lab.paths.iter().enumerate().take(4).skip(1) {
        let what = path.display().to_string();
        assert_eq!(open_job(path).unwrap().unwrap().kind, JobKind::Merge);
        pending(NewId::plan(path, &all_children()).unwrap_err().kind(), &what);
        pending(require_no_job([path]).unwrap_err().kind(), &what);
        pending(
            Relink::examine(path, &lab.paths[0], &OpenOptions::new())
                .unwrap_err()
                .kind(),
            &what,
        );
        let size = resize(path, SIZE + BLOCK, true).unwrap_err();
        pending(size.kind(), &what);
        // A machine may run on the child, and on nothing that is half one thing and half another.
        let written = OpenOptions::new().write(true).open(path);
        match index {
            3 => drop(written.unwrap()),
            _ => pending(written.unwrap_err().kind(), &what),
        }
        let child = create_child(&lab.path("new.avhd"), path, None, &OpenOptions::new());
        match index {
            3 => fs::remove_file(lab.path("new.avhd")).unwrap(),
            _ => pending(child.unwrap_err().kind(), &what),
        }
        let link = parent_link(&lab.path("new.avhd"), path, &open(path, false));
        match index {
            3 => drop(link.unwrap()),
            _ => pending(link.unwrap_err().kind(), &what),
        }
        let warned = open(path, false)
            .warnings()
            .iter()
            .any(|warning| matches!(warning, ChainWarning::JobOpen { .. }));
        assert_eq!(warned, index != 3, "{what}");
    }
    // A new image of the two above the target would be a child of it.
    let above = plan_to_new(&MergeRequest::new(&lab.paths[3])).unwrap();
    let new = lab.path("new.avhd");
    let error = merge_to_new(&above, &new, false, &WHOLE, &()).unwrap_err();
    pending(error.kind(), "a new child of the target");
    assert!(!new.exists());
    // What is not of the merge is free: an image that it only reads below its target, and another child of that.
    lab.write(free);
    let error = Relink::examine(&lab.paths[free], &lab.paths[1], &OpenOptions::new()).unwrap_err();
    pending(error.kind(), "a child for the target");
    NewId::plan(&lab.paths[free], &all_children()).unwrap();
    lab.write(3);
    finish(&first).unwrap();
    assert_reads(&lab.paths[1], &lab.contents[3]);
    lab.assert_reads(free);
    NewId::plan(&lab.paths[1], &all_children()).unwrap();
}

fn all_children() -> NewIdOptions {
    NewIdOptions {
        all_children: true,
        ..NewIdOptions::default()
    }
}

fn resize(image: &Path, size: u64, tree: bool) -> Result<(), ResizeError> {
    let options = OpenOptions::new();
    let request = Request {
        image,
        size,
        shrink: true,
        tree,
        fix_gpt: false,
        options: &options,
        cancel: &GO_ON,
    };
    Resize::prepare(&request, true)?.run(&()).map(drop)
}

#[test]
fn inv_37_a_marker_that_leads_nowhere_stops_nobody() {
    let mut lab = Lab::new(0x52, 3);
    let first = lab.request(2, 1);
    begin(&first);
    // The record is lost, or the image was copied with its marker.
    fs::remove_file(lab.path("2.avhd.merge")).unwrap();
    lab.write(1);
    lab.contents[2] = read_all(&open(&lab.paths[2], false).disk());
    begin(&first);
    finish(&first).unwrap();
    assert_reads(&lab.paths[1], &lab.contents[2]);
    assert_eq!(lab.documents(), Vec::<String>::new());
}

/// What the merge of 2 into 0 has written when the child is gone, with something else in it.
fn forged(lab: &Lab, layers: &[(&str, usize)], carried: &[&str]) {
    let id = |index: usize| open_alone(&lab.paths[index]).unique_id().to_string();
    let layers = layers
        .iter()
        .map(|(path, index)| serde_json::json!({ "path": path, "id": id(*index), "fingerprint": null }));
    let record = serde_json::json!({
        "target": { "path": "0.vhd", "id": id(0) },
        "layers": layers.collect::<Vec<_>>(),
        "children": [],
        "carried": carried,
        "phase": "finishing",
        "boot": null,
    });
    let kind = RecordKind {
        name: "merge",
        version: 1,
    };
    kind.write(&lab.path("gone.avhd.merge"), &record).unwrap();
}

#[test]
fn inv_38_a_record_can_not_name_a_file_elsewhere() {
    let lab = Lab::new(0x53, 3);
    let elsewhere = temp_dir();
    let precious = elsewhere.path().join("precious.avhd");
    create_child(&precious, &lab.paths[0], None, &OpenOptions::new()).unwrap();
    let digests = elsewhere.path().join("precious.avhd.digests");
    fs::write(&digests, "digests").unwrap();
    fs::copy(&precious, lab.path("precious.avhd")).unwrap();
    std::os::unix::fs::symlink(&precious, lab.path("link.avhd")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), lab.path("dir")).unwrap();
    let absolute = precious.display().to_string();
    let relative = format!("../{}/precious.avhd", elsewhere.path().file_name().unwrap().display());
    let names = [
        "1.avhd",
        "precious.avhd",
        "link.avhd",
        "dir/precious.avhd",
        &absolute,
        &relative,
    ];
    let before = fs::read(&precious).unwrap();
    for name in names {
        let id = open_alone(&precious).unique_id();
        let request = MergeRequest {
            into: Some(lab.paths[0].clone()),
            ..MergeRequest::new(&lab.path("gone.avhd"))
        };
        // As a layer that goes, or as one whose digests go.
        for as_layer in [true, false] {
            match as_layer {
                true => forged(&lab, &[("gone.avhd", 2), (name, 1)], &[]),
                false => forged(&lab, &[("gone.avhd", 2)], &[name]),
            }
            let text = fs::read_to_string(lab.path("gone.avhd.merge")).unwrap();
            let body: serde_json::Value = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
            let body = body
                .to_string()
                .replace(&open_alone(&lab.paths[1]).unique_id().to_string(), &id.to_string());
            let body: serde_json::Value = serde_json::from_str(&body).unwrap();
            RecordKind {
                name: "merge",
                version: 1,
            }
            .write(&lab.path("gone.avhd.merge"), &body)
            .unwrap();
            let error = finish(&request).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::RecordDamaged, "{name}: {error}");
            assert!(error.to_string().contains("gone.avhd.merge"), "{error}");
        }
    }
    assert_eq!(fs::read(&precious).unwrap(), before);
    assert!(digests.exists() && lab.path("link.avhd").is_symlink());
    (1..3).for_each(|index| lab.assert_reads(index));
}

#[test]
fn inv_38_records_of_resize_and_new_id_can_not_name_a_file_elsewhere() {
    let lab = Lab::new(0x54, 2);
    let elsewhere = temp_dir();
    let child = elsewhere.path().join("child.avhd");
    create_child(&child, &lab.paths[0], None, &OpenOptions::new()).unwrap();
    let before = fs::read(&child).unwrap();
    let footer = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        bytes[bytes.len() - 512..]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let file = |path: &Path, parent: Option<u64>| serde_json::json!({ "path": path, "parent": parent, "footer": footer(path), "modified": 0 });
    let files = [file(&lab.paths[0], None), file(&child, Some(0))];
    let record = serde_json::json!({ "size": SIZE + BLOCK, "tree": true, "files": files });
    RecordKind {
        name: "resize",
        version: 1,
    }
    .write(&lab.path("0.vhd.resize"), &record)
    .unwrap();
    let error = resize(&lab.paths[0], SIZE + BLOCK, true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RecordDamaged, "{error}");
    fs::remove_file(lab.path("0.vhd.resize")).unwrap();
    let record = serde_json::json!({
        "old_id": open_alone(&lab.paths[0]).unique_id().to_string(),
        "new_id": "0123456789abcdef0123456789abcdef".parse::<vhd_core::format::UniqueId>().map_or_else(
            |_| "01234567-89ab-cdef-0123-456789abcdef".to_owned(),
            |id| id.to_string(),
        ),
        "modified": 1_000_000_000,
        "children": [child],
    });
    RecordKind {
        name: "new-id",
        version: 1,
    }
    .write(&lab.path("0.vhd.new-id"), &record)
    .unwrap();
    let error = NewId::plan(&lab.paths[0], &NewIdOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RecordDamaged, "{error}");
    assert_eq!(fs::read(&child).unwrap(), before);
}

/// A tree of two, of which the resize got as far as its base.
fn half_grown(lab: &Lab) {
    // The second file is in use when its turn comes: the first is done then, and stays so if undoing is hindered.
    let options = OpenOptions::new();
    let request = Request {
        image: &lab.paths[1],
        size: SIZE + BLOCK,
        shrink: false,
        tree: true,
        fix_gpt: false,
        options: &options,
        cancel: &GO_ON,
    };
    struct Panics;
    impl Progress for Panics {
        fn begin(&self, _total: u64) {}

        fn advance(&self, _bytes: u64) {
            panic!("killed");
        }
    }
    let resize = Resize::prepare(&request, true).unwrap();
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| resize.run(&Panics))).unwrap_err();
}

#[test]
fn inv_37_39_an_open_resize_keeps_writers_away_and_its_undo_loses_nothing() {
    let mut lab = Lab::new(0x55, 3);
    half_grown(&lab);
    for path in &lab.paths {
        assert_eq!(
            open_job(path).unwrap().unwrap().kind,
            JobKind::Resize,
            "{}",
            path.display()
        );
        let error = OpenOptions::new().write(true).open(path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::JobPending, "{error}");
        assert_eq!(
            plan(&MergeRequest::new(&lab.paths[2])).map(drop).unwrap_err().kind(),
            ErrorKind::JobPending
        );
    }
    // A program that knows nothing of markers writes to the new part of the base.
    {
        let markers: Vec<PathBuf> = lab.documents().iter().map(|name| lab.path(name)).collect();
        let kept: Vec<Vec<u8>> = markers.iter().map(|path| fs::read(path).unwrap()).collect();
        markers.iter().for_each(|path| fs::remove_file(path).unwrap());
        let opened = open(&lab.paths[0], true);
        opened.disk().write_at(&[7; 512], SIZE + 1024).unwrap();
        opened.close().unwrap();
        markers
            .iter()
            .zip(kept)
            .for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    }
    // The child can't be resized: its table is cut off. The resize goes back, and may not.
    let whole = fs::read(&lab.paths[2]).unwrap();
    let mut damaged = whole.clone();
    damaged[512..1536].fill(0);
    fs::write(&lab.paths[2], damaged).unwrap();
    let error = resize(&lab.paths[1], SIZE + BLOCK, true).unwrap_err();
    assert!(lab.path("0.vhd.resize").exists(), "{error}");
    let mut sector = [0; 512];
    open(&lab.paths[0], false)
        .disk()
        .read_at(&mut sector, SIZE + 1024)
        .unwrap();
    assert_eq!(sector, [7; 512]);
    fs::write(&lab.paths[2], whole).unwrap();
    resize(&lab.paths[1], SIZE + BLOCK, true).unwrap();
    assert_eq!(lab.documents(), Vec::<String>::new());
    for (path, content) in lab.paths.iter().zip(&mut lab.contents) {
        let disk = open(path, false).disk();
        assert_eq!(disk.size(), SIZE + BLOCK);
        content.resize(usize_from(SIZE + BLOCK), 0);
        content[usize_from(SIZE + 1024)..][..512].fill(7);
        assert_reads(path, content);
    }
}

#[test]
fn inv_28_a_fixed_image_is_not_read_with_the_footer_of_another_size_in_it() {
    for (from, to) in [(SIZE, SIZE + BLOCK), (SIZE + BLOCK, SIZE)] {
        let dir = temp_dir();
        let path = dir.path().join("f.vhd");
        create(&path, |file| {
            create_fixed(file, from, vhd_core::image::Preallocate::Off)
        });
        let footer = |path: &Path| {
            let bytes = fs::read(path).unwrap();
            bytes[bytes.len() - 512..].to_vec()
        };
        let former = footer(&path);
        let copy = dir.path().join("copy.vhd");
        fs::copy(&path, &copy).unwrap();
        resize(&copy, to, false).unwrap();
        let new = footer(&copy);
        // Both footers are there: the kill came between writing one and removing the other.
        let file = fs::File::options().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &new, to).unwrap();
        drop(file);
        let hex: String = former.iter().map(|byte| format!("{byte:02x}")).collect();
        let record = serde_json::json!({
            "size": to, "tree": false,
            "files": [{ "path": "f.vhd", "parent": null, "footer": hex, "modified": 1_000_000_000 }],
        });
        RecordKind {
            name: "resize",
            version: 1,
        }
        .write(&dir.path().join("f.vhd.resize"), &record)
        .unwrap();
        let error = OpenOptions::new().open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResizeUnfinished, "{error}");
        resize(&path, to, false).unwrap();
        assert_reads(&path, &vec![0; usize_from(to)]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}

#[test]
fn inv_36_a_fixed_image_that_shrinks_leaves_a_record() {
    let dir = temp_dir();
    let path = dir.path().join("f.vhd");
    create(&path, |file| {
        create_fixed(file, SIZE, vhd_core::image::Preallocate::Off)
    });
    let options = OpenOptions::new();
    let request = Request {
        image: &path,
        size: SIZE - BLOCK,
        shrink: true,
        tree: false,
        fix_gpt: false,
        options: &options,
        cancel: &GO_ON,
    };
    let resize = Resize::prepare(&request, false).unwrap();
    assert!(resize.plan().needs_record());
}

#[test]
fn inv_28_the_same_resize_again_restores_the_footer_that_a_crash_left() {
    let lab = Lab::new(0x56, 1);
    let former = fs::read(&lab.paths[0]).unwrap();
    resize(&lab.paths[0], SIZE + BLOCK, false).unwrap();
    let mut bytes = fs::read(&lab.paths[0]).unwrap();
    bytes[..512].copy_from_slice(&former[..512]);
    fs::write(&lab.paths[0], &bytes).unwrap();
    resize(&lab.paths[0], SIZE + BLOCK, false).unwrap();
    let after = fs::read(&lab.paths[0]).unwrap();
    assert_eq!(after[..512], after[after.len() - 512..]);
    let file = HostFile::open(&lab.paths[0], Access::ReadOnly, Sharing::Exclusive).unwrap();
    let findings = vhd_core::check::check(&file).unwrap().findings;
    assert!(
        findings.iter().all(|finding| finding.code.as_str() != "footers-differ"),
        "{findings:?}"
    );
}

#[test]
fn inv_21_a_merge_that_was_complete_but_for_its_record_ends_when_it_is_run_again() {
    let lab = Lab::new(0x57, 3);
    let first = lab.request(2, 0);
    // As if killed when the record was done, and its markers gone.
    begin(&first);
    let record = fs::read_to_string(lab.path("2.avhd.merge")).unwrap();
    finish(&first).unwrap();
    fs::write(lab.path("2.avhd.merge.done"), record).unwrap();
    finish(&first).unwrap();
    assert_eq!(lab.documents(), Vec::<String>::new());
    assert_reads(&lab.paths[0], &lab.contents[2]);
}
