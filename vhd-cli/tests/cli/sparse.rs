//! Every file that a command makes is sparse where its content is zero.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use crate::support::{Lab, MIB};

const DISK: u64 = 64 * MIB;
/// A page of data in each of so many bytes: every block of 2 MiB has some, and most of it is zero.
const STRIDE: u64 = 256 << 10;
const PAGE: u64 = 4096;

/// What is stored, and for each image what else it may take: tables, bitmaps, ends of blocks.
const LIMIT: u64 = DISK / STRIDE * PAGE + MIB;

fn scatter(lab: &Lab, name: &str, shift: u64, byte: u8) {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(lab.path(name))
        .unwrap();
    file.set_len(DISK).unwrap();
    for at in (shift..DISK).step_by(usize::try_from(STRIDE).unwrap()) {
        file.write_all_at(&[byte; 4096], at).unwrap();
    }
}

/// No file of the lab takes much more than its data.
fn assert_sparse(lab: &Lab, after: &str) {
    for name in lab.names() {
        let metadata = lab.path(&name).metadata().unwrap();
        if metadata.is_file() {
            let taken = metadata.blocks() * 512;
            let layers = if name.starts_with("both") { 2 } else { 1 };
            assert!(taken <= layers * LIMIT, "after {after}: {name} takes {taken} bytes");
        }
    }
}

#[test]
fn zeroes_take_no_space_whatever_writes_them() {
    let lab = Lab::new();
    scatter(&lab, "a.raw", 0, 1);
    lab.run(&["convert", "a.raw", "base.vhd", "--to", "dynamic"], 0);
    // The same content, stored with all its zeroes: what is made of it is sparse all the same.
    std::fs::write(lab.path("dense.raw"), std::fs::read(lab.path("a.raw")).unwrap()).unwrap();
    for (to, name) in [("raw", "c.raw"), ("fixed", "c-fixed.vhd"), ("dynamic", "c.vhd")] {
        lab.run(&["convert", "dense.raw", name, "--to", to], 0);
    }
    std::fs::remove_file(lab.path("dense.raw")).unwrap();
    assert_sparse(&lab, "convert");
    lab.run(&["create", "--parent", "base.vhd", "leaf.avhd"], 0);
    lab.run(&["create", "new.vhd", "--size", "64M"], 0);
    lab.run(&["create", "new-fixed.vhd", "--size", "64M", "--type", "fixed"], 0);
    assert_sparse(&lab, "create");
    let leaf = vhd_core::chain::OpenOptions::new()
        .write(true)
        .open(&lab.path("leaf.avhd"))
        .unwrap();
    for at in (PAGE..DISK).step_by(usize::try_from(STRIDE).unwrap()) {
        leaf.disk().write_at(&[2; 4096], at).unwrap();
    }
    leaf.close().unwrap();
    let steps: &[&[&str]] = &[
        &["export-delta", "leaf.avhd", "--since", "base.vhd", "delta.avhd"],
        &["import-delta", "delta.avhd", "--onto", "base.vhd", "both-imported.vhd"],
        &[
            "import-delta",
            "delta.avhd",
            "--onto",
            "base.vhd",
            "both-imported.raw",
            "--to",
            "raw",
        ],
        &["convert", "leaf.avhd", "both-converted.vhd", "--to", "dynamic"],
        &[
            "merge",
            "leaf.avhd",
            "--into",
            "base.vhd",
            "--output",
            "both-merged.vhd",
        ],
        &["azure", "prepare", "leaf.avhd", "both-azure.vhd"],
        &["compact", "both-merged.vhd"],
        &["resize", "both-imported.vhd", "128M"],
        &["resize", "new-fixed.vhd", "128M"],
        &["snapshot", "create", "new.vhd", "--name", "one"],
        &["new-id", "both-converted.vhd"],
        &["repair", "both-converted.vhd"],
    ];
    for step in steps {
        lab.run(step, 0);
        assert_sparse(&lab, step[0]);
    }
    lab.run(&["compare", "leaf.avhd", "both-merged.vhd"], 0);
    lab.run(&["compare", "leaf.avhd", "both-azure.vhd"], 0);
}
