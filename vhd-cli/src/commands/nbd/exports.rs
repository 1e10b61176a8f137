//! The disks that are served.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use vhd_core::chain::{OpenOptions, OpenedDisk};
use vhd_core::device::Disk;
use vhd_core::error::with_causes;
use vhd_core::ops::resize::{Opening, ResizableDisk};
use vhd_core::snapshot::{self, SnapshotFile};
use vhd_nbd::server::{ChangedAboveLayer, Export, ExportNameError, ExportSet};

use super::{NbdArgs, live};
use crate::children;
use crate::codes::Kind;
use crate::failure::Failure;
use crate::format_arg::TypedPath;
use crate::in_use::{InUse, can_be_live, device_of};
use crate::input::{Source, SourceArgs};
use crate::output;
use crate::throw_away;
use crate::volume::{DiskName, Held};

/// An image and the name that it is served under.
#[derive(Clone, Debug)]
pub(super) struct NamedImage {
    name: String,
    image: TypedPath,
}

impl NamedImage {
    /// What the disk is served as.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for NamedImage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, image)) if !name.is_empty() && !image.is_empty() => {
                ExportNameError::check(name).map_err(|error| error.to_string())?;
                Ok(Self {
                    name: name.to_owned(),
                    image: OsString::from(image).into(),
                })
            }
            _ => Err("NAME=IMAGE is needed".into()),
        }
    }
}

/// Disks that are open while they are served.
pub(super) struct Served {
    disks: Vec<(String, Open)>,
}

/// A disk that is open.
enum Open {
    Plain(OpenedDisk),
    Resizable(Arc<ResizableDisk>),
    Live(InUse),
    /// On a volume, which gave the right to write it.
    OnVolume(Held),
}

impl Open {
    fn close(self) -> Result<(), Failure> {
        match self {
            Self::Plain(disk) => disk.close().map(drop)?,
            Self::Resizable(disk) => disk.close()?,
            Self::Live(disk) => disk.close()?,
            Self::OnVolume(held) => held.close()?,
        }
        Ok(())
    }
}

impl Served {
    /// Opens all images, and the snapshots of those that are the present state of a disk. IMAGE is the default, under
    /// the empty name.
    pub(super) fn open(args: &NbdArgs) -> Result<(Self, ExportSet), Failure> {
        let unnamed = args.image.iter().map(|image| NamedImage {
            name: String::new(),
            image: TypedPath {
                format: None,
                path: image.clone(),
            },
        });
        let mut served = Self { disks: Vec::new() };
        let mut exports = ExportSet::new();
        for NamedImage { name, image } in unnamed.chain(args.exports.iter().cloned()) {
            served.add(args, name, image, &mut exports)?;
        }
        Ok((served, exports))
    }

    fn add(&mut self, args: &NbdArgs, name: String, image: TypedPath, exports: &mut ExportSet) -> Result<(), Failure> {
        let path = match &args.volume {
            Some(volume) => DiskName::text(volume, &image.path),
            None => image.path,
        };
        let source = Source::new(&path, None)?;
        let input = SourceArgs {
            from: image.format.or(args.source.from),
            chain: args.source.chain.clone(),
        };
        let opened = open(args, &input, &source)?;
        let snapshots = Snapshots::of(&source);
        let name = if name.is_empty() { snapshots.name.clone() } else { name };
        let opened = match opened {
            Open::Plain(opened) if is_live(args, &opened) => {
                return self.add_live(args, &source, opened, &name, &snapshots, exports);
            }
            other => other,
        };
        let present = match &opened {
            Open::Plain(opened) => export(&name, opened, &snapshots, args.snapshot),
            Open::OnVolume(held) => export(&name, held.opened(), &snapshots, args.snapshot),
            Open::Live(_) => unreachable!("it is served already"),
            Open::Resizable(disk) => Export::new(name.as_str(), Disk::new(Arc::clone(disk) as _))
                .with_description(file_name(&source.path))
                .resizable(),
        };
        self.serve(present, source.name.clone(), opened, exports)?;
        for SnapshotFile {
            name: snapshot, path, ..
        } in &snapshots.files
        {
            let opened = open_frozen(args, path)?;
            let frozen = export(&format!("{name}@{snapshot}"), &opened, &snapshots, false);
            self.serve(frozen, output::path_text(path), Open::Plain(opened), exports)?;
        }
        Ok(())
    }

    fn serve(&mut self, export: Export, image: String, opened: Open, exports: &mut ExportSet) -> Result<(), Failure> {
        exports.add(export).map_err(|error| Failure::usage(error.to_string()))?;
        self.disks.push((image, opened));
        Ok(())
    }

    /// The same for a disk whose snapshots come and go while it is served.
    fn add_live(
        &mut self,
        args: &NbdArgs,
        source: &Source,
        opened: OpenedDisk,
        name: &str,
        snapshots: &Snapshots,
        exports: &mut ExportSet,
    ) -> Result<(), Failure> {
        let paths = opened.paths().to_vec();
        let device = device_of(opened);
        let present = live::present(name, &device, &paths, contexts(&paths, snapshots));
        exports
            .add(present)
            .map_err(|error| Failure::usage(error.to_string()))?;
        let mut served = HashMap::new();
        for snapshot in &snapshots.files {
            let (export_name, path) = (format!("{name}@{}", snapshot.name), &snapshot.path);
            let depth = paths.iter().position(|layer| is_same(layer, path));
            // In the disk's own open files, if it is one of its layers.
            let shared = depth.and_then(|depth| {
                let contexts = contexts(&paths[depth..], snapshots);
                live::frozen(&export_name, &device, depth, path, contexts)
            });
            let frozen = match shared {
                Some(frozen) => frozen,
                None => export(&export_name, &open_frozen(args, path)?, snapshots, false),
            };
            exports.add(frozen).map_err(|error| Failure::usage(error.to_string()))?;
            served.insert(export_name, live::ServedSnapshot::new(&snapshot.name, snapshot.id));
        }
        // The last: a snapshot is added to exports that are there.
        let shown = live::Exports::new(name, exports, served);
        let in_use = InUse::listen(&source.path, device, shown)?;
        self.disks.push((source.name.clone(), Open::Live(in_use)));
        Ok(())
    }

    /// Closes all images; the first failure is told.
    pub(super) fn close(mut self) -> Result<(), Failure> {
        for (_, opened) in &mut self.disks {
            if let Open::Live(disk) = opened {
                disk.stop();
            }
        }
        let mut result = Ok(());
        for (name, opened) in self.disks {
            let closed = opened.close().map_err(|failure| failure.about(name));
            result = result.and(closed);
        }
        result
    }
}

/// The snapshots of a disk whose present state is served.
#[derive(Default)]
struct Snapshots {
    /// What the disk is called if nothing else is said: its base without the extension.
    name: String,
    files: Vec<SnapshotFile>,
}

impl Snapshots {
    /// Those of the disk whose present state the source is; none for any other.
    fn of(source: &Source) -> Self {
        match snapshot::snapshots_of(&source.path) {
            Ok(Some(disk)) if !disk.snapshots.is_empty() => Self {
                name: file_name(disk.disk.file_stem().map_or(&disk.disk, Path::new)),
                files: disk.snapshots,
            },
            Ok(_) => Self::default(),
            Err(error) => {
                let image = &source.name;
                output::warning(format_args!("the snapshots of {image} are not served: {error}"));
                Self::default()
            }
        }
    }

    /// The snapshot that a file is.
    fn name_of(&self, path: &Path) -> Option<&str> {
        let found = self.files.iter().find(|snapshot| is_same(&snapshot.path, path));
        found.map(|snapshot| snapshot.name.as_str())
    }
}

fn open(args: &NbdArgs, input: &SourceArgs, source: &Source) -> Result<Open, Failure> {
    if args.snapshot {
        return throw_away::open(input, source).map(Open::Plain);
    }
    let options = input.options(source).write(!args.read_only).foreign(args.read_only);
    let options = options.ignore_children(args.children.ignore_children);
    let opened = match (source.on_volume(), args.resizable) {
        (Some(disk), false) if !args.read_only => Open::OnVolume(Held::open(disk, &source.path, options)?),
        (Some(_), true) => {
            let message = "the size of a disk on a volume can't be changed by clients: leave --resizable out";
            return Err(Failure::new(Kind::VolumeCannot, message).about(&source.name));
        }
        (_, true) => open_resizable(source, &options)?,
        (_, false) => Open::Plain(options.open(&source.path).map_err(children::explain)?),
    };
    let warnings = match &opened {
        Open::Plain(opened) => opened.warnings(),
        Open::OnVolume(held) => held.opened().warnings(),
        Open::Resizable(disk) => disk.warnings(),
        Open::Live(_) => &[],
    };
    warnings.iter().for_each(output::warning);
    Ok(opened)
}

/// Opens a disk whose size clients may change, if it is one that can have another.
fn open_resizable(source: &Source, options: &OpenOptions) -> Result<Open, Failure> {
    match ResizableDisk::open(&source.path, options).map_err(children::explain)? {
        Opening::Resizable(disk) => Ok(Open::Resizable(disk)),
        Opening::Plain { disk, reason } => {
            let reason = with_causes(&reason);
            output::warning(format_args!(
                "the size of {} can't be changed by clients: {reason}",
                source.name
            ));
            Ok(Open::Plain(disk))
        }
    }
}

/// Opens the file of a snapshot. What is odd about the chain has been said already.
fn open_frozen(args: &NbdArgs, path: &Path) -> Result<OpenedDisk, Failure> {
    Ok(args.source.chain.options().open(path)?)
}

/// The export of a disk. The throw-away layer that may be on it is no image that anyone knows.
fn export(name: &str, opened: &OpenedDisk, snapshots: &Snapshots, throw_away: bool) -> Export {
    let paths = opened.paths();
    let mut export = Export::new(name, opened.disk());
    if let Some(image) = paths.get(usize::from(throw_away)) {
        export = export.with_description(file_name(image));
    }
    for (name, depth) in contexts(paths, snapshots) {
        export = export.with_changes(name, Box::new(ChangedAboveLayer { depth }));
    }
    export
}

/// What the layers below the first are called, and how deep they are.
fn contexts(paths: &[PathBuf], snapshots: &Snapshots) -> Vec<(String, u32)> {
    let mut known = Vec::new();
    for (depth, path) in (0..).zip(paths).skip(1) {
        known.extend(snapshots.name_of(path).map(|name| (name.to_owned(), depth)));
    }
    for (depth, path) in (0..).zip(paths).skip(1) {
        let name = file_name(path);
        let is_unique = paths.iter().filter(|other| file_name(other) == name).count() == 1;
        if is_unique && !known.iter().any(|(other, _)| *other == name) {
            known.push((name, depth));
        }
    }
    known
}

/// Whether snapshots of a disk can be taken while it is served.
fn is_live(args: &NbdArgs, opened: &OpenedDisk) -> bool {
    !args.no_control && !args.snapshot && can_be_live(opened)
}

/// Whether two paths lead to one file.
fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    real(one).is_some_and(|one| Some(one) == real(other))
}

pub(super) fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}
