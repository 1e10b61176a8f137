//! Machines: requests of a guest beside the same through the library, boot beside qemu's microvm, the memory of the process,
//! saving and restoring it.
//!
//! ```text
//! cargo build --release -p vhd-cli && cargo run --release -p vhd-benches --bin vm -- [DIR [ROUNDS [WHAT]]]
//! ```
//!
//! Needs /dev/kvm and `vhd` beside this program; for boots zstd, cc, cpio, qemu-system-x86_64 and ../shared/guest-kernel. Default: the current directory, 7 rounds, all
//! of `saving`, `boot` and `requests`.
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
    let wanted = |what: &str| what.starts_with(arguments.text(2));
    if wanted("saving") {
        process::save(dir.path(), &arguments.vhd, rounds)?;
    }
    if wanted("boot") {
        process::boot(dir.path(), &arguments.vhd, rounds)?;
    }
    if wanted("requests") {
        println!();
        requests::print(dir.path(), rounds)?;
    }
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("machines are of x86-64 alone");
}
