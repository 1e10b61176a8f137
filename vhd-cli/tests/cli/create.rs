//! `vhd create`.

use std::os::unix::fs::MetadataExt as _;
use std::time::Instant;

use crate::support::{Lab, MIB, stderr, stdout};

#[test]
fn the_grammar_of_the_specification() {
    let lab = Lab::new();
    lab.run(&["create", "a.vhd", "--size", "64M"], 0);
    lab.run(
        &[
            "create",
            "b.vhd",
            "--size",
            "64M",
            "--type",
            "dynamic",
            "--block-size",
            "512K",
        ],
        0,
    );
    lab.run(&["create", "c.vhd", "--size", "3M", "--type", "fixed"], 0);
    lab.run(
        &[
            "create",
            "d.vhd",
            "--size",
            "3M",
            "--type",
            "fixed",
            "--preallocate",
            "full",
        ],
        0,
    );
    lab.run(
        &[
            "create",
            "e.vhd",
            "--size",
            "3M",
            "--type",
            "fixed",
            "--preallocate",
            "off",
        ],
        0,
    );
    lab.run(
        &["create", "f.vhd", "--size=3M", "--type=dynamic", "--preallocate=off"],
        0,
    );
    lab.run(&["create", "g.avhd", "--parent", "a.vhd"], 0);
    assert_eq!(lab.len("c.vhd"), 3 * MIB + 512);
    assert!(lab.path("c.vhd").metadata().unwrap().blocks() < 100);
    assert!(lab.path("d.vhd").metadata().unwrap().blocks() * 512 >= 3 * MIB);
    for name in ["a.vhd", "b.vhd", "c.vhd", "d.vhd", "e.vhd", "f.vhd", "g.avhd"] {
        lab.run(&["check", name], 0);
    }
    assert_eq!(lab.json(&["info", "b.vhd"], 0)["layers"][0]["block_size"], 512 << 10);
    assert_eq!(lab.json(&["info", "g.avhd"], 0)["virtual_size"], 64 * MIB);
}

#[test]
fn sizes_are_exact_to_the_sector() {
    let lab = Lab::new();
    for (name, text, bytes) in [
        ("a.vhd", "512", 512),
        ("b.vhd", "12345s", 12345 * 512),
        ("c.vhd", "1.5M", 3 * MIB / 2),
        ("d.vhd", "10485761024", 10_485_761_024_u64),
    ] {
        let report = lab.json(&["create", name, "--size", text], 0);
        assert_eq!(report["virtual_size"], bytes);
        assert_eq!(lab.json(&["info", name], 0)["virtual_size"], bytes);
    }
    let refused = stderr(&lab.run(&["create", "x.vhd", "--size", "1000000"], 2));
    assert!(refused.contains("999936 and 1000448"), "{refused}");
    let refused = stderr(&lab.run(&["create", "x.vhd", "--size", "huge"], 2));
    assert!(refused.contains("for example 64M"), "{refused}");
    lab.run(&["create", "x.vhd", "--size", "2041G"], 2);
    lab.run(&["create", "x.vhd", "--size", "0"], 2);
    assert!(!lab.exists("x.vhd"));
}

#[test]
fn the_largest_dynamic_image_takes_no_time_and_no_space() {
    let lab = Lab::new();
    let started = Instant::now();
    lab.run(&["create", "a.vhd", "--size", "2040G"], 0);
    let elapsed = started.elapsed().as_millis();
    assert!(elapsed < 2000, "{elapsed} ms, on a machine under load");
    assert!(lab.len("a.vhd") < 5 * MIB);
    assert_eq!(lab.json(&["info", "a.vhd"], 0)["virtual_size"], 2040_u64 << 30);
}

#[test]
fn wrong_arguments_are_usage_errors() {
    let lab = Lab::new();
    lab.dynamic("p.vhd", MIB);
    for args in [
        &["create", "x.vhd"][..],
        &["create", "x.vhd", "--size", "1M", "--type", "differencing"],
        &["create", "x.vhd", "--size", "1M", "--block-size", "3M"],
        &["create", "x.vhd", "--size", "1M", "--block-size", "256K"],
        &[
            "create",
            "x.vhd",
            "--size",
            "1M",
            "--type",
            "fixed",
            "--block-size",
            "2M",
        ],
        &["create", "x.vhd", "--size", "1M", "--preallocate", "full"],
        &["create", "x.vhd", "--parent", "p.vhd", "--preallocate", "full"],
        &["create", "x.vhd", "--parent", "p.vhd", "--type", "dynamic"],
        &["create", "--size", "1M"],
        &["frobnicate"],
        &[],
    ] {
        lab.run(args, 2);
    }
    assert!(!lab.exists("x.vhd"));
}

#[test]
fn nothing_is_ever_overwritten() {
    let lab = Lab::new();
    std::fs::write(lab.path("a.vhd"), "precious").unwrap();
    std::os::unix::fs::symlink("nowhere", lab.path("link.vhd")).unwrap();
    lab.dynamic("p.vhd", MIB);
    lab.run(&["create", "a.vhd", "--size", "1M"], 8);
    lab.run(&["create", "a.vhd", "--parent", "p.vhd"], 8);
    lab.run(&["create", "link.vhd", "--size", "1M"], 8);
    assert_eq!(std::fs::read(lab.path("a.vhd")).unwrap(), b"precious");
    assert!(!lab.exists("nowhere"));
}

#[test]
fn a_child_has_its_parents_size() {
    let lab = Lab::new();
    lab.dynamic("p.vhd", 4 * MIB);
    lab.run(&["create", "same.avhd", "--parent", "p.vhd", "--size", "4M"], 0);
    let refused = stderr(&lab.run(&["create", "other.avhd", "--parent", "p.vhd", "--size", "8M"], 8));
    assert!(
        refused.contains("VHD-E0205") && refused.contains("4194304"),
        "{refused}"
    );
    lab.run(&["create", "lost.avhd", "--parent", "none.vhd"], 1);
    assert!(!lab.exists("other.avhd") && !lab.exists("lost.avhd"));
}

#[test]
fn a_child_of_a_raw_disk_needs_its_parent_named() {
    let lab = Lab::new();
    std::fs::write(lab.path("p.raw"), vec![5; 8192]).unwrap();
    let created = lab.run(&["create", "c.avhd", "--parent", "p.raw"], 0);
    assert!(stderr(&created).contains("--parent p.raw"));
    assert!(stdout(&created).contains("differencing"));
    lab.run(&["hash", "c.avhd"], 6);
    lab.run(&["compare", "c.avhd", "p.raw", "--parent", "p.raw"], 0);
}
