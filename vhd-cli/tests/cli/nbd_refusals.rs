//! What `vhd nbd` and its clients refuse: one clear line and the documented exit code.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use vhd_nbd::protocol::{InfoRequest, OptionReply, OptionReplyHeader, OptionRequest, ReplyError};

use crate::nbd::{Serving, has};
use crate::support::{Lab, MIB, stderr};

/// Runs `vhd nbd` with these arguments: it fails with this exit code, and in one line with this code.
fn refused(lab: &Lab, args: &[&str], exit: i32, code: &str) -> String {
    let said = stderr(&lab.run(&[&["nbd"], args].concat(), exit));
    assert!(said.starts_with(&format!("vhd: error[{code}]: ")), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    said
}

fn lab_with_disk() -> Lab {
    let lab = Lab::new();
    lab.dynamic("disk.vhd", 8 * MIB);
    lab
}

#[test]
fn a_place_to_listen_that_is_taken() {
    let lab = lab_with_disk();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = refused(&lab, &["--tcp", &address, "disk.vhd"], 1, "VHD-E0602");
    assert!(said.contains(&address), "{said}");
    // A socket that somebody listens on stays his; one that nobody listens on is replaced.
    let listener = UnixListener::bind(lab.path("taken")).unwrap();
    let said = refused(&lab, &["--unix", "taken", "disk.vhd"], 1, "VHD-E0602");
    assert!(said.contains("taken"), "{said}");
    assert!(UnixStream::connect(lab.path("taken")).is_ok());
    drop(listener);
    assert!(lab.exists("taken"));
    assert_eq!(
        Serving::start(&lab, &["--unix", "taken", "disk.vhd"])
            .stop(Signal::TERM)
            .0,
        Some(0)
    );
    // What is there is no socket: it is not removed.
    fs::write(lab.path("precious"), "bytes").unwrap();
    let said = refused(&lab, &["--unix", "precious", "disk.vhd"], 1, "VHD-E0602");
    assert!(said.contains("precious"), "{said}");
    assert_eq!(fs::read(lab.path("precious")).unwrap(), b"bytes");
    refused(&lab, &["--unix", "no/such/dir", "disk.vhd"], 1, "VHD-E0601");
}

#[test]
fn images_that_cannot_be_served() {
    let lab = lab_with_disk();
    let said = refused(&lab, &["--unix", "s", "missing.vhd"], 1, "VHD-E0302");
    assert!(said.contains("missing.vhd"), "{said}");
    let serving = Serving::start(&lab, &["--unix", "first", "disk.vhd"]);
    for more in [&[][..], &["--read-only"], &["--fork"]] {
        let args = [&["--unix", "s"], more, &["disk.vhd"]].concat();
        let said = refused(&lab, &args, 7, "VHD-E0304");
        assert!(said.contains("disk.vhd"), "{said}");
    }
    assert_eq!(serving.stop(Signal::TERM).0, Some(0));
    lab.dynamic("corrupt.vhd", 8 * MIB);
    // The first entry of the table, behind the end of the file.
    lab.damage("corrupt.vhd", 1536, &[0, 0xff, 0, 0]);
    lab.run(&["nbd", "--unix", "s", "corrupt.vhd"], 3);
    fs::rename(lab.path("disk.vhd"), lab.path("parent.vhd")).unwrap();
    lab.run(&["create", "leaf.avhd", "--parent", "parent.vhd"], 0);
    fs::remove_file(lab.path("parent.vhd")).unwrap();
    let said = stderr(&lab.run(&["nbd", "--unix", "s", "leaf.avhd"], 6));
    assert!(said.contains("parent.vhd"), "{said}");
    assert!(!lab.exists("s"), "a socket is left");
}

#[test]
fn command_lines_that_make_no_sense() {
    let lab = lab_with_disk();
    for wrong in [
        &[][..],
        &["--unix", "a", "--tcp", "127.0.0.1:1", "disk.vhd"],
        &["--vsock", "x:1", "disk.vhd"],
        // Whoever could come would be let in.
        &["--tcp", "0.0.0.0:0", "disk.vhd"],
        &["--tls-cert", "cert.pem", "disk.vhd"],
        &["--read-only", "--snapshot", "disk.vhd"],
        &["--force-share", "disk.vhd"],
        &["--export", "nameless", "--unix", "s"],
    ] {
        lab.run(&[&["nbd"], wrong].concat(), 2);
    }
    assert!(!lab.exists("s"));
}

#[test]
fn certificates_that_are_none() {
    let lab = lab_with_disk();
    fs::write(lab.path("empty.pem"), "").unwrap();
    for (cert, key) in [
        ("missing.pem", "missing.pem"),
        ("other.raw", "other.raw"),
        ("empty.pem", "empty.pem"),
    ] {
        let args = ["--unix", "s", "--tls-cert", cert, "--tls-key", key, "disk.vhd"];
        let said = refused(&lab, &args, 1, "VHD-E0603");
        assert!(said.contains(cert), "{said}");
    }
    if Command::new("openssl").arg("version").output().is_err() {
        crate::announce("NOT TESTED: certificates of other authorities: there is no openssl");
        return;
    }
    for name in ["a", "b"] {
        let (cert, key) = (format!("{name}.pem"), format!("{name}.key"));
        let mut openssl = Command::new("openssl");
        openssl.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ]);
        openssl.args([
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-out",
            &cert,
            "-keyout",
            &key,
        ]);
        assert!(openssl.current_dir(lab.path("")).output().unwrap().status.success());
    }
    // A key that belongs to another certificate.
    refused(
        &lab,
        &["--unix", "s", "--tls-cert", "a.pem", "--tls-key", "b.key", "disk.vhd"],
        1,
        "VHD-E0603",
    );
    if !has("nbdinfo") {
        return;
    }
    // A client that trusts another authority does not stay, and the server goes on.
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let serving = Serving::start(
        &lab,
        &[
            "--tcp",
            &address,
            "--tls-cert",
            "a.pem",
            "--tls-key",
            "a.key",
            "disk.vhd",
        ],
    );
    for (authority, trusted) in [("b.pem", false), ("a.pem", true)] {
        fs::create_dir_all(lab.path("pki")).unwrap();
        fs::copy(lab.path(authority), lab.path("pki/ca-cert.pem")).unwrap();
        let uri = format!(
            "nbds://localhost:{port}/?tls-certificates={}",
            lab.path("pki").display()
        );
        let seen = Command::new("nbdinfo").arg(&uri).output().unwrap();
        assert_eq!(seen.status.success(), trusted, "{authority}: {seen:?}");
    }
    let mut plain = TcpStream::connect(&address).unwrap();
    assert_eq!(answer(&mut plain, &go("")), ReplyError::TlsRequired);
    assert_eq!(serving.stop(Signal::TERM).0, Some(0));
}

#[test]
fn an_export_that_is_not_there() {
    let lab = lab_with_disk();
    let serving = Serving::start(&lab, &["--unix", "s", "--export", "disk=disk.vhd"]);
    let mut client = UnixStream::connect(lab.path("s")).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(answer(&mut client, &go("other")), ReplyError::Unknown);
    if has("nbdinfo") {
        let uri = format!("nbd+unix:///other?socket={}", lab.path("s").display());
        let seen = Command::new("nbdinfo").arg(&uri).output().unwrap();
        let said = String::from_utf8_lossy(&seen.stderr).into_owned();
        assert!(!seen.status.success() && said.contains("for export: other"), "{said}");
    }
    assert_eq!(serving.stop(Signal::TERM).0, Some(0));
}

fn go(name: &str) -> OptionRequest {
    let (name, items) = (name.to_owned(), Vec::new());
    OptionRequest::Go(InfoRequest { name, items })
}

/// How a server refuses the first option.
fn answer(stream: &mut (impl Read + Write), option: &OptionRequest) -> ReplyError {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    option.encode(&mut bytes);
    stream.write_all(&bytes).unwrap();
    let mut reply = vec![0; vhd_nbd::protocol::Greeting::SIZE + OptionReplyHeader::SIZE];
    stream.read_exact(&mut reply).unwrap();
    let header = OptionReplyHeader::decode(&reply[vhd_nbd::protocol::Greeting::SIZE..]).unwrap();
    let mut data = vec![0; usize::try_from(header.length).unwrap()];
    stream.read_exact(&mut data).unwrap();
    match OptionReply::decode(header.reply, &data).unwrap() {
        OptionReply::Error { error, .. } => error,
        other => panic!("{other:?}"),
    }
}

/// A port that nobody listened on a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
