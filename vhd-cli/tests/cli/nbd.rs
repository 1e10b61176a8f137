//! `vhd nbd`: listening, stopping, refusing.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::announce;
use crate::support::{Lab, MIB, stderr};

/// A server in the foreground that has said that it listens.
pub(crate) struct Serving {
    pub(crate) child: Child,
    said: BufReader<std::process::ChildStderr>,
}

impl Serving {
    pub(crate) fn start(lab: &Lab, args: &[&str]) -> Self {
        let (serving, warnings) = Self::start_warned(lab, args);
        assert!(warnings.is_empty(), "{warnings:?}");
        serving
    }

    /// The same for images of which something is odd, and what it said about them.
    pub(crate) fn start_warned(lab: &Lab, args: &[&str]) -> (Self, Vec<String>) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vhd"))
            .arg("nbd")
            .args(args)
            .current_dir(lab.path(""))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        let mut serving = Self { child, said };
        let mut warnings = Vec::new();
        loop {
            let mut line = String::new();
            serving.said.read_line(&mut line).unwrap();
            if line.starts_with("vhd: listening on ") {
                return (serving, warnings);
            }
            assert!(line.starts_with("vhd: warning: "), "{line}");
            warnings.push(line);
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Ends it without a word.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops it and returns its exit code and what it said.
    pub(crate) fn stop(mut self, signal: Signal) -> (Option<i32>, String) {
        self.signal(signal);
        let mut text = String::new();
        self.said.read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap().code(), text)
    }
}

impl Drop for Serving {
    /// A test that failed leaves no server behind.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a program is there.
pub(crate) fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        assert!(std::env::var_os("CI").is_none(), "there is no {program}");
        announce(&format!("left out: there is no {program}"));
    }
    found
}

/// What a program writes, if it succeeds.
fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Whether the commands of `qemu-io` succeed. What only reads must say so: else qemu refuses a read-only export.
pub(crate) fn qemu_io(lab: &Lab, uri: &str, commands: &[&str]) -> bool {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw"]).current_dir(lab.path(""));
    if commands.iter().all(|line| line.starts_with("read")) {
        command.arg("-r");
    }
    for line in commands {
        command.args(["-c", line]);
    }
    let output = command.arg(uri).output().unwrap();
    output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("failed")
}

#[test]
fn a_disk_is_served_until_the_signal() {
    let lab = Lab::new();
    lab.dynamic("disk.vhd", 8 * MIB);
    for signal in [Signal::TERM, Signal::INT] {
        let serving = Serving::start(&lab, &["--unix", "s.sock", "--stats", "disk.vhd"]);
        if has("qemu-io") {
            let uri = format!("nbd+unix:///?socket={}", lab.path("s.sock").display());
            assert!(qemu_io(&lab, &uri, &["write -P 5 1M 64k"]));
        }
        // Another server can't have the image, and a client that stays does not keep this one from stopping.
        lab.run(&["nbd", "--unix", "t.sock", "disk.vhd"], 7);
        let _client = UnixStream::connect(lab.path("s.sock")).unwrap();
        let (code, said) = serving.stop(signal);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("latency p50"), "{said}");
        assert!(!lab.exists("s.sock") && !lab.exists("t.sock"));
        lab.run(&["check", "disk.vhd"], 0);
    }
    if has("qemu-io") {
        let opened = vhd_core::chain::OpenOptions::new().open(&lab.path("disk.vhd")).unwrap();
        let mut bytes = vec![0; 64 << 10];
        opened.disk().read_at(&mut bytes, MIB).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 5));
    }
}

#[test]
fn a_snapshot_is_thrown_away() {
    if !has("qemu-io") {
        return;
    }
    let lab = Lab::new();
    lab.chain();
    let before = std::fs::read(lab.path("leaf.avhd")).unwrap();
    let scratch = lab.path("scratch");
    std::fs::create_dir(&scratch).unwrap();
    std::fs::copy(lab.path("other.raw"), lab.path("raw.img")).unwrap();
    for args in [&["leaf.avhd"][..], &["--from", "raw", "raw.img"]] {
        let args = [&["--unix", "s.sock", "--snapshot"], args].concat();
        let serving = Serving::start(&lab, &args);
        let uri = format!("nbd+unix:///?socket={}", lab.path("s.sock").display());
        assert!(qemu_io(&lab, &uri, &["write -P 5 0 4k", "flush", "read -P 5 0 4k"]));
        let (code, said) = serving.stop(Signal::TERM);
        assert_eq!(code, Some(0), "{said}");
    }
    assert!(std::fs::read(lab.path("leaf.avhd")).unwrap() == before);
    assert_eq!(std::fs::read(lab.path("raw.img")).unwrap(), [0; 4096]);
}

#[test]
fn several_images_by_name_and_a_default() {
    if !has("nbdinfo") {
        return;
    }
    let lab = Lab::new();
    lab.chain();
    lab.dynamic("data.vhd", 16 * MIB);
    let args = [
        "--unix",
        "s.sock",
        "--export",
        "data=data.vhd",
        "--read-only",
        "leaf.avhd",
    ];
    let serving = Serving::start(&lab, &args);
    let size = |export: &str| {
        let uri = format!("nbd+unix:///{export}?socket={}", lab.path("s.sock").display());
        let output = Command::new("nbdinfo").args(["--size", &uri]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.trim().parse::<u64>().ok()
    };
    assert_eq!(
        (size(""), size("data"), size("other")),
        (Some(8 * MIB), Some(16 * MIB), None)
    );
    assert_eq!(serving.stop(Signal::TERM).0, Some(0));
    lab.run(
        &[
            "nbd",
            "--unix",
            "s.sock",
            "--export",
            "a=data.vhd",
            "--export",
            "a=leaf.avhd",
        ],
        2,
    );
}

/// Writes to the present state of a disk with snapshots: this byte, at as many MiB.
fn write_now(lab: &Lab, byte: u8) {
    let active = vhd_core::snapshot::resolve(&lab.path("vm.vhd"), vhd_core::snapshot::NOW).unwrap();
    lab.write(active.to_str().unwrap(), u64::from(byte) * MIB, &[byte; 4096]);
}

#[test]
fn a_disk_with_its_snapshots() {
    if !has("nbdinfo") || !has("qemu-io") {
        return;
    }
    let lab = Lab::new();
    lab.dynamic("vm.vhd", 8 * MIB);
    lab.write("vm.vhd", 0, &[1; 4096]);
    for (name, byte) in [("before upgrade", 2), ("after", 3)] {
        lab.run(&["snapshot", "create", "vm.vhd", "--name", name], 0);
        write_now(&lab, byte);
    }
    let uri = |export: &str| format!("nbd+unix:///{export}?socket={}", lab.path("s.sock").display());
    let does = |export: &str, line: &str| assert!(qemu_io(&lab, &uri(export), &[line]), "{export}: {line}");
    for (args, name) in [(&["vm.vhd@now"][..], "vm"), (&["--export", "disk=vm.vhd@now"], "disk")] {
        let serving = Serving::start(&lab, &[&["--unix", "s.sock"], args].concat());
        let list = output("nbdinfo", &["--list", "--json", &uri("")]);
        let names: Vec<_> = json_list(&list, "export-name");
        let [before, after] = ["before upgrade", "after"].map(|snapshot| format!("{name}@{snapshot}"));
        assert_eq!(names, [name, &before, &after]);
        let read_only: Vec<_> = json_list(&list, "is_read_only");
        assert_eq!(read_only, ["false", "true", "true"]);
        let before = format!("{name}@before%20upgrade");
        does(&before, "read -P 1 0 4k");
        does(&before, "read -P 0 2M 2M");
        does(&after, "read -P 2 2M 4k");
        does(&after, "read -P 0 3M 1M");
        does(name, "read -P 3 3M 4k");
        assert!(!qemu_io(&lab, &uri(&after), &["write 0 4k"]));
        // What changed since each: the default export is the present state.
        let changed = |export: &str, snapshot: &str| {
            let map = format!("--map=qemu:dirty-bitmap:{snapshot}");
            let map: serde_json::Value =
                serde_json::from_str(&output("nbdinfo", &[&map, "--json", &uri(export)])).unwrap();
            let dirty = map.as_array().unwrap().iter().filter(|part| part["type"] == 1);
            dirty
                .map(|part| part["offset"].as_u64().unwrap() / MIB)
                .collect::<Vec<_>>()
        };
        assert_eq!(changed("", "after"), [3]);
        assert_eq!(changed("", "before upgrade"), [2, 3]);
        assert_eq!(changed(&after, "before upgrade"), [2]);
        // Snapshots go on to be what they are while the present state changes.
        does(name, "write -P 9 0 8M");
        does(&before, "read -P 1 0 4k");
        // Nobody takes a snapshot of what a guest writes to.
        lab.run(&["snapshot", "create", "vm.vhd", "--name", "third", "--offline"], 7);
        assert_eq!(serving.stop(Signal::TERM).0, Some(0));
        lab.run(&["snapshot", "revert", "vm.vhd"], 0);
        write_now(&lab, 3);
    }
    // A snapshot alone, and the present state with a layer to be thrown away on it.
    let serving = Serving::start(&lab, &["--unix", "s.sock", "--read-only", "vm.vhd@after"]);
    does("", "read -P 2 2M 4k");
    assert_eq!(serving.stop(Signal::TERM).0, Some(0));
    let serving = Serving::start(&lab, &["--unix", "s.sock", "--snapshot", "vm.vhd@now"]);
    does("vm", "write -P 9 0 8M");
    does("vm@after", "read -P 2 2M 4k");
    assert_eq!(serving.stop(Signal::TERM).0, Some(0));
    lab.run(&["check", "vm.vhd@now"], 0);
}

/// The values of a key of each export in what `nbdinfo --list --json` says.
fn json_list(list: &str, key: &str) -> Vec<String> {
    let list: serde_json::Value = serde_json::from_str(list).unwrap();
    let exports = list["exports"].as_array().unwrap().iter();
    exports
        .map(|export| match &export[key] {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        })
        .collect()
}

#[test]
fn in_the_background_with_a_file_that_says_where() {
    let lab = Lab::new();
    lab.dynamic("disk.vhd", 8 * MIB);
    lab.run(
        &["nbd", "--fork", "--pid-file", "pid", "--unix", "s.sock", "disk.vhd"],
        0,
    );
    let pid: i32 = std::fs::read_to_string(lab.path("pid"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    drop(UnixStream::connect(lab.path("s.sock")).unwrap());
    // A second one fails as it would in the foreground.
    let second = lab.run(&["nbd", "--fork", "--unix", "t.sock", "disk.vhd"], 7);
    assert!(stderr(&second).contains("VHD-E0304"));
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while lab.exists("pid") || lab.exists("s.sock") {
        assert!(Instant::now() < deadline, "it does not stop");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn sockets_of_a_service_manager() {
    if !has("nbdinfo") {
        return;
    }
    let lab = Lab::new();
    lab.dynamic("disk.vhd", 8 * MIB);
    let output = Command::new("nbdinfo")
        .args([
            "--size",
            "--",
            "[",
            env!("CARGO_BIN_EXE_vhd"),
            "nbd",
            "--read-only",
            "disk.vhd",
            "]",
        ])
        .current_dir(lab.path(""))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), (8 * MIB).to_string());
}
