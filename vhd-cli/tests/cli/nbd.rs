//! `vhd nbd`: listening, stopping, refusing.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
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
        let mut child = Command::new(env!("CARGO_BIN_EXE_vhd"))
            .arg("nbd")
            .args(args)
            .current_dir(lab.path(""))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert!(line.starts_with("vhd: listening on "), "{line}");
        Self { child, said }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Stops it and returns its exit code and what it said.
    pub(crate) fn stop(mut self, signal: Signal) -> (Option<i32>, String) {
        self.signal(signal);
        let mut text = String::new();
        self.said.read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap().code(), text)
    }
}

/// Whether a program is there.
pub(crate) fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        announce(&format!("left out: there is no {program}"));
    }
    found
}

fn qemu_io(lab: &Lab, uri: &str, commands: &[&str]) -> bool {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw"]).current_dir(lab.path(""));
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

#[test]
fn refusals_say_why() {
    let lab = Lab::new();
    lab.dynamic("disk.vhd", 8 * MIB);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refused = lab.run(&["nbd", "--tcp", &address, "disk.vhd"], 1);
    assert!(stderr(&refused).starts_with("vhd: error[VHD-E0602]: can't listen on 127.0.0.1:"));
    let refused = lab.run(&["nbd", "--unix", "no/such/dir", "disk.vhd"], 1);
    assert!(stderr(&refused).contains("VHD-E0601"));
    let refused = lab.run(&["nbd", "--unix", "s", "missing.vhd"], 1);
    assert!(stderr(&refused).contains("VHD-E0302"));
    let certificate = ["--tls-cert", "other.raw", "--tls-key", "other.raw"];
    let refused = lab.run(&[&["nbd", "--unix", "s", "disk.vhd"], &certificate[..]].concat(), 1);
    assert!(stderr(&refused).contains("VHD-E0603"));
    // Whoever could come would be let in.
    lab.run(&["nbd", "--tcp", "0.0.0.0:0", "disk.vhd"], 2);
    for wrong in [
        &["nbd"][..],
        &["nbd", "--unix", "a", "--tcp", "127.0.0.1:1", "disk.vhd"],
        &["nbd", "--vsock", "x:1", "d"],
    ] {
        lab.run(wrong, 2);
    }
    assert!(!lab.exists("s"));
}

#[test]
fn a_killed_server_leaves_a_sound_image_with_all_that_was_flushed() {
    if !has("qemu-io") {
        return;
    }
    let lab = Lab::new();
    lab.dynamic("disk.vhd", 64 * MIB);
    for round in 1..=6_u8 {
        let mut serving = Serving::start(&lab, &["--unix", "s.sock", "disk.vhd"]);
        let uri = format!("nbd+unix:///?socket={}", lab.path("s.sock").display());
        let at = u64::from(round) * 4;
        let write = format!("write -f -P {round} {at}M 300k");
        assert!(qemu_io(&lab, &uri, &[&write]));
        // Under way when the server dies.
        let mut load = Command::new("qemu-io")
            .args([
                "-f",
                "raw",
                "-c",
                "aio_write -P 99 40M 8M",
                "-c",
                "aio_write -P 98 50M 8M",
                &uri,
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(u64::from(round) * 7));
        serving.child.kill().unwrap();
        serving.child.wait().unwrap();
        let _ = load.wait();
        let checked = lab.vhd(&["check", "disk.vhd"]).output().unwrap();
        assert!(matches!(checked.status.code(), Some(0 | 4)), "{checked:?}");
    }
    let opened = vhd_core::chain::OpenOptions::new().open(&lab.path("disk.vhd")).unwrap();
    for round in 1..=6_u8 {
        let mut bytes = vec![0; 300 << 10];
        opened.disk().read_at(&mut bytes, u64::from(round) * 4 * MIB).unwrap();
        assert!(bytes.iter().all(|&byte| byte == round), "round {round}");
    }
}
