//! The disks that are served.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use vhd_core::chain::{OpenedDisk, create_child};
use vhd_nbd::server::{ChangedAboveLayer, Export, ExportSet};

use super::NbdArgs;
use crate::failure::Failure;
use crate::input::Source;
use crate::output;

/// An image and the name that it is served under.
#[derive(Clone, Debug)]
pub(super) struct NamedImage {
    name: String,
    image: PathBuf,
}

impl FromStr for NamedImage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, image)) if !name.is_empty() && !image.is_empty() => Ok(Self {
                name: name.to_owned(),
                image: image.into(),
            }),
            _ => Err("NAME=IMAGE is needed".into()),
        }
    }
}

/// Disks that are open while they are served.
pub(super) struct Served {
    disks: Vec<(String, OpenedDisk)>,
}

impl Served {
    /// Opens all images. IMAGE is the default, under the empty name.
    pub(super) fn open(args: &NbdArgs) -> Result<(Self, ExportSet), Failure> {
        let unnamed = args.image.iter().map(|image| NamedImage {
            name: String::new(),
            image: image.clone(),
        });
        let mut served = Self { disks: Vec::new() };
        let mut exports = ExportSet::new();
        for NamedImage { name, image } in unnamed.chain(args.exports.iter().cloned()) {
            let opened = open(args, &image)?;
            if !exports.add(export(args, &name, &opened)) {
                return Err(Failure::usage(format!("two exports are called {name:?}")));
            }
            served.disks.push((image.display().to_string(), opened));
        }
        Ok((served, exports))
    }

    /// Closes all images; the first failure is told.
    pub(super) fn close(self) -> Result<(), Failure> {
        let mut result = Ok(());
        for (name, opened) in self.disks {
            let closed = opened.close().map_err(|error| Failure::from(error).about(name));
            result = result.and(closed);
        }
        result
    }
}

fn open(args: &NbdArgs, image: &Path) -> Result<OpenedDisk, Failure> {
    let source = Source::new(image, None)?;
    if args.snapshot {
        return open_snapshot(args, &source);
    }
    if !args.read_only {
        source.refuse_frozen()?;
    }
    let options = args.source.options(&source).write(!args.read_only);
    let opened = options.open(&source.path)?;
    for warning in opened.warnings() {
        output::warning(warning);
    }
    Ok(opened)
}

/// Opens a child of the image whose file has no name any more when this returns.
fn open_snapshot(args: &NbdArgs, source: &Source) -> Result<OpenedDisk, Failure> {
    let dir = std::env::temp_dir();
    let dir = tempfile::tempdir_in(&dir).map_err(|error| Failure::io("create a directory in", &dir, &error))?;
    let layer = dir.path().join("snapshot.avhd");
    let options = args.source.options(source);
    create_child(&layer, &source.path, None, &options)?;
    let opened = args
        .source
        .chain
        .search
        .options()
        .parents([source.path.clone()])
        .parents(args.source.chain.parents.iter().cloned())
        .write(true)
        .open(&layer)?;
    Ok(opened)
}

fn export(args: &NbdArgs, name: &str, opened: &OpenedDisk) -> Export {
    let paths = opened.paths();
    let mut export = Export::new(name, opened.disk());
    if args.read_only {
        export = export.read_only();
    }
    // The throw-away layer is no image that anyone knows.
    let known = if args.snapshot { &paths[1..] } else { paths };
    if let Some(image) = known.first() {
        export = export.with_description(file_name(image));
    }
    for (depth, path) in (0..).zip(paths).skip(1) {
        let name = file_name(path);
        let is_unique = paths.iter().filter(|other| file_name(other) == name).count() == 1;
        if is_unique {
            export = export.with_changes(name, Box::new(ChangedAboveLayer { depth }));
        }
    }
    export
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}
