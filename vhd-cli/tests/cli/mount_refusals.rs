//! `vhd mount` without root, and where it cannot mount or show something.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use crate::mounted::{Mounted, fuse, hash, sha256sum, unmount};
use crate::support::{Lab, MIB, stderr};
use crate::tools::{have, run};

const NOBODY: u32 = 65_534;

/// A directory that the user nobody owns, with the program and an image.
fn lab_of_nobody() -> Option<Lab> {
    if !fuse() || !have(&["runuser", "fusermount3", "env"], "mounts without root") {
        return None;
    }
    let lab = Lab::new();
    fs::copy(env!("CARGO_BIN_EXE_vhd"), lab.path("vhd")).unwrap();
    // A comma would end the option of the helper that it is in.
    lab.dynamic("disk,allow_other.vhd", 8 * MIB);
    lab.write("disk,allow_other.vhd", 3 * MIB, &[3; 5000]);
    fs::create_dir(lab.path("mnt")).unwrap();
    for name in ["", "vhd", "disk,allow_other.vhd", "mnt"] {
        std::os::unix::fs::chown(lab.path(name), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    Some(lab)
}

fn as_nobody(lab: &Lab, environment: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new("runuser");
    command
        .current_dir(lab.path(""))
        .args(["-u", "nobody", "--", "env", environment]);
    command.arg(lab.path("vhd")).args(arguments).output().unwrap()
}

#[test]
fn it_works_without_root() {
    let Some(lab) = lab_of_nobody() else { return };
    let path = format!("PATH={}", std::env::var("PATH").unwrap());
    let mounted = as_nobody(&lab, &path, &["mount", "disk,allow_other.vhd", "mnt"]);
    assert!(mounted.status.success(), "{mounted:?}");
    // Other mounts may have names that are no UTF-8.
    let table = fs::read("/proc/self/mountinfo").unwrap();
    let table = String::from_utf8_lossy(&table);
    let line = table
        .lines()
        .find(|line| line.contains(lab.path("mnt").to_str().unwrap()))
        .unwrap();
    assert!(
        line.contains("vhd:disk,allow_other.vhd ") && line.contains("user_id=65534"),
        "{line}"
    );
    let read = Command::new("runuser")
        .args(["-u", "nobody", "--", "sha256sum"])
        .arg(lab.path("mnt/disk.raw"))
        .output()
        .unwrap();
    assert!(read.status.success(), "{read:?}");
    let sum = String::from_utf8(read.stdout).unwrap();
    assert_eq!(sum.split(' ').next().unwrap(), hash(&lab, "disk,allow_other.vhd"));
    // The option in the name was none.
    assert!(
        !table
            .lines()
            .any(|line| line.contains("vhd:disk,") && line.ends_with("allow_other"))
    );
    let unmounted = as_nobody(&lab, &path, &["umount", "mnt"]);
    assert!(unmounted.status.success(), "{unmounted:?}");
}

#[test]
fn without_root_a_missing_helper_is_named() {
    let Some(lab) = lab_of_nobody() else { return };
    for arguments in [
        &["mount", "disk,allow_other.vhd", "mnt"][..],
        &["mount", "--foreground", "disk,allow_other.vhd", "mnt"],
    ] {
        let refused = as_nobody(&lab, "PATH=/nowhere", arguments);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{told}");
        assert!(told.contains("VHD-E0708") && told.contains("package fuse3"), "{told}");
    }
}

#[test]
fn without_the_device_the_module_is_named() {
    let lab = Lab::new();
    if !fuse() || !have(&["unshare", "mount"], "mounts without /dev/fuse") {
        return;
    }
    lab.dynamic("disk.vhd", 8 * MIB);
    fs::create_dir(lab.path("mnt")).unwrap();
    let script = format!(
        "mount -t tmpfs none /dev && cd {} && exec {} mount --foreground disk.vhd mnt",
        lab.path("").display(),
        env!("CARGO_BIN_EXE_vhd")
    );
    let refused = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{told}");
    assert!(
        told.contains("VHD-E0708") && told.contains("/dev/fuse") && told.contains("module fuse"),
        "{told}"
    );
}

#[test]
fn places_that_are_none_are_refused() {
    let lab = Lab::new();
    if !fuse() {
        return;
    }
    lab.dynamic("disk.vhd", 8 * MIB);
    fs::write(lab.path("file"), b"").unwrap();
    symlink("nowhere", lab.path("dangling")).unwrap();
    for place in ["missing", "file", "dangling", "file/below"] {
        let told = stderr(&lab.run(&["mount", "disk.vhd", place], 1));
        assert!(told.contains("VHD-E0708") && told.contains(place), "{told}");
    }
    // A second mount would hide the first; by another name it is the same place.
    let mounted = Mounted::new(&lab, &["disk.vhd"]);
    lab.dynamic("other.vhd", 8 * MIB);
    symlink("mnt", lab.path("link")).unwrap();
    for place in ["mnt", "link", "./mnt/"] {
        let told = stderr(&lab.run(&["mount", "other.vhd", place], 7));
        assert!(told.contains("VHD-E0709") && told.contains("vhd umount"), "{told}");
    }
    assert_eq!(mounted.path("disk.raw").metadata().unwrap().len(), 8 * MIB);
    mounted.unmount();
    // Images that cannot be opened leave nothing mounted.
    fs::write(lab.path("broken.vhd"), [7; 10_000]).unwrap();
    lab.run(&["mount", "broken.vhd", "mnt"], 8);
    assert_eq!(fs::read_dir(lab.path("mnt")).unwrap().count(), 0);
}

#[test]
fn where_the_server_is_gone_the_way_out_is_said() {
    let lab = Lab::new();
    if !fuse() {
        return;
    }
    lab.dynamic("disk.vhd", 8 * MIB);
    let mut mounted = Mounted::new(&lab, &["disk.vhd"]);
    mounted.process.kill().unwrap();
    mounted.process.wait().unwrap();
    let told = stderr(&lab.run(&["mount", "disk.vhd", "mnt"], 7));
    assert!(told.contains("VHD-E0709") && told.contains("vhd umount"), "{told}");
    unmount(&lab, "mnt");
    lab.run(&["mount", "disk.vhd", "mnt"], 0);
    unmount(&lab, "mnt");
}

/// Of images, of places, and of other mounts on the machine.
#[test]
fn names_need_not_be_utf_8() {
    let lab = Lab::new();
    if !fuse() {
        return;
    }
    lab.dynamic("disk.vhd", 8 * MIB);
    lab.write("disk.vhd", MIB, &[5; 512]);
    let expected = hash(&lab, "disk.vhd");
    let odd = |name: &[u8]| lab.path("").join(OsStr::from_bytes(name));
    let (image, place) = (odd(b"disk \xff.vhd"), odd(b"mnt \xfe\xff"));
    fs::rename(lab.path("disk.vhd"), &image).unwrap();
    fs::create_dir(&place).unwrap();
    fs::create_dir(lab.path("mnt")).unwrap();
    let vhd = |arguments: &[&OsStr]| {
        let output = Command::new(env!("CARGO_BIN_EXE_vhd"))
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    vhd(&["mount".as_ref(), image.as_os_str(), place.as_os_str()]);
    assert_eq!(sha256sum(&place.join("disk.raw")), expected);
    // Beside it, the others are found too.
    lab.dynamic("other.vhd", 8 * MIB);
    lab.run(&["mount", "other.vhd", "mnt"], 0);
    unmount(&lab, "mnt");
    vhd(&["umount".as_ref(), place.as_os_str()]);
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
}

/// A link inside the disk that names a file of this machine.
#[test]
fn links_out_of_the_disk_are_shown_and_not_followed() {
    let lab = Lab::new();
    if !fuse() || !have(&["mkfs.ext4"], "links inside mounts") {
        return;
    }
    fs::create_dir_all(lab.path("source/inner")).unwrap();
    fs::write(lab.path("secret"), b"of the host").unwrap();
    fs::write(lab.path("source/inner/file"), b"of the disk").unwrap();
    symlink(lab.path("secret"), lab.path("source/absolute")).unwrap();
    symlink(
        "../../../../../../../../../../etc/passwd",
        lab.path("source/inner/relative"),
    )
    .unwrap();
    symlink("/inner/file", lab.path("source/inside")).unwrap();
    File::create(lab.path("disk.raw")).unwrap().set_len(16 * MIB).unwrap();
    let source = lab.path("source");
    run(
        "mkfs.ext4",
        [
            "-q".as_ref(),
            "-F".as_ref(),
            "-d".as_ref(),
            source.as_os_str(),
            lab.path("disk.raw").as_os_str(),
        ],
    );
    lab.run(
        &["convert", "--from", "raw", "disk.raw", "disk.vhd", "--to", "dynamic"],
        0,
    );
    for link in ["absolute", "inner/relative"] {
        lab.run(&["cat", &format!("disk.vhd:/{link}")], 1);
    }
    let printed = lab.run(&["cat", "disk.vhd:/inside"], 0);
    assert_eq!(printed.get_output().stdout, b"of the disk");
    lab.run(&["cp", "disk.vhd:/", "copied"], 0);
    assert_eq!(fs::read_link(lab.path("copied/absolute")).unwrap(), lab.path("secret"));
    // A mount shows them as links. The kernel follows them for whoever asks it to, as on any mount.
    let mounted = Mounted::new(&lab, &["disk.vhd"]);
    assert_eq!(
        fs::read_link(mounted.path("files/p0/absolute")).unwrap(),
        lab.path("secret")
    );
    assert_eq!(
        fs::read_link(mounted.path("files/p0/inside")).unwrap(),
        Path::new("/inner/file")
    );
    mounted.unmount();
}

/// One file system is damaged; its neighbours and the disk are shown.
#[test]
fn a_damaged_file_system_leaves_the_others() {
    let lab = Lab::new();
    if !fuse() || !have(&["mkfs.ext4", "sfdisk"], "a damaged file system in a mount") {
        return;
    }
    fs::create_dir(lab.path("source")).unwrap();
    fs::write(lab.path("source/file"), b"sound").unwrap();
    let source = lab.path("source");
    let part = lab.path("part.raw");
    File::create(&part).unwrap().set_len(8 * MIB).unwrap();
    run(
        "mkfs.ext4",
        [
            "-q".as_ref(),
            "-F".as_ref(),
            "-d".as_ref(),
            source.as_os_str(),
            part.as_os_str(),
        ],
    );
    let part = fs::read(part).unwrap();
    File::create(lab.path("disk.raw")).unwrap().set_len(32 * MIB).unwrap();
    fs::write(
        lab.path("layout"),
        "label: dos\nstart=2048,size=16384\nstart=18432,size=16384\n",
    )
    .unwrap();
    run(
        "sh",
        [
            "-c",
            &format!(
                "sfdisk -q {} < {}",
                lab.path("disk.raw").display(),
                lab.path("layout").display()
            ),
        ],
    );
    lab.run(
        &["convert", "--from", "raw", "disk.raw", "disk.vhd", "--to", "dynamic"],
        0,
    );
    lab.write("disk.vhd", MIB, &part);
    lab.write("disk.vhd", 9 * MIB, &part);
    // The descriptors of its groups, and its inodes.
    lab.write("disk.vhd", 9 * MIB + 4096, &[0xFF; 256 << 10]);
    let mounted = Mounted::new(&lab, &["disk.vhd"]);
    assert_eq!(fs::read(mounted.path("files/p1/file")).unwrap(), b"sound");
    assert!(fs::read(mounted.path("files/p2/file")).is_err());
    assert_eq!(fs::read(mounted.path("partitions/p2.raw")).unwrap().len(), 8 << 20);
    assert_eq!(fs::read(mounted.path("files/p1/file")).unwrap(), b"sound");
    mounted.unmount();
}
