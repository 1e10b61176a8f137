//! Machines: requests of a guest beside the same through the library, boot beside qemu's microvm, the memory of the process,
//! saving and restoring it.
//!
//! ```text
//! cargo build --release -p vhd-cli && cargo run --release -p vhd-benches --bin vm -- [DIR [ROUNDS]]
//! ```
//!
//! Needs /dev/kvm and `vhd` beside this program; for boots zstd, cc, cpio, qemu-system-x86_64 and ../shared/guest-kernel. Default: the current directory, 7 rounds.
#![forbid(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod guest;
#[cfg(target_arch = "x86_64")]
mod machine;
#[cfg(target_arch = "x86_64")]
mod process;
#[cfg(target_arch = "x86_64")]
mod requests;

#[cfg(target_arch = "x86_64")]
fn main() -> anyhow::Result<()> {
    let arguments = vhd_benches::Arguments::of_this_program()?;
    let rounds = arguments.number(1, 7)?;
    let dir = tempfile::tempdir_in(&arguments.place)?;
    process::save(dir.path(), &arguments.vhd, rounds)?;
    process::boot(dir.path(), &arguments.vhd, rounds)?;
    println!();
    requests::print(dir.path(), rounds)
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("machines are of x86-64 alone");
}
