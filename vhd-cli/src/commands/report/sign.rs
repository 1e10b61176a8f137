//! A detached signature, made by ssh-keygen: its keys are there already, and so are its agents and tokens.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::codes::Kind;
use crate::failure::Failure;

/// What the signature is good for: it can't be taken for one of another kind of document.
pub(super) const NAMESPACE: &str = "vhd-report";

/// The signature of `bytes` by `key`.
pub(super) fn sign(key: &Path, bytes: &[u8]) -> Result<Vec<u8>, Failure> {
    let failed = |reason: String| {
        let key = key.display();
        Failure::new(
            Kind::Signature,
            format!("can't sign with {key} (ssh-keygen -Y sign): {reason}; no report was written"),
        )
    };
    let child = Command::new("ssh-keygen")
        .args(["-Y", "sign", "-n", NAMESPACE, "-f"])
        .arg(key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|error| failed(format!("{error} (the package is openssh-client)")))?;
    // It reads all of it before it writes. One that ends early says why itself.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(bytes);
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() || output.stdout.is_empty() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(said.trim().to_owned()));
    }
    Ok(output.stdout)
}
