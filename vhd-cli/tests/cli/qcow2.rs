//! qcow2 as a source and as a destination, against qemu.

use std::fs;

use crate::support::{Lab, MIB, stderr};
use crate::tools::{self, have};

fn qemu_img(lab: &Lab, args: &[&str]) {
    let dir = lab.path("");
    let dir = dir.to_str().unwrap();
    let script = format!("cd '{dir}' && exec qemu-img \"$@\"");
    tools::run("sh", ["-c", &script, "sh"].into_iter().chain(args.iter().copied()));
}

#[test]
fn conversions_are_sound_for_qemu_and_sparse() {
    if !have(&["qemu-img", "qemu-io"], "qcow2 images for qemu") {
        return;
    }
    let lab = Lab::new();
    lab.dynamic("base.vhd", 700 * MIB);
    for (offset, byte) in [(0, 1), (3 * MIB + 512, 2), (650 * MIB, 3), (700 * MIB - 512, 4)] {
        lab.write("base.vhd", offset, &[byte; 512]);
    }
    lab.run(&["create", "leaf.avhd", "--parent", "base.vhd"], 0);
    lab.write("leaf.avhd", 3 * MIB, &vec![5; 300_000]);
    for threads in ["1", "2", "8"] {
        lab.run(
            &["convert", "leaf.avhd", "out.qcow2", "--force", "--threads", threads],
            0,
        );
        qemu_img(&lab, &["check", "-q", "-f", "qcow2", "out.qcow2"]);
        lab.run(&["convert", "leaf.avhd", "out.raw", "--force"], 0);
        qemu_img(
            &lab,
            &["compare", "-q", "-f", "qcow2", "-F", "raw", "out.qcow2", "out.raw"],
        );
        lab.run(&["compare", "leaf.avhd", "out.qcow2"], 0);
        lab.run(&["check", "out.qcow2"], 0);
    }
    assert!(lab.len("out.qcow2") < 3 * MIB, "{} bytes", lab.len("out.qcow2"));
    // Back again, and by way of VHDX.
    lab.run(&["convert", "out.qcow2", "back.vhd"], 0);
    lab.run(&["compare", "leaf.avhd", "back.vhd"], 0);
    qemu_img(&lab, &["convert", "-f", "qcow2", "-O", "vhdx", "out.qcow2", "out.vhdx"]);
    lab.run(&["convert", "out.vhdx", "again.qcow2"], 0);
    qemu_img(&lab, &["check", "-q", "-f", "qcow2", "again.qcow2"]);
    lab.run(&["compare", "again.qcow2", "leaf.avhd"], 0);
}

#[test]
fn backing_files_are_followed_if_they_are_qcow2_or_named() {
    if !have(&["qemu-img", "qemu-io"], "qcow2 images of qemu") {
        return;
    }
    let lab = Lab::new();
    fs::write(lab.path("base.raw"), vec![1; 2 * MIB as usize]).unwrap();
    qemu_img(
        &lab,
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "base.raw",
            "-F",
            "raw",
            "middle.qcow2",
        ],
    );
    qemu_img(
        &lab,
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "middle.qcow2",
            "-F",
            "qcow2",
            "leaf.qcow2",
        ],
    );
    let leaf = lab.path("leaf.qcow2");
    tools::run(
        "qemu-io",
        ["-f", "qcow2", "-c", "write -P 9 64k 4k", leaf.to_str().unwrap()],
    );
    // Any file could be named as a raw one, and its bytes shown: that takes the user's word.
    let said = stderr(&lab.run(&["hash", "leaf.qcow2"], 6));
    assert!(
        said.contains("VHD-E0201") && said.contains("named with --parent"),
        "{said}"
    );
    lab.run(&["convert", "leaf.qcow2", "out.raw", "--parent", "base.raw"], 0);
    let mut expected = vec![1; 2 * MIB as usize];
    expected[64 << 10..][..4096].fill(9);
    assert!(fs::read(lab.path("out.raw")).unwrap() == expected);
    let info = lab.json(&["info", "leaf.qcow2", "--parent", "base.raw"], 0);
    let formats: Vec<_> = (0..3)
        .map(|layer| info["layers"][layer]["format"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(formats, ["qcow2", "qcow2", "raw"]);
    let said = stderr(&lab.run(&["hash", "leaf.qcow2", "--parent", "base.raw", "--explicit-parents"], 6));
    assert!(said.contains("only explicitly named parents"), "{said}");
    lab.run(
        &[
            "hash",
            "leaf.qcow2",
            "--parent",
            "base.raw",
            "--parent",
            "middle.qcow2",
            "--explicit-parents",
        ],
        0,
    );
    let tree = lab.json(&["tree", "."], 6);
    assert_eq!(tree["summary"]["files"], 2);
    // It is read, and never written.
    for args in [
        &["nbd", "--unix", "s.sock", "leaf.qcow2"][..],
        &["create", "child.avhd", "--parent", "leaf.qcow2"],
        &["resize", "leaf.qcow2", "16M"],
        &["compact", "leaf.qcow2"],
    ] {
        let said = stderr(&lab.run(args, 8));
        assert!(
            said.contains("VHD-E0140") && said.contains("a qcow2 image"),
            "{args:?}: {said}"
        );
    }
}

#[test]
fn what_is_not_read_is_named() {
    if !have(&["qemu-img"], "qcow2 images of qemu") {
        return;
    }
    let lab = Lab::new();
    let refused = |options: &str, words: &str| {
        qemu_img(&lab, &["create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "4M"]);
        let said = stderr(&lab.run(&["hash", "a.qcow2"], 8));
        assert!(said.contains("VHD-E0142") && said.contains(words), "{said}");
    };
    refused("data_file=data.raw", "external data file");
    refused("extended_l2=on,cluster_size=128k", "extended tables");
    fs::write(lab.path("bad.qcow2"), [&b"QFI\xFB\0\0\0\x03"[..], &[0; 500]].concat()).unwrap();
    let said = stderr(&lab.run(&["hash", "bad.qcow2"], 3));
    assert!(said.contains("VHD-E0141") && said.contains("0x14"), "{said}");
    lab.run(&["check", "bad.qcow2"], 3);
}

#[test]
fn vmdk_images_in_one_file_are_sources_and_others_are_refused() {
    if !have(&["qemu-img"], "VMDK images of qemu") {
        return;
    }
    let lab = Lab::new();
    let mut content = vec![0; 3 * MIB as usize];
    content[1_000_000..1_500_000].fill(7);
    fs::write(lab.path("disk.raw"), &content).unwrap();
    for subformat in ["monolithicSparse", "streamOptimized"] {
        let option = format!("subformat={subformat}");
        qemu_img(
            &lab,
            &[
                "convert", "-f", "raw", "-O", "vmdk", "-o", &option, "disk.raw", "a.vmdk",
            ],
        );
        lab.run(&["compare", "a.vmdk", "disk.raw"], 0);
        lab.run(&["convert", "a.vmdk", "out.vhd", "--force"], 0);
        lab.run(&["compare", "out.vhd", "disk.raw"], 0);
        lab.run(&["check", "a.vmdk"], 0);
        assert_eq!(lab.json(&["info", "a.vmdk"], 0)["format"], "vmdk");
        let said = stderr(&lab.run(&["resize", "a.vmdk", "16M"], 8));
        assert!(said.contains("VHD-E0140"), "{said}");
    }
    qemu_img(
        &lab,
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "vmdk",
            "-o",
            "subformat=monolithicFlat",
            "disk.raw",
            "b.vmdk",
        ],
    );
    let said = stderr(&lab.run(&["hash", "b.vmdk"], 8));
    assert!(said.contains("VHD-E0142") && said.contains("other files"), "{said}");
}

/// A chain of three with data over data, zeroes over data, and parts of clusters.
fn three_layers(lab: &Lab) {
    lab.dynamic("base.vhd", 130 * MIB + 512);
    lab.write("base.vhd", 0, &vec![1; 5 << 20]);
    lab.write("base.vhd", 130 * MIB, &[2; 512]);
    lab.run(&["create", "mid.avhd", "--parent", "base.vhd"], 0);
    lab.write("mid.avhd", 65_536 + 512, &[3; 1024]);
    lab.write("mid.avhd", 3 * MIB, &vec![0; 1 << 20]);
    lab.write("mid.avhd", 100 * MIB, &[4; 4096]);
    lab.run(&["create", "leaf.avhd", "--parent", "mid.avhd"], 0);
    lab.write("leaf.avhd", 100 * MIB, &[0; 4096]);
    lab.write("leaf.avhd", 130 * MIB, &[5; 512]);
}

#[test]
fn a_chain_becomes_a_backing_chain() {
    if !have(&["qemu-img", "qemu-io"], "chains of qcow2 images for qemu") {
        return;
    }
    let lab = Lab::new();
    three_layers(&lab);
    fs::create_dir(lab.path("out")).unwrap();
    let layers = [("leaf.avhd", "leaf"), ("mid.avhd", "mid"), ("base.vhd", "base")];
    for threads in ["1", "3"] {
        let args = [
            "convert",
            "leaf.avhd",
            "out",
            "--to",
            "qcow2",
            "--chain",
            "--force",
            "--threads",
            threads,
        ];
        let report = lab.json(&args, 0);
        assert_eq!(report["layers"].as_array().unwrap().len(), 3);
        for (from, to) in layers {
            let to = format!("out/{to}.qcow2");
            qemu_img(&lab, &["check", "-q", "-f", "qcow2", &to]);
            // What each state reads, by qemu and by us.
            lab.run(&["convert", from, "state.raw", "--force"], 0);
            qemu_img(&lab, &["compare", "-q", "-f", "qcow2", "-F", "raw", &to, "state.raw"]);
            lab.run(&["compare", from, &to], 0);
        }
    }
    let info = lab.json(&["info", "out/leaf.qcow2"], 0);
    assert_eq!(info["layers"].as_array().unwrap().len(), 3);
    // A layer holds its own clusters and no more; zeroes take none.
    assert!(lab.len("out/mid.qcow2") < MIB && lab.len("out/leaf.qcow2") < MIB);
    lab.json(&["doctor", "out"], 0);
}

#[test]
fn chains_of_other_formats_and_raw_bases_are_converted_too() {
    if !have(&["qemu-img", "qemu-io"], "chains of qcow2 images for qemu") {
        return;
    }
    let lab = Lab::new();
    fs::write(lab.path("base.raw"), vec![7; 2 * MIB as usize]).unwrap();
    lab.run(&["create", "over.avhd", "--parent", "base.raw", "--from", "raw"], 0);
    lab.run(
        &["convert", "over.avhd", "a.qcow2", "--chain", "--parent", "raw:base.raw"],
        0,
    );
    lab.run(&["convert", "over.avhd", "flat.raw", "--parent", "raw:base.raw"], 0);
    qemu_img(
        &lab,
        &["compare", "-q", "-f", "qcow2", "-F", "raw", "a.qcow2", "flat.raw"],
    );
    // A qcow2 chain, its leaf under another name; the base's name is taken by the leaf.
    lab.run(
        &["convert", "a.qcow2", "base-2.qcow2", "--chain", "--parent-dir", "."],
        8,
    );
    fs::create_dir(lab.path("b")).unwrap();
    lab.run(&["convert", "a.qcow2", "b/base.qcow2", "--chain"], 0);
    assert!(lab.exists("b/base-2.qcow2"));
    qemu_img(
        &lab,
        &["compare", "-q", "-f", "qcow2", "-F", "raw", "b/base.qcow2", "flat.raw"],
    );
}

#[test]
fn a_refused_chain_leaves_nothing() {
    let lab = Lab::new();
    three_layers(&lab);
    fs::create_dir(lab.path("out")).unwrap();
    fs::write(lab.path("out/base.qcow2"), "mine").unwrap();
    assert!(stderr(&lab.run(&["convert", "leaf.avhd", "out/x.qcow2", "--chain"], 8)).contains("VHD-E0305"));
    assert_eq!(fs::read_dir(lab.path("out")).unwrap().count(), 1);
    lab.run(&["convert", "leaf.avhd", "x.vhd", "--chain"], 2);
    lab.run(&["convert", "leaf.avhd", "-", "--to", "qcow2", "--chain"], 2);
    // The parent is damaged: nothing of the chain is there.
    lab.damage("base.vhd", 512, b"nonsense");
    lab.run(&["convert", "leaf.avhd", "y.qcow2", "--chain"], 3);
    assert!(!lab.exists("y.qcow2") && !lab.exists("mid.qcow2"));
}
