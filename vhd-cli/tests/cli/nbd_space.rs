//! `vhd nbd` and the space of the host: what zeroes take and what they give back.

use std::os::unix::fs::MetadataExt as _;

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use crate::nbd::{Serving, has, qemu_io};
use crate::support::{Lab, MIB};

/// Bytes that a file takes.
fn taken(lab: &Lab, name: &str) -> u64 {
    std::fs::metadata(lab.path(name)).unwrap().blocks() * 512
}

/// Empty disks of 64 MiB: `dynamic.vhd`, `child.avhd` over `base.vhd`, `disk.raw`.
fn create_disks(lab: &Lab) {
    lab.dynamic("base.vhd", 64 * MIB);
    lab.dynamic("dynamic.vhd", 64 * MIB);
    lab.run(&["create", "child.avhd", "--parent", "base.vhd"], 0);
    let raw = std::fs::File::create(lab.path("disk.raw")).unwrap();
    raw.set_len(64 * MIB).unwrap();
}

#[test]
fn zeroes_that_keep_their_space_have_it() {
    if !has("qemu-io") {
        return;
    }
    let lab = Lab::new();
    create_disks(&lab);
    lab.fixed("fixed.vhd", 64 * MIB);
    for (name, args) in [
        ("dynamic.vhd", &["dynamic.vhd"][..]),
        ("fixed.vhd", &["fixed.vhd"]),
        ("child.avhd", &["child.avhd"]),
        ("disk.raw", &["--from", "raw", "disk.raw"]),
    ] {
        let serving = Serving::start(&lab, &[&["--unix", "s.sock"], args].concat());
        let uri = format!("nbd+unix:///?socket={}", lab.path("s.sock").display());
        let before = taken(&lab, name);
        // What may be unmapped takes nothing.
        assert!(qemu_io(&lab, &uri, &["write -z -u 8M 16M", "flush"]), "{name}");
        assert!(taken(&lab, name) < before + MIB, "{name}: {}", taken(&lab, name));
        // The rest is there, whatever the disk had before.
        assert!(qemu_io(&lab, &uri, &["write -z 8M 16M", "flush"]), "{name}");
        assert!(taken(&lab, name) >= before + 16 * MIB, "{name}: {}", taken(&lab, name));
        assert!(qemu_io(&lab, &uri, &["read -P 0 0 64M"]), "{name}");
        assert_eq!(serving.stop(Signal::TERM).0, Some(0));
        if name.ends_with("vhd") {
            lab.run(&["check", name], 0);
        }
    }
}

/// Files that the server makes longer end here from now on.
fn limit_files(serving: &Serving, bytes: Option<u64>) {
    let limit = Rlimit {
        current: bytes,
        maximum: None,
    };
    prlimit(Some(Pid::from_child(&serving.child)), Resource::Fsize, limit).unwrap();
}

/// RLIMIT_FSIZE of a server (that of a service, of a container): a write that it stands against is refused as on a full
/// disk, what was accepted can be flushed and survives the server, and with a higher limit the same server goes on.
#[test]
fn inv_40_the_files_of_a_server_may_not_become_longer() {
    const STEP: u64 = 2 * MIB;
    if !has("qemu-io") {
        return;
    }
    let lab = Lab::new();
    create_disks(&lab);
    for (name, args) in [
        ("dynamic.vhd", &["dynamic.vhd"][..]),
        ("child.avhd", &["child.avhd"]),
        ("disk.raw", &["--from", "raw", "disk.raw"]),
    ] {
        let args = [&["--unix", "s.sock"], args].concat();
        let uri = format!("nbd+unix:///?socket={}", lab.path("s.sock").display());
        let write = |step: u64| qemu_io(&lab, &uri, &[&format!("write -P {} {} 64k", step + 1, step * STEP)]);
        let read_all = |end: u64| {
            let reads: Vec<String> = (0..end)
                .map(|step| format!("read -P {} {} 64k", step + 1, step * STEP))
                .collect();
            qemu_io(&lab, &uri, &reads.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let mut serving = Serving::start(&lab, &args);
        limit_files(&serving, Some(20 * MIB));
        let accepted = (0..32).take_while(|&step| write(step)).count() as u64;
        assert!((4..16).contains(&accepted), "{name}: {accepted} writes were accepted");
        assert!(qemu_io(&lab, &uri, &["flush"]), "{name}: what was accepted is flushed");
        serving.kill();
        if name.ends_with("vhd") {
            let check = lab.vhd(&["check", name]).output().unwrap();
            assert!(matches!(check.status.code(), Some(0 | 4)), "{name}: {check:?}");
        }
        let serving = Serving::start(&lab, &args);
        limit_files(&serving, Some(20 * MIB));
        assert!(read_all(accepted), "{name}: after the server was killed");
        assert!(!write(accepted), "{name}");
        limit_files(&serving, None);
        assert!((accepted..32).all(write), "{name}: with a higher limit");
        assert!(qemu_io(&lab, &uri, &["flush"]) && read_all(32), "{name}");
        assert_eq!(serving.stop(Signal::TERM).0, Some(0));
        if name.ends_with("vhd") {
            lab.run(&["check", name], 0);
        }
    }
}
