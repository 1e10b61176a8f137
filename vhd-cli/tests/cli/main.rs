//! The command as scripts see it: grammar, exit codes, JSON, messages, pipes, sudden death.
#![forbid(unsafe_code)]

mod azure;
mod chains;
mod check;
mod compact;
mod convert;
mod convert_onto;
mod create;
mod delta;
mod dependants;
mod diff;
mod doctor;
mod failures;
mod file_systems;
mod foreign;
mod habits;
mod in_use;
mod in_use_leaf;
mod in_use_tree;
mod inside;
mod kill;
mod merge;
mod merge_carry;
mod mount;
mod mount_contents;
mod mount_load;
mod mount_refusals;
mod mount_writes;
mod mounted;
mod nbd;
mod nbd_backup;
mod nbd_client;
mod nbd_kill;
mod nbd_live;
mod nbd_live_writers;
mod nbd_refusals;
mod nbd_resize;
mod nbd_sockets;
mod nbd_space;
mod odd_places;
mod pages;
mod qcow2;
mod recipes;
mod repair;
mod reparent;
mod report;
mod reports;
mod resize;
mod snapshot;
mod soak;
mod sparse;
mod streams;
mod support;
mod tree;
mod verify;
mod vhdx;
#[cfg(target_arch = "x86_64")]
mod vm;
#[cfg(target_arch = "x86_64")]
mod vm_boot;
#[cfg(target_arch = "x86_64")]
mod vm_confined;
mod vm_control;
#[cfg(target_arch = "x86_64")]
mod vm_cpu;
#[cfg(target_arch = "x86_64")]
mod vm_disk;
#[cfg(target_arch = "x86_64")]
mod vm_kill;
#[cfg(target_arch = "x86_64")]
mod vm_linux;
#[cfg(target_arch = "x86_64")]
mod vm_live;
#[cfg(target_arch = "x86_64")]
mod vm_rng;
#[cfg(target_arch = "x86_64")]
mod vm_saved;
#[cfg(target_arch = "x86_64")]
mod vm_snapshot;

#[path = "../../../image-formats/tests/support/vhdx_writer.rs"]
mod vhdx_writer;

#[path = "../../../vhd-core/tests/common/kills.rs"]
mod kills;
#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "../../../vhd-core/tests/common/mounts.rs"]
mod mounts;
#[cfg(target_arch = "x86_64")]
#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "../../../hypervisor/tests/common/payload.rs"]
mod payload;
#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "../../../vhd-core/tests/common/tools.rs"]
mod tools;
#[path = "../../../vhd-core/tests/common/unmount.rs"]
mod unmount;

/// Says something that is to be seen although the test passes: the test harness swallows what `println` prints.
fn announce(text: &str) {
    use std::io::Write as _;
    writeln!(std::io::stderr(), "{text}").expect("standard error is there");
}
