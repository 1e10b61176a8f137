//! Programs, mounts and temporary directories.

#[path = "../../../vhd-core/tests/common/unmount.rs"]
mod unmount;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use unmount::unmounted_within;

/// A directory that is removed at the end, not on a file system in memory.
pub(crate) fn temporary() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// The seed of random tests, as `VHD_TEST_SEED` or the clock says.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("VHD_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap().as_nanos().try_into().unwrap_or(1)
    })
}

/// Whether these programs are there, and this is root. In CI it is an error if not.
pub(crate) fn have(programs: &[&str]) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let found = |program: &&str| {
        path.split(':')
            .any(|directory| Path::new(directory).join(program).exists())
    };
    let missing: Vec<_> = programs.iter().filter(|program| !found(program)).collect();
    let is_root = fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0);
    if missing.is_empty() && is_root {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "not tested: missing {missing:?}, root: {is_root}"
    );
    eprintln!("NOT TESTED: missing {missing:?}, root: {is_root}");
    false
}

/// Runs a program that must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .env("TZ", "UTC")
        .output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A file system that is mounted until this is dropped.
pub(crate) struct Mounted {
    place: PathBuf,
    /// The loop device, where the program that mounts makes none.
    device: Option<String>,
}

impl Mounted {
    /// Mounts `image` on `place`. `mount` is a program and its options.
    pub(crate) fn new(image: &Path, place: &Path, mount: &[&str]) -> Self {
        fs::create_dir_all(place).unwrap();
        let (program, options) = mount.split_first().unwrap();
        let device = (*program == "mount.exfat-fuse").then(|| {
            let output = Command::new("losetup")
                .args(["--find", "--show"])
                .arg(image)
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "losetup: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        });
        let source = device.as_deref().unwrap_or(image.to_str().unwrap());
        run(program, &[options, &[source, place.to_str().unwrap()]].concat());
        let place = place.to_owned();
        Self { place, device }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.place
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = unmounted_within(std::time::Duration::from_secs(5), &self.place);
        assert!(unmounted, "{} is busy", self.place.display());
        if let Some(device) = &self.device {
            run("losetup", &["--detach", device]);
        }
    }
}
