//! `vhd convert` onto a disk that is there: a block device, or an export of a server. It has its place already, so nothing is
//! made beside it and named at the end: what it held is lost from the first moment on, and `--force` says that this is meant.

use std::fs::{File, OpenOptions as FileOptions};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;
use vhd_core::ErrorKind;
use vhd_core::chain::{ImageFormat, OpenOptions, OpenedDisk};
use vhd_core::device::RawDevice;
use vhd_core::ops;
use vhd_core::storage::{Access, HostFile, Sharing, StorageError};
use vhd_nbd::client::{ClientOptions, NbdDevice, NbdUri};

use super::{ConvertJson, Job, TargetArg, explain};
use crate::codes::Kind;
use crate::commands::destination;
use crate::failure::Failure;
use crate::input::Source;
use crate::output::path_text;

/// Whether the destination is such a disk.
pub(super) fn is_there(given: &Path) -> bool {
    is_uri(given) || is_block_device(given)
}

fn is_uri(given: &Path) -> bool {
    given.to_str().is_some_and(NbdUri::is_uri)
}

fn is_block_device(given: &Path) -> bool {
    given
        .metadata()
        .is_ok_and(|metadata| metadata.file_type().is_block_device())
}

/// Copies the source onto it.
pub(super) fn convert(job: &Job<'_>) -> Result<ConvertJson, Failure> {
    let (args, given) = (job.args, &job.args.destination);
    if job.to != TargetArg::Raw {
        return Err(Failure::usage(
            "a block device or a server takes the bytes of the disk: --to raw",
        ));
    }
    if !args.force {
        let message = format!(
            "{} is a disk that is there: --force writes to it, and what it holds is lost",
            given.display()
        );
        return Err(Failure::new(Kind::Library(ErrorKind::Exists), message));
    }
    let source = Source::or_remote(&args.source, None)?;
    let opened = args.input.open(&source)?;
    destination::refuse_half_changed(&opened)?;
    if args.source == *given {
        let message = format!("the destination {} is what is read", given.display());
        return Err(Failure::new(Kind::SameFile, message));
    }
    let target = Target::open(given, &opened)?;
    let reporter = args.progress.reporter("converting");
    let threads = args.threads.map_or(0, usize::from);
    let done =
        ops::copy_onto(&opened, &target.disk, threads, &reporter).map_err(|error| explain(error, &source, &opened))?;
    drop(reporter);
    Ok(job.report(source, &opened, done))
}

/// The disk that is written to.
struct Target {
    disk: OpenedDisk,
    /// Of a block device.
    _lock: Option<HostFile>,
}

impl Target {
    fn open(given: &Path, source: &OpenedDisk) -> Result<Self, Failure> {
        let options = OpenOptions::new().format(Some(ImageFormat::Raw)).write(true);
        if is_uri(given) {
            let name = path_text(given);
            let uri: NbdUri = name
                .parse()
                .map_err(|error| Failure::new(Kind::Uri, error).about(&name))?;
            let client = ClientOptions {
                write: true,
                ..ClientOptions::default()
            };
            return Ok(Self {
                disk: options.open_device(NbdDevice::open(&uri, client)?, given)?,
                _lock: None,
            });
        }
        destination::refuse_source(source, rustix::fs::stat(given), &given.display().to_string())?;
        // The locks of those who know them, beside the claim that the kernel knows.
        let lock = HostFile::open(given, Access::ReadWrite, Sharing::Exclusive)?;
        let failed = |error| Failure::io("open", given, &error);
        let file = HostFile::from_file(claim(given)?).map_err(failed)?;
        let device = RawDevice::new(Arc::new(file), true).map_err(failed)?;
        Ok(Self {
            disk: OpenedDisk::from_device(Arc::new(device), given),
            _lock: Some(lock),
        })
    }
}

/// Takes a block device for this process alone, among those that ask: mounts and device mappers do. Space is discarded through
/// this handle only: the kernel refuses that to all others meanwhile.
fn claim(device: &Path) -> Result<File, Failure> {
    let exclusive = i32::try_from(OFlags::EXCL.bits()).unwrap_or_default();
    let opened = FileOptions::new()
        .read(true)
        .write(true)
        .custom_flags(exclusive)
        .open(device);
    opened.map_err(|error| match error.kind() {
        std::io::ErrorKind::ResourceBusy => {
            let message = format!("{} is mounted, or a part of another device", device.display());
            Failure::new(Kind::Library(ErrorKind::Locked), message)
        }
        _ => Failure::from(StorageError::Io {
            path: device.to_owned(),
            operation: "open",
            source: error,
        }),
    })
}
