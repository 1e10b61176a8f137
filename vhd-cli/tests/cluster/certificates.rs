//! Certificates of machines: of one authority, which names the node and its address.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Makes `NAME.pem` and `NAME.key` for a node, of the authority `ca`, which is made with the first.
pub(crate) fn make(dir: &Path, authority: &str, file: &str, node: &str, address: Ipv4Addr) {
    let script = r#"
set -e
authority=$1 file=$2 node=$3 address=$4
[ -e "$authority.pem" ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj "/CN=$authority" \
    -keyout "$authority.key" -out "$authority.pem"
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$node" -keyout "$file.key" -out "$file.csr"
printf 'subjectAltName=DNS:%s,IP:%s,IP:127.0.0.1\nbasicConstraints=critical,CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\n' \
    "$node" "$address" > "$file.ext"
openssl x509 -req -in "$file.csr" -CA "$authority.pem" -CAkey "$authority.key" -CAcreateserial -days 2 -extfile "$file.ext" \
    -out "$file.pem""#;
    let made = Command::new("bash")
        .args(["-c", script, "bash", authority, file, node, &address.to_string()])
        .current_dir(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(made.unwrap().success(), "openssl makes certificates");
}

/// The options that name the files of a node.
pub(crate) fn options(dir: &Path, authority: &str, file: &str) -> Vec<String> {
    let path = |name: String| dir.join(name).to_str().unwrap().to_owned();
    let named: [(&str, PathBuf); 3] = [
        ("--tls-cert", path(format!("{file}.pem")).into()),
        ("--tls-key", path(format!("{file}.key")).into()),
        ("--tls-ca", path(format!("{authority}.pem")).into()),
    ];
    named
        .into_iter()
        .flat_map(|(option, file)| [option.to_owned(), file.to_str().unwrap().to_owned()])
        .collect()
}
