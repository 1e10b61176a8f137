//! Volumes of several machines: three members of etcd and three nodes, each in a network of its own, on one directory.
//!
//! `VHD_CLUSTER_FAULTS=100 cargo test --release -p vhd-cli --features etcd --test cluster faults -- --nocapture` is the long run;
//! `VHD_TEST_SEED` repeats one.
#![forbid(unsafe_code)]

mod asking;
mod certificates;
mod etcd;
mod faults;
mod network;
mod refusals;
#[path = "../volume/support.rs"]
#[allow(dead_code, reason = "shared with the tests of one machine")]
mod support;
mod volume_state;
mod world;
#[path = "../volume/writer.rs"]
mod writer;

use std::process::{Command, Stdio};
use std::sync::LazyLock;

/// Whether networks and etcd can be had here. In CI they must be.
fn there() -> bool {
    // Once: tests run side by side, and the probe has a name.
    static THERE: LazyLock<bool> = LazyLock::new(look);
    *THERE
}

fn look() -> bool {
    let runs = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let probe = format!("vp{}", std::process::id());
    let networks = runs("ip", &["netns", "add", &probe]);
    runs("ip", &["netns", "del", &probe]);
    let there = networks && runs("etcd", &["--version"]) && runs("mkfs.ext4", &["-V"]);
    assert!(
        there || std::env::var_os("CI").is_none(),
        "etcd, ip or network namespaces are missing: scripts/test-deps.sh installs them, and this test needs root"
    );
    if !there {
        eprintln!(
            "NOT TESTED: volumes of several machines, as etcd (etcd-server), ip (iproute2) or root's rights are missing"
        );
    }
    there
}
