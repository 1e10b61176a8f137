//! The file that makes a directory a volume.

use std::io;

use serde::{Deserialize, Serialize};

use super::layout::{EPOCHS, INCOMING, ROOT};
use super::{VolumeFile, VolumeIo};
use crate::error::{CsvError, VolumeContext};
use crate::id::{ClusterId, VolumeId};

const FORMAT: &str = ".csv/format";
/// While it is written; the name appears when it is complete.
const UNFINISHED: &str = ".csv/format.new";
const VERSION: u32 = 1;
/// No format file is longer, in bytes.
const MAX_LEN: u64 = 64 << 10;

/// What a volume is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeFormat {
    /// The version of everything below `.csv`.
    pub version: u32,
    /// Its identity.
    pub volume: VolumeId,
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// Its name, for people.
    pub name: String,
    /// Who elects its coordinator, as `--engine` names it: what a machine is told that gets to know the volume.
    #[serde(default = "local")]
    pub engine: String,
}

/// The engine of volumes that do not say one.
fn local() -> String {
    "local".into()
}

/// Makes the directory a volume, with a file system that was probed. Killed at any moment it leaves a volume or none, and can
/// be run again.
///
/// # Errors
/// `VolumeExists`, `FileSystem` if the protocol cannot work here, failures of the volume.
pub fn init_volume<V: VolumeIo>(volume: &V, format: &VolumeFormat) -> Result<(), CsvError> {
    for dir in [ROOT, EPOCHS, INCOMING] {
        match volume.make_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.at("creating", dir)?,
        }
    }
    if volume.exists(FORMAT).at("looking for", FORMAT)? {
        return Err(CsvError::VolumeExists {
            path: format.name.clone(),
            volume: read_format(volume)?.volume,
        });
    }
    super::probe::probe(volume)?;
    match volume.remove_file(UNFINISHED) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        removed => removed.at("removing", UNFINISHED)?,
    }
    let json = serde_json::to_vec(format).expect("a format has string keys alone");
    let text = format!("{:08x}\n{}\n", crc32fast::hash(&json), String::from_utf8_lossy(&json));
    let file = volume.create_new(UNFINISHED).at("creating", UNFINISHED)?;
    file.write_at(text.as_bytes(), 0).at("writing", UNFINISHED)?;
    file.sync().at("syncing", UNFINISHED)?;
    volume.rename(UNFINISHED, FORMAT, false).at("creating", FORMAT)?;
    volume.sync_dir(ROOT).at("syncing", ROOT)
}

/// What the volume is.
///
/// # Errors
/// `NotAVolume`, `FormatDamaged`, failures of the volume.
pub fn read_format<V: VolumeIo>(volume: &V) -> Result<VolumeFormat, CsvError> {
    let damaged = |reason: String| CsvError::FormatDamaged { reason };
    let file = match volume.open(FORMAT) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(CsvError::NotAVolume {
                path: FORMAT.to_owned(),
            });
        }
        opened => opened.at("opening", FORMAT)?,
    };
    let len = file.len().at("reading", FORMAT)?;
    if len > MAX_LEN {
        return Err(damaged(format!("{len} bytes long, at most {MAX_LEN} are allowed")));
    }
    let mut text = vec![0; usize::try_from(len).expect("bounded")];
    file.read_at(&mut text, 0).at("reading", FORMAT)?;
    let body = text
        .strip_suffix(b"\n")
        .ok_or_else(|| damaged("its end is missing".into()))?;
    let (sum, json) = body
        .split_at_checked(9)
        .ok_or_else(|| damaged("it is too short".into()))?;
    if sum != format!("{:08x}\n", crc32fast::hash(json)).as_bytes() {
        return Err(damaged("it does not have its checksum".into()));
    }
    let format: VolumeFormat = serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
    if format.version != VERSION {
        return Err(damaged(format!(
            "version {}, this program knows {VERSION}",
            format.version
        )));
    }
    Ok(format)
}

impl VolumeFormat {
    /// A new volume of a cluster.
    #[must_use]
    pub fn new(volume: VolumeId, cluster: ClusterId, name: &str) -> Self {
        Self {
            version: VERSION,
            volume,
            cluster,
            name: name.to_owned(),
            engine: local(),
        }
    }

    /// The same with another engine than that of one machine.
    #[must_use]
    pub fn with_engine(mut self, engine: &str) -> Self {
        engine.clone_into(&mut self.engine);
        self
    }
}
