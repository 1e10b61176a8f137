//! Images of file systems, made by their own programs.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

#[path = "../../../vhd-core/tests/common/unmount.rs"]
mod unmount;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use unmount::unmounted_within;
use vhd_fs::{DiskReport, scan};

/// Whether a program is there. Where it is not, says loudly what is not tested; in CI that fails.
pub fn have(program: &str, what: &str) -> bool {
    let script = format!("PATH=$PATH:/usr/sbin:/sbin; command -v {program}");
    let status = Command::new("sh").args(["-c", &script]).stdout(Stdio::null()).status();
    let found = status.unwrap().success();
    assert!(found || std::env::var_os("CI").is_none(), "{program} is missing in CI");
    if !found {
        eprintln!("NOT TESTED: {what}: no {program}");
    }
    found
}

/// Whether file systems can be mounted. Where not, says loudly what is not tested; in CI that fails.
pub fn is_root(what: &str) -> bool {
    let is_root = command("id")
        .arg("-u")
        .output()
        .is_ok_and(|output| output.stdout == b"0\n");
    assert!(
        is_root || std::env::var_os("CI").is_none(),
        "CI must run as root, to mount file systems"
    );
    if !is_root {
        eprintln!("NOT TESTED: {what}: not root");
    }
    is_root
}

/// A program with the directories of administrators in its path.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// The bytes of a disk.
#[derive(Clone)]
pub struct Image {
    pub bytes: Vec<u8>,
}

impl Image {
    /// One of the small inputs beside the project, if they are at hand.
    pub fn shared_case(name: &str) -> Option<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../shared/cases")
            .join(format!("{name}.zst"));
        if !path.exists() || !have("zstd", name) {
            return None;
        }
        let output = Command::new("zstd").args(["-dcq"]).arg(path).output().unwrap();
        assert!(output.status.success());
        Some(Self { bytes: output.stdout })
    }

    pub fn le16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes[at..at + 2].try_into().unwrap())
    }

    pub fn le32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    pub fn be32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    /// The first place from `start` on, on a multiple of 512, where these bytes stand.
    pub fn find(&self, wanted: &[u8], start: u64) -> usize {
        let start = usize::try_from(start).unwrap();
        let found = (start..self.bytes.len())
            .step_by(512)
            .find(|at| self.bytes[*at..].starts_with(wanted));
        found.expect("it is somewhere")
    }

    /// Free bytes as dumpe2fs says.
    pub fn dumpe2fs_free(&self) -> u64 {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("image");
        fs::write(&path, &self.bytes).unwrap();
        let output = command("dumpe2fs").arg("-h").arg(&path).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let number = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
        };
        number("Free blocks:") * number("Block size:")
    }

    /// The content of `$Bitmap`.
    pub fn ntfs_bitmap(&self) -> Vec<u8> {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("image");
        fs::write(&path, &self.bytes).unwrap();
        let output = command("ntfscat").arg("-f").arg(&path).arg("$Bitmap").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// The file system after `change` worked on it, mounted by a program in user space.
    pub fn changed(&self, mount: &str, change: &dyn Fn(&Path)) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (path, mnt) = (dir.path().join("image"), dir.path().join("mnt"));
        fs::write(&path, &self.bytes).unwrap();
        fs::create_dir(&mnt).unwrap();
        let mounted = command(mount).arg(&path).arg(&mnt).output().unwrap();
        assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
        change(&mnt);
        let unmounted = unmounted_within(std::time::Duration::from_secs(4), &mnt);
        assert!(unmounted, "{} is in use", mnt.display());
        // The program ends a moment after its file system is unmounted.
        let in_use = || {
            command("fuser")
                .arg(&path)
                .output()
                .is_ok_and(|output| output.status.success())
        };
        while in_use() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Self {
            bytes: fs::read(&path).unwrap(),
        }
    }

    /// A disk with it in the only partition, of this type.
    pub fn in_partition(&self, label: &str, kind: &str) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("disk");
        let sectors = self.bytes.len() / 512;
        File::create(&path)
            .unwrap()
            .set_len((self.bytes.len() + (2 << 20)) as u64)
            .unwrap();
        let mut child = command("sfdisk")
            .arg("-q")
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let script = format!("label: {label}\nstart=2048,size={sectors},type={kind}\n");
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
        let mut bytes = fs::read(&path).unwrap();
        bytes[1 << 20..(1 << 20) + self.bytes.len()].copy_from_slice(&self.bytes);
        Self { bytes }
    }

    pub fn scan(&self) -> DiskReport {
        scan(&self.bytes).expect("a disk whose table is sound")
    }
}

/// A file system by its own program; `None`, said loudly, where that is missing.
pub fn make(program: &str, options: &[&str], size: u64) -> Option<Image> {
    if !have(program, program) {
        return None;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("image");
    File::create(&path).unwrap().set_len(size).unwrap();
    let output = command(program).args(options).arg(&path).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {options:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(Image {
        bytes: fs::read(&path).unwrap(),
    })
}

/// Why the only partition is left alone: the stable name of the reason, and its text.
pub fn reason(image: &Image) -> (&'static str, String) {
    let report = image.scan();
    assert_eq!(report.partitions.len(), 1);
    match &report.partitions[0].free {
        Ok(map) => ("free", format!("{} bytes", map.free_bytes())),
        Err(reason) => (reason.name(), reason.to_string()),
    }
}

/// Free bytes of the only partition, which can be read.
pub fn free(image: &Image) -> u64 {
    let report = image.scan();
    assert_eq!(report.partitions.len(), 1);
    match &report.partitions[0].free {
        Ok(map) => map.free_bytes(),
        Err(reason) => panic!("left alone: {reason}"),
    }
}
