//! What the process of a machine may open by its path: what is beside its disks, its own directories, and little else.
//!
//! Files that commands name elsewhere (a disk that is added, the file of a machine that is saved) are opened by the command, with
//! the rights of whoever calls it, and passed to the process.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use hypervisor::{Access, Confined, Reach, Sandbox};
use vhd_core::chain::dependants::places_of;

use super::snapshot::records;
use super::worker::MachineName;
use crate::control::place::directory;
use crate::failure::Failure;
use crate::output;

/// Devices of a machine that goes on from a snapshot are made anew.
const DEVICES: &[(&str, Access)] = &[
    ("/dev/kvm", Access::Use),
    ("/dev/urandom", Access::Read),
    // A merge remembers in which run of the system it was.
    ("/proc/sys/kernel/random/boot_id", Access::Read),
];

/// What it takes to find a server by its name, and to know its certificate. Everybody may read it.
const SERVERS: &[&str] = &[
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/nsswitch.conf",
    "/etc/resolv.conf",
    "/run/systemd/resolve",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust",
    "/etc/ca-certificates",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/etc/ld.so.cache",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
];

/// To what the process keeps itself, from a moment on.
#[derive(Clone, Default)]
pub(crate) struct Confinement(Arc<OnceLock<(Reach, Confined)>>);

impl Confinement {
    /// Keeps this thread, and those that it starts, to what is reached from here on; says loudly where that is less than all. Once
    /// is enough: a second call does nothing.
    pub(super) fn begin(
        &self,
        sandbox: Sandbox,
        reach: impl FnOnce() -> Result<Reach, Failure>,
    ) -> Result<(), Failure> {
        if self.0.get().is_some() {
            return Ok(());
        }
        let reach = reach()?;
        let how = sandbox.confine_files(&reach);
        let how = how.map_err(|error| super::run::failed("", error))?;
        match how {
            Confined::Not => output::warning(
                "the kernel of this host has no landlock: seccomp confines the process of the machine, but its threads for \
                 disks can open every file of this user",
            ),
            Confined::Partly { abi } => output::warning(format_args!(
                "the kernel of this host has an old landlock (version {abi}): it does not keep the process of the machine from \
                 everything that newer ones do"
            )),
            Confined::Whole | Confined::Off => {}
        }
        // Nobody else sets it: there is one thread still.
        let _ = self.0.set((reach, how));
        Ok(())
    }

    /// How far the process is kept to it, for people.
    pub(super) fn describe(&self) -> String {
        self.0.get().map_or_else(String::new, |(_, how)| how.to_string())
    }

    /// Whether the process may open everything.
    pub(super) fn is_off(&self) -> bool {
        !matches!(self.0.get(), Some((_, Confined::Whole | Confined::Partly { .. })))
    }

    /// Whether the process may open an image, and change what is beside it.
    pub(super) fn reaches(&self, image: &Path) -> bool {
        self.is_off() || self.0.get().is_some_and(|(reach, _)| reach.may_change_beside(image))
    }
}

/// What every machine needs, besides its disks.
pub(super) fn allow_machine(reach: &mut Reach, name: &MachineName, claim: Option<&Path>, lasting: Option<PathBuf>) {
    DEVICES.iter().for_each(|(path, access)| reach.allow(path, *access));
    SERVERS.iter().for_each(|path| reach.allow(path, Access::Read));
    // Control sockets of disks come and go there.
    reach.allow(directory(), Access::Meet);
    if let Some(claim) = claim {
        reach.allow(claim, Access::Meet);
    }
    if let Some(lasting) = lasting {
        // It comes with the first snapshot, and goes with the last.
        lasting
            .parent()
            .into_iter()
            .for_each(|parent| reach.allow(parent, Access::Arrange));
        reach.allow(lasting, Access::Change);
    }
    // A machine that goes back to a snapshot opens the disks that it had then.
    for disk in records(name).iter().flat_map(|record| &record.disks) {
        let files: Vec<PathBuf> = disk.files.iter().map(|file| file.path.clone()).collect();
        allow_disk(reach, &disk.spec.path(), &files, disk.read_only || disk.spec.snapshot);
    }
}

/// A directory of images, of which some may become disks of the machine.
pub(super) fn allow_directory(reach: &mut Reach, directory: &Path) {
    let places = places_of([&*directory.join("image.vhd")]);
    reach.allow(directory, Access::Change);
    places
        .around
        .iter()
        .for_each(|around| reach.allow(around, Access::Read));
}

/// A disk that was opened by `path`, and the files that it consists of. Beside one that is written to, files come and go; around
/// it, those are looked for that rely on it.
pub(super) fn allow_disk(reach: &mut Reach, path: &Path, files: &[PathBuf], is_only_read: bool) {
    if files.is_empty() {
        // It is on a server.
        return;
    }
    let places = places_of(files.iter().map(PathBuf::as_path).chain([path]));
    if is_only_read {
        places.own.iter().for_each(|own| reach.allow(own, Access::Read));
    } else {
        places.own.iter().for_each(|own| reach.allow(own, Access::Change));
        places
            .around
            .iter()
            .for_each(|around| reach.allow(around, Access::Read));
    }
    // A block device is in no directory of images.
    files
        .iter()
        .for_each(|file| reach.allow(file, if is_only_read { Access::Read } else { Access::Use }));
}
