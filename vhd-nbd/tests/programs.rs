//! The programs that people use, against a server in this process. One that is not installed is left out, and said so.

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use support::{Running, SIZE, certificates, chain, create, exports, has, open};
use vhd_nbd::server::{Export, ExportSet, Listener, Server, ServerOptions, TcpPolicy};
use vhd_nbd::tls::TlsServer;

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

/// What a program writes, if it succeeds.
fn output(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{program} {arguments:?}: {stdout}{stderr}");
    stdout.into_owned()
}

fn start(dir: &Path) -> (vhd_core::chain::OpenedDisk, Running) {
    let opened = chain(dir);
    let running = Running::start(dir, exports(&opened), ServerOptions::default());
    (opened, running)
}

fn check_clean(path: &Path) {
    if has("qemu-img") {
        output("qemu-img", &["info", "-f", "vpc", path.to_str().unwrap()]);
    }
    let opened = open(path, false);
    opened.close().unwrap();
}

#[test]
fn nbdinfo_sees_it_all() {
    if !has("nbdinfo") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (_opened, running) = start(dir.path());
    let info = output("nbdinfo", &["--json", &running.uri("disk")]);
    for part in [
        "\"export-size\": 67109376",
        "\"can_multi_conn\": true",
        "\"can_fua\": true",
        "\"can_df\": true",
        "\"can_fast_zero\": true",
        "\"can_cache\": true",
        "\"is_read_only\": false",
        "\"base:allocation\"",
        "\"qemu:allocation-depth\"",
        "\"qemu:dirty-bitmap:base.vhd\"",
        "\"description\": \"a test\"",
        "\"block_size_preferred\": 4096",
        "\"block_size_maximum\": 33554432",
    ] {
        assert!(info.contains(part), "{part}: {info}");
    }
    let list = output("nbdinfo", &["--list", "--json", &running.uri("")]);
    assert!(list.contains("\"disk\"") && list.contains("\"frozen\""), "{list}");
    let map = output("nbdinfo", &["--map", "--json", &running.uri("disk")]);
    assert!(map.contains("\"offset\": 0, \"length\": 1048576, \"type\": 0"), "{map}");
    let depth = output(
        "nbdinfo",
        &["--map=qemu:allocation-depth", "--json", &running.uri("disk")],
    );
    assert!(
        depth.contains("\"offset\": 4096, \"length\": 4096, \"type\": 1"),
        "{depth}"
    );
    let dirty = output(
        "nbdinfo",
        &["--map=qemu:dirty-bitmap:base.vhd", "--totals", &running.uri("disk")],
    );
    assert!(dirty.contains("4096"), "{dirty}");
    assert_eq!(
        output("nbdinfo", &["--size", &running.uri("")]).trim(),
        SIZE.to_string()
    );
    output("nbdinfo", &["--can", "write", &running.uri("disk")]);
    assert!(
        !run("nbdinfo", &["--can", "write", &running.uri("frozen")])
            .status
            .success()
    );
    assert!(!run("nbdinfo", &[&running.uri("nothing")]).status.success());
}

#[test]
fn nbdcopy_both_ways_over_several_connections() {
    if !has("nbdcopy") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.vhd");
    let size: usize = 96 << 20;
    create(&image, size.try_into().unwrap());
    let opened = open(&image, true);
    let mut exports = ExportSet::new();
    exports.add(Export::new("", opened.disk())).unwrap();
    let running = Running::start(dir.path(), exports, ServerOptions::default());
    let (source, copy) = (dir.path().join("source.raw"), dir.path().join("copy.raw"));
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(7).fill(&mut bytes[..40 << 20]);
    std::fs::write(&source, &bytes).unwrap();
    let four = ["--connections=4", "--threads=4", "--requests=32", "--flush"];
    let uri = running.uri("");
    output("nbdcopy", &[&four[..], &[source.to_str().unwrap(), &uri]].concat());
    output("nbdcopy", &[&four[..], &[&uri, copy.to_str().unwrap()]].concat());
    assert!(std::fs::read(&copy).unwrap() == bytes);
    assert!(running.server.stats().connections >= 8);
    drop(running);
    opened.close().unwrap();
    check_clean(&image);
}

#[test]
fn qemu_reads_writes_and_maps() {
    if !has("qemu-io") || !has("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (_opened, running) = start(dir.path());
    let uri = running.uri("disk");
    let copy = dir.path().join("copy.raw");
    output("qemu-img", &["convert", "-O", "raw", &uri, copy.to_str().unwrap()]);
    output(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &uri, copy.to_str().unwrap()],
    );
    let map = output("qemu-img", &["map", "--output=json", &uri]);
    assert!(map.contains("\"start\": 0, \"length\": 1048576"), "{map}");
    let commands = [
        "read -P 3 4096 4096",
        "write -P 9 10M 3M",
        "write -z 11M 64k",
        "write -zu 12M 64k",
        "discard 10M 64k",
        "write -f -P 5 20M 4k",
        "flush",
        "read -P 9 10560k 400k",
        "read -P 0 11M 64k",
        "read -P 0 12M 64k",
        "read -P 5 20M 4k",
    ];
    let mut arguments = vec!["-f", "raw"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(&uri);
    let said = output("qemu-io", &arguments);
    assert!(!said.contains("failed"), "{said}");
    let frozen = running.uri("frozen");
    assert!(
        !run("qemu-io", &["-f", "raw", "-c", "write 0 512", &frozen])
            .status
            .success()
    );
}

/// Illegal requests through libnbd, which must be told not to refuse them itself.
const NBDSH: &str = r#"
h.add_meta_context("base:allocation")
h.add_meta_context("qemu:dirty-bitmap:base.vhd")
h.set_export_name("disk")
h.connect_uri(uri)
h.set_strict_mode(0)
size = h.get_size()
def fails(errno, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errno == errno, (call, args, error.errno, error.string)
        return
    raise AssertionError("%s %s succeeded" % (call, args))
assert h.get_structured_replies_negotiated()
assert h.can_multi_conn() and h.can_fast_zero() and h.can_df() and h.can_cache()
fails("EINVAL", h.pread, 512, size)
fails("EINVAL", h.pread, 512, size - 1)
fails("ENOSPC", h.pwrite, b"x" * 512, size)
fails("ENOSPC", h.zero, 512, size)
fails("EINVAL", h.trim, 512, size)
fails("EINVAL", h.cache, 512, size)
fails("EINVAL", h.pread, 512, 0, 1 << 9)
fails("EINVAL", h.trim, 512, 0, nbd.CMD_FLAG_DF)
fails("EINVAL", h.block_status, 0, 0, lambda *args: 0)
fails("ENOTSUP", h.zero, 100, 1, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(4096, 4096) == bytearray(b"\3" * 4096)
assert h.pread(4096, 4096, nbd.CMD_FLAG_DF) == bytearray(b"\3" * 4096)
h.pwrite(b"abc", 5, nbd.CMD_FLAG_FUA)
assert h.pread(5, 4) == bytearray(b"\1abc\1")
h.zero(2, 5, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert h.pread(5, 4) == bytearray(b"\1\0\0c\1")
chunks = []
h.pread_structured(2 << 20, 0, lambda buf, offset, kind, err: chunks.append((offset, kind)))
assert (1 << 20, nbd.READ_HOLE) in chunks and (0, nbd.READ_DATA) in chunks, chunks
seen = {}
h.block_status(1 << 20, 0, lambda name, offset, entries, err: seen.__setitem__(name, entries))
assert seen["base:allocation"] == [1 << 20, 0], seen
assert seen["qemu:dirty-bitmap:base.vhd"] == [512, 1, 3584, 0, 4096, 1, (1 << 20) - 8192, 0], seen
h.flush()
h.trim(4096, 0, nbd.CMD_FLAG_FUA)
h.shutdown()

f = nbd.NBD()
f.set_export_name("frozen")
f.connect_uri(uri.replace("/disk", "/frozen"))
assert f.is_read_only()
f.set_strict_mode(0)
fails("EPERM", f.pwrite, b"x" * 512, 0)
fails("EPERM", f.zero, 512, 0)
fails("EPERM", f.trim, 512, 0)
f.flush()

o = nbd.NBD()
o.set_opt_mode(True)
o.connect_uri(uri)
names = []
assert o.opt_list(lambda name, description: names.append((name, description))) == 2
assert names == [("disk", "a test"), ("frozen", "")], names
o.set_export_name("nothing")
fails("ENOENT", o.opt_info)
o.set_export_name("disk")
contexts = []
o.opt_list_meta_context(lambda name: contexts.append(name))
assert contexts == ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:base.vhd"], contexts
o.set_full_info(True)
o.opt_info()
assert (o.get_canonical_export_name(), o.get_export_description()) == ("disk", "a test")
o.opt_go()
assert o.pread(1, 9000) == bytearray(b"\1")

s = nbd.NBD()
s.set_request_structured_replies(False)
s.connect_uri(uri)
assert not s.can_df()
s.set_strict_mode(0)
fails("EINVAL", s.pread, 512, size)
assert s.pread(512, 8192) == bytearray(b"\1" * 512)

d = nbd.NBD()
d.set_handshake_flags(0)
d.set_export_name("disk")
d.connect_uri(uri)
assert d.pread(1, 9000) == bytearray(b"\1")
print("all rows hold")
"#;

#[test]
fn nbdsh_goes_through_the_table() {
    const PYTHON: &str = "/usr/bin/python3";
    let has_nbdsh = Command::new(PYTHON).args(["-c", "import nbd"]).status();
    if !has_nbdsh.is_ok_and(|status| status.success()) {
        println!("left out: there is no module nbd for {PYTHON}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (_opened, running) = start(dir.path());
    let set_uri = format!("uri = {:?}", running.uri("disk"));
    let said = output(PYTHON, &["-m", "nbd", "-c", &set_uri, "-c", NBDSH]);
    assert!(said.contains("all rows hold"), "{said}");
}

#[test]
fn fio_finds_what_it_wrote() {
    if !has("fio") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.vhd");
    create(&image, 128 << 20);
    let opened = open(&image, true);
    let mut exports = ExportSet::new();
    exports.add(Export::new("", opened.disk())).unwrap();
    let running = Running::start(dir.path(), exports, ServerOptions::default());
    let uri = format!("--uri={}", running.uri(""));
    let said = output(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            "--bsrange=512-64k",
            "--bs_unaligned=0",
            "--iodepth=32",
            "--numjobs=4",
            "--size=30M",
            "--offset_increment=32M",
            "--verify=crc32c",
            "--do_verify=1",
            "--verify_fatal=1",
            // It would leave files where the test runs.
            "--verify_state_save=0",
            "--fsync=100",
            "--verify_state_save=0",
        ],
    );
    assert!(!said.contains("verify:") || !said.contains("bad"), "{said}");
    let stats = running.server.stats();
    assert!(
        stats.writes > 1000 && stats.reads > 1000 && stats.flushes > 0 && stats.errors == 0,
        "{stats}"
    );
    drop(running);
    opened.close().unwrap();
    check_clean(&image);
}

fn tls_server(dir: &Path, pki: &Path, client_ca: bool) -> (Arc<Server>, SocketAddr, std::thread::JoinHandle<()>) {
    let ca = pki.join("ca-cert.pem");
    let tls = TlsServer::new(
        &pki.join("server-cert.pem"),
        &pki.join("server-key.pem"),
        client_ca.then_some(ca.as_path()),
    );
    let options = ServerOptions {
        tls: Some(tls.unwrap()),
        ..ServerOptions::default()
    };
    let opened = chain(dir);
    let server = Server::new(exports(&opened), options).unwrap();
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap(), TcpPolicy::default()).unwrap();
    let address = listener.to_string().parse().unwrap();
    let serving = Arc::clone(&server);
    let thread = std::thread::spawn(move || {
        serving.serve(&[listener]).unwrap().unwrap();
        opened.close().unwrap();
    });
    (server, address, thread)
}

#[test]
fn tls_with_and_without_certificates_of_clients() {
    if !has("nbdcopy") || run("openssl", &["version"]).stdout.is_empty() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki");
    std::fs::create_dir(&pki).unwrap();
    certificates(&pki);
    // The same authority, and no certificate of a client.
    let bare = dir.path().join("bare");
    std::fs::create_dir(&bare).unwrap();
    std::fs::copy(pki.join("ca-cert.pem"), bare.join("ca-cert.pem")).unwrap();
    for verify in [false, true] {
        let images = tempfile::tempdir().unwrap();
        let (server, address, thread) = tls_server(images.path(), &pki, verify);
        let port = address.port();
        let uri = |with: &Path| format!("nbds://localhost:{port}/disk?tls-certificates={}", with.display());
        let info = output("nbdinfo", &[&uri(&pki)]);
        assert!(info.contains("with TLS"), "{info}");
        let (raw, changed) = (images.path().join("copy.raw"), images.path().join("new.raw"));
        output("nbdcopy", &[&uri(&pki), raw.to_str().unwrap()]);
        let mut bytes = std::fs::read(&raw).unwrap();
        fastrand::Rng::with_seed(3).fill(&mut bytes[..20 << 20]);
        std::fs::write(&changed, &bytes).unwrap();
        output("nbdcopy", &["--flush", changed.to_str().unwrap(), &uri(&pki)]);
        output("nbdcopy", &[&uri(&pki), raw.to_str().unwrap()]);
        assert!(std::fs::read(&raw).unwrap() == bytes);
        assert_eq!(run("nbdinfo", &[&uri(&bare)]).status.success(), !verify);
        let plain = format!("nbd://localhost:{port}/disk");
        assert!(!run("nbdinfo", &[&plain]).status.success());
        assert!(!run("nbdinfo", &["--list", &plain]).status.success());
        server.stop();
        thread.join().unwrap();
    }
}
