//! Sharing of ranges on a file system that can: a btrfs in a loop-mounted file.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;
use vhd_core::storage::{Access, HostFile, MemoryFile, Sharing, StagedFile, StorageFile};

const MIB: u64 = 1 << 20;

/// A mounted btrfs; unmounted when dropped.
struct Btrfs {
    mount_point: PathBuf,
    _dir: TempDir,
}

impl Btrfs {
    fn mount() -> Result<Self, String> {
        let dir = TempDir::new().unwrap();
        let (image, mount_point) = (dir.path().join("image"), dir.path().join("mnt"));
        std::fs::create_dir(&mount_point).unwrap();
        std::fs::File::create(&image).unwrap().set_len(128 * MIB).unwrap();
        run(Command::new("mkfs.btrfs").arg("-q").arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).args([&image, &mount_point]))?;
        Ok(Self { mount_point, _dir: dir })
    }

    fn file(&self, name: &str) -> Arc<HostFile> {
        let path = self.mount_point.join(name);
        StagedFile::create_beside(&path).unwrap().publish(false, false).unwrap();
        Arc::new(HostFile::open(&path, Access::ReadWrite, Sharing::Exclusive).unwrap())
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        // A failed test may have left a file open: lazily, the mount goes when that is closed.
        if let Err(reason) = run(Command::new("umount").arg("--lazy").arg(&self.mount_point)) {
            eprintln!("{} stays mounted: {reason}", self.mount_point.display());
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

fn kind(result: io::Result<()>) -> io::ErrorKind {
    result.unwrap_err().kind()
}

/// One test, so that one mount serves all.
#[test]
fn btrfs_shares_ranges() {
    let fs = match Btrfs::mount() {
        Ok(fs) => fs,
        Err(reason) => {
            assert!(
                std::env::var_os("CI").is_none(),
                "a btrfs is needed to test sharing of ranges: {reason}"
            );
            return eprintln!("NOT TESTED: sharing of ranges: {reason}");
        }
    };
    a_shared_range_takes_no_space_and_stays_independent(&fs);
    what_btrfs_can_not_share_is_unsupported(&fs);
    a_holder_is_found_although_btrfs_has_two_device_numbers(&fs);
}

fn a_shared_range_takes_no_space_and_stays_independent(fs: &Btrfs) {
    let (source, target) = (fs.file("source"), fs.file("target"));
    source.write_all_at(&[7; 1 << 20], 0).unwrap();
    source.sync().unwrap();
    target.share_range_from(&*source, 0, 4 * MIB, MIB).unwrap();
    assert_eq!(target.len().unwrap(), 5 * MIB);
    match has_shared_extents(&fs.mount_point.join("target")) {
        Some(shared) => assert!(shared, "the range was copied"),
        None => eprintln!("NOT TESTED: that a shared range takes no space: filefrag is missing"),
    }
    target.write_all_at(&[8; 4096], 4 * MIB).unwrap();
    let mut buf = [0; 8192];
    target.read_exact_at(&mut buf, 4 * MIB).unwrap();
    assert!(buf[..4096] == [8; 4096] && buf[4096..] == [7; 4096]);
    source.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(buf, [7; 8192]);
}

fn what_btrfs_can_not_share_is_unsupported(fs: &Btrfs) {
    let (source, target) = (fs.file("other source"), fs.file("other target"));
    source.write_all_at(&[7; 1 << 20], 0).unwrap();
    let unsupported = io::ErrorKind::Unsupported;
    assert_eq!(kind(target.share_range_from(&*source, 512, 512, 4096)), unsupported);
    assert_eq!(
        kind(target.share_range_from(&MemoryFile::from_bytes(vec![0; 4096]), 0, 0, 4096)),
        unsupported
    );
    let elsewhere = HostFile::from_file(tempfile::tempfile().unwrap()).unwrap();
    elsewhere.write_all_at(&[1; 4096], 0).unwrap();
    assert_eq!(kind(target.share_range_from(&elsewhere, 0, 0, 4096)), unsupported);
}

fn a_holder_is_found_although_btrfs_has_two_device_numbers(fs: &Btrfs) {
    let held = fs.file("image");
    let error = HostFile::open(held.path().unwrap(), Access::ReadOnly, Sharing::Exclusive).unwrap_err();
    assert!(
        error.to_string().contains(&format!("(pid {})", std::process::id())),
        "{error}"
    );
}

/// Whether extents of the file are shared, as the system reports them; `None` without the tool for it.
fn has_shared_extents(path: &Path) -> Option<bool> {
    let output = Command::new("filefrag").args(["-v", "-s"]).arg(path).output();
    assert!(output.is_ok() || std::env::var_os("CI").is_none(), "filefrag is needed");
    Some(String::from_utf8_lossy(&output.ok()?.stdout).contains("shared"))
}
