//! A mounted disk, for tests.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Lab, stdout};
use crate::tools::run;
use crate::unmount::unmounted_within;

/// A mount that is there as long as this is.
pub(crate) struct Mounted<'a> {
    lab: &'a Lab,
    pub(crate) process: Child,
    pub(crate) place: PathBuf,
}

impl<'a> Mounted<'a> {
    /// Mounts in the foreground on `mnt`.
    pub(crate) fn new(lab: &'a Lab, arguments: &[&str]) -> Self {
        let place = lab.path("mnt");
        fs::create_dir_all(&place).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhd"));
        command
            .current_dir(lab.path(""))
            .arg("mount")
            .arg("--foreground")
            .args(arguments)
            .arg("mnt");
        let process = command.stderr(Stdio::inherit()).spawn().unwrap();
        let mounted = Self { lab, process, place };
        let started = Instant::now();
        while !mounted.place.join("disk.raw").exists() {
            assert!(started.elapsed() < Duration::from_secs(60), "it does not mount");
            std::thread::sleep(Duration::from_millis(10));
        }
        mounted
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    /// Unmounts as a user does, and waits for the process.
    pub(crate) fn unmount(mut self) {
        unmount(self.lab, "mnt");
        assert!(self.process.wait().unwrap().success());
    }
}

/// `vhd umount`, again as long as somebody has a file open there: a process that another test is just starting has the open
/// files of this one until it runs its program.
pub(crate) fn unmount(lab: &Lab, place: &str) {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let output = lab.vhd(&["umount", place]).output().unwrap();
        if output.status.success() {
            return;
        }
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("VHD-E0709") && Instant::now() < end, "{told}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // After a failure of the test only.
        if self.process.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = Command::new("umount").arg("-l").arg(&self.place).output();
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// Whether this machine has FUSE. In CI it must.
pub(crate) fn fuse() -> bool {
    let there = File::options().read(true).write(true).open("/dev/fuse").is_ok();
    assert!(there || std::env::var_os("CI").is_none(), "CI must have /dev/fuse");
    if !there {
        crate::announce("NOT TESTED: mounts, for lack of /dev/fuse");
    }
    there
}

/// What `vhd hash` says of an image.
pub(crate) fn hash(lab: &Lab, image: &str) -> String {
    stdout(&lab.run(&["hash", image], 0))
        .split(' ')
        .next()
        .unwrap()
        .to_owned()
}

/// The file that a disk with snapshots is written to.
pub(crate) fn active_file(lab: &Lab, disk: &str) -> String {
    let active = vhd_core::snapshot::resolve(&lab.path(disk), vhd_core::snapshot::NOW).unwrap();
    active.to_str().unwrap().to_owned()
}

/// What coreutils say of a file, whose name may be any bytes.
pub(crate) fn sha256sum(path: &Path) -> String {
    let line = run("sha256sum", [path]);
    // A line about a name with a backslash begins with one.
    let sum = line.split(|&byte| byte == b' ').next().unwrap();
    String::from_utf8(sum.trim_ascii().to_vec()).unwrap()
}

/// A file that a loop device shows, until this is dropped.
pub(crate) struct Loop(pub(crate) String);

impl Loop {
    pub(crate) fn new(file: &Path, options: &[&str]) -> Self {
        let options = options.iter().map(|option| option.as_ref());
        let device = run(
            "losetup",
            ["--find".as_ref(), "--show".as_ref()]
                .into_iter()
                .chain(options)
                .chain([file.as_os_str()]),
        );
        Self(String::from_utf8(device).unwrap().trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).output();
        // The kernel lets go of the file a moment later.
        let name = self.0.trim_start_matches("/dev/").to_owned();
        for _ in 0..200 {
            if !Path::new("/sys/block").join(&name).join("loop").exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A file system that a driver has mounted, until this is dropped.
pub(crate) struct Driver {
    pub(crate) place: PathBuf,
    _device: Option<Loop>,
}

impl Driver {
    /// Mounts `source`, a file or a device, with a program and its options.
    pub(crate) fn new(program: &[&str], source: &Path, place: &Path, device: Option<Loop>) -> Self {
        fs::create_dir_all(place).unwrap();
        let options = program[1..].iter().map(|option| option.as_ref());
        run(program[0], options.chain([source.as_os_str(), place.as_os_str()]));
        Self {
            place: place.to_owned(),
            _device: device,
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let unmounted = unmounted_within(Duration::from_secs(5), &self.place);
        assert!(
            unmounted || std::thread::panicking(),
            "{} is busy",
            self.place.display()
        );
    }
}

/// Seconds that tests under load take, `VHD_MOUNT_SECONDS` or 3.
pub(crate) fn load_time() -> Duration {
    let asked = std::env::var("VHD_MOUNT_SECONDS");
    let seconds = asked.map_or(3, |asked| asked.parse().expect("VHD_MOUNT_SECONDS is a number"));
    Duration::from_secs(seconds)
}

/// The seed of random work, `VHD_TEST_SEED` or any, which is printed.
pub(crate) fn seed() -> u64 {
    let asked = std::env::var("VHD_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = asked.unwrap_or_else(|| fastrand::u64(..));
    println!("VHD_TEST_SEED={seed}");
    seed
}
