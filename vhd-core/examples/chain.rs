//! A disk, a child of it, and what both read.
//!
//! ```text
//! cargo run -p vhd-core --example chain
//! ```

use std::error::Error;

use vhd_core::chain::{OpenOptions, create_child};
use vhd_core::format::DEFAULT_BLOCK_SIZE;
use vhd_core::image::create_dynamic;
use vhd_core::storage::StagedFile;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let (base, child) = (dir.path().join("base.vhd"), dir.path().join("child.avhd"));
    let staged = StagedFile::create_beside(&base)?;
    create_dynamic(&*staged.storage(), 64 << 20, DEFAULT_BLOCK_SIZE.into())?;
    staged.publish(false, true)?;

    let opened = OpenOptions::new().write(true).open(&base)?;
    opened.disk().write_at(b"of the base", 1 << 20)?;
    opened.close()?; // durable, and the lock is given up

    create_child(&child, &base, None, &OpenOptions::new())?;
    let opened = OpenOptions::new().write(true).open(&child)?;
    let disk = opened.disk(); // cheap to clone, for any number of threads
    disk.write_at(b"changed", 2 << 20)?;
    disk.flush()?;
    let mut bytes = [0; 11];
    disk.read_at(&mut bytes, 1 << 20)?;
    assert_eq!(&bytes, b"of the base");
    for layer in opened.layers() {
        println!(
            "{}: {} bytes allocated",
            layer.path.display(),
            layer.layer.image().map_or(0, |image| image.allocated_bytes())
        );
    }
    drop(disk); // or the close says that it is still in use
    println!("closed: {:?}", opened.close()?);
    Ok(())
}
