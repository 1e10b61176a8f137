//! Snapshots of a disk that `vhd nbd` serves.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::process::Signal;

use crate::nbd::Serving;
use crate::support::{Lab, MIB, stderr};

/// The control socket of a disk: the name has device and inode of its base.
fn control_socket(lab: &Lab, base: &str) -> PathBuf {
    let found = std::fs::metadata(lab.path(base)).unwrap();
    let ending = format!("-{:x}-{:x}.sock", found.dev(), found.ino());
    let user = rustix::process::geteuid();
    let directories = [
        PathBuf::from("/run/vhd"),
        format!("/run/user/{}/vhd", user.as_raw()).into(),
        std::env::temp_dir().join(format!("vhd-{}", user.as_raw())),
    ];
    let sockets = directories
        .iter()
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flatten();
    let mut paths = sockets.map(|entry| entry.unwrap().path());
    paths
        .find(|path| path.to_str().unwrap().ends_with(&ending))
        .expect("a control socket")
}

fn hash(lab: &Lab, image: &str) -> String {
    lab.json(&["hash", image], 0)["sha256"].as_str().unwrap().to_owned()
}

#[test]
fn a_served_disk_gets_snapshots_and_serves_them() {
    let lab = Lab::new();
    lab.dynamic("vm.vhd", 8 * MIB);
    lab.write("vm.vhd", 0, &[1; 512]);
    let before = hash(&lab, "vm.vhd");
    let server = Serving::start(&lab, &["--unix", "s.sock", "vm.vhd"]);
    let socket = control_socket(&lab, "vm.vhd");
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "no", "--offline"], 7);
    let create = ["snapshot", "create", "vm.vhd", "--name", "one", "--digest", "--json"];
    let report: serde_json::Value = serde_json::from_slice(&lab.run(&create, 0).get_output().stdout).unwrap();
    assert_eq!((&report["name"], &report["frozen"]), (&"one".into(), &"vm.vhd".into()));
    assert!(report["digest_bytes"].as_u64().unwrap() > 0);
    let active = report["active"].as_str().unwrap().to_owned();
    assert!(lab.path(&active).exists());
    // By any file of the disk, and by another path.
    std::os::unix::fs::symlink(lab.path("vm.vhd"), lab.path("link")).unwrap();
    lab.run(&["snapshot", "create", "link", "--name", "two"], 0);
    lab.run(&["snapshot", "create", &active, "--name", "three"], 0);
    let taken = lab.run(&["snapshot", "create", "vm.vhd", "--name", "one"], 8);
    assert!(stderr(&taken).contains("VHD-E0310"));
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "a@b"], 8);
    for snapshot in ["one", "two", "three"] {
        let uri = format!("nbd+unix:///vm@{snapshot}?socket={}", lab.path("s.sock").display());
        assert_eq!(hash(&lab, &uri), before, "{snapshot}");
    }
    let (code, said) = server.stop(Signal::TERM);
    assert_eq!(code, Some(0), "{said}");
    assert!(!socket.exists());
    for image in ["vm.vhd@one", "vm.vhd@three", "vm.vhd@now"] {
        assert_eq!(hash(&lab, image), before, "{image}");
    }
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "four"], 0);
}

#[test]
fn what_is_no_request_gets_one_line_and_changes_nothing() {
    let lab = Lab::new();
    lab.dynamic("vm.vhd", 8 * MIB);
    let server = Serving::start(&lab, &["--unix", "s.sock", "vm.vhd"]);
    let socket = control_socket(&lab, "vm.vhd");
    let long = [b"x".repeat(40_000), b"\n".to_vec()].concat();
    let requests: [&[u8]; 6] = [
        b"junk\n",
        b"{\"version\":1}\n",
        b"{\"version\":99,\"request\":\"snapshot-create\",\"name\":\"a\"}\n",
        b"{\"version\":1,\"request\":\"snapshot-create\"",
        b"",
        &long,
    ];
    for request in requests {
        let mut stream = UnixStream::connect(&socket).unwrap();
        // The server may have had enough of it.
        let _ = stream.write_all(request);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.is_empty() || answer.contains("VHD-E0325"), "{answer}");
        assert!(answer.lines().count() <= 1);
    }
    assert!(!lab.path("vm.vhd.snapshots").exists());
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "one"], 0);
    drop(server);
}

#[test]
fn without_a_control_socket_a_served_disk_is_locked() {
    let lab = Lab::new();
    lab.dynamic("vm.vhd", 8 * MIB);
    let server = Serving::start(&lab, &["--unix", "s.sock", "--no-control", "vm.vhd"]);
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "one"], 7);
    drop(server);
    // A killed server leaves its socket: it is in the way of nobody.
    let mut server = Serving::start(&lab, &["--unix", "t.sock", "vm.vhd"]);
    let socket = control_socket(&lab, "vm.vhd");
    server.kill();
    assert!(socket.exists());
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "one"], 0);
    let server = Serving::start(&lab, &["--unix", "u.sock", "vm.vhd@now"]);
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "two"], 0);
    drop(server);
    let _ = std::fs::remove_file(socket);
}
