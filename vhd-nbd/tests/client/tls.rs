//! TLS: the contract through it, and all that must not be believed.

use std::path::Path;

use vhd_nbd::client::{ClientOptions, NbdDevice};
use vhd_nbd::kinds;
use vhd_nbd::server::ServerOptions;
use vhd_nbd::tls::TlsServer;

use crate::conformance::Servers;
use crate::other_servers::{Served, writing};
use crate::support::{Running, certificates, chain, exports, has};

/// Keys of one authority, and the directory of another.
fn authorities(dir: &Path) -> Option<[std::path::PathBuf; 2]> {
    if std::process::Command::new("openssl").arg("version").output().is_err() {
        println!("left out: there is no openssl");
        return None;
    }
    let both = [dir.join("pki"), dir.join("other")];
    for one in &both {
        std::fs::create_dir(one).unwrap();
        certificates(one);
    }
    Some(both)
}

fn server_options(pki: &Path, client_ca: bool) -> ServerOptions {
    let ca = pki.join("ca-cert.pem");
    let (certificate, key) = (pki.join("server-cert.pem"), pki.join("server-key.pem"));
    let tls = TlsServer::new(&certificate, &key, client_ca.then_some(ca.as_path())).unwrap();
    ServerOptions {
        tls: Some(tls),
        ..ServerOptions::default()
    }
}

fn secure(uri: &str, certificates: &Path) -> String {
    format!(
        "{}&tls-certificates={}",
        uri.replacen("nbd", "nbds", 1),
        certificates.display()
    )
}

#[test]
fn the_contract_is_kept_through_tls() {
    let dir = tempfile::tempdir().unwrap();
    let Some([pki, _]) = authorities(dir.path()) else {
        return;
    };
    let servers = Servers {
        options: server_options(&pki, true),
        uri: Box::new(move |uri| secure(&uri, &pki)),
        ..Servers::default()
    };
    crate::conformance::suite().run(&|_, content| servers.memory(content, false));
}

#[test]
fn nobody_is_believed_without_proof() {
    let dir = tempfile::tempdir().unwrap();
    let Some([pki, other]) = authorities(dir.path()) else {
        return;
    };
    let opened = chain(dir.path());
    let running = Running::start(dir.path(), exports(&opened), server_options(&pki, true));
    let plain = running.uri("disk");
    let kind = |uri: &str| {
        let opened = NbdDevice::open(&uri.parse().unwrap(), ClientOptions::default());
        opened.err().map(|error| error.kind())
    };
    assert_eq!(kind(&plain), Some(kinds::SERVER_REFUSED));
    assert_eq!(kind(&secure(&plain, &pki)), None);
    assert_eq!(kind(&secure(&plain, &other)), Some(kinds::SERVER_TRUST));
    let name = |name| format!("{}&tls-hostname={name}", secure(&plain, &pki));
    assert_eq!(kind(&name("localhost")), None);
    assert_eq!(kind(&name("elsewhere")), Some(kinds::SERVER_TRUST));
    assert_eq!(kind(&secure(&plain, dir.path())), Some(kinds::SERVER_TRUST));
    // The authorities of the system, which did not sign this.
    assert_eq!(kind(&plain.replacen("nbd", "nbds", 1)), Some(kinds::SERVER_TRUST));
    // The server does not know this side.
    let bare = dir.path().join("bare");
    std::fs::create_dir(&bare).unwrap();
    std::fs::copy(pki.join("ca-cert.pem"), bare.join("ca-cert.pem")).unwrap();
    let unknown = kind(&secure(&plain, &bare));
    assert!(
        matches!(unknown, Some(kinds::SERVER_TRUST | kinds::UNREACHABLE)),
        "{unknown:?}"
    );
}

#[test]
fn other_servers_with_tls_and_without() {
    let dir = tempfile::tempdir().unwrap();
    let Some([pki, _]) = authorities(dir.path()) else {
        return;
    };
    if !has("nbdkit") {
        return;
    }
    let without = Served::nbdkit(dir.path(), &["memory", "1M"]);
    let uri = secure(&without.uri(""), &pki);
    let refused = NbdDevice::open(&uri.parse().unwrap(), ClientOptions::default()).unwrap_err();
    assert_eq!(refused.kind(), kinds::SERVER_REFUSED);
    drop(without);
    let directory = format!("--tls-certificates={}", pki.display());
    let with = Served::nbdkit(
        dir.path(),
        &["--tls=require", "--tls-verify-peer", &directory, "memory", "1M"],
    );
    let uri = secure(&with.uri(""), &pki);
    let device = NbdDevice::open(&uri.parse().unwrap(), writing()).unwrap();
    let disk = vhd_block::Disk::new(device);
    let bytes: Vec<u8> = (0..300_000_u32).map(|at| at.to_le_bytes()[1]).collect();
    disk.write_at(&bytes, 777).unwrap();
    let mut read = vec![0; bytes.len()];
    disk.read_at(&mut read, 777).unwrap();
    assert!(read == bytes);
}
