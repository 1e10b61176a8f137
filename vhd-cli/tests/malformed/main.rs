//! Every command on damaged images, those of the library's mutation test: each run ends with a documented exit code,
//! a failure has its stable code, and a command that fails or only reads has changed no file.
//!
//! VHD_MALFORMED_STRIDE says which of the 290,000 mutations are tried: every so many (default 2503; 199 is a long run).
#![forbid(unsafe_code)]

#[path = "../../../vhd-core/tests/common/mod.rs"]
mod common;
#[allow(dead_code, reason = "the library's test uses the rest")]
#[path = "../../../vhd-core/tests/mutation/mutations.rs"]
mod mutations;
#[allow(dead_code, reason = "the library's test uses the rest")]
#[path = "../../../vhd-core/tests/mutation/subjects.rs"]
mod subjects;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Output};

use mutations::Subject;

/// The damaged image, as `a.vhd`; its children and what it may be compared with are beside it.
const COMMANDS: &[&[&str]] = &[
    &["info", "a.vhd"],
    &["map", "a.vhd"],
    &["check", "a.vhd"],
    &["hash", "a.vhd"],
    &["hash", "child.avhd"],
    &["compare", "a.vhd", "other.raw"],
    &["diff", "a.vhd", "child.avhd"],
    &["measure", "a.vhd"],
    &["tree", "."],
    &["verify", "a.vhd", "--include-image"],
    &["azure", "check", "a.vhd"],
    &["repair", "a.vhd"],
    &["compact", "a.vhd", "--dry-run"],
    &["merge", "child.avhd", "--dry-run"],
    &["resize", "a.vhd", "2M", "--dry-run"],
    &["convert", "a.vhd", "out", "--to", "raw"],
    &["convert", "a.vhd", "out", "--to", "dynamic"],
    &["create", "out", "--parent", "a.vhd"],
    &["export-delta", "child.avhd", "--since", "a.vhd", "out"],
    &["azure", "prepare", "a.vhd", "out"],
    &["compact", "a.vhd"],
    &["merge", "a.vhd"],
    &["merge", "child.avhd"],
    &["merge", "child.avhd", "--output", "out"],
    &["resize", "a.vhd", "2M"],
    &["resize", "child.avhd", "2M", "--tree"],
    &["resize", "a.vhd", "4K", "--shrink"],
    &["reparent", "a.vhd", "--parent", "other.vhd"],
    &["reparent", "child.avhd", "--parent", "a.vhd"],
    &["reparent", "child.avhd", "--parent", "other.vhd", "--rebase"],
    &["new-id", "a.vhd", "--child", "child.avhd"],
    &["snapshot", "create", "a.vhd", "--name", "one"],
    &["snapshot", "list", "a.vhd"],
    &["snapshot", "rescan", "a.vhd"],
    &["verify", "child.avhd", "--record"],
    &["repair", "a.vhd", "--yes"],
];

/// The first that may write.
const FIRST_WRITING: usize = 15;

/// Bytes: more than any file has that was there before.
const LARGE: u64 = 1 << 20;

/// Differences, findings and their like: no failures.
const REPORTS: [i32; 4] = [3, 4, 5, 6];

fn stride() -> usize {
    let asked = std::env::var("VHD_MALFORMED_STRIDE");
    asked.ok().and_then(|stride| stride.parse().ok()).unwrap_or(2503)
}

/// All files; of the large ones, which an image that claims to be large becomes, the start.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let start_of = |path: &Path| {
        let mut bytes = Vec::new();
        let file = fs::File::open(path).unwrap();
        file.take(LARGE).read_to_end(&mut bytes).unwrap();
        bytes
    };
    let entries = dir.read_dir().unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| (entry.file_name().into_string().unwrap(), start_of(&entry.path())))
        .collect()
}

fn restore(dir: &Path, to: &BTreeMap<String, Vec<u8>>) {
    for name in files(dir).keys().filter(|name| !to.contains_key(*name)) {
        fs::remove_file(dir.join(name)).unwrap();
    }
    for (name, bytes) in to {
        fs::write(dir.join(name), bytes).unwrap();
    }
}

fn vhd(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhd"));
    command.args(args).current_dir(dir).output().unwrap()
}

/// Runs one command and looks at what it did; whether it went through.
fn judge(dir: &Path, args: &[&str], writes: bool, before: &BTreeMap<String, Vec<u8>>, what: &str) -> bool {
    let output = vhd(dir, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code();
    let code = code.unwrap_or_else(|| panic!("{what}: {args:?} died: {stderr}"));
    assert!(
        (0..=8).contains(&code) && code != 2,
        "{what}: {args:?} exits {code}: {stderr}"
    );
    let told = stderr.contains("error[VHD-E");
    assert!(
        code == 0 || told || REPORTS.contains(&code),
        "{what}: {args:?} exits {code} and says: {stderr}"
    );
    let after = files(dir);
    if !writes || code != 0 {
        assert!(
            after == *before,
            "{what}: {args:?} exits {code} and changed a file: {stderr}"
        );
    } else if after != *before {
        restore(dir, before);
    }
    code == 0
}

fn every_command_on(subject: &Subject, dir: &Path) -> (usize, usize) {
    fs::write(dir.join("a.vhd"), &subject.bytes).unwrap();
    fs::write(dir.join("other.raw"), &subject.content).unwrap();
    if let Some(parent) = &subject.parent {
        fs::write(dir.join("base.vhd"), parent).unwrap();
    }
    for args in [
        &["create", "child.avhd", "--parent", "a.vhd"][..],
        &["convert", "other.raw", "other.vhd", "--to", "dynamic"],
    ] {
        assert!(vhd(dir, args).status.success(), "{args:?}");
    }
    let sound = files(dir);
    let (mut runs, mut passed) = (0, 0);
    for mutation in mutations::all(subject).step_by(stride()) {
        let Some(bytes) = mutation.apply(subject) else { continue };
        let mut before = sound.clone();
        before.insert("a.vhd".to_owned(), bytes);
        restore(dir, &before);
        let what = format!("{}, {mutation:x?}", subject.name);
        for (index, args) in COMMANDS.iter().enumerate() {
            runs += 1;
            passed += usize::from(judge(dir, args, index >= FIRST_WRITING, &before, &what));
        }
    }
    (runs, passed)
}

fn sweep(subject: &Subject) {
    let dir = common::temp_dir();
    let (runs, passed) = every_command_on(subject, dir.path());
    common::announce(&format!(
        "malformed, {}: {runs} runs, {passed} of them went through",
        subject.name
    ));
    assert!(passed > 0 && passed < runs);
}

#[test]
fn dynamic() {
    sweep(&subjects::dynamic());
}

#[test]
fn differencing() {
    sweep(&subjects::differencing());
}

#[test]
fn fixed() {
    sweep(&subjects::fixed_image());
}
