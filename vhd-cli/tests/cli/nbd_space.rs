//! `vhd nbd` and the space of the host: what zeroes take and what they give back.

use std::os::unix::fs::MetadataExt as _;

use rustix::process::Signal;

use crate::nbd::{Serving, has, qemu_io};
use crate::support::{Lab, MIB};

/// Bytes that a file takes.
fn taken(lab: &Lab, name: &str) -> u64 {
    std::fs::metadata(lab.path(name)).unwrap().blocks() * 512
}

#[test]
fn zeroes_that_keep_their_space_have_it() {
    if !has("qemu-io") {
        return;
    }
    let lab = Lab::new();
    lab.dynamic("base.vhd", 64 * MIB);
    lab.dynamic("dynamic.vhd", 64 * MIB);
    lab.fixed("fixed.vhd", 64 * MIB);
    std::fs::File::create(lab.path("disk.raw"))
        .unwrap()
        .set_len(64 * MIB)
        .unwrap();
    lab.run(&["create", "child.avhd", "--parent", "base.vhd"], 0);
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
