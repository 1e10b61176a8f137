//! `vhd convert` onto block devices and exports of servers: what is there is replaced, in place.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use crate::mounted::Loop;
use crate::support::{Lab, MIB, stderr};
use crate::tools::have;

/// A chain whose disk has data, zeroes, and an end that is no multiple of anything; and what it reads.
fn source(lab: &Lab) -> Vec<u8> {
    lab.dynamic("base.vhd", 70 * MIB + 512);
    lab.write("base.vhd", 0, &vec![1; 3 << 20]);
    lab.run(&["create", "leaf.avhd", "--parent", "base.vhd"], 0);
    lab.write("leaf.avhd", MIB, &vec![0; 1 << 20]);
    lab.write("leaf.avhd", 70 * MIB, &[2; 512]);
    lab.run(&["convert", "leaf.avhd", "flat.raw"], 0);
    fs::read(lab.path("flat.raw")).unwrap()
}

/// A file of noise, which a device or server shows.
fn noise(lab: &Lab, name: &str, size: u64) {
    let bytes: Vec<u8> = (0..size).map(|at| u8::try_from(at % 251).unwrap() | 1).collect();
    fs::write(lab.path(name), bytes).unwrap();
}

/// The disk, and zeroes behind its end.
fn assert_holds(lab: &Lab, name: &str, content: &[u8]) {
    let bytes = fs::read(lab.path(name)).unwrap();
    assert!(bytes[..content.len()] == *content, "{name} does not hold the disk");
    assert!(
        bytes[content.len()..].iter().all(|&byte| byte == 0),
        "{name} keeps what it held behind the end"
    );
}

#[test]
fn a_block_device_takes_the_disk_and_zeroes_behind_it() {
    let root = rustix::process::geteuid().is_root();
    if !root
        || !have(
            &["losetup", "mkfs.ext4", "mount", "umount"],
            "block devices as destinations",
        )
    {
        assert!(std::env::var_os("CI").is_none(), "CI must be root");
        return;
    }
    let lab = Lab::new();
    let content = source(&lab);
    noise(&lab, "device.img", 96 * MIB);
    let device = Loop::new(&lab.path("device.img"), &[]);
    let refused = stderr(&lab.run(&["convert", "leaf.avhd", &device.0], 8));
    assert!(
        refused.contains("VHD-E0305") && refused.contains("--force"),
        "{refused}"
    );
    lab.run(&["convert", "leaf.avhd", &device.0, "--force", "--to", "fixed"], 2);
    let before = fs::read(lab.path("device.img")).unwrap();
    let report = lab.json(&["convert", "leaf.avhd", &device.0, "--force"], 0);
    assert_eq!(
        (&report["to"], &report["virtual_size"]),
        (&"raw".into(), &(70 * MIB + 512).into())
    );
    assert!(before != fs::read(lab.path("device.img")).unwrap());
    assert_holds(&lab, "device.img", &content);
    // Zeroes were not written out: the loop device punches holes.
    assert!(lab.path("device.img").metadata().unwrap().blocks() * 512 < 8 * MIB);
    // Too small: nothing is written.
    drop(device);
    noise(&lab, "small.img", 70 * MIB);
    let before = fs::read(lab.path("small.img")).unwrap();
    let small = Loop::new(&lab.path("small.img"), &[]);
    assert!(stderr(&lab.run(&["convert", "leaf.avhd", &small.0, "--force"], 8)).contains("VHD-E0205"));
    drop(small);
    assert!(before == fs::read(lab.path("small.img")).unwrap());
}

#[test]
fn a_device_that_is_mounted_or_read_is_not_written() {
    let root = rustix::process::geteuid().is_root();
    if !root
        || !have(
            &["losetup", "mkfs.ext4", "mount", "umount"],
            "mounted devices as destinations",
        )
    {
        assert!(std::env::var_os("CI").is_none(), "CI must be root");
        return;
    }
    let lab = Lab::new();
    source(&lab);
    fs::write(lab.path("device.img"), vec![0; 96 << 20]).unwrap();
    let device = Loop::new(&lab.path("device.img"), &[]);
    crate::tools::run("mkfs.ext4", ["-q", &device.0]);
    fs::create_dir(lab.path("mnt")).unwrap();
    crate::tools::run("mount", [device.0.as_str(), lab.path("mnt").to_str().unwrap()]);
    let refused = stderr(&lab.run(&["convert", "leaf.avhd", &device.0, "--force"], 7));
    crate::tools::run("umount", [lab.path("mnt")]);
    assert!(
        refused.contains("VHD-E0304") && refused.contains("mounted"),
        "{refused}"
    );
    lab.run(&["convert", &device.0, &device.0, "--from", "raw", "--force"], 8);
}

#[test]
fn an_export_of_a_server_takes_the_disk() {
    let lab = Lab::new();
    let content = source(&lab);
    for (image, from) in [("server.raw", "raw"), ("server.vhd", "vhd")] {
        match from {
            "raw" => noise(&lab, image, 80 * MIB),
            _ => lab.dynamic(image, 80 * MIB),
        }
        // The server ends with the command that uses it.
        let vhd = env!("CARGO_BIN_EXE_vhd");
        let line = format!("{vhd} convert leaf.avhd \"$uri\" || exit 50; ");
        lab.run(&["nbd", "--from", from, "--run", &line, image], 50);
        let line = format!("{vhd} convert leaf.avhd \"$uri\" --force");
        lab.run(&["nbd", "--from", from, "--run", &line, image], 0);
        lab.run(&["convert", "--from", from, image, "read.raw", "--force"], 0);
        assert_holds(&lab, "read.raw", &content);
    }
    let line = format!("{} convert leaf.avhd \"$uri\" --force", env!("CARGO_BIN_EXE_vhd"));
    lab.dynamic("small.vhd", 70 * MIB);
    lab.run(&["nbd", "--run", &line, "small.vhd"], 8);
    lab.run(&["nbd", "--read-only", "--run", &line, "server.vhd"], 1);
}

#[test]
fn a_command_uses_a_disk_while_it_is_served() {
    let lab = Lab::new();
    lab.chain();
    // Its exit code is ours; its name for the disk works; nothing is left of the socket.
    let line = format!(
        "{} hash \"$uri\" >sum && test -S \"$unixsocket\" && echo \"$unixsocket\" >place; exit 42",
        env!("CARGO_BIN_EXE_vhd")
    );
    lab.run(&["nbd", "--read-only", "--run", &line, "leaf.avhd"], 42);
    let sum = fs::read_to_string(lab.path("sum")).unwrap();
    assert_eq!(
        sum.split(' ').next().unwrap(),
        crate::compact::sha256(&lab, "leaf.avhd")
    );
    let place = fs::read_to_string(lab.path("place")).unwrap();
    assert!(!std::path::Path::new(place.trim()).exists());
    lab.run(&["nbd", "--run", "true", "leaf.avhd"], 0);
    lab.run(&["nbd", "--run", "kill -9 $$", "leaf.avhd"], 137);
    // An export with a name that a URI must escape.
    let line = format!(
        "test \"$exportname\" = 'a b' && {} hash \"$uri\" >sum",
        env!("CARGO_BIN_EXE_vhd")
    );
    lab.run(&["nbd", "--run", &line, "--export", "a b=leaf.avhd"], 0);
    lab.run(&["nbd", "--run", "true", "--fork", "leaf.avhd"], 2);
    lab.run(&["nbd", "--run", "true", "--tcp", "127.0.0.1:0", "leaf.avhd"], 2);
}
