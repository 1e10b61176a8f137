//! `vhd convert` from file to file.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use serde_json::json;
use vhd_core::storage::{Access, HostFile, Sharing};

use crate::support::{Lab, MIB, stderr, stdout};

#[test]
fn every_format_to_every_format_keeps_the_content() {
    let lab = Lab::new();
    lab.dynamic("a.vhd", 8 * MIB + 512);
    lab.write("a.vhd", 3 * MIB + 100, &[7; 5000]);
    lab.write("a.vhd", 8 * MIB, &[8; 512]);
    let formats = ["raw", "fixed", "dynamic"];
    for first in formats {
        lab.run(&["convert", "a.vhd", first, "--to", first], 0);
        lab.run(&["compare", "a.vhd", first], 0);
        for second in formats {
            let name = format!("{first}-{second}");
            lab.run(&["convert", first, &name, "--to", second], 0);
            lab.run(&["compare", "a.vhd", &name], 0);
            assert!(
                lab.path(&name).metadata().unwrap().blocks() * 512 < MIB,
                "{name} is sparse"
            );
        }
    }
    assert_eq!(lab.len("raw"), 8 * MIB + 512);
    assert_eq!(lab.len("fixed"), 8 * MIB + 1024);
}

#[test]
fn zeroes_within_data_take_no_space() {
    const PAGE: usize = 4096;
    const SIZE: usize = 24 << 20;
    let lab = Lab::new();
    let mut random = fastrand::Rng::with_seed(5);
    // Runs of data and of zeroes of all lengths; many a stretch of 2 MiB begins with data and has zeroes in it.
    let mut bytes = Vec::new();
    let mut stored = 0;
    while bytes.len() < SIZE {
        let left = (SIZE - bytes.len()) / PAGE;
        let pages = random.usize(1..600).min(left);
        let data = random.bool();
        stored += if data { pages } else { 0 };
        bytes.resize(bytes.len() + pages * PAGE, u8::from(data));
    }
    fs::write(lab.path("source"), &bytes).unwrap();
    for from in ["source", "source-dynamic"] {
        for to in ["raw", "fixed", "dynamic"] {
            let name = format!("{from}-{to}");
            lab.run(&["convert", from, &name, "--to", to, "--sync"], 0);
            lab.run(&["compare", "source", &name], 0);
            let taken = lab.path(&name).metadata().unwrap().blocks() * 512;
            // Bitmaps, headers, and what the file system needs itself.
            let limit = u64::try_from(stored * PAGE).unwrap() + MIB / 2;
            assert!(taken <= limit, "{name}: {taken} of {limit}");
        }
    }
}

#[test]
fn a_leaf_becomes_one_image() {
    let lab = Lab::new();
    lab.chain();
    let report = lab.json(
        &[
            "convert",
            "leaf.avhd",
            "flat.vhd",
            "--to",
            "dynamic",
            "--block-size",
            "1M",
            "--threads",
            "3",
            "--sync",
        ],
        0,
    );
    assert_eq!(
        (&report["to"], &report["virtual_size"]),
        (&json!("dynamic"), &json!(8 * MIB))
    );
    let sum: u64 = ["copied_bytes", "shared_bytes", "zero_bytes"]
        .iter()
        .map(|key| report[key].as_u64().unwrap())
        .sum();
    assert_eq!(sum, 8 * MIB);
    lab.run(&["compare", "leaf.avhd", "flat.vhd"], 0);
    assert_eq!(lab.json(&["info", "flat.vhd"], 0)["layers"][0]["block_size"], MIB);
}

#[test]
fn an_existing_destination_is_replaced_only_by_force() {
    let lab = Lab::new();
    lab.dynamic("a.vhd", MIB);
    fs::write(lab.path("out.raw"), "precious").unwrap();
    let refused = stderr(&lab.run(&["convert", "a.vhd", "out.raw", "--to", "raw"], 8));
    assert!(
        refused.contains("VHD-E0305") && refused.contains("out.raw"),
        "{refused}"
    );
    assert_eq!(fs::read(lab.path("out.raw")).unwrap(), b"precious");
    lab.run(&["convert", "a.vhd", "out.raw", "--to", "raw", "--force"], 0);
    assert_eq!(lab.len("out.raw"), MIB);
}

#[test]
fn the_destination_is_never_a_part_of_the_source() {
    let lab = Lab::new();
    lab.chain();
    fs::hard_link(lab.path("parent.vhd"), lab.path("hard.vhd")).unwrap();
    std::os::unix::fs::symlink("parent.vhd", lab.path("soft.vhd")).unwrap();
    for destination in ["leaf.avhd", "parent.vhd", "./parent.vhd", "hard.vhd", "soft.vhd"] {
        let before = fs::read(lab.path(destination)).unwrap();
        let refused = stderr(&lab.run(&["convert", "leaf.avhd", destination, "--to", "raw", "--force"], 8));
        assert!(refused.contains("VHD-E0501"), "{refused}");
        assert_eq!(fs::read(lab.path(destination)).unwrap(), before);
    }
}

#[test]
fn a_destination_in_use_is_not_replaced() {
    let lab = Lab::new();
    lab.dynamic("a.vhd", MIB);
    lab.dynamic("b.vhd", MIB);
    let holder = HostFile::open(&lab.path("b.vhd"), Access::ReadOnly, Sharing::Exclusive).unwrap();
    lab.run(&["convert", "a.vhd", "b.vhd", "--to", "fixed", "--force"], 7);
    drop(holder);
    lab.run(&["convert", "a.vhd", "b.vhd", "--to", "fixed", "--force"], 0);
}

#[test]
fn only_regular_files_are_replaced() {
    let lab = Lab::new();
    lab.dynamic("a.vhd", MIB);
    // A directory takes the name of the source; one of that name is not replaced.
    fs::create_dir_all(lab.path("dir/a.raw")).unwrap();
    lab.run(&["convert", "a.vhd", "dir", "--to", "raw"], 8);
    lab.run(&["convert", "a.vhd", "dir", "--to", "raw", "--force"], 8);
    lab.run(&["convert", "a.vhd", "/dev/null", "--to", "raw", "--force"], 8);
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    lab.run(&["convert", "a.vhd", "none/out.raw", "--to", "raw"], 1);
}

#[test]
fn arguments_that_do_not_fit_are_usage_errors() {
    let lab = Lab::new();
    lab.dynamic("a.vhd", MIB);
    for rest in [
        &[][..],
        &["--to", "vdi"],
        &["--to", "qcow2", "--block-size", "2M"],
        &["--to", "qcow2", "--preallocate", "full"],
        &["--to", "raw", "--block-size", "2M"],
        &["--to", "fixed", "--block-size", "2M"],
        &["--to", "raw", "--preallocate", "full"],
        &["--to", "raw", "--preallocate", "falloc"],
        &["--to", "raw", "--threads", "0"],
        &["--to", "raw", "--from", "vdi"],
    ] {
        let mut args = vec!["convert", "a.vhd", "out"];
        args.extend(rest);
        lab.run(&args, 2);
    }
    lab.run(&["convert", "a.vhd", "-", "--to", "dynamic"], 2);
    lab.run(&["convert", "a.vhd", "-", "--to", "qcow2"], 2);
    lab.run(&["convert", "a.vhd", "-", "--to", "raw", "--force"], 2);
    assert!(!lab.exists("out"));
}

#[test]
fn a_fixed_vhd_is_never_taken_for_raw() {
    let lab = Lab::new();
    lab.fixed("a.vhd", MIB);
    lab.run(&["convert", "a.vhd", "out.raw", "--to", "raw"], 0);
    assert_eq!(lab.len("out.raw"), MIB);
    lab.run(&["convert", "a.vhd", "all.raw", "--to", "raw", "--from", "raw"], 0);
    assert_eq!(lab.len("all.raw"), MIB + 512);
    let mut bytes = fs::read(lab.path("a.vhd")).unwrap();
    bytes.extend([0; 1024]);
    fs::write(lab.path("junk.vhd"), bytes).unwrap();
    let refused = stderr(&lab.run(&["convert", "junk.vhd", "x.raw", "--to", "raw"], 8));
    assert!(
        refused.contains("VHD-E0118") && refused.contains("conectix"),
        "{refused}"
    );
    lab.run(&["convert", "junk.vhd", "x.raw", "--to", "raw", "--from", "raw"], 0);
}

#[test]
fn progress_is_shown_only_where_asked_for() {
    let lab = Lab::new();
    lab.dynamic("a.vhd", MIB);
    assert_eq!(stderr(&lab.run(&["convert", "a.vhd", "one.raw", "--to", "raw"], 0)), "");
    let shown = stderr(&lab.run(&["convert", "a.vhd", "two.raw", "--to", "raw", "--progress"], 0));
    assert!(
        shown.contains("vhd: converting 100%") && shown.contains("ETA"),
        "{shown}"
    );
}

#[test]
fn people_are_told_what_was_done() {
    let lab = Lab::new();
    lab.dynamic("a.vhd", MIB);
    let text = stdout(&lab.run(&["convert", "a.vhd", "out.raw", "--to", "raw"], 0));
    assert_eq!(
        text,
        "Converted a.vhd to out.raw (raw): 1048576 bytes (1.00 MiB), 1.00 MiB zero\n"
    );
}
