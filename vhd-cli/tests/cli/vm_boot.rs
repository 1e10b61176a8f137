//! `vhd vm run` without a kernel: guests that are started from the disk's own file systems.

use std::fs;
use std::path::Path;

use rustix::process::Signal;

use crate::nbd::Serving;
use crate::payload::{FLUSH, Payload, READ, STORE, data, has_kvm};
use crate::support::{Lab, MIB, stderr, stdout};
use crate::tools;

/// Where a machine has its kernel's command line.
const COMMAND_LINE: u32 = 0x2_0000;
/// Where an initramfs of less than a page is, with 64 MiB of memory.
const INITRD: u32 = (64 << 20) - 4096;

/// A kernel that says its name, the beginning of its command line, and that of its initramfs.
fn kernel(name: &str, line: usize, initrd: u32) -> Vec<u8> {
    let guest = Payload::new().print(name).print(":");
    let guest = guest
        .print_memory(COMMAND_LINE, u32::try_from(line).unwrap())
        .print(":");
    guest.print_memory(INITRD, initrd).power_off().elf()
}

/// A file system in an image of its own, with these files; a name with ` -> ` is a link.
fn file_system(lab: &Lab, image: &str, files: &[(&str, &[u8])]) {
    let root = lab.path("root");
    fs::create_dir(&root).unwrap();
    for (name, content) in files {
        let (name, target) = name.split_once(" -> ").unwrap_or((name, ""));
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if target.is_empty() {
            fs::write(path, content).unwrap();
        } else {
            std::os::unix::fs::symlink(target, path).unwrap();
        }
    }
    let raw = lab.path(image);
    fs::File::create(&raw).unwrap().set_len(16 * MIB).unwrap();
    let options = ["-q", "-F", "-d", root.to_str().unwrap(), raw.to_str().unwrap()];
    tools::run("mkfs.ext4", options);
    fs::remove_dir_all(root).unwrap();
}

fn can_make_disks(what: &str) -> bool {
    has_kvm(what) && tools::have(&["mkfs.ext4", "mkfs.vfat", "mcopy", "sgdisk"], what)
}

/// What a guest that is found on a disk says, and what is said about it.
fn boots(lab: &Lab, disk: &str, options: &[&str]) -> (String, String) {
    let args = ["vm", "run", disk, "--memory", "64M"];
    let ran = lab.run(&[&args, options].concat(), 0);
    (stdout(&ran), stderr(&ran))
}

#[test]
fn each_way_to_name_a_kernel_starts_it() {
    if !can_make_disks("kernels on disks") {
        return;
    }
    let menu = "set default=0\nload_env\nset default=\"${saved_entry}\"\n\
        menuentry 'First' --id first { linux /boot/a root=/dev/1 quiet; initrd /boot/i }\n\
        submenu 'More' --id more { menuentry 'Second' --id second { linux (hd0,gpt1)/boot/b  root=/dev/2; initrd /boot/i /boot/j } }\n";
    let environment = "# GRUB Environment Block\nsaved_entry=more>second\n######";
    let (first, second) = (kernel("a", 17, 1), kernel("b", 11, 6));
    let entry = |name: &str| {
        format!("title Entry {name}\nversion {name}\nlinux /boot/{name}\noptions root=/dev/3\n").into_bytes()
    };
    let (old, new, both) = (kernel("old", 11, 0), kernel("new", 11, 0), kernel("new", 16, 4));
    type Files<'a> = Vec<(&'a str, &'a [u8])>;
    let (e1, e2, e3) = (entry("6.9"), entry("6.10"), entry("7.0"));
    let cases: Vec<(Files<'_>, &str, &str)> = vec![
        (
            vec![
                ("boot/grub/grub.cfg", menu.as_bytes()),
                ("boot/a", &first),
                ("boot/b", &second),
                ("boot/i", b"i"),
                ("boot/j", b"jj"),
            ],
            "a:root=/dev/1 quiet:i",
            "\"First\" of p0:/boot/grub/grub.cfg",
        ),
        (
            vec![
                ("boot/grub2/grub.cfg", menu.as_bytes()),
                ("boot/grub2/grubenv", environment.as_bytes()),
                ("boot/a", &first),
                ("boot/b", &second),
                ("boot/i", b"i"),
                ("boot/j", b"jj"),
            ],
            "b:root=/dev/2:i\0\0\0jj",
            "\"Second\" of p0:/boot/grub2/grub.cfg",
        ),
        // The newest entry has no kernel any more; of the others 6.10 is newer.
        (
            vec![
                ("boot/loader/entries/a.conf", &e1),
                ("boot/loader/entries/b.conf", &e2),
                ("boot/loader/entries/c.conf", &e3),
                ("boot/6.9", &old),
                ("boot/6.10", &new),
                ("boot/grub/grub.cfg", menu.as_bytes()),
                ("boot/a", &first),
            ],
            "new:root=/dev/3:",
            "\"Entry 6.10\" of p0:/boot/loader/entries/b.conf",
        ),
        (
            vec![
                ("loader/entries/a.conf", &e1),
                ("loader/entries/b.conf", &e2),
                ("loader/loader.conf", b"timeout 3\ndefault a*\n"),
                ("boot/6.9", &old),
                ("boot/6.10", &new),
            ],
            "old:root=/dev/3:",
            "\"Entry 6.9\" of p0:/loader/entries/a.conf",
        ),
        (
            vec![
                ("boot/vmlinuz-6.1.0-9-amd64", &old),
                ("boot/vmlinuz-6.1.0-10-amd64", &both),
                ("boot/vmlinuz-7.old", &old),
                ("boot/initrd.img-6.1.0-9-amd64", b"old"),
                ("boot/initrd.img-6.1.0-10-amd64", b"init"),
            ],
            "new:root=/dev/vda rw:init",
            "kernel p0:/boot/vmlinuz-6.1.0-10-amd64",
        ),
        (
            vec![
                ("vmlinuz -> store/k", b""),
                ("initrd.img -> /store/i", b""),
                ("store/k", &both),
                ("store/i", b"init"),
            ],
            "new:root=/dev/vda rw:init",
            "kernel p0:/vmlinuz",
        ),
    ];
    for (files, said, chosen) in cases {
        let lab = Lab::new();
        file_system(&lab, "disk.raw", &files);
        lab.run(&["convert", "disk.raw", "disk.vhd", "--to", "dynamic"], 0);
        let (output, remarks) = boots(&lab, "disk.vhd", &[]);
        assert_eq!(output, said, "{remarks}");
        assert!(remarks.contains(chosen), "{remarks}");
        assert_eq!(
            lab.names().iter().filter(|name| name.starts_with("disk")).count(),
            2,
            "nothing stays behind"
        );
    }
}

/// Puts file systems into partitions of a GPT.
fn partitioned(lab: &Lab, disk: &str, parts: &[&str]) {
    let path = lab.path(disk);
    let mut bytes = vec![0; (1 + 16 * parts.len() + 1) * MIB as usize];
    for (number, part) in parts.iter().enumerate() {
        let content = fs::read(lab.path(part)).unwrap();
        bytes[(1 + 16 * number) * MIB as usize..][..content.len()].copy_from_slice(&content);
    }
    fs::write(&path, bytes).unwrap();
    for number in 1..=parts.len() {
        let start = (1 + 16 * (number - 1)) * 2048;
        let partition = format!("-n{number}:{start}:{}", start + 16 * 2048 - 1);
        tools::run("sgdisk", [partition.as_str(), path.to_str().unwrap()]);
    }
}

fn fat(lab: &Lab, image: &str, files: &[(&str, &[u8])]) {
    let path = lab.path(image);
    fs::File::create(&path).unwrap().set_len(16 * MIB).unwrap();
    let path = path.to_str().unwrap();
    tools::run("mkfs.vfat", [path]);
    for (name, content) in files {
        fs::write(lab.path("file"), content).unwrap();
        let file = lab.path("file");
        tools::run("mcopy", ["-i", path, file.to_str().unwrap(), &format!("::{name}")]);
    }
}

#[test]
fn a_boot_partition_is_apart_from_the_system() {
    if !can_make_disks("boot partitions") {
        return;
    }
    let lab = Lab::new();
    let guest = kernel("k", 17, 2);
    file_system(&lab, "system.raw", &[("sbin/init", b"#!"), ("etc/fstab", b"")]);
    fat(&lab, "boot.raw", &[("vmlinuz-1", &guest), ("initrd-1", b"ii")]);
    partitioned(&lab, "disk.raw", &["boot.raw", "system.raw"]);
    let (output, remarks) = boots(&lab, "raw:disk.raw", &[]);
    assert_eq!(output, "k:root=/dev/vda2 rw:ii", "{remarks}");
    assert!(remarks.contains("initramfs p1:/initrd-1"), "{remarks}");

    // The configuration is on a partition of its own, and names files of another.
    let menu = b"menuentry x { linux /vmlinuz-1 root=LABEL=y ro; initrd /initrd-1 }";
    let broken = b"menuentry x { linux /elsewhere root=LABEL=y ro }";
    file_system(&lab, "config.raw", &[("grub/grub.cfg", menu)]);
    partitioned(&lab, "other.raw", &["system.raw", "config.raw", "boot.raw"]);
    assert_eq!(boots(&lab, "raw:other.raw", &[]).0, "k:root=LABEL=y ro c:ii");
    // One that names what is not there is said, and passed over.
    file_system(&lab, "broken.raw", &[("grub/grub.cfg", broken)]);
    partitioned(&lab, "third.raw", &["broken.raw", "boot.raw", "system.raw"]);
    let (output, remarks) = boots(&lab, "raw:third.raw", &[]);
    assert_eq!(output, "k:root=/dev/vda3 rw:ii", "{remarks}");
    assert!(
        remarks.contains("\"x\" names /elsewhere, which is not there"),
        "{remarks}"
    );
}

#[test]
fn what_is_named_overrides_what_is_found() {
    if !can_make_disks("names beside a kernel on a disk") {
        return;
    }
    let lab = Lab::new();
    let menu = b"menuentry x { linux /k root=/dev/1; initrd /i }";
    let guest = kernel("disk", 65, 2);
    file_system(
        &lab,
        "disk.raw",
        &[("grub/grub.cfg", menu), ("k", &guest), ("i", b"ii")],
    );
    fs::write(lab.path("named"), kernel("named", 31, 2)).unwrap();
    fs::write(lab.path("other"), b"oo").unwrap();
    let always = "console=ttyS0 reboot=k panic=-1";
    let found = format!("disk:root=/dev/1 {always}");
    let (output, _) = boots(&lab, "raw:disk.raw", &["--append", "root=/dev/2"]);
    assert!(output.starts_with(&found) && output.ends_with(":ii"), "{output}");
    let (output, remarks) = boots(&lab, "raw:disk.raw", &["--initrd", "other"]);
    assert!(output.starts_with(&found) && output.ends_with(":oo"), "{output}");
    assert!(!remarks.contains("initramfs"), "{remarks}");
    let (output, remarks) = boots(&lab, "raw:disk.raw", &["--kernel", "named", "--initrd", "other"]);
    assert_eq!(
        (output.as_str(), remarks.as_str()),
        (format!("named:{always}:oo").as_str(), "")
    );
}

#[test]
fn a_disk_without_a_kernel_is_one_line_with_a_code() {
    if !can_make_disks("disks without kernels") {
        return;
    }
    let lab = Lab::new();
    lab.dynamic("empty.vhd", 8 * MIB);
    file_system(
        &lab,
        "data.raw",
        &[
            ("etc/fstab", b""),
            ("boot/grub/grub.cfg", b"menuentry w { chainloader +1 }"),
        ],
    );
    file_system(&lab, "text.raw", &[("boot/vmlinuz-1", b"no kernel")]);
    for (disk, error, text) in [
        ("empty.vhd", "VHD-E0809", "no kernel on the disk"),
        ("raw:data.raw", "VHD-E0809", "p0: ext4"),
        ("raw:text.raw", "VHD-E0802", "p0:/boot/vmlinuz-1: not a kernel"),
    ] {
        let complaint = stderr(&lab.run(&["vm", "run", disk], 8));
        assert!(complaint.contains(&format!("vhd: error[{error}]: ")), "{complaint}");
        assert!(complaint.contains(text), "{complaint}");
    }
    let complaint = stderr(&lab.run(&["vm", "run"], 2));
    assert!(complaint.contains("--kernel"), "{complaint}");
}

/// A guest that copies a text of its disk, and flushes.
fn copies() -> Payload {
    let guest = Payload::new()
        .start_disk(0)
        .request(0, READ, 3, 512)
        .print_memory(data(0), 4);
    let guest = guest.request(0, STORE, 9000, 512).print_status(0);
    guest.request(0, FLUSH, 0, 0).print_status(0).power_off()
}

#[test]
fn disks_may_be_block_devices_and_on_servers() {
    if !has_kvm("other kinds of disks") || !tools::have(&["losetup"], "a block device as a disk of a guest") {
        return;
    }
    let lab = Lab::new();
    fs::write(lab.path("guest"), copies().elf()).unwrap();
    let mut bytes = vec![0; 8 * MIB as usize];
    bytes[3 * 512..][..4].copy_from_slice(b"text");
    fs::write(lab.path("disk.img"), &bytes).unwrap();
    let image = lab.path("disk.img");
    let found = tools::run("losetup", ["--find", "--show", image.to_str().unwrap()]);
    let device = String::from_utf8(found).unwrap().trim().to_owned();
    let run = |disk: &str, code| lab.run(&["vm", "run", "--kernel", "guest", "--disk", disk], code);
    // What is no VHD needs its format said before it is written.
    let refused = stderr(&run(&device, 8));
    let ran = run(&format!("raw:{device}"), 0);
    tools::run("losetup", ["--detach", &device]);
    assert!(refused.contains("VHD-E0133"), "{refused}");
    assert_eq!(stdout(&ran), "text00");
    assert_eq!(&fs::read(&image).unwrap()[9000 * 512..][..4], b"text");

    lab.dynamic("base.vhd", 8 * MIB);
    lab.write("base.vhd", 3 * 512, b"text");
    lab.run(&["create", "leaf.avhd", "--parent", "base.vhd"], 0);
    let uri = format!("nbd+unix:///?socket={}", lab.path("s.sock").display());
    let serving = Serving::start(&lab, &["--unix", "s.sock", "leaf.avhd"]);
    let before = fs::read(lab.path("leaf.avhd")).unwrap();
    assert_eq!(stdout(&run(&format!("{uri},ro"), 0)), "text10");
    assert!(stderr(&run(&format!("{uri},snapshot"), 2)).contains("temporary layer"));
    assert_eq!(fs::read(lab.path("leaf.avhd")).unwrap(), before);
    assert_eq!(stdout(&run(&uri, 0)), "text00");
    assert_eq!(serving.stop(Signal::TERM).0, Some(0));
    lab.run(&["check", "leaf.avhd"], 0);
    lab.run(&["convert", "leaf.avhd", "after.raw", "--to", "raw"], 0);
    assert_eq!(&fs::read(lab.path("after.raw")).unwrap()[9000 * 512..][..4], b"text");

    // A server that does not let it write is refused, and a server that is gone.
    let serving = Serving::start(&lab, &["--unix", "s.sock", "--read-only", "leaf.avhd"]);
    assert!(stderr(&run(&uri, 1)).contains("VHD-E0403"));
    assert_eq!(stdout(&run(&format!("{uri},ro"), 0)), "text10");
    assert_eq!(serving.stop(Signal::TERM).0, Some(0));
    assert!(stderr(&run(&uri, 1)).contains("VHD-E0605"));
    assert!(!Path::new(&lab.path("s.sock")).exists());
}
