//! A disk on a server gets another size: the server is asked to see to it.

use vhd_core::device::BlockDevice as _;
use vhd_core::ops::resize::ResizeError;
use vhd_nbd::client::{ClientOptions, NbdDevice, NbdUri};

use super::{FileJson, ResizeArgs, ResizeJson};
use crate::codes::Kind;
use crate::failure::Failure;

/// What stands where images have their type.
const EXPORT: &str = "NBD export";

/// Asks for the size, or says what would be asked for.
pub(super) fn run(args: &ResizeArgs, name: &str, uri: &NbdUri) -> Result<ResizeJson, Failure> {
    if args.tree || args.fix_gpt || !args.chain.parents.is_empty() {
        let message = "a disk on a server is resized as a whole: --tree, --fix-gpt and --parent are for images";
        return Err(Failure::usage(message).about(name));
    }
    let options = ClientOptions {
        write: true,
        connections: 1,
        ..ClientOptions::default()
    };
    let device = NbdDevice::open(uri, options)?;
    let disk_size = device.size_bytes();
    if !device.info().capabilities.resize {
        let message =
            "its server does not let clients change its size (a server of this program does with --resizable)";
        return Err(Failure::new(Kind::Library(vhd_nbd::kinds::RESIZE_REFUSED.into()), message).about(name));
    }
    let size = super::changed(args.size, disk_size, name)?;
    if size < disk_size && !args.shrink {
        return Err(Failure::from(ResizeError::ShrinkNotAsked { disk_size, size }).about(name));
    }
    let changes = size != disk_size;
    if changes && !args.dry_run {
        device.resize(size)?;
    }
    let file = changes.then(|| FileJson {
        path: name.to_owned(),
        disk_type: EXPORT.to_owned(),
        old_size: disk_size,
        moved_blocks: 0,
        moved_locators: 0,
        table_moved: false,
        dropped_blocks: 0,
    });
    Ok(ResizeJson {
        image: name.to_owned(),
        dry_run: args.dry_run,
        size,
        resumed: false,
        files: file.into_iter().collect(),
        gpt_moved: false,
        warnings: Vec::new(),
    })
}
