//! Where the control socket of a disk is.

use std::collections::HashSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use vhd_core::chain::MAX_DEPTH;
use vhd_core::chain::dependants::dependants_of;
use vhd_core::image::Footers;
use vhd_core::snapshot;
use vhd_core::storage::{Access, FileIdentity, HostFile, Sharing};

/// The base of the disk that `file` belongs to, and the socket of whoever has the disk in use. By the base, which stays when
/// leaves change: its identity, and the file's, for copies of an image have the same. `None` for what is no VHD.
pub(super) fn socket_of(file: &Path) -> Option<(PathBuf, PathBuf)> {
    let base = snapshot::base_of(file).ok()?;
    let opened = HostFile::open(&base, Access::ReadOnly, Sharing::Unlocked).ok()?;
    let id = Footers::read(&opened).ok()?.footer.unique_id;
    let file = FileIdentity::of_path(&base).ok()?;
    Some((base, directory().join(format!("{id}-{file}.sock"))))
}

/// A file of the disk that `image` is a layer of, by which the program is found that has the disk in use: the image itself,
/// another file of its snapshots, or one that is based on it. `None` if nobody listens.
pub(crate) fn user_of(image: &Path) -> Option<PathBuf> {
    let mut next = vec![image.to_owned()];
    let mut seen = HashSet::new();
    while let Some(file) = next.pop() {
        if !seen.insert(file.canonicalize().ok()?) || seen.len() > MAX_DEPTH {
            continue;
        }
        if socket_of(&file).is_some_and(|(_, socket)| UnixStream::connect(socket).is_ok()) {
            return Some(file);
        }
        if let Ok(found) = dependants_of(&file) {
            next.extend(found.child_paths());
        }
    }
    None
}

/// The directory of this user's sockets: not by what the environment says, which a service and a shell have apart.
pub(crate) fn directory() -> PathBuf {
    let user = geteuid();
    if user.is_root() {
        return "/run/vhd".into();
    }
    let own = PathBuf::from(format!("/run/user/{}", user.as_raw()));
    match own.is_dir() {
        true => own.join("vhd"),
        false => std::env::temp_dir().join(format!("vhd-{}", user.as_raw())),
    }
}

/// The directory of what this user's machines and volumes keep across restarts of the host; `None` for a user without a home.
pub(crate) fn lasting_directory() -> Option<PathBuf> {
    if geteuid().is_root() {
        return Some("/var/lib/vhd".into());
    }
    let home = std::env::home_dir().filter(|home| home.is_absolute());
    home.map(|home| home.join(".local/state/vhd"))
}

/// Makes a directory for sockets, for this user alone; one that others can change is refused.
pub(crate) fn prepare(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(directory)?;
    if found.is_dir() && found.uid() == geteuid().as_raw() && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    let message = format!("{} can be changed by other users", directory.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
}

/// Whether the peer is this user or the system's.
pub(crate) fn trusts(peer: impl AsFd) -> bool {
    socket_peercred(peer).is_ok_and(|peer| peer.uid.is_root() || peer.uid == geteuid())
}
