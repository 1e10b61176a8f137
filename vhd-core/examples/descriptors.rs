//! A disk for a process that may open no file: its files are opened, checked and locked by another one.
//!
//! ```text
//! cargo run -p vhd-core --example descriptors
//! ```

use std::error::Error;
use std::os::fd::OwnedFd;

use vhd_core::chain::{OpenOptions, create_child};
use vhd_core::format::DEFAULT_BLOCK_SIZE;
use vhd_core::image::create_dynamic;
use vhd_core::storage::StagedFile;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let (base, leaf) = (dir.path().join("base.vhd"), dir.path().join("leaf.avhd"));
    let staged = StagedFile::create_beside(&base)?;
    create_dynamic(&*staged.storage(), 64 << 20, DEFAULT_BLOCK_SIZE.into())?;
    staged.publish(false, true)?;
    create_child(&leaf, &base, None, &OpenOptions::new())?;

    // The one who may open files finds the parents, looks for dependants and open jobs, and takes the locks.
    let opened = OpenOptions::new().write(true).open(&leaf)?;
    let files = opened.into_descriptors()?; // the leaf first; the locks stay with them

    // Here they would cross a socket (SCM_RIGHTS), or be inherited.
    use_without_paths(files)
}

/// What the other one does.
fn use_without_paths(files: Vec<OwnedFd>) -> Result<(), Box<dyn Error>> {
    // `ignore_children`: nobody can be looked for without a path, and that was done.
    let opened = OpenOptions::new()
        .write(true)
        .ignore_children(true)
        .open_descriptors(files)?;
    let disk = opened.disk();
    disk.write_at(b"written in the sandbox", 4096)?;
    disk.flush()?;
    drop(disk);
    println!("{:?} closed: {:?}", opened.paths().to_owned(), opened.close()?);
    Ok(())
}
