//! A disk on a server as the source of a command.

use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::nbd::{Serving, has};
use crate::support::{Lab, MIB, stderr, stdout};

fn uri(lab: &Lab, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", lab.path("s.sock").display())
}

#[test]
fn what_reads_files_reads_a_server() {
    let lab = Lab::new();
    lab.chain();
    lab.run(&["convert", "leaf.avhd", "flat.raw", "--to", "raw"], 0);
    let serving = Serving::start(&lab, &["--unix", "s.sock", "--read-only", "leaf.avhd"]);
    let uri = uri(&lab, "");
    lab.run(&["convert", &uri, "copy.vhd", "--to", "dynamic"], 0);
    lab.run(&["compare", "copy.vhd", "flat.raw"], 0);
    lab.run(&["compare", &uri, "flat.raw"], 0);
    lab.run(&["compare", "flat.raw", &uri], 0);
    lab.run(&["compare", &uri, &uri], 0);
    lab.run(&["compare", &uri, "parent.vhd"], 5);
    lab.run(&["diff", "flat.raw", &uri], 0);
    let streamed = lab.run(&["convert", &uri, "-", "--to", "raw"], 0);
    assert!(streamed.get_output().stdout == std::fs::read(lab.path("flat.raw")).unwrap());
    let hash = |image: &str| lab.json(&["hash", image], 0)["sha256"].clone();
    assert_eq!(hash(&uri), hash("flat.raw"));
    let diff = lab.json(&["diff", &uri, "parent.vhd"], 5);
    assert_eq!(diff["different_bytes"], 512, "{diff}");
    // Only what takes space is read.
    let report = lab.json(&["convert", &uri, "again.vhd", "--to", "fixed"], 0);
    assert_eq!(
        (&report["copied_bytes"], &report["virtual_size"]),
        (&4608.into(), &(8 * MIB).into())
    );
    let map = lab.json(&["map", &uri], 0);
    assert_eq!(map["files"][0], uri.as_str());
    assert_eq!(map["extents"][0]["data"], false, "{map}");
    let info = lab.json(&["info", &uri], 0);
    assert_eq!(
        (&info["format"], &info["virtual_size"]),
        (&"raw".into(), &(8 * MIB).into())
    );
    assert!(stdout(&lab.run(&["info", &uri], 0)).contains(": raw, 8388608 bytes"));
    assert_eq!(serving.stop(Signal::TERM).0, Some(0));
}

#[test]
fn an_image_on_the_disk_of_a_server_is_said_and_read_where_that_is_asked_for() {
    let lab = Lab::new();
    lab.dynamic("inner.vhd", 8 * MIB);
    lab.write("inner.vhd", MIB, &[9; 4096]);
    let args = ["--unix", "s.sock", "--read-only", "--from", "raw", "inner.vhd"];
    let serving = Serving::start(&lab, &args);
    let uri = uri(&lab, "");
    for args in [
        &["hash", &uri][..],
        &["info", &uri],
        &["map", &uri],
        &["convert", &uri, "out", "--to", "raw"],
        &["compare", &uri, "inner.vhd"],
        &["azure", "prepare", &uri, "out"],
    ] {
        let said = stderr(&lab.run(args, 8));
        assert!(
            said.contains("VHD-E0613") && said.contains("--from vhd"),
            "{args:?}: {said}"
        );
        assert!(!lab.exists("out"));
    }
    lab.run(&["convert", "--from", "raw", &uri, "copy.raw", "--to", "raw"], 0);
    lab.run(&["compare", "--from", "raw", "copy.raw", "inner.vhd"], 0);
    let hash = |args: &[&str]| lab.json(args, 0)["sha256"].clone();
    assert_eq!(hash(&["hash", "--from", "vhd", &uri]), hash(&["hash", "inner.vhd"]));
    assert_eq!(
        hash(&["hash", "--from", "raw", &uri]),
        hash(&["hash", "--from", "raw", "inner.vhd"])
    );
    lab.run(&["compare", "--from", "vhd", &uri, "inner.vhd"], 0);
    lab.run(&["convert", "--from", "vhd", &uri, "flat.vhd", "--to", "fixed"], 0);
    lab.run(&["compare", "flat.vhd", "inner.vhd"], 0);
    let info = lab.json(&["info", "--from", "vhd", &uri], 0);
    assert_eq!(
        (&info["format"], &info["virtual_size"]),
        (&"vhd".into(), &(8 * MIB).into())
    );
    assert_eq!(info["layers"][0]["type"], "dynamic");
    lab.run(&["map", "--from", "vhd", &uri], 0);
    lab.run(&["hash", "--parent", "inner.vhd", &uri], 2);
    assert_eq!(serving.stop(Signal::TERM).0, Some(0));
}

#[test]
fn a_child_on_the_disk_of_a_server_needs_its_parents_named() {
    let lab = Lab::new();
    lab.chain();
    let args = ["--unix", "s.sock", "--read-only", "--from", "raw", "leaf.avhd"];
    let serving = Serving::start(&lab, &args);
    let uri = uri(&lab, "");
    let said = stderr(&lab.run(&["hash", "--from", "vhd", &uri], 6));
    assert!(said.contains("VHD-E0201"), "{said}");
    lab.run(
        &["compare", "--from", "vhd", "--parent", "parent.vhd", &uri, "leaf.avhd"],
        0,
    );
    assert_eq!(serving.stop(Signal::TERM).0, Some(0));
}

#[test]
fn another_container_on_the_disk_of_a_server_is_refused() {
    let lab = Lab::new();
    std::fs::write(lab.path("a.vhdx"), [b"vhdxfile".to_vec(), vec![0; 8184]].concat()).unwrap();
    let args = ["--unix", "s.sock", "--read-only", "--from", "raw", "a.vhdx"];
    let serving = Serving::start(&lab, &args);
    let said = stderr(&lab.run(&["hash", &uri(&lab, "")], 8));
    assert!(said.contains("VHD-E0613") && said.contains("--from vhdx"), "{said}");
    lab.run(&["hash", "--from", "vhd", &uri(&lab, "")], 8);
    let said = stderr(&lab.run(&["hash", "--from", "vhdx", &uri(&lab, "")], 3));
    assert!(said.contains("VHD-E0141"), "{said}");
    assert_eq!(serving.stop(Signal::TERM).0, Some(0));
    std::fs::write(
        lab.path("a.vdi"),
        [vec![0; 64], b"\x7F\x10\xDA\xBE".to_vec(), vec![0; 8124]].concat(),
    )
    .unwrap();
    let args = ["--unix", "s.sock", "--read-only", "--from", "raw", "a.vdi"];
    let serving = Serving::start(&lab, &args);
    let said = stderr(&lab.run(&["hash", &uri(&lab, "")], 8));
    assert!(said.contains("VHD-E0130") && said.contains("a VDI image"), "{said}");
    lab.run(&["hash", "--from", "raw", &uri(&lab, "")], 0);
    assert_eq!(serving.stop(Signal::TERM).0, Some(0));
}

#[test]
fn refusals_say_why() {
    let lab = Lab::new();
    lab.dynamic("a.vhd", 8 * MIB);
    lab.dynamic("b.vhd", 8 * MIB);
    let fails = |args: &[&str], code: &str, exit: i32| {
        let said = stderr(&lab.run(args, exit));
        assert!(said.contains(code), "{args:?}: {said}");
        said
    };
    let args = ["--unix", "s.sock", "--export", "a=a.vhd", "--export", "b=b.vhd"];
    let serving = Serving::start(&lab, &args);
    let missing = fails(&["hash", &uri(&lab, "c")], "VHD-E0606", 1);
    assert!(missing.contains("has no export \"c\""), "{missing}");
    let secure = uri(&lab, "a").replacen("nbd", "nbds", 1);
    fails(&["hash", &secure], "VHD-E0606", 1);
    fails(&["hash", &format!("{secure}&tls-certificates=missing")], "VHD-E0609", 1);
    let a = uri(&lab, "a");
    for args in [
        &["check", &a][..],
        &["compact", &a],
        &["verify", &a],
        &["measure", &a],
        &["nbd", "--unix", "t.sock", &a],
        &["create", "child.avhd", "--parent", &a],
    ] {
        let said = fails(args, "VHD-E0610", 8);
        assert!(said.contains("works on image files"), "{said}");
    }
    assert_eq!(serving.stop(Signal::TERM).0, Some(0));
    fails(&["convert", &a, "out.vhd", "--to", "dynamic"], "VHD-E0605", 1);
    fails(&["hash", "nbd://h:99999/"], "VHD-E0610", 8);
    fails(&["hash", "nbd+unix:///x"], "VHD-E0610", 8);
    assert!(!lab.exists("out.vhd") && !lab.exists("child.avhd"));
    // A file may be called like one.
    std::fs::create_dir(lab.path("nbd:")).unwrap();
    lab.dynamic("nbd:/disk.vhd", MIB);
    lab.run(&["hash", "./nbd://disk.vhd"], 0);
}

/// A disk that no two parts of are alike.
fn random_image(lab: &Lab, name: &str, size: u64) {
    let mut bytes = vec![0; size.try_into().unwrap()];
    fastrand::Rng::with_seed(size).fill(&mut bytes);
    std::fs::write(lab.path(name), bytes).unwrap();
}

fn converting(lab: &Lab) -> Child {
    Command::new(env!("CARGO_BIN_EXE_vhd"))
        .args(["convert", &uri(lab, ""), "copy.vhd", "--to", "dynamic", "--force"])
        .current_dir(lab.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Bytes that a process has read from files.
fn bytes_read(child: &Child) -> u64 {
    let counts = std::fs::read_to_string(format!("/proc/{}/io", child.id())).unwrap();
    let read = counts.lines().find_map(|line| line.strip_prefix("rchar: "));
    read.unwrap().parse().unwrap()
}

fn converted(lab: &Lab, child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    lab.run(&["compare", "--from-b", "raw", "copy.vhd", "disk.raw"], 0);
}

#[test]
fn a_server_that_is_killed_and_comes_back_is_read_to_the_end() {
    let lab = Lab::new();
    random_image(&lab, "disk.raw", 96 * MIB);
    let args = ["--unix", "s.sock", "--read-only", "--from", "raw", "disk.raw"];
    let mut in_the_middle = 0;
    for served in [1, 8, 16, 32, 48, 64] {
        let mut serving = Serving::start(&lab, &args);
        let before = bytes_read(&serving.child);
        let mut child = converting(&lab);
        let deadline = Instant::now() + Duration::from_secs(20);
        while bytes_read(&serving.child) < before + served * MIB {
            assert!(Instant::now() < deadline, "nothing is read");
        }
        serving.child.kill().unwrap();
        serving.child.wait().unwrap();
        in_the_middle += u32::from(child.try_wait().unwrap().is_none());
        let serving = Serving::start(&lab, &args);
        converted(&lab, child);
        assert_eq!(serving.stop(Signal::TERM).0, Some(0));
        std::fs::remove_file(lab.path("copy.vhd")).unwrap();
    }
    assert!(in_the_middle > 0, "no server was killed before the end");
}

#[test]
fn another_server_that_is_killed_and_comes_back_is_read_to_the_end() {
    if !has("nbdkit") {
        return;
    }
    let lab = Lab::new();
    random_image(&lab, "disk.raw", 32 * MIB);
    let start = || {
        let _ = std::fs::remove_file(lab.path("s.sock"));
        let child = Command::new("nbdkit")
            .args([
                "-f",
                "-U",
                "s.sock",
                "--filter=delay",
                "file",
                "disk.raw",
                "rdelay=40ms",
            ])
            .current_dir(lab.path(""))
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(lab.path("s.sock")).is_err() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    };
    let mut server = start();
    let mut child = converting(&lab);
    // Reads alone take 640 ms.
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(150));
        assert!(child.try_wait().unwrap().is_none());
        server.kill().unwrap();
        server.wait().unwrap();
        server = start();
    }
    converted(&lab, child);
    server.kill().unwrap();
    server.wait().unwrap();
}
