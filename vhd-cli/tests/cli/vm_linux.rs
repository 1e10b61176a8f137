//! `vhd vm run` with a real Linux kernel, one that runs on the KVM of development hosts.

use std::fs;
use std::path::{Path, PathBuf};

use crate::payload::has_kvm;
use crate::support::{Lab, MIB, stderr, stdout};
use crate::{announce, tools};

/// What the guest does as /init.
const INIT: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <unistd.h>
static int end(const char *text) { printf("GUEST %s\n", text); fflush(stdout); sync(); reboot(RB_POWER_OFF); return 1; }
int main(void) {
    char line[64] = {0};
    mount("none", "/dev", "devtmpfs", 0, 0);
    if (mkdir("/mnt", 0755) || mount("/dev/vda", "/mnt", "ext4", 0, 0)) return end("cannot mount");
    int from = open("/mnt/greeting", O_RDONLY), to = open("/mnt/answer", O_CREAT | O_WRONLY, 0644);
    if (read(from, line, sizeof line - 1) <= 0) return end("cannot read");
    if (write(to, line, strlen(line)) < 0 || fsync(to)) return end("cannot write");
    close(from); close(to);
    printf("GUEST read %s\n", line);
    return end(umount("/mnt") ? "cannot unmount" : "done");
}
"#;

/// What this kernel needs where KVM emulates ring 0, and nothing speaks against elsewhere.
const OPTIONS: &str = "quiet noxsave nofsgsbase clearcpuid=cx16,rdrand,rdseed,smap,smep rodata=off";

/// The kernel, unpacked; nothing, said aloud, where there is none.
fn kernel(lab: &Lab) -> Option<PathBuf> {
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/guest-kernel/vmlinux.zst");
    if !packed.exists() {
        announce("NOT TESTED: a Linux kernel in vhd vm run: there is no ../shared/guest-kernel/vmlinux.zst");
        return None;
    }
    let kernel = lab.path("vmlinux");
    tools::run("zstd", ["-dq", packed.to_str()?, "-o", kernel.to_str()?]);
    Some(kernel)
}

/// An archive of the format newc: directories and files, devices by their numbers.
fn initramfs(init: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    let files: [(&str, u32, u32, &[u8]); 5] = [
        ("dev", 0o040_755, 0, b""),
        ("dev/console", 0o020_600, 5 << 8 | 1, b""),
        ("sbin", 0o040_755, 0, b""),
        ("init", 0o100_755, 0, init),
        ("TRAILER!!!", 0, 0, b""),
    ];
    for (number, (name, mode, device, content)) in (1_u32..).zip(files) {
        let fields = [
            number,
            mode,
            0,
            0,
            1,
            0,
            u32::try_from(content.len()).unwrap(),
            0,
            0,
            device >> 8,
            device & 0xff,
            u32::try_from(name.len()).unwrap() + 1,
            0,
        ];
        archive.extend(b"070701");
        fields
            .iter()
            .for_each(|field| archive.extend(format!("{field:08x}").bytes()));
        archive.extend(name.bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

/// The speed of the processor, as this kernel needs it: it cannot measure that where KVM emulates it.
fn clock() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap();
    let line = info
        .lines()
        .find(|line| line.starts_with("cpu MHz"))
        .unwrap_or_default();
    let digits: String = line.chars().filter(char::is_ascii_digit).collect();
    format!("tsc_early_khz={digits} lpj={digits}0")
}

fn build_init(lab: &Lab) {
    fs::write(lab.path("init.c"), INIT).unwrap();
    let (source, program) = (lab.path("init.c"), lab.path("init"));
    let files = [source.to_str().unwrap(), "-o", program.to_str().unwrap()];
    tools::run("cc", ["-static", "-O1", "-w"].into_iter().chain(files));
    fs::write(lab.path("initramfs"), initramfs(&fs::read(program).unwrap())).unwrap();
}

#[test]
fn linux_works_on_a_file_system_in_a_chain() {
    let lab = Lab::new();
    if !has_kvm("a Linux kernel in vhd vm run")
        || !tools::have(&["zstd", "cc", "mkfs.ext4", "e2fsck"], "a Linux kernel in vhd vm run")
    {
        return;
    }
    let Some(_kernel) = kernel(&lab) else {
        return;
    };
    build_init(&lab);
    fs::create_dir(lab.path("root")).unwrap();
    fs::write(lab.path("root/greeting"), "hello from the base").unwrap();
    let (root, raw) = (lab.path("root"), lab.path("disk.raw"));
    fs::File::create(&raw).unwrap().set_len(32 * MIB).unwrap();
    let options = ["-q", "-F", "-d", root.to_str().unwrap(), raw.to_str().unwrap()];
    tools::run("mkfs.ext4", options);
    lab.run(&["convert", "disk.raw", "base.vhd", "--to", "dynamic"], 0);
    lab.run(&["create", "middle.avhd", "--parent", "base.vhd"], 0);
    lab.run(&["create", "leaf.avhd", "--parent", "middle.avhd"], 0);
    let ancestors = ["base.vhd", "middle.avhd"].map(|name| fs::read(lab.path(name)).unwrap());

    let append = format!("{OPTIONS} {}", clock());
    let files = ["--kernel", "vmlinux", "--initrd", "initramfs", "--memory", "64M"];
    let args: Vec<&str> = ["vm", "run", "leaf.avhd"].into_iter().chain(files).collect();
    let ran = lab.run(&[&args[..], &["--append", &append]].concat(), 0);
    let console = stdout(&ran);
    assert!(console.contains("GUEST read hello from the base"), "{console}");
    assert!(console.contains("GUEST done"), "{console}");

    lab.run(&["check", "leaf.avhd"], 0);
    assert_eq!(
        ancestors,
        ["base.vhd", "middle.avhd"].map(|name| fs::read(lab.path(name)).unwrap())
    );
    assert_eq!(
        stdout(&lab.run(&["cat", "leaf.avhd:/answer"], 0)),
        "hello from the base"
    );
    lab.run(&["convert", "leaf.avhd", "after.raw", "--to", "raw"], 0);
    tools::run("e2fsck", ["-fn", lab.path("after.raw").to_str().unwrap()]);

    // Without an init it panics, and that is told.
    let without = [
        "vm", "run", "--kernel", "vmlinux", "--memory", "64M", "--append", &append,
    ];
    let ran = lab.run(&without, 10);
    assert!(stdout(&ran).contains("Kernel panic - not syncing"), "{}", stdout(&ran));
    assert_eq!(stderr(&ran), "");
}
