//! Files that are no VHD: what is refused, what is taken for a raw disk, and the words that override it. The files are
//! made by the programs that own the formats.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use crate::nbd::Serving;
use crate::support::{Lab, MIB, reading_commands, stderr, stdout};
use crate::tools;
use rustix::process::Signal;

/// Runs a program in the lab.
fn run(lab: &Lab, program: &str, args: &[&str]) {
    let done = Command::new(program)
        .args(args)
        .current_dir(lab.path(""))
        .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap()))
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// A disk with something on it, as `disk.raw`.
fn make_disk(lab: &Lab, bytes: u64) {
    let mut content = vec![0; usize::try_from(bytes).unwrap()];
    content[MIB as usize..][..4096].fill(0xA5);
    content[..8].copy_from_slice(b"\xEB\x52\x90test!");
    fs::write(lab.path("disk.raw"), content).unwrap();
}

/// Every other container of `disk.raw`, by the program that makes it: the file and the words it is called by.
fn make_containers(lab: &Lab) -> Vec<(&'static str, &'static str)> {
    let mut made = Vec::new();
    let mut qemu = |format: &str, name: &'static str, options: &[&str], words| {
        let args = [
            &["convert", "-f", "raw", "-O", format][..],
            options,
            &["disk.raw", name],
        ]
        .concat();
        run(lab, "qemu-img", &args);
        made.push((name, words));
    };
    qemu("qcow", "a.qcow", &[], "a qcow image of version 1");
    qemu("qed", "a.qed", &[], "a QED image");
    qemu("vdi", "a.vdi", &[], "a VDI image");
    qemu("parallels", "a.hdd", &[], "a Parallels image");
    let mut pack = |program: &str, args: &[&str], name: &'static str, words| {
        run(lab, program, args);
        made.push((name, words));
    };
    pack("gzip", &["-k", "disk.raw"], "disk.raw.gz", "a gzip file");
    pack("xz", &["-k", "disk.raw"], "disk.raw.xz", "an xz file");
    pack(
        "xz",
        &["-k", "--format=lzma", "disk.raw"],
        "disk.raw.lzma",
        "an lzma file",
    );
    pack("zstd", &["-q", "disk.raw"], "disk.raw.zst", "a zstd file");
    pack("bzip2", &["-k", "disk.raw"], "disk.raw.bz2", "a bzip2 file");
    pack("7zz", &["a", "disk.7z", "disk.raw"], "disk.7z", "a 7z archive");
    pack("7zz", &["a", "disk.zip", "disk.raw"], "disk.zip", "a zip archive");
    pack("7zz", &["a", "disk.wim", "disk.raw"], "disk.wim", "a WIM archive");
    pack("tar", &["-cf", "disk.tar", "disk.raw"], "disk.tar", "a tar archive");
    pack(
        "tar",
        &["-cf", "old.tar", "--format=v7", "disk.raw"],
        "old.tar",
        "a tar archive",
    );
    made
}

fn have_programs() -> bool {
    let programs = ["qemu-img", "gzip", "xz", "zstd", "bzip2", "7zz", "tar"];
    tools::have(&programs, "files of other programs")
}

#[test]
fn containers_are_refused_by_every_command_and_named() {
    if !have_programs() {
        return;
    }
    let lab = Lab::new();
    make_disk(&lab, 4 * MIB);
    for (file, words) in make_containers(&lab) {
        let before = fs::read(lab.path(file)).unwrap();
        // The name does not matter, not even one that promises a VHD.
        fs::copy(lab.path(file), lab.path("named.vhd")).unwrap();
        let refused = |args: &[&str]| {
            let said = stderr(&lab.run(args, 8));
            assert!(said.contains("VHD-E0130") && said.contains(words), "{args:?}: {said}");
        };
        for image in [file, "named.vhd"] {
            refused(&["info", image]);
            refused(&["check", image]);
            refused(&["hash", image]);
            refused(&["hash", image, "--from", "vhd"]);
        }
        refused(&["repair", "named.vhd"]);
        refused(&["repair", "named.vhd", "--yes", "--size", "4M"]);
        assert!(before == fs::read(lab.path("named.vhd")).unwrap());
        fs::remove_file(lab.path("named.vhd")).unwrap();
    }
    // The rest of the commands, with a few.
    for (file, words) in [("a.qed", "QED"), ("a.vdi", "VDI"), ("disk.raw.gz", "gzip")] {
        let before = fs::read(lab.path(file)).unwrap();
        let mut commands = reading_commands(file);
        for more in [
            &["azure", "prepare", file, "out.img"][..],
            &["azure", "check", file],
            &["measure", file],
            &["compact", file],
            &["resize", file, "16M"],
            &["new-id", file],
            &["merge", file],
            &["verify", file],
            &["snapshot", "create", file, "--name", "first"],
            &["export-delta", file, "out.img", "--since", "other.raw"],
            &["import-delta", "x.avhd", "out.img", "--onto", file],
            &["nbd", "--unix", "s.sock", file],
            &["nbd", "--unix", "s.sock", "--read-only", file],
            &["nbd", "--unix", "s.sock", "--snapshot", file],
            &["nbd", "--unix", "s.sock", "--resizable", file],
            &["nbd", "--unix", "s.sock", "--export", &format!("a={file}")],
        ] {
            commands.push(more.iter().map(|word| (*word).to_owned()).collect());
        }
        for command in commands {
            let args: Vec<&str> = command.iter().map(String::as_str).collect();
            let said = stderr(&lab.run(&args, 8));
            assert!(said.contains("VHD-E0130") && said.contains(words), "{args:?}: {said}");
            assert!(!lab.exists("out.img") && !lab.exists("child.avhd"), "{args:?}");
        }
        let mut stdin = lab.vhd(&["hash", "-"]);
        let said = stderr(&stdin.write_stdin(before.clone()).assert().code(8));
        assert!(said.contains("VHD-E0130"), "{said}");
        assert!(before == fs::read(lab.path(file)).unwrap(), "{file}");
        // Said to be raw, its bytes are a disk.
        lab.run(&["hash", file, "--from", "raw"], 0);
        lab.run(&["create", "child.avhd", "--parent", file, "--from", "raw"], 0);
        lab.run(&["hash", "child.avhd", "--parent", &format!("raw:{file}")], 0);
        let said = stderr(&lab.run(&["hash", "child.avhd", "--parent", file], 6));
        assert!(said.contains(words), "{said}");
        fs::remove_file(lab.path("child.avhd")).unwrap();
    }
}

#[test]
fn optical_discs_are_refused_unless_they_are_made_for_a_disk() {
    if !tools::have(&["xorriso"], "images of optical discs") {
        return;
    }
    let lab = Lab::new();
    fs::create_dir(lab.path("tree")).unwrap();
    fs::write(lab.path("tree/file"), "content").unwrap();
    run(&lab, "xorriso", &["-as", "mkisofs", "-quiet", "-o", "a.iso", "tree"]);
    let said = stderr(&lab.run(&["convert", "a.iso", "out.vhd", "--to", "fixed"], 8));
    assert!(said.contains("an ISO 9660 image"), "{said}");
    // A hybrid has a partition table: it is to be written to a disk as it is.
    let hybrid = [
        "-as",
        "mkisofs",
        "-quiet",
        "-partition_offset",
        "16",
        "-o",
        "b.iso",
        "tree",
    ];
    run(&lab, "xorriso", &hybrid);
    lab.run(&["convert", "b.iso", "out.vhd", "--to", "fixed"], 0);
    lab.run(&["compare", "b.iso", "out.vhd"], 0);
}

/// Every kind of disk that there is to be made here.
fn make_disks(lab: &Lab) -> Vec<&'static str> {
    let kinds: &[(&'static str, &[&str])] = &[
        ("ext4.raw", &["mkfs.ext4", "-q"]),
        ("xfs.raw", &["mkfs.xfs", "-q"]),
        ("btrfs.raw", &["mkfs.btrfs", "-q"]),
        ("ntfs.raw", &["mkfs.ntfs", "-q", "-F"]),
        ("fat.raw", &["mkfs.vfat"]),
        ("exfat.raw", &["mkfs.exfat"]),
        ("swap.raw", &["mkswap"]),
        ("gpt.raw", &["sgdisk", "-n", "1:2048:0"]),
    ];
    let mut made = vec!["zero.raw"];
    for (name, command) in kinds {
        let file = File::create(lab.path(name)).unwrap();
        file.set_len(320 * MIB).unwrap();
        run(lab, command[0], &[&command[1..], &[name]].concat());
        made.push(name);
    }
    File::create(lab.path("zero.raw")).unwrap().set_len(320 * MIB).unwrap();
    made
}

#[test]
fn disks_are_raw_and_with_a_vhds_name_they_are_not() {
    let programs = [
        "mkfs.ext4",
        "mkfs.xfs",
        "mkfs.btrfs",
        "mkfs.ntfs",
        "mkfs.vfat",
        "mkfs.exfat",
        "mkswap",
        "sgdisk",
    ];
    if !tools::have(&programs, "raw disks with file systems") {
        return;
    }
    let lab = Lab::new();
    for name in make_disks(&lab) {
        assert_eq!(lab.json(&["info", name], 0)["format"], "raw", "{name}");
        for other in ["a.vhd", "b.AVHD", "c.vud", "d.vhdx", "e.avhdx"] {
            fs::rename(lab.path(name), lab.path(other)).unwrap();
            let said = stderr(&lab.run(&["info", other], 8));
            assert!(
                said.contains("VHD-E0131") && said.contains(&format!("vhd repair {other}")),
                "{said}"
            );
            assert_eq!(lab.json(&["info", other, "--from", "raw"], 0)["format"], "raw");
            fs::rename(lab.path(other), lab.path(name)).unwrap();
        }
        let said = stderr(&lab.run(&["nbd", "--unix", "s.sock", name], 8));
        assert!(said.contains("VHD-E0133") && said.contains("--from raw"), "{said}");
    }
}

#[test]
fn fixed_images_that_lost_or_gained_bytes_are_no_raw_disks() {
    let lab = Lab::new();
    lab.fixed("whole.vhd", 4 * MIB);
    lab.write("whole.vhd", 0, &[1; 512]);
    let whole = fs::read(lab.path("whole.vhd")).unwrap();
    let hash = stdout(&lab.run(&["hash", "whole.vhd"], 0))
        .split(' ')
        .next()
        .unwrap()
        .to_owned();
    for cut in [
        1_usize,
        100,
        511,
        512,
        513,
        4096,
        65536,
        65537,
        100_000,
        1 << 20,
        (4 << 20) - 512,
    ] {
        fs::write(lab.path("cut.vhd"), &whole[..whole.len() - cut]).unwrap();
        // The last byte is nothing to a footer: Virtual PC wrote none.
        let ran = lab.vhd(&["hash", "cut.vhd"]).assert();
        match ran.get_output().status.code() {
            Some(0) => assert!(cut == 1 && stdout(&ran).starts_with(&hash), "{cut} bytes cut"),
            code => assert!(matches!(code, Some(3 | 8)), "{cut} bytes cut: {code:?}"),
        }
        lab.run(
            &["convert", "cut.vhd", "out.raw", "--to", "raw"],
            if cut == 1 { 0 } else { 8 },
        );
        let _ = fs::remove_file(lab.path("out.raw"));
    }
    for more in [1_usize, 512, 65_000, 65_536, 70_000, 1 << 20, 9_999_999] {
        let longer = [&whole[..], &vec![0xEE; more]].concat();
        for name in ["long.vhd", "long.img"] {
            fs::write(lab.path(name), &longer).unwrap();
            let said = stderr(&lab.run(&["hash", name], 8));
            assert!(said.contains(&format!("vhd repair {name}")), "{more}: {said}");
        }
        lab.vhd(&["hash", "-"]).write_stdin(longer).assert().code(8);
    }
    // Redirected, the file has its name.
    fs::write(lab.path("cut.vhd"), &whole[..whole.len() - 4096]).unwrap();
    let mut redirected = Command::new(env!("CARGO_BIN_EXE_vhd"));
    redirected
        .args(["hash", "-"])
        .stdin(File::open(lab.path("cut.vhd")).unwrap());
    assert_eq!(
        redirected
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .unwrap()
            .code(),
        Some(8)
    );
    // A VHD is one under any name.
    for name in ["a.raw", "b.img", "c.vhdx", "d"] {
        fs::write(lab.path(name), &whole).unwrap();
        assert_eq!(lab.json(&["info", name], 0)["format"], "vhd");
    }
}

#[test]
fn raw_disks_are_served_for_writing_where_that_is_said_of_them() {
    let lab = Lab::new();
    lab.dynamic("a.vhd", 4 * MIB);
    fs::write(lab.path("b.raw"), vec![0; 1 << 20]).unwrap();
    let said = stderr(&lab.run(&["nbd", "--unix", "s.sock", "--export", "b=b.raw"], 8));
    assert!(said.contains("VHD-E0133"), "{said}");
    for args in [
        &["--export", "a=a.vhd", "--export", "b=raw:b.raw"][..],
        &["--read-only", "--export", "a=a.vhd", "--export", "b=b.raw"],
        &["--snapshot", "--export", "a=a.vhd", "--export", "b=b.raw"],
        &["--from", "raw", "--export", "a=vhd:a.vhd", "--export", "b=b.raw"],
    ] {
        let serving = Serving::start(&lab, &[&["--unix", "s.sock"], args].concat());
        let size = |export: &str| {
            let uri = format!("nbd+unix:///{export}?socket={}", lab.path("s.sock").display());
            lab.json(&["info", &uri], 0)["virtual_size"].as_u64().unwrap()
        };
        assert_eq!((size("a"), size("b")), (4 * MIB, MIB), "{args:?}");
        assert_eq!(serving.stop(Signal::TERM).0, Some(0));
    }
}

#[test]
fn a_length_that_no_disk_has_is_warned_of() {
    let lab = Lab::new();
    fs::write(lab.path("odd.raw"), vec![7; 1000]).unwrap();
    let said = stderr(&lab.run(&["hash", "odd.raw"], 0));
    assert!(said.contains("warning") && said.contains("1000 bytes"), "{said}");
    assert!(stderr(&lab.run(&["hash", "other.raw"], 0)).is_empty());
}

#[test]
fn a_tree_counts_what_it_passes_over() {
    let lab = Lab::new();
    lab.chain();
    fs::create_dir(lab.path("sub")).unwrap();
    let vdi = [vec![0; 64], b"\x7F\x10\xDA\xBE".to_vec(), vec![0; 8124]].concat();
    for name in ["one.vdi", "sub/two.VDI"] {
        fs::write(lab.path(name), &vdi).unwrap();
    }
    fs::write(lab.path("q.qed"), b"QED\0".repeat(200)).unwrap();
    fs::write(lab.path("named.vhd"), b"QED\0".repeat(200)).unwrap();
    fs::copy(lab.path("parent.vhd"), lab.path("copy.vhdx")).unwrap();
    let text = stdout(&lab.run(&["tree", "."], 8));
    assert!(
        text.contains("2 VDI files not read") && text.contains("2 QED files not read"),
        "{text}"
    );
    let report = lab.json(&["tree", "."], 8);
    assert_eq!(report["summary"]["passed_over"], 4, "{report}");
    assert_eq!(report["summary"]["damaged"], 0);
    assert_eq!(report["passed_over"][1]["format"], "vdi");
    assert_eq!(
        report["passed_over"][1]["paths"],
        serde_json::json!(["one.vdi", "sub/two.VDI"])
    );
    // A VHD is read whatever it is called.
    let files: Vec<&str> = report["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["path"].as_str().unwrap())
        .collect();
    assert_eq!(files, ["copy.vhdx", "leaf.avhd", "named.vhd", "parent.vhd"]);
    fs::remove_file(lab.path("named.vhd")).unwrap();
    lab.run(&["tree", "."], 0);
}
