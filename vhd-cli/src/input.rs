//! Opening what a command reads: a disk with its chain, or standard input.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{Args, ValueHint};
use rustix::fs::{SeekFrom, seek};
use vhd_core::chain::{ExplicitOnly, OpenOptions, OpenedDisk};
use vhd_core::snapshot::{self, FrozenBase, NOW, SnapshotError};
use vhd_core::units::u64_from;
use vhd_nbd::client::{ClientOptions, NbdDevice, NbdUri};

use crate::codes::Kind;
use crate::failure::Failure;
use crate::format_arg::{FormatArg, TypedPath};
use crate::output;
use crate::volume::{DiskName, WorkingCopy};

/// Bytes of standard input that are in memory at once.
const SPOOL_BUFFER: usize = 1 << 20;
/// Bytes: zeroes in pieces of this size become holes in what is kept of standard input.
const SPOOL_PIECE: usize = 64 << 10;
/// What stands for standard input and standard output.
const DASH: &str = "-";
/// Standard input as a file that can be opened again.
const STDIN: &str = "/dev/stdin";

/// How a source is opened.
#[derive(Args, Clone, Debug)]
pub(crate) struct SourceArgs {
    /// The format of the source, instead of the detected one; `raw` takes the bytes of any file as a disk
    #[arg(long, short = 'f', value_name = "FORMAT", value_enum)]
    pub(crate) from: Option<FormatArg>,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
}

/// How the ancestors of an image are found.
#[derive(Args, Clone, Debug)]
pub(crate) struct ChainArgs {
    /// A file to try as a parent before any that an image names, for every layer; the only way to a raw parent.
    /// raw:FILE takes the bytes of any file as a raw one
    #[arg(long = "parent", value_name = "FILE", value_hint = ValueHint::FilePath,
          value_parser = OsStringValueParser::new().map(TypedPath::from))]
    pub(crate) parents: Vec<TypedPath>,
    #[command(flatten)]
    pub(crate) search: SearchArgs,
}

/// Where ancestors may be, and whether their locks count.
#[derive(Args, Clone, Debug)]
pub(crate) struct SearchArgs {
    /// A directory to look for parents in, by name and by identity
    #[arg(long = "parent-dir", value_name = "DIR")]
    pub(crate) parent_dirs: Vec<PathBuf>,
    /// Never follow what an image names as its parent: for untrusted images
    #[arg(long)]
    pub(crate) explicit_parents: bool,
    /// Take no locks and respect none: what is read may be torn while another program writes
    #[arg(long, short = 'U')]
    pub(crate) force_share: bool,
}

impl ChainArgs {
    /// Files to try as parents, and nothing else that is special.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn with_parents(parents: impl Iterator<Item = PathBuf>) -> Self {
        let parents = parents.map(|path| TypedPath { format: None, path });
        Self {
            parents: parents.collect(),
            search: SearchArgs {
                parent_dirs: Vec::new(),
                explicit_parents: false,
                force_share: false,
            },
        }
    }

    /// As the library takes them.
    pub(crate) fn options(&self) -> OpenOptions {
        self.add_parents(self.search.options())
    }

    /// Adds the files to try as parents.
    pub(crate) fn add_parents(&self, options: OpenOptions) -> OpenOptions {
        self.parents.iter().fold(options, |options, parent| {
            let path = [parent.path.clone()];
            match parent.is_raw() {
                true => options.raw_parents(path),
                false => options.parents(path),
            }
        })
    }
}

impl SearchArgs {
    /// Refuses to work without locks, for a reason.
    pub(crate) fn require_locks(&self, reason: &str) -> Result<(), Failure> {
        if self.force_share {
            return Err(Failure::usage(format!("{reason}: --force-share can't be used here")));
        }
        Ok(())
    }

    /// As the library takes them.
    pub(crate) fn options(&self) -> OpenOptions {
        let options = OpenOptions::new()
            .parent_dirs(self.parent_dirs.iter().cloned())
            .force_share(self.force_share);
        if self.explicit_parents {
            options.gate(Arc::new(ExplicitOnly))
        } else {
            options
        }
    }
}

impl SourceArgs {
    /// As the library takes them, for `source`.
    pub(crate) fn options(&self, source: &Source) -> OpenOptions {
        let options = self.chain.options().format(self.from.map(Into::into));
        // Standard input has no directory that a parent could be beside.
        if source.is_stdin {
            options.gate(Arc::new(ExplicitOnly))
        } else {
            options
        }
    }

    /// The same for one who only reads the disk: images of other programs are taken too.
    pub(crate) fn reading_options(&self, source: &Source) -> OpenOptions {
        self.options(source).foreign(true)
    }

    /// Opens a source that must be a VHD or a raw disk, for reading.
    pub(crate) fn open_native(&self, source: &Source) -> Result<OpenedDisk, Failure> {
        let opened = self.options(source).open(&source.path)?;
        opened.warnings().iter().for_each(output::warning);
        Ok(opened)
    }

    /// Opens `source` for reading, with its ancestors, and says what is odd about them.
    pub(crate) fn open(&self, source: &Source) -> Result<OpenedDisk, Failure> {
        self.open_noting(source, &mut Vec::new())
    }

    /// The same, and `found` has the files of the chain as far as they are in order, after a failure too.
    pub(crate) fn open_noting(&self, source: &Source, found: &mut Vec<PathBuf>) -> Result<OpenedDisk, Failure> {
        let opened = match &source.remote {
            Some(uri) => self.open_remote(source, uri, false)?,
            None => self.reading_options(source).open_noting(&source.path, found)?,
        };
        for warning in opened.warnings() {
            output::warning(warning);
        }
        Ok(opened)
    }

    /// Opens a disk on a server, or with `--from vhd` or `--from vhdx` the image that the disk's bytes are.
    pub(crate) fn open_remote(&self, source: &Source, uri: &NbdUri, write: bool) -> Result<OpenedDisk, Failure> {
        if matches!(self.from, None | Some(FormatArg::Raw)) && !self.chain.parents.is_empty() {
            let message = "a raw disk has no parents: --parent on a server's disk needs --from vhd or --from vhdx";
            return Err(Failure::usage(message).about(&source.name));
        }
        let options = ClientOptions {
            write,
            ..ClientOptions::default()
        };
        let device = NbdDevice::open(uri, options)?;
        Ok(self.options(source).foreign(!write).open_device(device, &source.path)?)
    }
}

/// A source that can be opened by a path.
#[derive(Debug)]
pub(crate) struct Source {
    /// The path to open.
    pub(crate) path: PathBuf,
    /// The path as the user gave it.
    pub(crate) name: String,
    /// It is a snapshot, which is not to be changed.
    pub(crate) is_snapshot: bool,
    is_stdin: bool,
    /// A disk on a server; the path is then only its name.
    remote: Option<NbdUri>,
    /// A disk on a volume.
    on_volume: Option<DiskName>,
}

impl Source {
    /// The source that the user named. Standard input is used in place if it is a file; what comes through a
    /// pipe is kept in a nameless file in `spool_dir`, or in the directory for temporary files.
    pub(crate) fn new(given: &Path, spool_dir: Option<&Path>) -> Result<Self, Failure> {
        let name = output::path_text(given);
        if !is_dash(given) {
            let path = image_path(given)?;
            let on_volume = DiskName::parse(given)?.map(|disk| disk.of_file(&path));
            let given = &*file_of(given)?;
            let is_now = split_snapshot(given).is_some_and(|(_, name)| name.eq_ignore_ascii_case(NOW));
            return Ok(Self {
                is_snapshot: path != given && !is_now,
                path,
                name,
                is_stdin: false,
                remote: None,
                on_volume,
            });
        }
        if !stdin_is_a_file()? {
            spool_stdin(spool_dir)?;
        }
        Ok(Self {
            path: STDIN.into(),
            name,
            is_snapshot: false,
            is_stdin: true,
            remote: None,
            on_volume: None,
        })
    }

    /// The same, or a disk on a server: for commands that only read the content of a disk.
    pub(crate) fn or_remote(given: &Path, spool_dir: Option<&Path>) -> Result<Self, Failure> {
        let Some(text) = uri_text(given) else {
            return Self::new(given, spool_dir);
        };
        let name = output::path_text(given);
        let uri = text.parse();
        let uri = uri.map_err(|error| Failure::new(Kind::Uri, error).about(&name))?;
        Ok(Self {
            path: given.to_owned(),
            name,
            is_snapshot: false,
            is_stdin: false,
            remote: Some(uri),
            on_volume: None,
        })
    }
}

impl Source {
    /// Where it is, if it is a disk on a server.
    pub(crate) fn remote(&self) -> Option<&NbdUri> {
        self.remote.as_ref()
    }

    /// The same disk, in a copy that is changed in its place; and how its parents are found from there.
    pub(crate) fn in_copy(self, copy: &WorkingCopy, chain: &ChainArgs) -> (Self, ChainArgs) {
        let mut chain = chain.clone();
        chain.search.parent_dirs.push(copy.home());
        let path = copy.path().to_owned();
        (Self { path, ..self }, chain)
    }

    /// What it is called on its volume, if it is named so.
    pub(crate) fn on_volume(&self) -> Option<&DiskName> {
        self.on_volume.as_ref()
    }
}

/// The file that the user named: a path, or `V:/PATH` for one on a volume.
fn file_of(given: &Path) -> Result<Cow<'_, Path>, Failure> {
    let disk = DiskName::parse(given)?;
    Ok(disk.map_or(Cow::Borrowed(given), |disk| Cow::Owned(disk.file())))
}

/// The file that is read for what the user named: a path, `V:/PATH`, or `DISK@NAME` for a snapshot. A file that is really called
/// so wins.
pub(crate) fn image_path(given: &Path) -> Result<PathBuf, Failure> {
    if uri_text(given).is_some() {
        let message = "this works on image files, and that is a disk on a server";
        return Err(Failure::new(Kind::Uri, message).about(output::path_text(given)));
    }
    let given = &*file_of(given)?;
    if given.symlink_metadata().is_ok()
        && let Some(frozen) = snapshot::frozen_base(given)
    {
        tell_frozen(given, &frozen);
    }
    Ok(named_file(given)?)
}

/// The same for what was used as an image already: nothing is told of it.
pub(crate) fn named_file(given: &Path) -> Result<PathBuf, SnapshotError> {
    match split_snapshot(given).filter(|_| given.symlink_metadata().is_err()) {
        Some((disk, name)) => snapshot::resolve(disk, name),
        None => Ok(given.to_owned()),
    }
}

/// What the user named, if that is meant as an NBD URI. A file that is called so can be given as `./nbd:...`.
fn uri_text(given: &Path) -> Option<&str> {
    given.to_str().filter(|text| NbdUri::is_uri(text))
}

/// The parts of `DISK@NAME`, if there is such a disk.
pub(crate) fn split_snapshot(given: &Path) -> Option<(&Path, &str)> {
    let (disk, name) = given.to_str()?.rsplit_once('@')?;
    let disk = Path::new(disk);
    (!name.contains('/') && disk.is_file()).then_some((disk, name))
}

fn tell_frozen(disk: &Path, frozen: &FrozenBase) {
    let (disk, active) = (disk.display(), frozen.active.display());
    let what = match &frozen.snapshot {
        Some(name) => format!("is snapshot \"{name}\""),
        None => "is a part of its snapshots".to_owned(),
    };
    output::warning(format_args!(
        "{disk} {what}; the present state of the disk is {active}, or {disk}@{NOW}"
    ));
}

/// Whether what the user named is a file: no server and not standard input.
pub(crate) fn names_a_file(given: &Path) -> bool {
    !is_dash(given) && uri_text(given).is_none()
}

/// Whether a path means standard input or output.
pub(crate) fn is_dash(path: &Path) -> bool {
    path.as_os_str() == DASH
}

/// Refuses standard input for an image that is changed in place, for what is `done` to it.
pub(crate) fn require_file(image: &Path, done: &str) -> Result<(), Failure> {
    if is_dash(image) {
        let message = format!("an image is {done} in place: standard input has no place");
        return Err(Failure::usage(message));
    }
    Ok(())
}

/// Two sources can't both be standard input.
pub(crate) fn check_one_stdin(a: &Path, b: &Path) -> Result<(), Failure> {
    if is_dash(a) && is_dash(b) {
        return Err(Failure::usage("only one of the two can be standard input"));
    }
    Ok(())
}

/// Whether standard input can be opened as a file. One that somebody has read a part of is not what it was.
fn stdin_is_a_file() -> Result<bool, Failure> {
    let failed = |error: io::Error| Failure::new(Kind::Input, format!("can't query standard input: {error}"));
    let stdin = io::stdin();
    let file = File::from(stdin.as_fd().try_clone_to_owned().map_err(failed)?);
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Ok(false);
    }
    Ok(seek(&stdin, SeekFrom::Current(0)).map_err(|errno| failed(errno.into()))? == 0)
}

/// Puts what standard input holds into a file that has no name, and the file into standard input's place.
fn spool_stdin(dir: Option<&Path>) -> Result<(), Failure> {
    let dir = dir.map_or_else(std::env::temp_dir, Path::to_owned);
    let file = tempfile::tempfile_in(&dir).map_err(|error| Failure::io("create a file in", &dir, &error))?;
    let kept = |error: io::Error| {
        let place = dir.display();
        Failure::new(Kind::Input, format!("can't keep standard input in {place}: {error}"))
    };
    copy_sparsely(&mut io::stdin().lock(), &file)?.map_err(kept)?;
    rustix::stdio::dup2_stdin(&file).map_err(|errno| kept(errno.into()))
}

/// Copies a stream into an empty file, leaving holes where it is zero. A failure to read is the outer one.
fn copy_sparsely(source: &mut dyn Read, file: &File) -> Result<io::Result<()>, Failure> {
    static ZEROES: [u8; SPOOL_PIECE] = [0; SPOOL_PIECE];
    let mut buffer = vec![0; SPOOL_BUFFER];
    let mut length = 0;
    loop {
        let filled = fill(source, &mut buffer)
            .map_err(|error| Failure::new(Kind::Input, format!("can't read standard input: {error}")))?;
        for piece in buffer[..filled].chunks(SPOOL_PIECE) {
            if piece != &ZEROES[..piece.len()]
                && let Err(error) = file.write_all_at(piece, length)
            {
                return Ok(Err(error));
            }
            length += u64_from(piece.len());
        }
        if filled < buffer.len() {
            return Ok(file.set_len(length));
        }
    }
}

/// Reads until the buffer is full or the stream ends.
fn fill(source: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn streams_are_kept_sparsely() {
        let mut bytes = vec![0; 5 << 20];
        bytes[3 << 20] = 7;
        bytes.extend([1, 2, 3]);
        let file = tempfile::tempfile().unwrap();
        copy_sparsely(&mut bytes.as_slice(), &file).unwrap().unwrap();
        let mut read = vec![0xEE; bytes.len()];
        file.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(read, bytes);
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), u64_from(bytes.len()));
        assert!(metadata.blocks() * 512 <= 1 << 20, "{} blocks", metadata.blocks());
    }

    #[test]
    fn streams_that_end_in_zeroes_keep_their_length() {
        let file = tempfile::tempfile().unwrap();
        copy_sparsely(&mut io::repeat(0).take(3_000_001), &file)
            .unwrap()
            .unwrap();
        assert_eq!(file.metadata().unwrap().len(), 3_000_001);
    }
}
