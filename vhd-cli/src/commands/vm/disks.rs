//! The disks of a machine.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hypervisor::{MAX_DISKS, MachineDisk, Sandbox};
use serde::{Deserialize, Serialize};
use vhd_block::Disk;
use vhd_core::chain::{OpenOptions, OpenedDisk};
use vhd_core::error::with_causes;
use vhd_core::ops::resize::{Opening, ResizableDisk};
use vhd_nbd::client::NbdUri;

use super::record::{SavedDisk, SavedFile, hex};
use super::run::RunArgs;
use super::worker::DiskInfo;
use crate::children;
use crate::codes::Kind;
use crate::failure::Failure;
use crate::format_arg::{FormatArg, TypedPath};
use crate::input::{ChainArgs, Source, SourceArgs, require_file};
use crate::output;
use crate::throw_away;

/// Stands for a comma in the name of an image.
const COMMA: &str = ",,";

/// A disk as the command line names it: `PATH[,ro][,snapshot][,id=NAME]`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct DiskSpec {
    image: String,
    read_only: bool,
    snapshot: bool,
    #[serde(default)]
    resizable: bool,
    id: Option<String>,
}

impl DiskSpec {
    /// An image without options.
    pub(super) fn plain(image: &str) -> Self {
        Self {
            image: image.to_owned(),
            read_only: false,
            snapshot: false,
            resizable: false,
            id: None,
        }
    }

    /// What is to be opened.
    pub(super) fn path(&self) -> PathBuf {
        self.typed().path
    }

    /// The same from any directory.
    pub(super) fn absolute(&self) -> Result<Self, Failure> {
        let typed = self.typed();
        let prefix = match typed.format {
            _ if Source::or_remote(&typed.path, None)?.remote().is_some() => return Ok(self.clone()),
            Some(format) => format.prefix(),
            None => "",
        };
        let path = std::path::absolute(&typed.path).map_err(|error| Failure::io("find", &typed.path, &error))?;
        Ok(Self {
            image: format!("{prefix}{}", path.display()),
            ..self.clone()
        })
    }

    fn typed(&self) -> TypedPath {
        OsString::from(&self.image).into()
    }
}

impl FromStr for DiskSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // No option has a zero byte, and no path.
        let escaped = text.replace(COMMA, "\0");
        let mut parts = escaped.split(',').map(|part| part.replace('\0', ","));
        let mut spec = Self::plain(&parts.next().unwrap_or_default());
        if spec.image.is_empty() {
            return Err("PATH[,ro][,snapshot][,resizable][,id=NAME] is needed".into());
        }
        for option in parts {
            match option.split_once('=') {
                None if option == "ro" => spec.read_only = true,
                None if option == "snapshot" => spec.snapshot = true,
                None if option == "resizable" => spec.resizable = true,
                Some(("id", id)) if is_id(id) => spec.id = Some(id.to_owned()),
                Some(("id", _)) => return Err("an id has 1 to 20 printable ASCII characters and no space".into()),
                _ => {
                    return Err(format!(
                        "there is no option {option:?}: ro, snapshot, resizable and id=NAME are known; {COMMA} stands for a comma in \
                         a name"
                    ));
                }
            }
        }
        let exclusive = [
            (spec.read_only, "ro"),
            (spec.snapshot, "snapshot"),
            (spec.resizable, "resizable"),
        ];
        let given: Vec<&str> = exclusive
            .iter()
            .filter(|(given, _)| *given)
            .map(|(_, option)| *option)
            .collect();
        if let [first, second, ..] = given[..] {
            return Err(format!("{first} and {second} exclude each other"));
        }
        Ok(spec)
    }
}

/// Whether the guest can be given it as a serial number.
fn is_id(text: &str) -> bool {
    (1..=20).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The disks of the command line, in the guest's order.
fn specs(args: &RunArgs) -> Vec<DiskSpec> {
    let first = args.image.as_deref().map(DiskSpec::plain);
    first.into_iter().chain(args.disks.iter().cloned()).collect()
}

/// Refuses what no machine can have, before anything is opened.
pub(super) fn check(args: &RunArgs) -> Result<(), Failure> {
    let specs = specs(args);
    if specs.len() > MAX_DISKS {
        return Err(Failure::usage(format!("a machine has at most {MAX_DISKS} disks")));
    }
    specs
        .iter()
        .try_for_each(|spec| require_file(&spec.typed().path, "used"))
}

/// Disks that are open while a machine runs.
#[derive(Default)]
pub(super) struct OpenDisks(Mutex<Vec<OpenDisk>>);

/// One of them.
struct OpenDisk {
    /// As messages name it.
    image: String,
    /// What the guest sees as its serial number.
    id: String,
    read_only: bool,
    /// Where it is in the machine.
    slot: usize,
    /// From any directory.
    spec: DiskSpec,
    ignore_children: bool,
    opened: Opened,
}

/// An open disk, whether or not its size can change.
enum Opened {
    Plain(OpenedDisk),
    Resizable(Arc<ResizableDisk>, Disk, PathBuf),
}

impl Opened {
    fn disk(&self) -> Disk {
        match self {
            Self::Plain(opened) => opened.disk(),
            Self::Resizable(_, disk, _) => disk.clone(),
        }
    }

    /// The files on this host.
    fn paths(&self) -> Vec<PathBuf> {
        match self {
            Self::Plain(opened) if opened.file_at_depth(0).is_none() => Vec::new(),
            Self::Plain(opened) => opened.paths().to_vec(),
            Self::Resizable(_, _, path) => vec![path.clone()],
        }
    }

    fn close(self) -> Result<(), Failure> {
        match self {
            Self::Plain(opened) => Ok(opened.close().map(drop)?),
            Self::Resizable(disk, _, _) => Ok(disk.close()?),
        }
    }
}

impl OpenDisk {
    /// What is to be known of it to open it again. Its files may still change.
    fn describe(&self) -> SavedDisk {
        let info = self.opened.disk().info().clone();
        SavedDisk {
            slot: self.slot,
            spec: self.spec.clone(),
            id: self.id.clone(),
            read_only: self.read_only,
            ignore_children: self.ignore_children,
            identity: info.identity.map(|identity| hex(&identity)).unwrap_or_default(),
            size: self.opened.disk().size(),
            files: self.opened.paths().iter().map(|path| SavedFile::new(path)).collect(),
        }
    }
}

impl OpenDisks {
    /// Opens those of the command line, and says what is odd about them.
    pub(super) fn open(&self, args: &RunArgs) -> Result<Vec<MachineDisk>, Failure> {
        let how = How {
            chain: args.chain.clone(),
            ignore_children: args.children.ignore_children,
        };
        specs(args).into_iter().map(|spec| self.open_one(spec, &how)).collect()
    }

    /// Opens those of a machine that was saved, by the slots in which it has disks still: each must be the disk that it was, and with `trust` that is all.
    pub(super) fn reopen(
        &self,
        saved: &[SavedDisk],
        slots: &[usize],
        trust: bool,
    ) -> Result<Vec<(usize, MachineDisk)>, Failure> {
        let reopen = |disk: &SavedDisk| {
            let parents = disk.files.iter().skip(1);
            let how = How {
                chain: ChainArgs::with_parents(parents.map(|file| file.path.clone())),
                ignore_children: disk.ignore_children,
            };
            let about = |failure: Failure| failure.about(&disk.spec.image);
            let mut of_machine = self.open_one(disk.spec.clone(), &how)?;
            let mut disks = self.disks();
            let opened = disks.last_mut().expect("it was just opened");
            (opened.slot, opened.id) = (disk.slot, disk.id.clone());
            disk.require_same(&opened.describe().stamped(), trust).map_err(about)?;
            of_machine.name.clone_from(&disk.id);
            Ok((disk.slot, of_machine))
        };
        let mut saved: Vec<&SavedDisk> = saved.iter().filter(|disk| slots.contains(&disk.slot)).collect();
        saved.sort_by_key(|disk| disk.slot);
        saved.into_iter().map(reopen).collect()
    }

    fn open_one(&self, spec: DiskSpec, how: &How) -> Result<MachineDisk, Failure> {
        let source = Source::or_remote(&spec.typed().path, None)?;
        let read_only = spec.read_only || source.is_snapshot && !spec.snapshot;
        let opened = open(how, &spec, &source, read_only)?;
        let disk = opened.disk();
        let name = spec.id.clone().unwrap_or_else(|| serial(disk.info().identity));
        let spec = spec.absolute()?;
        self.disks().push(OpenDisk {
            image: source.name,
            id: name.clone(),
            read_only,
            slot: 0,
            spec,
            ignore_children: how.ignore_children,
            opened,
        });
        Ok(MachineDisk {
            disk,
            read_only,
            name,
            // An engine that has its image by a path opens a file beside it for space that it sets aside, and a connection
            // to a server may have to be made again: they are under the rules for all threads alone.
            sandbox: Sandbox::Off,
        })
    }

    /// Opens another disk for a machine that runs; returns by which id it is known.
    pub(super) fn add(&self, spec: DiskSpec) -> Result<(String, MachineDisk), Failure> {
        let how = How {
            chain: ChainArgs::with_parents(std::iter::empty()),
            ignore_children: false,
        };
        let of_machine = self.open_one(spec, &how)?;
        let id = of_machine.name.clone();
        let mut disks = self.disks();
        if disks.iter().filter(|disk| disk.id == id).count() == 1 {
            return Ok((id, of_machine));
        }
        let added = disks.pop();
        drop(disks);
        added.map_or(Ok(()), |disk| disk.opened.close())?;
        let message = format!("the machine has a disk {id} already; `,id=NAME` gives this one another serial number");
        Err(Failure::new(Kind::MachineCannot, message))
    }

    /// Says in which slot a disk is that was added.
    pub(super) fn put(&self, id: &str, slot: usize) {
        if let Some(disk) = self.disks().iter_mut().find(|disk| disk.id == id) {
            disk.slot = slot;
        }
    }

    /// The slot of a disk.
    pub(super) fn slot(&self, id: &str) -> Result<usize, Failure> {
        let disks = self.disks();
        let slots: Vec<usize> = disks
            .iter()
            .filter(|disk| disk.id == id)
            .map(|disk| disk.slot)
            .collect();
        let message = match slots[..] {
            [slot] => return Ok(slot),
            [] => format!("the machine has no disk {id}; `vhd vm info` shows all"),
            _ => format!("the machine has several disks {id}; they were given to it without an id of their own"),
        };
        Err(Failure::new(Kind::MachineCannot, message))
    }

    /// Refuses a smaller size that was not meant, and a disk whose size cannot change.
    pub(super) fn require_growth(&self, id: &str, size: u64, shrink: bool) -> Result<(), Failure> {
        let disks = self.disks();
        let Some(disk) = disks.iter().find(|disk| disk.id == id) else {
            return Ok(());
        };
        let now = disk.opened.disk().size();
        let message = match &disk.opened {
            Opened::Plain(_) => format!(
                "the size of {} cannot change while it is in use: the machine was given it without `,resizable`, or it has a \
                 parent or children",
                disk.image
            ),
            Opened::Resizable(..) if size < now && !shrink => {
                format!("{} has {now} bytes, more than {size}; --shrink cuts it off", disk.image)
            }
            Opened::Resizable(..) => return Ok(()),
        };
        Err(Failure::new(Kind::MachineCannot, message))
    }

    /// Closes a disk that is the machine's no longer.
    pub(super) fn close_one(&self, id: &str) -> Result<(), Failure> {
        let mut disks = self.disks();
        let Some(at) = disks.iter().rposition(|disk| disk.id == id) else {
            return Ok(());
        };
        let disk = disks.remove(at);
        drop(disks);
        disk.opened.close().map_err(|failure| failure.about(disk.image))
    }

    /// Says that they are in slots that follow each other.
    pub(super) fn place(&self, first: usize) {
        let mut disks = self.disks();
        (first..)
            .zip(disks.iter_mut())
            .for_each(|(slot, disk)| disk.slot = slot);
    }

    /// What is to be known of them to open them again.
    pub(super) fn describe(&self) -> Vec<SavedDisk> {
        self.disks().iter().map(OpenDisk::describe).collect()
    }

    /// Refuses disks that are gone when the machine has ended.
    pub(super) fn require_lasting(&self) -> Result<(), Failure> {
        match self.disks().iter().find(|disk| disk.spec.snapshot) {
            None => Ok(()),
            Some(disk) => {
                let message = format!(
                    "what the guest wrote to {} is in a temporary layer that ends with the machine, so the machine cannot be saved",
                    disk.image
                );
                Err(Failure::new(Kind::MachineCannot, message))
            }
        }
    }

    /// The first, under its name.
    pub(super) fn first(&self) -> Option<(String, Disk)> {
        let disks = self.disks();
        let disk = disks.first()?;
        Some((disk.image.clone(), disk.opened.disk()))
    }

    /// What they are, in the guest's order.
    pub(super) fn info(&self) -> Vec<DiskInfo> {
        let info = |disk: &OpenDisk| DiskInfo {
            id: disk.id.clone(),
            image: disk.image.clone(),
            read_only: disk.read_only,
            size: disk.opened.disk().size(),
        };
        self.disks().iter().map(info).collect()
    }

    fn disks(&self) -> MutexGuard<'_, Vec<OpenDisk>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes all of them; the first failure is told.
    pub(super) fn close(&self) -> Result<(), Failure> {
        let mut result = Ok(());
        for disk in std::mem::take(&mut *self.disks()) {
            let closed = disk.opened.close().map_err(|failure| failure.about(disk.image));
            result = result.and(closed);
        }
        result
    }
}

/// How images are opened.
struct How {
    chain: ChainArgs,
    ignore_children: bool,
}

fn open(how: &How, spec: &DiskSpec, source: &Source, read_only: bool) -> Result<Opened, Failure> {
    let input = SourceArgs {
        from: spec.typed().format,
        chain: how.chain.clone(),
    };
    if let Some(uri) = source.remote() {
        return open_remote(spec, &input, source, uri, read_only).map(Opened::Plain);
    }
    if spec.snapshot {
        return throw_away::open(&input, source).map(Opened::Plain);
    }
    let options = input.options(source).write(!read_only);
    let options = options.ignore_children(how.ignore_children);
    if spec.resizable {
        return open_resizable(source, &options);
    }
    let opened = options.open(&source.path).map_err(children::explain)?;
    opened.warnings().iter().for_each(output::warning);
    Ok(Opened::Plain(opened))
}

/// Opens a disk whose size can change; one that has a parent or children is refused.
fn open_resizable(source: &Source, options: &OpenOptions) -> Result<Opened, Failure> {
    match ResizableDisk::open(&source.path, options).map_err(children::explain)? {
        Opening::Resizable(disk) => {
            disk.warnings().iter().for_each(output::warning);
            let handle = Disk::new(Arc::clone(&disk) as _);
            Ok(Opened::Resizable(disk, handle, source.path.clone()))
        }
        Opening::Plain { disk, reason } => {
            disk.close()?;
            let reason = with_causes(&reason);
            let message = format!("{}: its size cannot change while it is in use: {reason}", source.name);
            Err(Failure::new(Kind::MachineCannot, message))
        }
    }
}

/// Opens a disk on a server: the bytes of its export, or for reading only, with `vhd:` before the URI, the image that they are.
fn open_remote(
    spec: &DiskSpec,
    input: &SourceArgs,
    source: &Source,
    uri: &NbdUri,
    read_only: bool,
) -> Result<OpenedDisk, Failure> {
    let refused = |message: &str| Err(Failure::usage(message).about(&source.name));
    if spec.resizable {
        return refused("the size of a disk on a server is changed by the server");
    }
    if spec.snapshot {
        return refused("a temporary layer needs an image below it, and that is a disk on a server");
    }
    if input.from == Some(FormatArg::Vhd) && !read_only {
        return refused("an image on a server is opened for reading only: add `,ro`");
    }
    let opened = input.open_remote(source, uri, !read_only)?;
    opened.warnings().iter().for_each(output::warning);
    Ok(opened)
}

/// The beginning of a disk's identity, in hexadecimal digits: the same after a move. Zeroes for a disk that has none.
fn serial(identity: Option<[u8; 16]>) -> String {
    hex(&identity.unwrap_or_default()[..10])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs() {
        let spec = |text: &str| text.parse::<DiskSpec>();
        assert_eq!(spec("a.vhd"), Ok(DiskSpec::plain("a.vhd")));
        let both = spec("a,,b.vhd,ro,id=system").unwrap();
        assert_eq!((both.image.as_str(), both.read_only), ("a,b.vhd", true));
        assert_eq!(both.id.as_deref(), Some("system"));
        assert!(spec("raw:a.img,snapshot").unwrap().snapshot);
        for wrong in [
            "",
            ",ro",
            "a,rw",
            "a,ro,snapshot",
            "a,snapshot,resizable",
            "a,ro,resizable",
            "a,id=",
            "a,id=a b",
            "a,id=123456789012345678901",
            "a,",
        ] {
            assert!(spec(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn serials_have_twenty_digits() {
        assert_eq!(serial(Some([0xab; 16])), "abababababababababab");
    }
}
