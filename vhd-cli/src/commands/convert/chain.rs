//! `vhd convert --chain`: each layer of a chain as a qcow2 image over the one below it.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use vhd_core::chain::{ImageFormat, OpenedDisk};
use vhd_core::ops::{self, ChainOptions, LayerTarget};

use super::{ConvertJson, Job, explain};
use crate::codes::Kind;
use crate::commands::destination::Destination;
use crate::failure::Failure;
use crate::input::Source;
use crate::output::path_text;
use crate::volume::DiskName;

/// Writes all images, and reports on the leaf.
pub(super) fn convert(job: &Job<'_>) -> Result<ConvertJson, Failure> {
    let args = job.args;
    if DiskName::parse(&job.destination)?.is_some() {
        return Err(Failure::usage("a chain of qcow2 images can't be written to a volume"));
    }
    let source = Source::new(&args.source, None)?;
    let leaf = args.input.open(&source)?;
    let paths: Vec<PathBuf> = leaf.paths().to_vec();
    let names = names(&job.destination, &paths);
    let destinations: Vec<Destination<'_>> = names
        .iter()
        .map(|name| Destination::new(name, args.force, args.children))
        .collect::<Result<_, _>>()?;
    let lower: Vec<OpenedDisk> = paths
        .iter()
        .enumerate()
        .skip(1)
        .map(|(depth, path)| open_layer(job, &leaf, depth, path))
        .collect::<Result<_, _>>()?;
    let opened: Vec<&OpenedDisk> = std::iter::once(&leaf).chain(&lower).collect();
    let locks: Vec<_> = destinations
        .iter()
        .map(|destination| destination.guard(&opened))
        .collect::<Result<_, _>>()?;
    let backing: Vec<Option<String>> = (1..=names.len())
        .map(|below| names.get(below).map(|name| backing_name(name)).transpose())
        .collect::<Result<_, _>>()?;
    let layers: Vec<LayerTarget<'_>> = opened
        .iter()
        .zip(&names)
        .zip(&backing)
        .map(|((source, destination), backing)| LayerTarget {
            source,
            destination,
            backing: backing.as_deref(),
        })
        .collect();
    let options = ChainOptions {
        replace: args.force,
        durable: args.sync,
        threads: args.threads.map_or(0, usize::from),
    };
    let reporter = args.progress.reporter("converting");
    let done = ops::convert_chain(&layers, &options, &reporter).map_err(|error| explain(error, &source, &leaf))?;
    drop((reporter, locks));
    let mut report = job.report(source, &leaf, done[0]);
    report.copied_bytes = done.iter().map(|layer| layer.copied_bytes).sum();
    report.zero_bytes = 0;
    report.layers = names.iter().map(|name| path_text(name)).collect();
    Ok(report)
}

/// The chain from a layer on. Only the base can be a raw file.
fn open_layer(job: &Job<'_>, leaf: &OpenedDisk, depth: usize, path: &Path) -> Result<OpenedDisk, Failure> {
    let is_raw = leaf
        .layers()
        .nth(depth)
        .is_some_and(|layer| layer.layer.image().is_none())
        && leaf.chain().is_some();
    let options = job.args.input.chain.options().foreign(true);
    Ok(options.format(is_raw.then_some(ImageFormat::Raw)).open(path)?)
}

/// The images: the destination for the leaf, and beside it for each other layer its name, with a number where it is taken.
fn names(destination: &Path, layers: &[PathBuf]) -> Vec<PathBuf> {
    let mut names = vec![destination.to_owned()];
    let mut taken: HashSet<OsString> = destination.file_name().map(OsStr::to_owned).into_iter().collect();
    for layer in &layers[1..] {
        let stem = layer.file_stem().unwrap_or(OsStr::new("layer"));
        let numbered = (1..).map(|number: u32| {
            let mut name = stem.to_owned();
            if number > 1 {
                name.push(format!("-{number}"));
            }
            name.push(".qcow2");
            name
        });
        let free = numbered.filter(|name| !taken.contains(name)).take(1).next();
        let name = free.unwrap_or_else(|| stem.to_owned());
        taken.insert(name.clone());
        names.push(destination.with_file_name(name));
    }
    names
}

/// What an image calls the one below it, in the same directory.
fn backing_name(path: &Path) -> Result<String, Failure> {
    let name = path.file_name().and_then(OsStr::to_str).ok_or_else(|| {
        let message = format!(
            "the name {} is no Unicode: a qcow2 image over it could not name it",
            path.display()
        );
        Failure::new(Kind::Library(vhd_core::ErrorKind::InvalidArgument), message)
    })?;
    // qemu takes what stands before a colon for a protocol.
    Ok(match name.contains(':') {
        true => format!("./{name}"),
        false => name.to_owned(),
    })
}
