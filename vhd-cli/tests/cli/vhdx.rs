//! VHDX as a source: images that qemu wrote, whole and cut off in the middle of a write, and chains that no program here can
//! make, by the writer of the reader's own tests.

use std::fs;
use std::process::Command;

use crate::nbd::Serving;
use crate::support::{Lab, MIB, reading_commands, stderr, stdout};
use crate::tools::{self, have};
use crate::vhdx_writer::{Block, Image, Parent};
use rustix::process::Signal;

fn have_qemu(untested: &str) -> bool {
    have(&["qemu-img", "qemu-io"], untested)
}

/// Makes an image with qemu and writes to it.
fn qemu_image(lab: &Lab, name: &str, options: &str, size: &str, commands: &[&str]) {
    let image = lab.path(name);
    let image = image.to_str().unwrap();
    tools::run("qemu-img", ["create", "-q", "-f", "vhdx", "-o", options, image, size]);
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    tools::run("qemu-io", ["-f", "vhdx"].into_iter().chain(commands).chain([image]));
}

/// Checks that an image reads as qemu reads it.
fn reads_as_with_qemu(lab: &Lab, name: &str, seen_by_qemu: &str) {
    let (image, raw) = (lab.path(seen_by_qemu), lab.path("qemu.raw"));
    let (image, raw) = (image.to_str().unwrap(), raw.to_str().unwrap());
    tools::run("qemu-img", ["convert", "-f", "vhdx", "-O", "raw", image, raw]);
    lab.run(&["compare", name, "qemu.raw", "--from-b", "raw"], 0);
    lab.run(&["convert", name, "ours.raw", "--to", "raw", "--force"], 0);
    assert!(
        fs::read(lab.path("ours.raw")).unwrap() == fs::read(raw).unwrap(),
        "{name}"
    );
}

#[test]
fn images_of_qemu_read_byte_for_byte() {
    if !have_qemu("VHDX images of qemu") {
        return;
    }
    let lab = Lab::new();
    let writes = [
        "write -P 5 1000k 3M",
        "write -P 7 30M 70k",
        "write -P 9 39M 1M",
        "write -z 2M 1M",
    ];
    for options in [
        "block_size=1M",
        "block_size=2M,block_state_zero=off",
        "block_size=32M,log_size=4M",
        "block_size=256M",
        "subformat=fixed",
    ] {
        let _ = fs::remove_file(lab.path("a.vhdx"));
        qemu_image(&lab, "a.vhdx", options, "40M", &writes);
        let before = fs::read(lab.path("a.vhdx")).unwrap();
        reads_as_with_qemu(&lab, "a.vhdx", "a.vhdx");
        lab.run(&["check", "a.vhdx"], 0);
        let info = lab.json(&["info", "a.vhdx"], 0);
        assert_eq!(info["format"], "vhdx");
        assert_eq!(
            info["layers"][0]["type"],
            if options.contains("fixed") { "fixed" } else { "dynamic" }
        );
        assert!(before == fs::read(lab.path("a.vhdx")).unwrap(), "{options}");
    }
    // A VHDX is one under any name.
    for name in ["a.vhd", "b.raw", "c"] {
        fs::copy(lab.path("a.vhdx"), lab.path(name)).unwrap();
        assert_eq!(lab.json(&["info", name], 0)["format"], "vhdx");
    }
}

/// qemu is killed at each of its syncs: in the middle of making a block, the log holds what is missing in the table.
#[test]
fn images_of_a_killed_qemu_read_as_after_the_replay_of_their_log() {
    if !have_qemu("VHDX images of a killed qemu") || !have(&["strace"], "VHDX images of a killed qemu") {
        return;
    }
    let lab = Lab::new();
    // Which of its threads syncs is chance, and strace counts by threads: until both cases were met.
    let (mut unclosed, mut replayed) = (0, 0);
    for sync in (1..=6).cycle().take(60) {
        let entries = killed_at(&lab, sync);
        unclosed += u32::from(entries == Some(0));
        replayed += u32::from(entries > Some(0));
        if unclosed > 0 && replayed > 0 {
            return;
        }
    }
    panic!("{unclosed} with an empty log, {replayed} with one to replay");
}

/// Kills qemu at a sync of one of its threads and checks what is left; the log entries to replay, if it was not closed.
fn killed_at(lab: &Lab, sync: u32) -> Option<u64> {
    let _ = fs::remove_file(lab.path("a.vhdx"));
    qemu_image(lab, "a.vhdx", "block_size=1M", "24M", &["write -P 5 1M 3M"]);
    let (at, table) = table(&fs::read(lab.path("a.vhdx")).unwrap());
    Command::new("strace")
        .args(["-f", "-o", "strace.txt", "-e", "trace=fdatasync", "-e"])
        .arg(format!("inject=fdatasync:signal=KILL:when={sync}"))
        .args([
            "qemu-io",
            "-f",
            "vhdx",
            "-c",
            "write -P 6 8M 1M",
            "-c",
            "write -P 7 12M 2M",
            "a.vhdx",
        ])
        .current_dir(lab.path(""))
        .output()
        .unwrap();
    let mut bytes = fs::read(lab.path("a.vhdx")).unwrap();
    fs::copy(lab.path("a.vhdx"), lab.path("replayed.vhdx")).unwrap();
    let copy = lab.path("replayed.vhdx");
    tools::run("qemu-img", ["check", "-q", "-r", "all", copy.to_str().unwrap()]);
    reads_as_with_qemu(lab, "a.vhdx", "replayed.vhdx");
    let was_closed = stderr(&lab.run(&["hash", "a.vhdx"], 0)).is_empty();
    lab.run(&["check", "a.vhdx"], if was_closed { 0 } else { 4 });
    let entries = lab.json(&["info", "a.vhdx"], 0)["layers"][0]["replayed_log_entries"]
        .as_u64()
        .unwrap();
    if entries > 0 {
        // As if the kill had come before the table was written in its place: the log alone knows of the new block.
        bytes[at..at + table.len()].copy_from_slice(&table);
        fs::write(lab.path("a.vhdx"), &bytes).unwrap();
        reads_as_with_qemu(lab, "a.vhdx", "replayed.vhdx");
        assert!(bytes == fs::read(lab.path("a.vhdx")).unwrap());
    }
    (!was_closed).then_some(entries)
}

/// Where the first sector of the block table is, and that sector: by the region table.
fn table(bytes: &[u8]) -> (usize, Vec<u8>) {
    let regions = &bytes[192 << 10..][..256];
    let entry = regions[16..]
        .chunks(32)
        .find(|entry| entry.starts_with(&[0x66, 0x77, 0xC2, 0x2D]))
        .unwrap();
    let at = u64::from_le_bytes(entry[16..24].try_into().unwrap()) as usize;
    (at, bytes[at..at + 4096].to_vec())
}

/// A parent with a block, a child with some of it, and a child of that, as a Hyper-V host would leave them.
fn chain(lab: &Lab) -> Vec<u8> {
    let size = 3 * MIB as usize;
    let mut content = vec![0; size];
    let mut base = Image::new(1 << 20, 512, size);
    base.data_write_guid = [0x11; 16];
    base.blocks.insert(1, Block::Full(vec![1; 1 << 20]));
    content[1 << 20..2 << 20].fill(1);
    fs::create_dir_all(lab.path("sub")).unwrap();
    fs::write(lab.path("sub/Base.VHDX"), base.build()).unwrap();
    let child = |linkage: u8, guid: u8, path: &str| {
        let mut image = Image::new(1 << 20, 512, size);
        image.data_write_guid = [guid; 16];
        image.parent = Some(Parent {
            linkage: [linkage; 16],
            keys: vec![
                ("absolute_win32_path".into(), format!("\\\\?\\D:\\nowhere\\{path}")),
                ("relative_path".into(), format!(".\\{path}")),
                ("volume_path".into(), format!("\\\\?\\Volume{{0}}\\nowhere\\{path}")),
            ],
        });
        image
    };
    let mut middle = child(0x11, 0x22, "sub\\base.vhdx");
    let present = (0..2048).map(|sector| sector % 2 == 0).collect();
    middle.blocks.insert(1, Block::Partial(present, vec![2; 1 << 20]));
    content[1 << 20..2 << 20]
        .chunks_mut(1024)
        .for_each(|pair| pair[..512].fill(2));
    fs::write(lab.path("middle.avhdx"), middle.build()).unwrap();
    let mut leaf = child(0x22, 0x33, "middle.avhdx");
    leaf.blocks.insert(2, Block::Full(vec![3; 1 << 20]));
    content[2 << 20..].fill(3);
    fs::write(lab.path("leaf.avhdx"), leaf.build()).unwrap();
    content
}

#[test]
fn chains_are_found_by_their_paths_and_proven_by_the_data_write_guid() {
    let lab = Lab::new();
    let content = chain(&lab);
    lab.run(&["convert", "leaf.avhdx", "out.raw", "--to", "raw"], 0);
    assert!(fs::read(lab.path("out.raw")).unwrap() == content);
    let info = lab.json(&["info", "leaf.avhdx"], 0);
    assert_eq!(info["layers"].as_array().unwrap().len(), 3);
    assert_eq!(
        info["layers"][0]["parent"]["id"],
        "22222222-2222-2222-2222-222222222222"
    );
    assert_eq!(info["layers"][0]["parent"]["paths"][0]["source"], "relative_path");
    let map = lab.json(&["map", "leaf.avhdx"], 0);
    assert_eq!(map["extents"][0]["present"], false);
    let depths: Vec<_> = map["extents"]
        .as_array()
        .unwrap()
        .iter()
        .map(|extent| extent["depth"].as_u64())
        .collect();
    assert_eq!(depths[1..4], [Some(1), Some(2), Some(1)]);
    assert_eq!(depths.last(), Some(&Some(0)));
    assert_eq!(lab.json(&["check", "leaf.avhdx"], 0)["files"][2]["format"], "vhdx");
    let tree = stdout(&lab.run(&["tree", "."], 0));
    assert!(tree.contains("3 images in 1 tree"), "{tree}");

    // The content of the parent changed since: a child of that would be neither the old disk nor a new one.
    let original = fs::read(lab.path("sub/Base.VHDX")).unwrap();
    let mut changed = Image::new(1 << 20, 512, 3 << 20);
    changed.data_write_guid = [0x99; 16];
    fs::write(lab.path("sub/Base.VHDX"), changed.build()).unwrap();
    for args in [
        &["hash", "leaf.avhdx"][..],
        &["hash", "leaf.avhdx", "--parent", "sub/Base.VHDX"],
        &["check", "leaf.avhdx"],
    ] {
        let said = lab.run(args, 6);
        let said = stderr(&said) + &stdout(&said);
        assert!(
            said.contains("99999999-9999") && said.contains("changed since"),
            "{args:?}: {said}"
        );
    }
    let info = lab.json(&["info", "leaf.avhdx"], 6);
    assert_eq!(
        (info["layers"].as_array().unwrap().len(), &info["format"]),
        (2, &"vhdx".into())
    );
    lab.run(&["tree", "."], 6);

    // Moved away, it is found by its identity, and by nothing that the image names where that is not wanted.
    fs::create_dir(lab.path("archive")).unwrap();
    fs::write(lab.path("archive/other.vhdx"), &original).unwrap();
    fs::remove_file(lab.path("sub/Base.VHDX")).unwrap();
    let said = stderr(&lab.run(&["hash", "leaf.avhdx"], 6));
    assert!(said.contains("VHD-E0201") && said.contains("relative_path"), "{said}");
    lab.run(&["compare", "leaf.avhdx", "out.raw", "--parent-dir", "archive"], 0);
    lab.run(&["hash", "leaf.avhdx", "--parent", "archive/other.vhdx"], 0);
    let said = stderr(&lab.run(
        &[
            "hash",
            "leaf.avhdx",
            "--explicit-parents",
            "--parent",
            "archive/other.vhdx",
        ],
        6,
    ));
    assert!(said.contains("only explicitly named parents"), "{said}");
    lab.run(
        &[
            "hash",
            "leaf.avhdx",
            "--explicit-parents",
            "--parent",
            "archive/other.vhdx",
            "--parent",
            "middle.avhdx",
        ],
        0,
    );
    // A VHD is no parent of a VHDX.
    lab.dynamic("a.vhd", 3 * MIB);
    let said = stderr(&lab.run(&["hash", "leaf.avhdx", "--parent", "a.vhd"], 6));
    assert!(said.contains("not a VHDX"), "{said}");
    // An image that is its own ancestor.
    let mut own = Image::new(1 << 20, 512, 3 << 20);
    own.data_write_guid = [0x44; 16];
    own.parent = Some(Parent {
        linkage: [0x44; 16],
        keys: vec![("relative_path".into(), ".\\own.avhdx".into())],
    });
    fs::write(lab.path("own.avhdx"), own.build()).unwrap();
    let said = stderr(&lab.run(&["hash", "own.avhdx"], 6));
    assert!(said.contains("VHD-E0203"), "{said}");
}

/// Every command that only reads a disk takes one; every other refuses it, changes nothing, and says what to do.
#[test]
fn every_command_reads_it_or_refuses_it() {
    let lab = Lab::new();
    let content = chain(&lab);
    fs::write(lab.path("other.raw"), &content).unwrap();
    let before = fs::read(lab.path("leaf.avhdx")).unwrap();
    for command in reading_commands("leaf.avhdx") {
        let args: Vec<&str> = command.iter().map(String::as_str).collect();
        if args[0] == "create" {
            continue;
        }
        lab.run(&args, 0);
    }
    fs::remove_file(lab.path("out.img")).unwrap();
    lab.run(&["azure", "prepare", "leaf.avhdx", "azure.vhd"], 0);
    lab.run(&["convert", "leaf.avhdx", "flat.vhd", "--to", "dynamic"], 0);
    lab.run(&["compare", "leaf.avhdx", "flat.vhd"], 0);
    lab.run(&["diff", "leaf.avhdx", "flat.vhd"], 0);
    // A new state of an older VHD.
    lab.run(&["export-delta", "leaf.avhdx", "delta.avhd", "--since", "flat.vhd"], 0);
    let serving = Serving::start(&lab, &["--unix", "s.sock", "--read-only", "leaf.avhdx"]);
    let uri = format!("nbd+unix:///?socket={}", lab.path("s.sock").display());
    lab.run(&["compare", &uri, "other.raw", "--from-b", "raw"], 0);
    assert_eq!(serving.stop(Signal::TERM).0, Some(0));

    for args in [
        &["nbd", "--unix", "s.sock", "leaf.avhdx"][..],
        &["nbd", "--unix", "s.sock", "--snapshot", "leaf.avhdx"],
        &["nbd", "--unix", "s.sock", "--resizable", "leaf.avhdx"],
        &["mount", "--rw", "--foreground", "leaf.avhdx", "sub"],
        &["create", "child.avhd", "--parent", "leaf.avhdx"],
        &["azure", "check", "leaf.avhdx"],
        &["measure", "leaf.avhdx"],
        &["compact", "leaf.avhdx"],
        &["resize", "leaf.avhdx", "16M"],
        &["new-id", "leaf.avhdx"],
        &["merge", "leaf.avhdx"],
        &["verify", "leaf.avhdx"],
        &["verify", "--record", "leaf.avhdx"],
        &["repair", "leaf.avhdx"],
        &["repair", "leaf.avhdx", "--yes", "--size", "4M"],
        &["snapshot", "create", "leaf.avhdx", "--name", "first"],
        &["reparent", "leaf.avhdx", "flat.vhd"],
        &["export-delta", "flat.vhd", "out.avhd", "--since", "leaf.avhdx"],
        &["import-delta", "delta.avhd", "out.img", "--onto", "leaf.avhdx"],
        &["hash", "leaf.avhdx", "--from", "vhd"],
    ] {
        let names = lab.names();
        let said = stderr(&lab.run(args, 8));
        assert!(
            said.contains("VHD-E0140") && said.contains("a VHDX image"),
            "{args:?}: {said}"
        );
        assert!(said.contains("vhd convert"), "{args:?}: {said}");
        assert_eq!(lab.names(), names, "{args:?}");
    }
    // The parent of a VHD is a VHD.
    lab.run(&["create", "child.avhd", "--parent", "flat.vhd"], 0);
    let said = stderr(&lab.run(
        &["hash", "child.avhd", "--parent", "leaf.avhdx", "--explicit-parents"],
        6,
    ));
    assert!(said.contains("VHDX image, not a VHD"), "{said}");
    assert!(before == fs::read(lab.path("leaf.avhdx")).unwrap());
}

#[test]
fn damage_is_named_with_its_place() {
    let lab = Lab::new();
    chain(&lab);
    let mut bytes = fs::read(lab.path("sub/Base.VHDX")).unwrap();
    bytes[(3 << 20) + 8] = 5;
    fs::write(lab.path("bad.vhdx"), &bytes).unwrap();
    for args in [
        &["hash", "bad.vhdx"][..],
        &["convert", "bad.vhdx", "out", "--to", "raw"],
        &["info", "bad.vhdx"],
    ] {
        let said = stderr(&lab.run(args, 3));
        assert!(
            said.contains("VHD-E0141") && said.contains("0x300008: found state 5 of block 1"),
            "{said}"
        );
    }
    assert!(!lab.exists("out"));
    let check = lab.json(&["check", "bad.vhdx"], 3);
    assert_eq!(check["findings"][0]["code"], "entry-state");
    assert_eq!(check["findings"][0]["offset"], (3 << 20) + 8);
    let tree = lab.json(&["tree", "."], 3);
    assert_eq!(tree["summary"]["damaged"], 1);
    // In an ancestor it is found too.
    fs::write(lab.path("sub/Base.VHDX"), &bytes).unwrap();
    lab.run(&["check", "leaf.avhdx"], 3);
    fs::write(lab.path("sub/Base.VHDX"), &bytes[..100]).unwrap();
    let said = stderr(&lab.run(&["hash", "sub/Base.VHDX"], 3));
    assert!(said.contains("end of the file"), "{said}");
    // 4096 bytes in a sector.
    fs::write(lab.path("4k.vhdx"), Image::new(1 << 20, 4096, 4 << 20).build()).unwrap();
    let said = stderr(&lab.run(&["hash", "4k.vhdx"], 0));
    assert!(said.contains("logical sectors of 4096 bytes"), "{said}");
}

#[test]
fn files_inside_are_listed_printed_and_copied() {
    if !have_qemu("files in a VHDX") || !have(&["mkfs.ext4"], "files in a VHDX") {
        return;
    }
    let lab = Lab::new();
    fs::create_dir(lab.path("source")).unwrap();
    fs::write(lab.path("source/fstab"), "/dev/sda1 / ext4 defaults 0 1\n").unwrap();
    fs::File::create(lab.path("disk.raw"))
        .unwrap()
        .set_len(16 * MIB)
        .unwrap();
    let (source, raw, image) = (lab.path("source"), lab.path("disk.raw"), lab.path("disk.vhdx"));
    let (source, raw, image) = (source.to_str().unwrap(), raw.to_str().unwrap(), image.to_str().unwrap());
    tools::run("mkfs.ext4", ["-q", "-F", "-d", source, raw]);
    tools::run("qemu-img", ["convert", "-f", "raw", "-O", "vhdx", raw, image]);
    assert!(stdout(&lab.run(&["ls", "disk.vhdx:/"], 0)).contains("fstab"));
    assert!(stdout(&lab.run(&["cat", "disk.vhdx:/fstab"], 0)).starts_with("/dev/sda1"));
    lab.run(&["cp", "disk.vhdx:/fstab", "copy"], 0);
    assert!(lab.exists("copy"));
}
