//! `vhd map`: which parts of a disk are stored, read zero, and where they lie.

use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use vhd_core::chain::OpenedDisk;
use vhd_core::device::{ByteRange, Extent, ExtentKind};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::input::{Source, SourceArgs};
use crate::output::{self, JSON_VERSION, Output, ReportArgs};

pub(crate) const NAME: &str = "map";

const EXAMPLES: &str = "\
Examples:
  vhd map disk.vhd
  vhd map --json snapshot.avhd | jq '.extents[] | select(.data)'

The extents in the JSON object have the fields of `qemu-img map --output=json`: start, length, depth (0 is the image \
itself), present (some layer stores it), zero (it reads zero), data (stored and not known to be zero), compressed \
(never), and offset in that layer's file where it is stored. `files` names the layers' files by depth.";

/// Arguments of `vhd map`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct MapArgs {
    /// The image, an NBD URI, or - for standard input
    image: PathBuf,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

/// An extent with the fields of `qemu-img map --output=json`.
#[derive(Serialize)]
struct MapExtent {
    start: u64,
    length: u64,
    depth: u32,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
}

impl From<Extent> for MapExtent {
    fn from(extent: Extent) -> Self {
        Self {
            start: extent.range.start,
            length: extent.range.len,
            depth: extent.depth,
            present: extent.kind != ExtentKind::Hole,
            zero: extent.kind != ExtentKind::Data,
            data: extent.kind == ExtentKind::Data,
            compressed: false,
            offset: extent.file_offset,
        }
    }
}

pub(crate) fn run(args: &MapArgs) -> Result<Exit, Failure> {
    let source = Source::or_remote(&args.image, None)?;
    let opened = args.source.open(&source)?;
    let mut out = Output::stdout();
    if args.report.json {
        print_json(&mut out, &source, &opened)?;
    } else {
        print_table(&mut out, &opened)?;
    }
    out.finish()?;
    Ok(Exit::Ok)
}

/// Passes the extents to `print` as they are found: a large disk can have more than memory should hold.
fn walk(
    out: &mut Output,
    opened: &OpenedDisk,
    mut print: impl FnMut(&mut Output, Extent) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let disk = opened.disk();
    let mut printed = Ok(());
    let walked = disk.extents(ByteRange::new(0, disk.size()), &mut |extent| {
        printed = print(out, extent);
        if printed.is_err() || out.is_closed() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    printed?;
    walked.map_err(|error| Failure::from(error).about(opened.paths()[0].display()))
}

/// One object, an extent per line. A failure on the way stands in the same object.
fn print_json(out: &mut Output, source: &Source, opened: &OpenedDisk) -> Result<(), Failure> {
    let text = |value: serde_json::Value| value.to_string();
    let files: Vec<String> = opened.paths().iter().map(|path| output::path_text(path)).collect();
    let warnings: Vec<String> = opened.warnings().iter().map(ToString::to_string).collect();
    out.write(&format!(
        "{{ \"version\": {JSON_VERSION}, \"command\": \"{NAME}\", \"image\": {}, \"virtual_size\": {}, \"files\": {}, \
         \"warnings\": {},\n  \"extents\": [",
        text(source.name.as_str().into()),
        opened.disk().size(),
        text(files.into()),
        text(warnings.into()),
    ))?;
    let mut separator = "\n    ";
    let walked = walk(out, opened, |out, extent| {
        let extent = serde_json::to_string(&MapExtent::from(extent)).expect("numbers and flags serialise");
        out.write(std::mem::replace(&mut separator, ",\n    "))?;
        out.write(&extent)
    });
    out.write("\n  ]")?;
    if let Some(failure) = walked.as_ref().err().and_then(Failure::json) {
        let failure = serde_json::to_string(&failure).expect("a failure is text and serialises");
        out.write(&format!(",\n  \"error\": {failure}"))?;
    }
    out.write("\n}\n")?;
    out.finish()?;
    walked.map_err(Failure::reported)
}

fn print_table(out: &mut Output, opened: &OpenedDisk) -> Result<(), Failure> {
    out.write(&format!(
        "{:>16} {:>16}  {:<4} {:>5} {:>16}\n",
        "start", "length", "kind", "depth", "offset"
    ))?;
    walk(out, opened, |out, extent| {
        let kind = match extent.kind {
            ExtentKind::Data => "data",
            ExtentKind::Zero => "zero",
            ExtentKind::Hole => "hole",
        };
        let offset = extent
            .file_offset
            .map_or("-".to_owned(), |offset| format!("{offset:#x}"));
        let (start, length) = (format!("{:#x}", extent.range.start), format!("{:#x}", extent.range.len));
        out.write(&format!(
            "{start:>16} {length:>16}  {kind:<4} {:>5} {offset:>16}\n",
            extent.depth
        ))
    })?;
    for (depth, path) in opened.paths().iter().enumerate() {
        out.write(&human::visible(&format!("depth {depth}: {}\n", path.display())))?;
    }
    Ok(())
}
