//! A directory with images, and the command run in it.

use std::fs;
use std::path::PathBuf;

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use serde_json::Value;
use tempfile::TempDir;
use vhd_core::chain::{ImageFormat, OpenOptions};
use vhd_core::image::{create_dynamic, create_fixed};
use vhd_core::storage::StagedFile;

use crate::tools::have;

pub(crate) const MIB: u64 = 1 << 20;

/// The command that reads images, each with the arguments that make it read `image`.
pub(crate) fn reading_commands(image: &str) -> Vec<Vec<String>> {
    let commands = [
        vec!["info", image],
        vec!["map", image],
        vec!["check", image],
        vec!["hash", image],
        vec!["convert", image, "out.img", "--to", "raw"],
        vec!["convert", image, "-", "--to", "fixed"],
        vec!["compare", image, "other.raw"],
        vec!["compare", "other.raw", image],
        vec!["diff", image, "other.raw"],
        vec!["diff", "other.raw", image],
        vec!["create", "child.avhd", "--parent", image],
    ];
    let owned = |words: Vec<&str>| words.into_iter().map(str::to_owned).collect();
    commands.into_iter().map(owned).collect()
}

/// The command, killed with the thread that starts it: nothing goes on when the test fails or is killed.
pub(crate) fn beside_the_test() -> std::process::Command {
    if !have(&["setpriv"], "whether what a killed test has started ends with it") {
        return std::process::Command::new(env!("CARGO_BIN_EXE_vhd"));
    }
    // It becomes the command: the process is the same.
    let mut command = std::process::Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", env!("CARGO_BIN_EXE_vhd")]);
    command
}

/// A directory of its own.
pub(crate) struct Lab {
    // Unmounted before the directory is removed.
    _disk: Option<SmallDisk>,
    dir: TempDir,
}

/// A small file system in memory, mounted on a directory.
struct SmallDisk(PathBuf);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self::in_dir(tempfile::tempdir().unwrap(), None)
    }

    /// A directory in that of another one.
    pub(crate) fn below(outer: &Self) -> Self {
        Self::in_dir(tempfile::tempdir_in(outer.path("")).unwrap(), None)
    }

    /// A directory on a file system that holds `bytes`; `None`, said aloud, without the right to mount one.
    pub(crate) fn on_a_small_disk(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let path = dir.path().to_owned();
        let mount = ["-t", "tmpfs", "-o", &size, "none"];
        let mounted = std::process::Command::new("mount").args(mount).arg(&path).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self::in_dir(dir, Some(SmallDisk(path))));
        }
        assert!(
            std::env::var_os("CI").is_none(),
            "CI must be able to mount a file system"
        );
        crate::announce("NOT TESTED: a file system that is full, for lack of the right to mount one");
        None
    }

    fn in_dir(dir: TempDir, disk: Option<SmallDisk>) -> Self {
        let lab = Self { _disk: disk, dir };
        fs::write(lab.path("other.raw"), vec![0; 4096]).unwrap();
        lab
    }

    /// Takes all space but `bytes` of the file system with a file of that name, until it is removed.
    pub(crate) fn fill_but(&self, name: &str, bytes: u64) {
        use std::io::Write as _;
        let mut ballast = fs::File::create(self.path(name)).unwrap();
        while ballast.write_all(&[0x55; 4096]).is_ok() {}
        let len = ballast.metadata().unwrap().len();
        ballast.set_len(len.saturating_sub(bytes)).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn exists(&self, name: &str) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }

    /// All names in the directory.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = self.dir.path().read_dir().unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The command, to be run in the directory.
    pub(crate) fn vhd(&self, args: &[&str]) -> Command {
        let mut command = match args.first() {
            // A machine may run for ever.
            Some(&"vm") => Command::from_std(beside_the_test()),
            _ => Command::new(env!("CARGO_BIN_EXE_vhd")),
        };
        command.args(args).current_dir(self.dir.path());
        command
    }

    /// Runs the command and expects an exit code.
    pub(crate) fn run(&self, args: &[&str], code: i32) -> Assert {
        self.vhd(args).assert().code(code)
    }

    /// Runs the command with `--json` and expects an exit code and one object of the right version.
    pub(crate) fn json(&self, args: &[&str], code: i32) -> Value {
        let mut args = args.to_vec();
        args.push("--json");
        let value: Value = serde_json::from_slice(&self.run(&args, code).get_output().stdout).unwrap();
        assert_eq!(value["version"], 1);
        assert_eq!(value["command"], args[0]);
        value
    }

    /// An empty dynamic image.
    pub(crate) fn dynamic(&self, name: &str, size: u64) {
        let staged = StagedFile::create_beside(&self.path(name)).unwrap();
        create_dynamic(&*staged.storage(), size, 2 * MIB).unwrap();
        staged.publish(false, false).unwrap();
    }

    /// An empty fixed image.
    pub(crate) fn fixed(&self, name: &str, size: u64) {
        let staged = StagedFile::create_beside(&self.path(name)).unwrap();
        create_fixed(&*staged.storage(), size, vhd_core::image::Preallocate::Off).unwrap();
        staged.publish(false, false).unwrap();
    }

    /// Writes to the disk in an image, whoever relies on it.
    pub(crate) fn write(&self, name: &str, offset: u64, bytes: &[u8]) {
        let format = name.ends_with(".raw").then_some(ImageFormat::Raw);
        let options = OpenOptions::new().format(format).write(true).ignore_children(true);
        let opened = options.open(&self.path(name)).unwrap();
        opened.disk().write_at(bytes, offset).unwrap();
        opened.close().unwrap();
    }

    /// A parent with something in it, and a child with something else.
    pub(crate) fn chain(&self) {
        self.dynamic("parent.vhd", 8 * MIB);
        self.write("parent.vhd", MIB, &[1; 4096]);
        self.run(&["create", "leaf.avhd", "--parent", "parent.vhd"], 0);
        self.write("leaf.avhd", 3 * MIB, &[2; 512]);
    }

    /// Changes bytes of a file; a negative offset counts from the end.
    pub(crate) fn damage(&self, name: &str, offset: i64, bytes: &[u8]) {
        let mut content = fs::read(self.path(name)).unwrap();
        let start = match usize::try_from(offset) {
            Ok(start) => start,
            Err(_) => content.len() - usize::try_from(-offset).unwrap(),
        };
        content[start..start + bytes.len()].copy_from_slice(bytes);
        fs::write(self.path(name), content).unwrap();
    }

    /// The length of a file.
    pub(crate) fn len(&self, name: &str) -> u64 {
        self.path(name).metadata().unwrap().len()
    }
}

/// What a run wrote to standard error.
pub(crate) fn stderr(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

/// What a run wrote to standard output.
pub(crate) fn stdout(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}
