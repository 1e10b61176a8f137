//! A snapshot of a disk that is being written to.
//!
//! ```text
//! cargo run -p vhd-core --example live_snapshot
//! ```

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vhd_core::chain::OpenOptions;
use vhd_core::device::Disk;
use vhd_core::format::DEFAULT_BLOCK_SIZE;
use vhd_core::image::create_dynamic;
use vhd_core::snapshot::{SnapshotTree, Work};
use vhd_core::storage::StagedFile;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("disk.vhd");
    let staged = StagedFile::create_beside(&path)?;
    create_dynamic(&*staged.storage(), 64 << 20, DEFAULT_BLOCK_SIZE.into())?;
    staged.publish(false, true)?;

    let opened = OpenOptions::new().write(true).open(&path)?;
    let device = Arc::new(
        opened
            .into_live()
            .ok_or("a VHD that is open for writing, by nobody else")?,
    );
    let disk = Disk::new(Arc::clone(&device) as _);
    disk.write_at(b"before", 0)?;

    let over = AtomicBool::new(false);
    let created = thread::scope(|scope| {
        // A user of the disk, who notices a pause at most.
        let user = scope.spawn(|| {
            let mut written = 0;
            while !over.load(Ordering::Relaxed) {
                written += 1;
                disk.write_at(format!("{written:8}").as_bytes(), 4096)?;
            }
            Ok::<u32, vhd_core::device::DeviceError>(written)
        });
        let cancel = AtomicBool::new(false);
        let work = Work {
            steps: &(),
            progress: &(),
            cancel: &cancel,
        };
        let created = SnapshotTree::open_in_use(&path, &device, work).and_then(|mut tree| tree.create_in_use("monday"));
        over.store(true, Ordering::Relaxed);
        println!("{} writes", user.join().expect("no panic")?);
        Ok::<_, Box<dyn Error>>(created?)
    })?;
    println!(
        "requests waited for {:?} at most; the disk goes on in {}",
        created.paused,
        created.created.active.display()
    );

    disk.write_at(b"behind", 0)?;
    let mut bytes = [0; 6];
    Disk::new(created.frozen).read_at(&mut bytes, 0)?;
    assert_eq!(&bytes, b"before");
    drop((disk, created.present));
    Arc::into_inner(device).ok_or("nobody else has it")?.close()?;
    Ok(())
}
