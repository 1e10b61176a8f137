//! A layer over a disk that takes its writes and is thrown away at the end.

use vhd_core::chain::{OpenedDisk, create_child};

use crate::failure::Failure;
use crate::format_arg::FormatArg;
use crate::input::{Source, SourceArgs};

/// Opens a child of the image whose file has no name any more when this returns.
pub(crate) fn open(input: &SourceArgs, source: &Source) -> Result<OpenedDisk, Failure> {
    let dir = std::env::temp_dir();
    let dir = tempfile::tempdir_in(&dir).map_err(|error| Failure::io("create a directory in", &dir, &error))?;
    let layer = dir.path().join("snapshot.avhd");
    create_child(&layer, &source.path, None, &input.options(source))?;
    let options = input.chain.search.options();
    let options = match input.from {
        Some(FormatArg::Raw) => options.raw_parents([source.path.clone()]),
        _ => options.parents([source.path.clone()]),
    };
    // Nobody knows the layer: no child can rely on it.
    let options = input.chain.add_parents(options).write(true).ignore_children(true);
    Ok(options.open(&layer)?)
}
