//! Snapshots of a disk that `vhd nbd` serves.

use std::io::{IoSlice, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::process::Signal;
use vhd_core::device::BlockDevice as _;
use vhd_core::image::Footers;
use vhd_core::storage::{Access, FileIdentity, HostFile, Sharing};
use vhd_nbd::client::{ClientOptions, NbdDevice};

use crate::nbd::Serving;
use crate::support::{Lab, MIB, stderr};
use crate::tools::{have, run};

/// The control socket of a disk: named by the identity of its base and of the base's file. The identity counts: a socket that
/// a killed server left may have the number of a file that is gone.
fn control_socket(lab: &Lab, base: &str) -> PathBuf {
    let base = lab.path(base);
    let opened = HostFile::open(&base, Access::ReadOnly, Sharing::Unlocked).unwrap();
    let id = Footers::read(&opened).unwrap().footer.unique_id;
    let name = format!("{id}-{}.sock", FileIdentity::of_path(&base).unwrap());
    let user = rustix::process::geteuid().as_raw();
    let directories: [PathBuf; 3] = [
        "/run/vhd".into(),
        format!("/run/user/{user}/vhd").into(),
        std::env::temp_dir().join(format!("vhd-{user}")),
    ];
    let mut sockets = directories.iter().map(|directory| directory.join(&name));
    sockets.find(|socket| socket.exists()).expect("a control socket")
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

/// The name of a deleted snapshot may be given again: then it means the new one, of which clients get content and changes.
/// Exports that are no snapshots of the disk stay.
#[test]
fn a_name_that_is_given_again_means_the_new_snapshot() {
    let lab = Lab::new();
    for image in ["vm.vhd", "other.vhd"] {
        lab.dynamic(image, 8 * MIB);
    }
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "first"], 0);
    let exports = ["--export", "vm=vm.vhd@now", "--export", "vm@mine=other.vhd"];
    let server = Serving::start(&lab, &[&["--unix", "s.sock"], &exports[..]].concat());
    let uri = |export: &str| format!("nbd+unix:///{export}?socket={}", lab.path("s.sock").display());
    let mine = hash(&lab, &uri("vm@mine"));
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "second"], 0);
    // One that was there when the server started, one that it has taken, and one that was given again before.
    for (round, name) in (1..).zip(["first", "second", "first"]) {
        let former = hash(&lab, &uri(&format!("vm@{name}")));
        write(&uri("vm"), &[round; 4096], MIB * u64::from(round));
        lab.run(&["snapshot", "delete", "vm.vhd", name], 0);
        lab.run(&["snapshot", "create", "vm.vhd", "--name", name], 0);
        let served = hash(&lab, &uri(&format!("vm@{name}")));
        assert_ne!(served, former, "{name}");
        assert_eq!(served, hash(&lab, &format!("vm.vhd@{name}")), "{name}");
        assert_eq!(served, hash(&lab, &uri("vm")), "{name}");
        // Nothing has changed since, and then one sector.
        assert_eq!(changed(&lab, name).unwrap_or(0), 0, "{name}");
        write(&uri("vm"), &[round; 512], 7 * MIB);
        assert_eq!(changed(&lab, name).unwrap_or(512), 512, "{name}");
    }
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "mine"], 0);
    assert_eq!(hash(&lab, &uri("vm@mine")), mine, "it is no snapshot of this disk");
    let (code, said) = server.stop(Signal::TERM);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("two exports are called"), "{said}");
    // What was deleted meanwhile goes when nobody uses it.
    let kept = hash(&lab, "vm.vhd@now");
    for name in ["first", "second", "mine"] {
        lab.run(&["snapshot", "delete", "vm.vhd", name], 0);
    }
    assert_eq!(hash(&lab, "vm.vhd"), kept);
    assert!(!lab.path("vm.vhd.snapshots").exists());
}

/// A client that reads a deleted snapshot goes on with it, and others do not find it any more. Its file waits until the
/// client has gone.
#[test]
fn a_deleted_snapshot_is_read_to_its_end() {
    let lab = Lab::new();
    lab.dynamic("vm.vhd", 8 * MIB);
    lab.write("vm.vhd", 0, &[1; 4096]);
    let server = Serving::start(&lab, &["--unix", "s.sock", "vm.vhd"]);
    let uri = |export: &str| format!("nbd+unix:///{export}?socket={}", lab.path("s.sock").display());
    let delete = |name: &str| -> serde_json::Value {
        let deleted = lab.run(&["snapshot", "delete", "vm.vhd", name, "--json"], 0);
        serde_json::from_slice(&deleted.get_output().stdout).unwrap()
    };
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "one"], 0);
    let reader = NbdDevice::open(&uri("vm@one").parse().unwrap(), ClientOptions::default()).unwrap();
    write(&uri(""), &[2; 4096], 0);
    let report = delete("one");
    assert_eq!(report["merged"], serde_json::json!([]), "{report}");
    let reason = report["waiting"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("still being read by a client"), "{reason}");
    let mut found = [0; 4096];
    reader.read_at(&mut found, 0).unwrap();
    assert_eq!(found, [1; 4096]);
    let gone = NbdDevice::open(&uri("vm@one").parse().unwrap(), ClientOptions::default());
    assert!(gone.is_err(), "it does not mean the disk itself");
    drop(reader);
    // Both files wait no longer. A reader in another process is in the way as well.
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "two"], 0);
    let other = vhd_core::chain::OpenOptions::new().open(&lab.path("vm.vhd")).unwrap();
    let report = delete("two");
    assert_eq!(report["merged"].as_array().unwrap().len(), 1, "{report}");
    assert!(
        report["waiting"][0]["reason"].as_str().unwrap().contains("uses it"),
        "{report}"
    );
    drop(other);
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "three"], 0);
    let report = delete("three");
    assert_eq!(report["merged"].as_array().unwrap().len(), 2, "{report}");
    assert_eq!(report["active"], "vm.vhd");
    assert!(!lab.path("vm.vhd.snapshots").exists());
    lab.run(&["snapshot", "delete", "vm.vhd", "three"], 8);
    write(&uri(""), &[3; 4096], 4096);
    let (code, said) = server.stop(Signal::TERM);
    assert_eq!(code, Some(0), "{said}");
    let opened = vhd_core::chain::OpenOptions::new().open(&lab.path("vm.vhd")).unwrap();
    let mut found = [0; 8192];
    opened.disk().read_at(&mut found, 0).unwrap();
    assert_eq!((found[0], found[8191]), (2, 3));
    lab.run(&["check", "vm.vhd"], 0);
}

/// The file of a snapshot that is deleted below others goes at once, while clients read the others. Contexts go on meaning
/// what they meant.
#[test]
fn a_snapshot_below_others_is_deleted_in_use() {
    let lab = Lab::new();
    lab.dynamic("vm.vhd", 8 * MIB);
    let server = Serving::start(&lab, &["--unix", "s.sock", "--export", "vm=vm.vhd"]);
    let uri = |export: &str| format!("nbd+unix:///{export}?socket={}", lab.path("s.sock").display());
    let (mut hashes, mut readers) = (Vec::new(), Vec::new());
    for (round, name) in (1..).zip(["monday", "tuesday", "wednesday"]) {
        write(&uri("vm"), &[round; 4096], MIB * u64::from(round));
        lab.run(&["snapshot", "create", "vm.vhd", "--name", name], 0);
        hashes.push((name, hash(&lab, &uri(&format!("vm@{name}")))));
        if name != "monday" {
            let uri = uri(&format!("vm@{name}")).parse().unwrap();
            readers.push(NbdDevice::open(&uri, ClientOptions::default()).unwrap());
        }
    }
    write(&uri("vm"), &[9; 512], 6 * MIB);
    for gone in ["monday", "wednesday"] {
        if gone == "wednesday" {
            // Its own reader would be waited for.
            readers.pop();
        }
        let files = std::fs::read_dir(lab.path("")).unwrap().count();
        let deleted = lab.run(&["snapshot", "delete", "vm.vhd", gone, "--json"], 0);
        let report: serde_json::Value = serde_json::from_slice(&deleted.get_output().stdout).unwrap();
        assert_eq!(report["merged"].as_array().unwrap().len(), 1, "{report}");
        assert_eq!(report["waiting"], serde_json::json!([]), "{report}");
        assert_eq!(std::fs::read_dir(lab.path("")).unwrap().count(), files - 1);
        hashes.retain(|(name, _)| *name != gone);
        for (name, expected) in &hashes {
            assert_eq!(&hash(&lab, &uri(&format!("vm@{name}"))), expected, "{name}");
            assert_eq!(&hash(&lab, &format!("vm.vhd@{name}")), expected, "{name}");
            let since = if *name == "tuesday" { 4096 + 512 } else { 512 };
            assert_eq!(changed(&lab, name).unwrap_or(since), since, "{name} without {gone}");
        }
        for reader in &readers {
            let mut found = [0; 4096];
            reader.read_at(&mut found, 2 * MIB).unwrap();
            assert_eq!(found, [2; 4096]);
        }
        assert!(NbdDevice::open(&uri(&format!("vm@{gone}")).parse().unwrap(), ClientOptions::default()).is_err());
    }
    // The snapshot that stays is in the base's file by now, and is deleted like any other.
    drop(readers);
    write(&uri("vm"), &[7; 512], 7 * MIB);
    let now = hash(&lab, &uri("vm"));
    lab.run(&["snapshot", "delete", "vm.vhd", "tuesday"], 0);
    assert!(!lab.path("vm.vhd.snapshots").exists());
    assert_eq!(hash(&lab, &uri("vm")), now);
    let (code, said) = server.stop(Signal::TERM);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(hash(&lab, "vm.vhd"), now);
    lab.run(&["check", "vm.vhd"], 0);
}

/// Bytes of the export that changed since a snapshot, as qemu sees it; `None` without qemu.
fn changed(lab: &Lab, snapshot: &str) -> Option<u64> {
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},export=vm,x-dirty-bitmap=qemu:dirty-bitmap:{snapshot}",
        lab.path("s.sock").display()
    );
    let map = have(&["qemu-img"], "bitmaps of snapshots that are taken in use")
        .then(|| run("qemu-img", ["map", "--output=json", "--image-opts", &options]))?;
    let parts: Vec<serde_json::Value> = serde_json::from_slice(&map).unwrap();
    let dirty = parts.iter().filter(|part| part["data"] == false);
    Some(dirty.map(|part| part["length"].as_u64().unwrap()).sum())
}

fn write(uri: &str, bytes: &[u8], offset: u64) {
    let options = ClientOptions {
        write: true,
        ..ClientOptions::default()
    };
    let device = NbdDevice::open(&uri.parse().unwrap(), options).unwrap();
    device.write_vectored_at(&[IoSlice::new(bytes)], offset, false).unwrap();
    device.flush().unwrap();
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
        b"{\"version\":2}\n",
        b"{\"version\":99,\"request\":\"snapshot-create\",\"name\":\"a\"}\n",
        b"{\"version\":2,\"request\":\"snapshot-create\"",
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
