//! The steps of the tour that change images in place: snapshots, another size, a repair.

use vhd_core::snapshot::{NOW, resolve};

use super::guest::Guest;
use super::stage::Stage;
use super::walk::{DISK_SIZE, MIB, digest};
use crate::exit::Exit;
use crate::failure::Failure;

pub(super) fn jobs(stage: &mut Stage) -> Result<(), Failure> {
    let mut guest = Guest::new(DISK_SIZE);
    snapshots(stage, &mut guest)?;
    parent_that_changed(stage)?;
    resize(stage)?;
    repair(stage)
}

fn snapshots(stage: &mut Stage, guest: &mut Guest) -> Result<(), Failure> {
    stage.chapter("Snapshots have names; deleting one merges what is based on it")?;
    stage.vhd("create vm.vhd --size 64M", Exit::Ok)?;
    let base = stage.path("vm.vhd");
    for (name, offset) in [("installed", 8 * MIB), ("patched", 9 * MIB)] {
        stage.note(format!("the guest writes 1 MiB at {} MiB", offset / MIB))?;
        guest.write(&resolve(&base, NOW)?, offset, MIB, 7)?;
        stage.vhd(&format!("snapshot create vm.vhd --name {name}"), Exit::Ok)?;
    }
    stage.note("the guest writes over both")?;
    guest.write(&resolve(&base, NOW)?, 8 * MIB, 2 * MIB, 9)?;
    stage.vhd("snapshot tree vm.vhd", Exit::Ok)?;
    let patched = stage.vhd("hash vm.vhd@patched", Exit::Ok)?;
    stage.vhd("snapshot delete vm.vhd installed", Exit::Ok)?;
    stage.vhd("snapshot tree vm.vhd", Exit::Ok)?;
    let still = stage.vhd("hash vm.vhd@patched", Exit::Ok)?;
    stage.verify(digest(&patched) == digest(&still), "the other snapshot reads as before")?;
    stage.vhd("convert vm.vhd@now vm.raw --to raw", Exit::Ok)?;
    let same = guest.is_content_of(&stage.path("vm.raw"))?;
    stage.verify(same, "and so does the present state")?;
    stage.vhd("snapshot revert vm.vhd", Exit::Ok)?;
    let reverted = stage.vhd("hash vm.vhd@now", Exit::Ok)?;
    stage.verify(
        digest(&patched) == digest(&reverted),
        "the disk is as it was when it was patched",
    )
}

fn parent_that_changed(stage: &mut Stage) -> Result<(), Failure> {
    stage.chapter("A parent that was written to is noticed")?;
    stage.vhd("verify snapshot.avhd --record", Exit::Ok)?;
    stage.vhd("verify snapshot.avhd", Exit::Ok)?;
    stage.note("somebody writes 512 bytes into disk.vhd, at 40 MiB of the disk")?;
    let disk = stage.path("disk.vhd");
    Guest::new(DISK_SIZE).tamper(&disk, 40 * MIB, 512, 5)?;
    let told = stage.vhd("verify snapshot.avhd", Exit::Differ)?;
    stage.verify(told.contains("0x2800000"), "the range is named")
}

fn resize(stage: &mut Stage) -> Result<(), Failure> {
    stage.chapter("A larger disk, and back")?;
    let before = stage.vhd("hash sound.vhd", Exit::Ok)?;
    stage.vhd("resize sound.vhd 2040G", Exit::Ok)?;
    stage.vhd("resize sound.vhd 64M", Exit::Refused)?;
    stage.vhd("resize sound.vhd 64M --shrink", Exit::Ok)?;
    let after = stage.vhd("hash sound.vhd", Exit::Ok)?;
    stage.verify(digest(&before) == digest(&after), "every byte is still there")
}

fn repair(stage: &mut Stage) -> Result<(), Failure> {
    stage.chapter("A repair says what it would do, and can be undone")?;
    let before = stage.vhd("hash flat.vhd", Exit::Ok)?;
    stage.note("flat.vhd has no footer since chapter 6")?;
    stage.vhd("repair flat.vhd", Exit::Repairable)?;
    stage.vhd("repair flat.vhd --yes", Exit::Ok)?;
    stage.vhd("check flat.vhd", Exit::Ok)?;
    let after = stage.vhd("hash flat.vhd", Exit::Ok)?;
    stage.verify(digest(&before) == digest(&after), "every byte is still there")?;
    stage.vhd("repair flat.vhd --undo", Exit::Ok)?;
    stage.vhd("check flat.vhd", Exit::Repairable)?;
    Ok(())
}
