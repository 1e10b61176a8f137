//! Real file systems in loop devices.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::tools::{have, run};
use super::unmount::unmounted_within;

const MIB: u64 = 1 << 20;
/// Below its directory, the file with a file system, and where that is mounted.
const IMAGE: &str = "file-system";
const POINT: &str = "mnt";

/// A kind of file system.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// The program that makes it, with its options; none for a file system without a device.
    make: &'static [&'static str],
    /// The program that mounts it, with its options.
    mount: &'static [&'static str],
    mib: u64,
}

pub(crate) const EXT4: Kind = Kind {
    name: "ext4",
    make: &["mkfs.ext4", "-q", "-F", "-m", "0"],
    mount: &["mount"],
    mib: 96,
};
pub(crate) const XFS: Kind = Kind {
    name: "xfs",
    make: &["mkfs.xfs", "-q", "-f"],
    mount: &["mount"],
    mib: 320,
};
pub(crate) const BTRFS: Kind = Kind {
    name: "btrfs",
    make: &["mkfs.btrfs", "-q", "-f"],
    mount: &["mount"],
    mib: 256,
};
pub(crate) const BTRFS_QUOTA: Kind = Kind {
    name: "btrfs with a quota",
    ..BTRFS
};
pub(crate) const TMPFS: Kind = Kind {
    name: "tmpfs",
    make: &[],
    mount: &["mount", "-t", "tmpfs", "-o", "size=48m"],
    mib: 48,
};
pub(crate) const VFAT: Kind = Kind {
    name: "vfat",
    make: &["mkfs.vfat", "-F", "32"],
    mount: &["mount"],
    mib: 96,
};
pub(crate) const EXFAT: Kind = Kind {
    name: "exfat",
    make: &["mkfs.exfat"],
    mount: &["mount.exfat-fuse"],
    mib: 96,
};
pub(crate) const NTFS: Kind = Kind {
    name: "ntfs",
    make: &["mkfs.ntfs", "-q", "-F", "-Q"],
    mount: &["ntfs-3g"],
    mib: 96,
};

/// A mounted file system; unmounted when dropped.
pub(crate) struct Mount {
    pub(crate) kind: Kind,
    pub(crate) dir: PathBuf,
    device: Option<String>,
}

impl Mount {
    /// A new, empty file system that is mounted below `dir`; `None` where this machine can't do that, which is said, and
    /// is a failure where `CI` is set.
    pub(crate) fn new(kind: Kind, dir: &Path, untested: &str) -> Option<Self> {
        let untested = format!("{untested} on {}", kind.name);
        if !rustix::process::geteuid().is_root() {
            assert!(
                std::env::var_os("CI").is_none(),
                "CI must run as root, to mount file systems"
            );
            super::announce(&format!("NOT TESTED: {untested}: not root"));
            return None;
        }
        let programs: Vec<&str> = kind
            .make
            .first()
            .into_iter()
            .chain(kind.mount.first())
            .copied()
            .collect();
        if !have(&programs, &untested) {
            return None;
        }
        fs::create_dir_all(dir.join(POINT)).unwrap();
        if !kind.make.is_empty() {
            let image = dir.join(IMAGE);
            File::create(&image).unwrap().set_len(kind.mib * MIB).unwrap();
            let options = kind.make[1..].iter().map(OsStr::new);
            run(kind.make[0], options.chain([image.as_os_str()]));
        }
        Some(Self::again(kind, dir))
    }

    /// Mounts what is there below `dir` since [`new`](Self::new).
    pub(crate) fn again(kind: Kind, dir: &Path) -> Self {
        let device = (!kind.make.is_empty()).then(|| {
            let image = dir.join(IMAGE);
            let device = run("losetup", ["--find".as_ref(), "--show".as_ref(), image.as_os_str()]);
            String::from_utf8(device).unwrap().trim().to_owned()
        });
        let mount = Self {
            kind,
            dir: dir.join(POINT),
            device,
        };
        let source = mount.device.as_deref().unwrap_or("tmpfs");
        let options = kind.mount[1..].iter().map(OsStr::new);
        run(kind.mount[0], options.chain([source.as_ref(), mount.dir.as_os_str()]));
        mount
    }

    /// Bytes that a user can still take.
    pub(crate) fn free(&self) -> u64 {
        let system = rustix::fs::statvfs(&self.dir).unwrap();
        system.f_bavail * system.f_frsize
    }

    /// Takes all space but about `left` bytes, in a file that can be deleted to have it back.
    pub(crate) fn fill_up(&self, name: &str, left: u64) {
        let file = File::create(self.dir.join(name)).unwrap();
        let (mut at, mut step) = (0, 16 * MIB);
        while step >= 64 << 10 {
            let flags = rustix::fs::FallocateFlags::empty();
            match self.free() > left + step && rustix::fs::fallocate(&file, flags, at, step).is_ok() {
                true => at += step,
                false => step /= 4,
            }
        }
        if self.free() > left + MIB {
            file.set_len(at.saturating_sub(left)).unwrap(); // a quota, which the file system does not count
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = unmounted_within(std::time::Duration::from_secs(5), &self.dir);
        // A file system in user space ends a moment after it is unmounted.
        for _ in 0..100 {
            let Some(device) = &self.device else { break };
            let detached = Command::new("losetup").args(["--detach", device]).output();
            let users = Command::new("fuser").arg(device).output();
            let busy = users.is_ok_and(|output| output.status.success());
            if detached.is_ok_and(|output| output.status.success()) && !busy {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        if !std::thread::panicking() {
            assert!(unmounted, "{}", self.dir.display());
        }
    }
}
