//! A disk that this process has in use, for writing: commands have their work on it done here, through its control socket.
//!
//! ```text
//!   keeper.rs   does the jobs: snapshots come and go, layers are merged, the disk grows
//!   mod.rs      the disk, and what a frontend shows of it
//! ```

mod keeper;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vhd_core::chain::OpenedDisk;
use vhd_core::device::{BlockDevice as _, DeviceError, Disk, LiveDevice};
use vhd_core::snapshot::{self, CreatedInUse, Manifest};

use crate::control::Control;
use crate::failure::Failure;
use crate::output;
use crate::volume::Held;
use keeper::Keeper;

/// What shows a disk to its users, and is told what becomes of its snapshots.
pub(crate) trait Frontend: Send + Sync {
    /// A snapshot was taken.
    fn taken(&self, _name: &str, _taken: &CreatedInUse, _device: &Arc<LiveDevice>) {}

    /// Snapshots of the manifest are deleted: nobody who comes from now on is shown them.
    fn withdraw(&self, _manifest: &Manifest) {}

    /// The disk may have another size.
    fn resized(&self) {}
}

impl Frontend for () {}

/// A disk that is in use.
pub(crate) struct InUse {
    device: Arc<LiveDevice>,
    /// One handle for all: what clones of it do to parts of sectors is in order.
    disk: Disk,
    /// `None` if the socket could not be made.
    control: Option<Control>,
}

/// Whether a disk that was opened is one whose snapshots can come and go.
pub(crate) fn can_be_live(opened: &OpenedDisk) -> bool {
    opened.disk().info().capabilities.write && opened.chain().is_some()
}

/// The device of a disk for which [`can_be_live`] holds, and that nobody else has yet.
pub(crate) fn device_of(opened: OpenedDisk) -> Arc<LiveDevice> {
    let device = opened.into_live();
    Arc::new(device.expect("it is a chain that is written to, and nobody else has it"))
}

impl InUse {
    /// Listens for commands about the disk that `file` belongs to. Where that can't be the disk is used without.
    ///
    /// # Errors
    /// Those of reading the manifest.
    pub(crate) fn listen(
        file: &Path,
        device: Arc<LiveDevice>,
        frontend: impl Frontend + 'static,
    ) -> Result<Self, Failure> {
        let mut quiet = Self::quiet(device);
        quiet.begin(file, frontend)?;
        Ok(quiet)
    }

    /// The disk, for which nobody listens yet.
    fn quiet(device: Arc<LiveDevice>) -> Self {
        Self {
            disk: Disk::new(Arc::clone(&device) as _),
            device,
            control: None,
        }
    }

    fn begin(&mut self, file: &Path, frontend: impl Frontend + 'static) -> Result<(), Failure> {
        let keeper = Keeper::new(snapshot::base_of(file)?, &self.device, frontend);
        let control = Control::listen(file, keeper);
        if let Err(error) = &control {
            output::warning(format_args!(
                "commands can't work on {} while it is in use: no control socket: {error}",
                file.display()
            ));
        }
        self.control = control.ok();
        Ok(())
    }

    /// Nothing is begun for commands any more, and what is being done comes to a safe end.
    pub(crate) fn stop(&mut self) {
        self.control = None;
    }

    /// Flushes and closes the disk.
    ///
    /// # Errors
    /// What could not be written.
    pub(crate) fn close(mut self) -> Result<(), DeviceError> {
        self.stop();
        drop(self.disk);
        match Arc::try_unwrap(self.device) {
            Ok(device) => device.close(),
            Err(shared) => shared.flush(),
        }
    }
}

/// A disk that a program uses: with a control socket if it is one whose snapshots can come and go.
pub(crate) enum Opened {
    Plain(OpenedDisk),
    Live(InUse),
    /// On a volume, which gave the right to write it.
    Held(Held),
}

impl Opened {
    /// The disk at `path`, opened to be written to or not.
    ///
    /// # Errors
    /// Those of [`InUse::listen`].
    pub(crate) fn new(opened: OpenedDisk, path: &Path, frontend: impl Frontend + 'static) -> Result<Self, Failure> {
        match can_be_live(&opened) {
            true => InUse::listen(path, device_of(opened), frontend).map(Self::Live),
            false => Ok(Self::Plain(opened)),
        }
    }

    /// The same without the socket, and so without a thread: [`listen`](Self::listen) makes it.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn quiet(opened: OpenedDisk) -> Self {
        match can_be_live(&opened) {
            true => Self::Live(InUse::quiet(device_of(opened))),
            false => Self::Plain(opened),
        }
    }

    /// Listens for commands, unless it does.
    ///
    /// # Errors
    /// Those of [`InUse::listen`].
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn listen(&mut self, path: &Path, frontend: impl Frontend + 'static) -> Result<(), Failure> {
        match self {
            Self::Live(disk) if disk.control.is_none() => disk.begin(path, frontend),
            _ => Ok(()),
        }
    }

    /// The disk.
    pub(crate) fn disk(&self) -> Disk {
        match self {
            Self::Plain(opened) => opened.disk(),
            Self::Live(disk) => disk.disk.clone(),
            Self::Held(held) => held.opened().disk(),
        }
    }

    /// The device, if it is one whose snapshots can come and go.
    pub(crate) fn live(&self) -> Option<&Arc<LiveDevice>> {
        match self {
            Self::Plain(_) | Self::Held(_) => None,
            Self::Live(disk) => Some(&disk.device),
        }
    }

    /// The files on this host that it consists of at this moment, the leaf's first.
    ///
    /// # Errors
    /// The kernel does not say what an open file is called.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn paths(&self) -> io::Result<Vec<PathBuf>> {
        match self {
            Self::Plain(opened) if opened.file_at_depth(0).is_none() => Ok(Vec::new()),
            Self::Plain(opened) => Ok(opened.paths().to_vec()),
            Self::Held(held) => Ok(held.opened().paths().to_vec()),
            Self::Live(disk) => {
                let present = disk.device.present();
                let on_this_host = present
                    .layers()
                    .iter()
                    .filter(|layer| layer.file().host_file().is_some());
                on_this_host.map(|layer| layer.path()).collect()
            }
        }
    }

    /// That of the leaf at this moment: the device keeps the one that it began with.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn identity(&self) -> Option<[u8; 16]> {
        match self {
            Self::Plain(opened) => opened.disk().info().identity,
            Self::Held(held) => held.opened().disk().info().identity,
            Self::Live(disk) => disk.device.present().info().identity,
        }
    }

    /// See [`InUse::stop`].
    pub(crate) fn stop(&mut self) {
        if let Self::Live(disk) = self {
            disk.stop();
        }
    }

    /// Flushes and closes the disk.
    ///
    /// # Errors
    /// What could not be written.
    pub(crate) fn close(self) -> Result<(), Failure> {
        match self {
            Self::Plain(opened) => opened.close().map(drop)?,
            Self::Live(disk) => disk.close()?,
            Self::Held(held) => held.close()?,
        }
        Ok(())
    }
}
