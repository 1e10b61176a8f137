//! A disk of a machine, open.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vhd_block::Disk;
use vhd_core::chain::{OpenOptions, OpenedDisk};
use vhd_core::error::with_causes;
use vhd_core::ops::resize::{Opening, ResizableDisk};
use vhd_core::snapshot;
use vhd_nbd::client::NbdUri;

use super::disk_spec::DiskSpec;
use super::guest::Guest;
use super::record::{SavedDisk, SavedFile, hex};
use super::snapshot::LivePart;
use crate::children;
use crate::codes::Kind;
use crate::failure::Failure;
use crate::format_arg::FormatArg;
use crate::in_use;
use crate::input::{ChainArgs, Source, SourceArgs};
use crate::output;
use crate::throw_away;

/// A disk of a machine that is open.
pub(super) struct OpenDisk {
    /// As messages name it.
    pub(super) image: String,
    /// The file that it was opened by.
    pub(super) file: PathBuf,
    /// What the guest sees as its serial number.
    pub(super) id: String,
    pub(super) read_only: bool,
    /// Where it is in the machine.
    pub(super) slot: usize,
    /// From any directory.
    pub(super) spec: DiskSpec,
    pub(super) ignore_children: bool,
    pub(super) opened: Opened,
    /// Where its files are that a command has passed; nothing for those that were opened here.
    pub(super) passed: Option<Vec<PathBuf>>,
}

/// What is open, whether or not clients of the machine can change its size.
pub(super) enum Opened {
    /// With a control socket, if its snapshots can come and go.
    Disk(in_use::Opened),
    Resizable(Arc<ResizableDisk>, Disk, PathBuf),
}

impl Opened {
    pub(super) fn disk(&self) -> Disk {
        match self {
            Self::Disk(opened) => opened.disk(),
            Self::Resizable(_, disk, _) => disk.clone(),
        }
    }

    /// The files on this host that it consists of at this moment, the leaf's first.
    fn paths(&self) -> io::Result<Vec<PathBuf>> {
        match self {
            Self::Disk(opened) => opened.paths(),
            Self::Resizable(_, _, path) => Ok(vec![path.clone()]),
        }
    }

    /// That of the leaf at this moment.
    fn identity(&self) -> Option<[u8; 16]> {
        match self {
            Self::Disk(opened) => opened.identity(),
            Self::Resizable(_, disk, _) => disk.info().identity,
        }
    }

    /// Listens for commands, unless it does, if it is a disk that they can work on.
    pub(super) fn listen(&mut self, file: &Path, guest: &Guest) -> Result<(), Failure> {
        match self {
            Self::Disk(opened) => opened.listen(file, guest.clone()),
            Self::Resizable(..) => Ok(()),
        }
    }

    /// Commands begin nothing on it any more, and what one has begun comes to a safe end.
    pub(super) fn stop(&mut self) {
        if let Self::Disk(opened) = self {
            opened.stop();
        }
    }

    pub(super) fn close(self) -> Result<(), Failure> {
        match self {
            Self::Disk(opened) => Ok(opened.close()?),
            Self::Resizable(disk, _, _) => Ok(disk.close()?),
        }
    }
}

impl OpenDisk {
    /// What is to be known of it to open it again. Its files may still change.
    pub(super) fn describe(&self) -> Result<SavedDisk, Failure> {
        let paths = self.paths()?;
        let spec = match (&self.opened, paths.first()) {
            (Opened::Disk(opened), Some(leaf)) if opened.live().is_some() => self.spec.of_leaf(leaf),
            _ => self.spec.clone(),
        };
        let identity = self.opened.identity();
        Ok(SavedDisk {
            slot: self.slot,
            spec,
            id: self.id.clone(),
            read_only: self.read_only,
            ignore_children: self.ignore_children,
            identity: identity.map(|identity| hex(&identity)).unwrap_or_default(),
            size: self.opened.disk().size(),
            files: paths.iter().map(|path| SavedFile::new(path)).collect(),
        })
    }
}

impl OpenDisk {
    /// What a snapshot of the machine takes of it, if it is one whose snapshots can come and go.
    pub(super) fn part(&self) -> Result<Option<LivePart>, Failure> {
        let Opened::Disk(opened) = &self.opened else {
            return Ok(None);
        };
        let Some(device) = opened.live() else {
            return Ok(None);
        };
        let paths = self.paths()?;
        let leaf = paths.first().map_or(Path::new(&self.image), PathBuf::as_path);
        Ok(Some(LivePart {
            slot: self.slot,
            id: self.id.clone(),
            base: snapshot::base_of(leaf)?,
            device: Arc::clone(device),
        }))
    }

    /// Refuses a disk that a snapshot of the machine would lack. One that nobody writes to is none, if it shows whether
    /// somebody did.
    pub(super) fn require_keepable(&self) -> Result<(), Failure> {
        let reason = match &self.opened {
            _ if self.spec.snapshot => "what the guest writes is in a temporary layer that ends with the machine",
            _ if self.passed.is_some() => {
                "it was added to a machine whose process is confined to other directories (`vhd vm run --allow DIR`)"
            }
            Opened::Resizable(..) => "a disk with `,resizable` has no snapshots",
            Opened::Disk(opened) if opened.live().is_some() => return Ok(()),
            Opened::Disk(_) if !self.read_only => "no state of a raw disk or a disk on a server can be kept",
            Opened::Disk(_) if self.describe()?.stamped().shows_changes() => return Ok(()),
            Opened::Disk(_) => "nothing shows whether somebody else writes to it",
        };
        let message = format!("{}: {reason}, so the machine cannot have snapshots", self.image);
        Err(Failure::new(Kind::MachineCannot, message))
    }

    /// The files on this host that it consists of at this moment, the leaf's first.
    pub(super) fn paths(&self) -> Result<Vec<PathBuf>, Failure> {
        if let Some(passed) = &self.passed {
            return Ok(passed.clone());
        }
        let paths = self.opened.paths();
        paths.map_err(|error| Failure::io("find the files of", Path::new(&self.image), &error))
    }
}

/// How images are opened.
pub(super) struct How {
    pub(super) chain: ChainArgs,
    pub(super) ignore_children: bool,
}

impl How {
    fn input(&self, spec: &DiskSpec) -> SourceArgs {
        SourceArgs {
            from: spec.typed().format,
            chain: self.chain.clone(),
        }
    }
}

pub(super) fn open(how: &How, spec: &DiskSpec, source: &Source, read_only: bool) -> Result<Opened, Failure> {
    if spec.resizable && source.remote().is_none() {
        let options = how.input(spec).options(source).write(!read_only);
        return open_resizable(source, &options.ignore_children(how.ignore_children));
    }
    let opened = open_whole(how, spec, source, read_only)?;
    Ok(Opened::Disk(match source.remote().is_some() || spec.snapshot {
        true => in_use::Opened::Plain(opened),
        false => in_use::Opened::quiet(opened),
    }))
}

/// The same for a disk that keeps its size, before anybody shares it.
pub(super) fn open_whole(how: &How, spec: &DiskSpec, source: &Source, read_only: bool) -> Result<OpenedDisk, Failure> {
    let input = how.input(spec);
    if let Some(uri) = source.remote() {
        return open_remote(spec, &input, source, uri, read_only);
    }
    if spec.snapshot {
        return throw_away::open(&input, source);
    }
    let options = input.options(source).write(!read_only);
    let options = options.ignore_children(how.ignore_children);
    let opened = options.open(&source.path).map_err(children::explain)?;
    opened.warnings().iter().for_each(output::warning);
    Ok(opened)
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
pub(super) fn serial(identity: Option<[u8; 16]>) -> String {
    hex(&identity.unwrap_or_default()[..10])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_have_twenty_digits() {
        assert_eq!(serial(Some([0xab; 16])), "abababababababababab");
    }
}
