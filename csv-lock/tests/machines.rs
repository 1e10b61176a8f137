//! Messages between machines: both sides prove who they are, and what proves nothing is refused with its reason (INV-106).

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use csv_lock::{
    Address, Ask, CertificateFiles, Client, ClusterId, CsvError, Engine, HostVolume, Leader, Node, NodeId, NodeNet,
    SystemClock, Term, TlsServer, VolumeFormat, VolumeId, init_volume,
};
use uuid::Uuid;

/// Far longer than an answer takes.
const LIMIT: Duration = Duration::from_secs(30);

/// Certificates of nodes, of one authority and of another one, stale ones, and their keys.
struct Certificates(tempfile::TempDir);

impl Certificates {
    fn new() -> Self {
        let script = r#"
set -e
ca() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj "/CN=$1" -keyout "$1.key" -out "$1.pem"; }
node() { # name, authority, file, days
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$1" -keyout "$3.key" -out "$3.csr"
    printf 'subjectAltName=DNS:%s\nbasicConstraints=critical,CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\n' "$1" > ext
    openssl x509 -req -in "$3.csr" -CA "$2.pem" -CAkey "$2.key" -CAcreateserial -days "$4" -extfile ext -out "$3.pem"
}
ca ca; ca other
node a ca a 2; node b ca b 2; node b ca stale -1; node b other foreign 2; node a ca stale-a -1"#;
        let dir = tempfile::tempdir().unwrap();
        let made = Command::new("bash")
            .args(["-c", script])
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(made.unwrap().success(), "openssl makes certificates");
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn files(&self, name: &str) -> CertificateFiles {
        CertificateFiles {
            cert: self.path(&format!("{name}.pem")),
            key: self.path(&format!("{name}.key")),
            ca: self.path("ca.pem"),
        }
    }
}

/// An engine that elects everybody and remembers who said so last.
#[derive(Clone, Default)]
struct Everybody(Arc<Mutex<Option<Leader>>>);

impl Engine for Everybody {
    fn campaign(&self, _: VolumeId) -> Result<Option<Term>, CsvError> {
        Ok(Some(Term {
            revision: 0,
            until: Duration::MAX,
            renew_at: Duration::MAX,
        }))
    }

    fn renew(&self, _: VolumeId, term: &Term) -> Result<Option<Term>, CsvError> {
        Ok(Some(term.clone()))
    }

    fn resign(&self, _: VolumeId, _: &Term) -> Result<(), CsvError> {
        Ok(())
    }

    fn publish(&self, _: VolumeId, _: &Term, leader: &Leader) -> Result<(), CsvError> {
        *self.0.lock().unwrap() = Some(leader.clone());
        Ok(())
    }

    fn leader(&self, _: VolumeId) -> Result<Option<Leader>, CsvError> {
        Ok(self.0.lock().unwrap().clone())
    }
}

fn machine(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

/// A coordinator on machine 1, and its volume.
struct Coordinating {
    dir: tempfile::TempDir,
    format: VolumeFormat,
    engine: Everybody,
    address: std::net::SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Coordinating {
    /// Node `a`, with these certificates.
    fn start(files: CertificateFiles) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let volume = HostVolume::new(dir.path());
        let format = VolumeFormat::new(VolumeId(machine(7)), ClusterId(machine(8)), "v");
        init_volume(&volume, &format).unwrap();
        let server = TlsServer::bind("127.0.0.1:0".parse().unwrap(), files.clone()).unwrap();
        let (address, stop) = (server.address(), Arc::new(AtomicBool::new(false)));
        let engine = Everybody::default();
        let node = Node {
            clock: SystemClock,
            net: NodeNet::new(machine(1), Some(files)).serving(format.volume, Arc::new(server)),
            volume,
            engine: engine.clone(),
            format: format.clone(),
            node: NodeId("a".into()),
            address: self::address("a", Some(address), dir.path()),
            patience: Duration::from_millis(20),
        };
        let stops = Arc::clone(&stop);
        let thread = thread::spawn(move || node.run(&|| stops.load(Ordering::Relaxed)));
        Self {
            dir,
            format,
            engine,
            address,
            stop,
            thread: Some(thread),
        }
    }

    /// What a node on machine `number` hears that asks.
    fn ask(&self, number: u128, node: &str, files: Option<CertificateFiles>) -> Result<(), CsvError> {
        self.ask_by(&self.engine, number, node, files)
    }

    fn ask_by(
        &self,
        engine: &Everybody,
        number: u128,
        node: &str,
        files: Option<CertificateFiles>,
    ) -> Result<(), CsvError> {
        while engine.leader(self.format.volume).unwrap().is_none() {
            thread::sleep(Duration::from_millis(5));
        }
        let net = NodeNet::new(machine(number), files);
        let (format, node) = (self.format.clone(), NodeId(node.into()));
        let mut client = Client::new(SystemClock, net, engine.clone(), format, node, Uuid::new_v4());
        client.ask(Ask::Disks, LIMIT).map(drop)
    }

    /// An engine that says something else of where the coordinator is.
    fn elsewhere(&self, node: &str, address: String) -> Everybody {
        let leader = self.engine.leader(self.format.volume).unwrap().unwrap();
        let node = NodeId(node.into());
        Everybody(Arc::new(Mutex::new(Some(Leader {
            node,
            address,
            ..leader
        }))))
    }
}

impl Drop for Coordinating {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn address(node: &str, listens: Option<std::net::SocketAddr>, dir: &Path) -> String {
    let address = Address {
        machine: Some(machine(1)),
        node: NodeId(node.into()),
        listens,
        socket: dir.join("socket").to_str().unwrap().into(),
    };
    address.to_string()
}

fn code(result: Result<(), CsvError>) -> &'static str {
    result.expect_err("it proves nothing").code()
}

#[test]
fn inv_106_nodes_of_other_machines_prove_who_they_are() {
    let certificates = Certificates::new();
    let coordinating = Coordinating::start(certificates.files("a"));
    let files = |name: &str| Some(certificates.files(name));
    coordinating.ask(2, "b", files("b")).unwrap();
    // On the machine itself the socket's rights are the proof.
    coordinating.ask(1, "b", None).unwrap();
    assert_eq!(code(coordinating.ask(2, "b", None)), "VHD-E0944");
    assert_eq!(code(coordinating.ask(2, "b", files("stale"))), "VHD-E0940");
    assert_eq!(code(coordinating.ask(2, "b", files("foreign"))), "VHD-E0941");
    assert_eq!(code(coordinating.ask(2, "a", files("b"))), "VHD-E0943");
    assert_eq!(code(coordinating.ask(2, "b", files("missing"))), "VHD-E0939");
    // Another one at the coordinator's address, as far as the asker knows.
    let other = coordinating.elsewhere("b", address("b", Some(coordinating.address), coordinating.dir.path()));
    assert_eq!(code(coordinating.ask_by(&other, 2, "b", files("b"))), "VHD-E0942");
    let deaf = coordinating.elsewhere("a", address("a", None, coordinating.dir.path()));
    assert_eq!(code(coordinating.ask_by(&deaf, 2, "b", files("b"))), "VHD-E0944");
    // Somebody who speaks no TLS, and somebody who says nothing, keep nobody away.
    let mut plain = TcpStream::connect(coordinating.address).unwrap();
    let _silent = TcpStream::connect(coordinating.address).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said);
    assert!(!said.starts_with(b"HTTP"));
    coordinating.ask(2, "b", files("b")).unwrap();
}

#[test]
fn a_coordinator_with_a_stale_certificate_is_not_believed_and_a_new_one_needs_no_new_start() {
    let certificates = Certificates::new();
    let files = CertificateFiles {
        cert: certificates.path("used.pem"),
        ..certificates.files("used")
    };
    let put = |name: &str| {
        for kind in ["pem", "key"] {
            let from = certificates.path(&format!("{name}.{kind}"));
            std::fs::copy(from, certificates.path(&format!("used.{kind}"))).unwrap();
        }
    };
    put("stale-a");
    let coordinating = Coordinating::start(files);
    let ask = || coordinating.ask(2, "b", Some(certificates.files("b")));
    assert_eq!(code(ask()), "VHD-E0940");
    put("a");
    ask().unwrap();
}

#[test]
fn own_certificates_are_checked_before_they_are_used() {
    let certificates = Certificates::new();
    let check = |files: CertificateFiles| files.check(Some(&NodeId("b".into())));
    check(certificates.files("b")).unwrap();
    for (name, expected) in [
        ("stale", "VHD-E0940"),
        ("foreign", "VHD-E0941"),
        ("a", "VHD-E0942"),
        ("missing", "VHD-E0939"),
    ] {
        assert_eq!(code(check(certificates.files(name))), expected, "{name}");
    }
    let mixed = CertificateFiles {
        key: certificates.path("a.key"),
        ..certificates.files("b")
    };
    assert_eq!(code(check(mixed)), "VHD-E0939");
    std::fs::write(certificates.path("empty.pem"), "").unwrap();
    let empty = CertificateFiles {
        cert: certificates.path("empty.pem"),
        ..certificates.files("b")
    };
    assert_eq!(code(check(empty)), "VHD-E0939");
    let pipe = CertificateFiles {
        ca: "/dev/stdin".into(),
        ..certificates.files("b")
    };
    if !Path::new("/dev/stdin").is_file() {
        assert_eq!(code(check(pipe)), "VHD-E0939");
    }
}
