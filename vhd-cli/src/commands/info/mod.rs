//! `vhd info`: an image and its chain.

mod creator;
mod layer;
mod remarks;

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use vhd_core::chain::{ImageFormat, OpenedDisk, foreign};
use vhd_core::device::{ByteRange, ExtentKind};
use vhd_core::image::{Image, OpenMode};
use vhd_core::storage::{Access, HostFile, Sharing, StorageFile};
use vhd_core::units::usize_from;

use super::several::Several;
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::{Failure, FailureJson};
use crate::human;
use crate::input::{Source, SourceArgs};
use crate::output::{self, ReportArgs};
use layer::LayerReport;

pub(crate) const NAME: &str = "info";

const EXAMPLES: &str = "\
Examples:
  vhd info disk.vhd
  vhd info snapshot.avhd --parent-dir /backup
  vhd info --json disk.vhd | jq '.layers[].id'

Layers are shown leaf first. With a parent missing, the layers before it are shown, then every path tried; the exit \
code is 6.";

/// Arguments of `vhd info`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct InfoArgs {
    /// The images, NBD URIs, or - for standard input
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
    /// Show the whole chain, as always
    #[arg(long, hide = true)]
    backing_chain: bool,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Serialize)]
struct InfoReport<'a> {
    image: String,
    format: &'static str,
    virtual_size: u64,
    layers: Vec<LayerReport>,
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<FailureJson<'a>>,
}

impl fmt::Display for InfoReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = match self.layers.len() {
            0 | 1 if self.error.is_none() => String::new(),
            1 => ", one layer of a broken chain".to_owned(),
            count if self.error.is_some() => format!(", {count} layers of a broken chain"),
            count => format!(", a chain of {count} layers"),
        };
        let size = human::bytes(self.virtual_size);
        writeln!(f, "{}: {}, {size}{layers}", self.image, self.format)?;
        for (depth, layer) in self.layers.iter().enumerate() {
            writeln!(f, "\nlayer {depth}: {}", layer.path)?;
            layer.fmt(f)?;
        }
        Ok(())
    }
}

pub(crate) fn run(args: &InfoArgs) -> Result<Exit, Failure> {
    let several = Several {
        images: &args.images,
        name: NAME,
        report: args.report,
    };
    several.each(|image| show(args, image))
}

fn show(args: &InfoArgs, image: &Path) -> Result<Exit, Failure> {
    let source = Source::or_remote(image, None)?;
    let mut found = Vec::new();
    match args.source.open_noting(&source, &mut found) {
        Ok(opened) => show_chain(args, source, &opened),
        Err(failure) if is_broken_chain(&failure) => Err(show_found(args, source, &found, failure)),
        Err(failure) => Err(failure),
    }
}

fn show_chain(args: &InfoArgs, source: Source, opened: &OpenedDisk) -> Result<Exit, Failure> {
    output::report(args.report, NAME, &report(&source, opened)?)?;
    Ok(Exit::Ok)
}

/// What `vhd info --json` prints of an open disk.
pub(crate) fn json(source: &Source, opened: &OpenedDisk) -> Result<String, Failure> {
    Ok(output::json(NAME, &report(source, opened)?))
}

fn report(source: &Source, opened: &OpenedDisk) -> Result<InfoReport<'static>, Failure> {
    Ok(InfoReport {
        image: source.name.clone(),
        format: opened.format().name(),
        virtual_size: opened.disk().size(),
        layers: layers(opened)?,
        warnings: opened.warnings().iter().map(ToString::to_string).collect(),
        error: None,
    })
}

fn layers(opened: &OpenedDisk) -> Result<Vec<LayerReport>, Failure> {
    let owned = owned_bytes(opened).map_err(|failure| failure.about(opened.paths()[0].display()))?;
    let mut layers = Vec::new();
    for (layer, &owned) in opened.layers().zip(&owned) {
        layers.push(match layer.layer.image() {
            Some(image) => LayerReport::vhd(layer.path, image, Some(owned))?,
            None => LayerReport::raw(layer.path, layer.layer.file(), layer.layer.disk_size(), owned)?,
        });
    }
    for ((path, layer), &owned) in opened.foreign_layers().zip(&owned) {
        layers.push(LayerReport::foreign(path, layer, Some(owned))?);
    }
    if let (ImageFormat::Raw, Some(file)) = (opened.format(), opened.file_at_depth(0)) {
        layers.push(LayerReport::raw(
            &opened.paths()[0],
            file,
            opened.disk().size(),
            owned[0],
        )?);
    }
    Ok(layers)
}

/// The bytes of the disk that each layer answers.
fn owned_bytes(opened: &OpenedDisk) -> Result<Vec<u64>, Failure> {
    let disk = opened.disk();
    let mut owned = vec![0; opened.paths().len()];
    disk.extents(ByteRange::new(0, disk.size()), &mut |extent| {
        let layer = owned.get_mut(usize_from(u64::from(extent.depth)));
        if let (true, Some(bytes)) = (extent.kind != ExtentKind::Hole, layer) {
            *bytes += extent.range.len;
        }
        ControlFlow::Continue(())
    })?;
    Ok(owned)
}

/// Whether the image itself may be fine and only its ancestors are not.
fn is_broken_chain(failure: &Failure) -> bool {
    failure.kind().is_some_and(|kind| kind.code().exit == Exit::Parent) || is_damage(failure.kind())
}

/// An ancestor may be the damaged one; where it is the image itself, opening that fails too.
fn is_damage(kind: Option<Kind>) -> bool {
    kind.is_some_and(|kind| kind.code().exit == Exit::Corrupt)
}

/// Shows the layers that were found, and hands the failure back.
fn show_found(args: &InfoArgs, source: Source, found: &[PathBuf], failure: Failure) -> Failure {
    let alone: Result<Vec<_>, _> = found.iter().map(|path| alone(args, path)).collect();
    let layers = alone.unwrap_or_default();
    let Some(leaf) = layers.first() else {
        return failure;
    };
    let report = InfoReport {
        image: source.name,
        format: leaf.format(),
        virtual_size: leaf.virtual_size(),
        layers,
        warnings: Vec::new(),
        error: failure.json(),
    };
    match output::report(args.report, NAME, &report) {
        Ok(()) => failure.reported(),
        Err(failed) => failed,
    }
}

/// A layer without its ancestors.
fn alone(args: &InfoArgs, path: &Path) -> Result<LayerReport, Failure> {
    let sharing = if args.source.chain.search.force_share {
        Sharing::Unlocked
    } else {
        Sharing::Exclusive
    };
    let file: Arc<dyn StorageFile> = Arc::new(HostFile::open(path, Access::ReadOnly, sharing)?);
    match Image::open(Arc::clone(&file), &OpenMode::read_only()) {
        Ok(image) => LayerReport::vhd(path, &image, None),
        // The chain was followed to here: a file that is no VHD is an image of another program.
        Err(error) => match foreign::read_alone(file, path) {
            Ok(layer) => LayerReport::foreign(path, &layer, None),
            Err(_) => Err(error.into()),
        },
    }
}
