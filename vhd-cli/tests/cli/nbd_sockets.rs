//! `vhd nbd` and the names and sockets around it: what is passed by a service manager, what is left behind, what is named.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::nbd::{Serving, has, qemu_io};
use crate::support::{Lab, MIB};

/// Starts `vhd nbd` by a script that opens sockets first, as a service manager does.
const ACTIVATE: &str = r#"
import os, socket, sys
address, pid, command = sys.argv[1], sys.argv[2], sys.argv[3:]
if address.startswith("unix:"):
    listening = socket.socket(socket.AF_UNIX); listening.bind(address[5:])
elif address.startswith("udp:"):
    listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); listening.bind((address[4:], 0))
else:
    listening = socket.socket(socket.AF_INET); listening.bind((address, 0))
if not address.startswith("udp:") and pid != "deaf":
    listening.listen()
print(listening.getsockname()[1] if not address.startswith("unix:") else 0, flush=True)
if listening.fileno() == 3:
    os.set_inheritable(3, True)
else:
    os.dup2(listening.fileno(), 3)
os.environ["LISTEN_FDS"] = "many" if pid == "many" else "1"
os.environ["LISTEN_FDNAMES"] = "disk"
os.environ["LISTEN_PID"] = "1" if pid == "other" else str(os.getpid())
os.execv(command[0], command)
"#;

fn activate(lab: &Lab, address: &str, pid: &str, args: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command
        .args(["-c", ACTIVATE, address, pid, env!("CARGO_BIN_EXE_vhd"), "nbd"])
        .args(args)
        .current_dir(lab.path(""));
    command
}

/// The result of one that does not serve.
fn refused(lab: &Lab, address: &str, pid: &str, args: &[&str]) -> Output {
    let output = activate(lab, address, pid, args).output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    output
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn pid_of(path: &Path) -> Option<u32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn terminate(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
}

fn await_gone(path: &Path) {
    for _ in 0..2000 {
        if !path.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{} stays", path.display());
}

#[test]
fn the_rules_hold_for_sockets_that_were_passed() {
    if !has("python3") || !has("nbdinfo") {
        return;
    }
    let lab = Lab::new();
    lab.dynamic("disk.vhd", 8 * MIB);
    // Open to all, and nothing that says who may come.
    let output = refused(&lab, "0.0.0.0", "own", &["disk.vhd"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("--allow"), "{}", said(&output));
    assert!(said(&output).contains("\"disk\""), "{}", said(&output));
    // With networks: who is not in one is turned away, on a socket of this machine too.
    for (allow, served) in [("127.0.0.0/8", true), ("192.0.2.0/24", false)] {
        let mut child = activate(&lab, "0.0.0.0", "own", &["--allow", allow, "--read-only", "disk.vhd"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let port = first_line(child.stdout.take().unwrap());
        let said = first_line(child.stderr.take().unwrap());
        assert!(said.contains("listening on 0.0.0.0:"), "{said}");
        let size = Command::new("nbdinfo")
            .args(["--size", &format!("nbd://127.0.0.1:{}", port.trim())])
            .output()
            .unwrap();
        assert_eq!(size.status.success(), served, "{allow}: {size:?}");
        terminate(child.id());
        assert!(child.wait().unwrap().success());
    }
}

fn first_line(pipe: impl std::io::Read) -> String {
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(pipe), &mut line).unwrap();
    line
}

#[test]
fn what_was_passed_is_used_or_the_start_is_refused() {
    if !has("python3") {
        return;
    }
    let lab = Lab::new();
    lab.dynamic("disk.vhd", 8 * MIB);
    for (address, pid, args, code) in [
        ("udp:127.0.0.1", "own", &["disk.vhd"][..], 1),
        ("127.0.0.1", "deaf", &["disk.vhd"], 1),
        ("127.0.0.1", "many", &["disk.vhd"], 1),
        ("127.0.0.1", "many", &["--fork", "disk.vhd"], 1),
        ("127.0.0.1", "own", &["--unix", "s.sock", "disk.vhd"], 2),
        ("127.0.0.1", "own", &["--tcp", "127.0.0.1:0", "disk.vhd"], 2),
        ("0.0.0.0", "own", &["--fork", "disk.vhd"], 2),
    ] {
        let output = refused(&lab, address, pid, args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", said(&output));
        assert!(!lab.exists("s.sock"));
    }
}

#[test]
fn a_server_in_the_background_has_the_sockets_that_were_passed() {
    if !has("python3") || !has("qemu-io") {
        return;
    }
    let lab = Lab::new();
    lab.dynamic("disk.vhd", 8 * MIB);
    let address = format!("unix:{}", lab.path("passed.sock").display());
    let args = ["--fork", "--pid-file", "pid", "disk.vhd"];
    let status = activate(&lab, &address, "own", &args)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let uri = format!("nbd+unix:///?socket={}", lab.path("passed.sock").display());
    assert!(qemu_io(&lab, &uri, &["write -P 5 0 4k", "flush"]));
    terminate(pid_of(&lab.path("pid")).unwrap());
    await_gone(&lab.path("pid"));
    // It is the manager's.
    assert!(lab.exists("passed.sock"));
}

#[test]
fn an_old_server_leaves_the_files_of_a_new_one_alone() {
    let lab = Lab::new();
    lab.dynamic("old.vhd", 8 * MIB);
    lab.dynamic("new.vhd", 8 * MIB);
    let old = Serving::start(&lab, &["--unix", "s.sock", "--pid-file", "pid", "old.vhd"]);
    std::fs::remove_file(lab.path("s.sock")).unwrap();
    let new = Serving::start(&lab, &["--unix", "s.sock", "--pid-file", "pid", "new.vhd"]);
    assert_eq!(old.stop(Signal::TERM).0, Some(0));
    assert!(UnixStream::connect(lab.path("s.sock")).is_ok());
    assert_eq!(pid_of(&lab.path("pid")), Some(new.child.id()));
    assert_eq!(new.stop(Signal::TERM).0, Some(0));
    assert!(!lab.exists("s.sock") && !lab.exists("pid"));
    // One that somebody else replaced, and one that was moved away.
    let old = Serving::start(&lab, &["--unix", "s.sock", "--pid-file", "pid", "old.vhd"]);
    std::fs::write(lab.path("pid"), "1\n").unwrap();
    std::fs::rename(lab.path("s.sock"), lab.path("t.sock")).unwrap();
    std::fs::write(lab.path("s.sock"), "").unwrap();
    assert_eq!(old.stop(Signal::TERM).0, Some(0));
    assert!(lab.exists("pid") && lab.exists("s.sock") && lab.exists("t.sock"));
}

#[test]
fn names_that_no_export_can_have() {
    let lab = Lab::new();
    lab.dynamic("disk.vhd", 8 * MIB);
    let long = "n".repeat(4097);
    for name in [long.as_str(), "a\nb", "\u{1b}[2J", "a\u{9b}b"] {
        lab.run(&["nbd", "--unix", "s.sock", "--export", &format!("{name}=disk.vhd")], 2);
    }
    for memory in ["0", "63M", "lots"] {
        lab.run(&["nbd", "--unix", "s.sock", "--memory", memory, "disk.vhd"], 2);
    }
    let name = format!("{}=disk.vhd", "n".repeat(4096));
    let serving = Serving::start(
        &lab,
        &[
            "--unix",
            "s.sock",
            "--memory",
            "64M",
            "--max-connections",
            "100",
            "--export",
            &name,
        ],
    );
    assert_eq!(serving.stop(Signal::TERM).0, Some(0));
}

#[test]
fn a_server_without_files_says_so() {
    let lab = Lab::new();
    lab.dynamic("disk.vhd", 8 * MIB);
    let script = "ulimit -n 24; exec \"$0\" nbd --unix s.sock disk.vhd";
    let mut child = Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_vhd")])
        .current_dir(lab.path(""))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert!(line.contains("listening"), "{line}");
    let crowd: Vec<_> = (0..40)
        .filter_map(|_| UnixStream::connect(lab.path("s.sock")).ok())
        .collect();
    line.clear();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert!(line.contains("can't accept"), "{line}");
    std::thread::sleep(Duration::from_millis(500));
    drop(crowd);
    terminate(child.id());
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut said, &mut rest).unwrap();
    assert!(!rest.contains("can't accept"), "said again: {rest}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn an_image_that_was_cut_short_is_noticed() {
    if !has("qemu-io") {
        return;
    }
    let lab = Lab::new();
    for (name, args) in [
        ("dynamic.vhd", &["dynamic.vhd"][..]),
        ("fixed.vhd", &["fixed.vhd"]),
        ("disk.raw", &["--from", "raw", "disk.raw"]),
    ] {
        match name {
            "disk.raw" => std::fs::write(lab.path(name), vec![1; 8 << 20]).unwrap(),
            "fixed.vhd" => lab.fixed(name, 8 * MIB),
            _ => lab.dynamic(name, 8 * MIB),
        }
        let serving = Serving::start(&lab, &[&["--unix", "s.sock"], args].concat());
        let uri = format!("nbd+unix:///?socket={}", lab.path("s.sock").display());
        assert!(qemu_io(&lab, &uri, &["write -P 5 0 4k", "flush"]), "{name}");
        let file = std::fs::File::options().write(true).open(lab.path(name)).unwrap();
        file.set_len(3 << 20).unwrap();
        assert!(!qemu_io(&lab, &uri, &["write -P 6 0 4k", "flush"]), "{name}");
        // And nothing is written any more.
        assert!(!qemu_io(&lab, &uri, &["write -P 7 0 4k"]), "{name}");
        let (code, said) = serving.stop(Signal::TERM);
        assert_eq!(code, Some(1), "{name}: {said}");
    }
}
