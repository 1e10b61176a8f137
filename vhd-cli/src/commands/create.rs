//! `vhd create`: an empty image, or a differencing image over a parent.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;
use vhd_core::ErrorKind;
use vhd_core::chain::{ImageFormat, create_child_in};
use vhd_core::format::{DEFAULT_BLOCK_SIZE, DiskType, UniqueId};
use vhd_core::image::{CreateError, Preallocate, create_dynamic, create_fixed};
use vhd_core::storage::{StagedFile, StorageError, StorageFile};

use super::sparse;
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::format_arg::FormatArg;
use crate::input::{SearchArgs, image_path};
use crate::output::{self, ReportArgs};
use crate::volume::NewDisk;
use crate::{human, size};

pub(crate) const NAME: &str = "create";

const EXAMPLES: &str = "\
Examples:
  vhd create disk.vhd 64G
  vhd create disk.vhd 64G --type fixed --preallocate falloc
  vhd create disk.vhd 2040G --block-size 4M
  vhd create snapshot.avhd --parent disk.vhd

Sizes are exact to the sector of 512 bytes: 64M, 1.5G, 2040G, 4096s, plain bytes. An existing file is never replaced \
(exit code 8). The image appears under its name complete and durable, or not at all.";

/// Arguments of `vhd create`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CreateArgs {
    /// The new image
    path: PathBuf,
    /// The size of the disk: bytes, or with a suffix: 512s, 64M, 1.5G; a child has its parent's
    #[arg(value_name = "SIZE", value_parser = size::parse_disk_size, required_unless_present_any = ["size", "parent"])]
    given_size: Option<u64>,
    /// The size of the disk, as SIZE
    #[arg(long, value_parser = size::parse_disk_size, conflicts_with = "given_size")]
    size: Option<u64>,
    /// The type of the image [default: dynamic]
    #[arg(long = "type", value_name = "TYPE", value_enum, conflicts_with = "parent")]
    disk_type: Option<CreateType>,
    /// The size of the blocks, a power of two from 512K to 256M [default: 2M, or the parent's]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_block_size)]
    block_size: Option<u64>,
    /// How to allocate the space of a fixed image [default: off]
    #[arg(long, value_name = "MODE", value_enum)]
    preallocate: Option<PreallocateArg>,
    /// Create a differencing image over this disk
    #[arg(long, value_name = "PARENT")]
    parent: Option<PathBuf>,
    /// The format of the parent, instead of the detected one; `raw` takes the bytes of any file as a disk
    #[arg(long, value_name = "FORMAT", value_enum, requires = "parent")]
    from: Option<FormatArg>,
    #[command(flatten)]
    search: SearchArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

/// The value of `--type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CreateType {
    /// Space is taken where something is written
    Dynamic,
    /// The whole disk and a footer
    Fixed,
}

/// The value of `--preallocate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PreallocateArg {
    /// Nothing: the file is sparse
    Off,
    /// The file system reserves it
    Falloc,
    /// Zeroes are written
    Full,
}

impl From<PreallocateArg> for Preallocate {
    fn from(arg: PreallocateArg) -> Self {
        match arg {
            PreallocateArg::Off => Self::Off,
            PreallocateArg::Falloc => Self::Falloc,
            PreallocateArg::Full => Self::Full,
        }
    }
}

#[derive(Serialize)]
struct CreateReport {
    image: String,
    #[serde(rename = "type")]
    disk_type: String,
    id: String,
    virtual_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
}

impl fmt::Display for CreateReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = human::bytes(self.virtual_size);
        writeln!(f, "Created {}: {}, {size}, id {}", self.image, self.disk_type, self.id)
    }
}

pub(crate) fn run(args: &CreateArgs) -> Result<Exit, Failure> {
    check_arguments(args)?;
    let new = NewDisk::new(&args.path)?;
    refuse_existing(new.place())?;
    let (disk_type, id, virtual_size) = match (&args.parent, args.given_size.or(args.size)) {
        (Some(parent), size) => create_over(args, &new, &image_path(parent)?, size)?,
        (None, Some(size)) => create_empty(args, new.file(), size)?,
        (None, None) => return Err(Failure::usage("SIZE or --parent is needed")),
    };
    let place = new.place().to_owned();
    new.publish(false)?;
    sparse::warn_for_windows(&place);
    let report = CreateReport {
        image: output::path_text(&args.path),
        disk_type: disk_type.to_string(),
        id: id.to_string(),
        virtual_size,
        parent: args.parent.as_deref().map(output::path_text),
    };
    output::report(args.report, NAME, &report)?;
    Ok(Exit::Ok)
}

fn check_arguments(args: &CreateArgs) -> Result<(), Failure> {
    let fixed = args.disk_type == Some(CreateType::Fixed);
    if fixed && args.block_size.is_some() {
        return Err(Failure::usage(
            "a fixed image has no blocks: --block-size is for the others",
        ));
    }
    if !fixed && args.preallocate.is_some_and(|mode| mode != PreallocateArg::Off) {
        return Err(Failure::usage(
            "only fixed images are preallocated: --preallocate needs --type fixed",
        ));
    }
    Ok(())
}

/// Publishing refuses too; this is to know it before terabytes are written.
fn refuse_existing(path: &Path) -> Result<(), Failure> {
    match path.symlink_metadata() {
        Ok(_) => Err(StorageError::Exists { path: path.to_owned() }.into()),
        Err(_) => Ok(()),
    }
}

type Created = (DiskType, UniqueId, u64);

fn create_empty(args: &CreateArgs, file: &Path, size: u64) -> Result<Created, Failure> {
    let preallocate = args.preallocate.map_or(Preallocate::Off, Into::into);
    match args.disk_type.unwrap_or(CreateType::Dynamic) {
        CreateType::Fixed => {
            let id = publish(file, |file| create_fixed(file, size, preallocate))?;
            Ok((DiskType::Fixed, id, size))
        }
        CreateType::Dynamic => {
            let block_size = args.block_size.unwrap_or(u64::from(DEFAULT_BLOCK_SIZE));
            let id = publish(file, |file| create_dynamic(file, size, block_size))?;
            Ok((DiskType::Dynamic, id, size))
        }
    }
}

fn publish(
    path: &Path,
    write: impl FnOnce(&dyn StorageFile) -> Result<UniqueId, CreateError>,
) -> Result<UniqueId, Failure> {
    let staged = StagedFile::create_beside(path)?;
    let id = write(&*staged.storage()).map_err(|error| Failure::from(error).about(path.display()))?;
    staged.publish(false, true)?;
    Ok(id)
}

fn create_over(args: &CreateArgs, new: &NewDisk, parent: &Path, size: Option<u64>) -> Result<Created, Failure> {
    let options = args.search.options().format(args.from.map(Into::into));
    let opened = options.open(parent)?;
    for warning in opened.warnings() {
        output::warning(warning);
    }
    let parent_size = opened.disk().size();
    if let Some(size) = size.filter(|&size| size != parent_size) {
        let parent = parent.display();
        let message =
            format!("a child has the size of its parent: {parent} has {parent_size} bytes, the size given is {size}");
        return Err(Failure::new(Kind::Library(ErrorKind::SizeMismatch), message));
    }
    let id = create_child_in(new.file(), new.place(), parent, args.block_size, &options)?;
    if opened.format() == ImageFormat::Raw {
        let prefix = args.from.map_or("", |_| "raw:");
        output::warning(format_args!(
            "{parent} is raw and has no identity: the child opens with `--parent {prefix}{parent}` only",
            parent = parent.display()
        ));
    }
    Ok((DiskType::Differencing, id, parent_size))
}
