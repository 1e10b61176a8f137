//! The steps of the tour.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use vhd_core::format::FOOTER_SIZE;
use vhd_core::units::u64_from;

use super::guest::Guest;
use super::jobs::jobs;
use super::stage::Stage;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;

/// Small enough for a tour of seconds.
pub(super) const DISK_SIZE: u64 = 64 << 20;
pub(super) const MIB: u64 = 1 << 20;

pub(super) fn walk(stage: &mut Stage) -> Result<(), Failure> {
    let mut guest = Guest::new(DISK_SIZE);
    create(stage, &mut guest)?;
    convert(stage, &guest)?;
    snapshot(stage, &mut guest)?;
    lose_the_parent(stage)?;
    flatten(stage, &guest)?;
    recover(stage)?;
    jobs(stage)
}

fn create(stage: &mut Stage, guest: &mut Guest) -> Result<(), Failure> {
    stage.chapter("A dynamic image takes space where something is written")?;
    stage.vhd("create disk.vhd --size 64M", Exit::Ok)?;
    let disk = stage.path("disk.vhd");
    let empty = length(&disk)?;
    stage.verify(
        empty < MIB,
        format!("a disk of 64 MiB in a file of {}", human::bytes(empty)),
    )?;
    stage.vhd("create disk.vhd --size 1G", Exit::Refused)?;
    stage.note("a guest writes 3 MiB at 5 MiB, and 1000 bytes at 40 MiB")?;
    guest.write(&disk, 5 * MIB, 3 * MIB, 1)?;
    guest.write(&disk, 40 * MIB, 1000, 2)?;
    stage.vhd("info disk.vhd", Exit::Ok)?;
    stage.vhd("map disk.vhd", Exit::Ok)?;
    let grown = length(&disk)?;
    let blocks = 10 * MIB;
    let what = format!("the file has {} now", human::binary(grown));
    stage.verify(grown > empty && grown < blocks, what)
}

fn convert(stage: &mut Stage, guest: &Guest) -> Result<(), Failure> {
    stage.chapter("The same disk as a raw file and as a fixed VHD")?;
    stage.vhd("convert disk.vhd disk.raw --to raw", Exit::Ok)?;
    let raw = stage.path("disk.raw");
    let same = guest.is_content_of(&raw)?;
    stage.verify(same, "the raw file holds what the guest wrote, and zeroes elsewhere")?;
    stage.vhd("convert disk.raw fixed.vhd --to fixed", Exit::Ok)?;
    let fixed =
        fs::read(stage.path("fixed.vhd")).map_err(|error| Failure::io("read", &stage.path("fixed.vhd"), &error))?;
    let is_fixed = fixed.len() == guest.bytes().len() + FOOTER_SIZE && fixed.starts_with(guest.bytes());
    stage.verify(is_fixed, "the fixed VHD is the disk and a footer of 512 bytes")?;
    stage.vhd("compare disk.vhd fixed.vhd", Exit::Ok)?;
    let one = stage.vhd("hash disk.vhd", Exit::Ok)?;
    let other = stage.vhd("hash fixed.vhd", Exit::Ok)?;
    stage.verify(digest(&one) == digest(&other), "one digest, whatever the format")
}

fn snapshot(stage: &mut Stage, guest: &mut Guest) -> Result<(), Failure> {
    stage.chapter("A differencing image: what changes, over a parent that stays as it is")?;
    let parent_before = stage.vhd("hash disk.vhd", Exit::Ok)?;
    stage.vhd("create snapshot.avhd --parent disk.vhd", Exit::Ok)?;
    stage.note("the guest writes 64 KiB at 6 MiB, into the snapshot")?;
    guest.write(&stage.path("snapshot.avhd"), 6 * MIB, 64 << 10, 3)?;
    stage.vhd("info snapshot.avhd", Exit::Ok)?;
    let compared = stage.vhd("compare disk.vhd snapshot.avhd", Exit::Differ)?;
    stage.verify(
        compared.contains("0x600000..0x610000"),
        "exactly what was written differs",
    )?;
    let parent_after = stage.vhd("hash disk.vhd", Exit::Ok)?;
    stage.verify(parent_before == parent_after, "the parent is untouched")
}

fn lose_the_parent(stage: &mut Stage) -> Result<(), Failure> {
    stage.chapter("A missing parent is an error, never a disk full of zeroes")?;
    let before = stage.vhd("hash snapshot.avhd", Exit::Ok)?;
    stage.show("mkdir archive && mv disk.vhd archive/")?;
    let (disk, archive) = (stage.path("disk.vhd"), stage.path("archive"));
    fs::create_dir(&archive).map_err(|error| Failure::io("create", &archive, &error))?;
    rename(&disk, &archive.join("disk.vhd"))?;
    stage.vhd("hash snapshot.avhd", Exit::Parent)?;
    let after = stage.vhd("hash snapshot.avhd --parent-dir archive", Exit::Ok)?;
    stage.verify(before == after, "with the place named, the same content as before")?;
    stage.show("mv archive/disk.vhd .")?;
    rename(&archive.join("disk.vhd"), &disk)
}

fn flatten(stage: &mut Stage, guest: &Guest) -> Result<(), Failure> {
    stage.chapter("The whole chain in one image, or through a pipe")?;
    stage.vhd("convert snapshot.avhd flat.vhd --to dynamic", Exit::Ok)?;
    stage.vhd("compare snapshot.avhd flat.vhd", Exit::Ok)?;
    stage.vhd("check flat.vhd", Exit::Ok)?;
    let direct = stage.vhd("hash flat.vhd", Exit::Ok)?;
    let piped = stage.pipe("convert snapshot.avhd - --to fixed", "hash -")?;
    stage.verify(digest(&direct) == digest(&piped), "the same digest through a pipe")?;
    stage.vhd("convert flat.vhd flat.raw --to raw", Exit::Ok)?;
    let raw = stage.path("flat.raw");
    let same = guest.is_content_of(&raw)?;
    stage.verify(
        same,
        "the flat disk holds what the guest wrote before and after the snapshot",
    )
}

fn recover(stage: &mut Stage) -> Result<(), Failure> {
    stage.chapter("A damaged footer costs nothing: there is a copy")?;
    let before = stage.vhd("hash flat.vhd", Exit::Ok)?;
    stage.note("the last 512 bytes of flat.vhd are overwritten")?;
    wipe_footer(&stage.path("flat.vhd"))?;
    stage.vhd("check flat.vhd", Exit::Repairable)?;
    let after = stage.vhd("hash flat.vhd", Exit::Ok)?;
    stage.verify(digest(&before) == digest(&after), "every byte is still there")?;
    stage.vhd("convert flat.vhd sound.vhd --to dynamic", Exit::Ok)?;
    stage.vhd("check sound.vhd", Exit::Ok)?;
    let sound = stage.vhd("hash sound.vhd", Exit::Ok)?;
    stage.verify(digest(&before) == digest(&sound), "and in a sound image again")
}

/// The digest that a line of `vhd hash` begins with.
pub(super) fn digest(line: &str) -> Option<&str> {
    line.split_whitespace().next().filter(|digest| digest.len() == 64)
}

fn length(path: &Path) -> Result<u64, Failure> {
    let metadata = path.metadata().map_err(|error| Failure::io("query", path, &error))?;
    Ok(metadata.len())
}

fn rename(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::rename(from, to).map_err(|error| Failure::io("move", from, &error))
}

fn wipe_footer(path: &Path) -> Result<(), Failure> {
    let wipe = || {
        let file = OpenOptions::new().write(true).open(path)?;
        let end = file.metadata()?.len();
        file.write_all_at(&[0xAA; FOOTER_SIZE], end - u64_from(FOOTER_SIZE))
    };
    wipe().map_err(|error| Failure::io("write", path, &error))
}
