//! What can go wrong, each with a stable code.

use std::io;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::id::{ClusterId, Epoch, Generation, NodeId, VolumeId};

/// A failure of the protocol, of the volume or of the engine.
#[derive(Debug, Error)]
pub enum CsvError {
    /// A record of a journal is damaged, and it is not the unfinished end of one.
    #[error(
        "the journal {file} is damaged at offset {offset:#x}: {reason}; nothing was changed: restore the file from a copy"
    )]
    JournalDamaged {
        /// The file, relative to the volume.
        file: String,
        /// Where the record begins, in bytes.
        offset: u64,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// A journal has a record that this version does not know.
    #[error("the journal {file} has an unknown record at offset {offset:#x} ({reason}): use the version that wrote it")]
    JournalUnknown {
        /// The file, relative to the volume.
        file: String,
        /// Where the record begins, in bytes.
        offset: u64,
        /// What the decoder said.
        reason: String,
    },
    /// Epochs exist, but none of them has a seal.
    #[error(
        "no journal below epoch {below} has a seal: the state of the volume is lost; restore .csv/epoch from a copy"
    )]
    NoSeal {
        /// The epoch that looked for one.
        below: Epoch,
    },
    /// The directory has no `.csv/format`.
    #[error("{path} is not a cluster volume (no .csv/format): `vhd volume init` makes one")]
    NotAVolume {
        /// The directory.
        path: String,
    },
    /// `.csv/format` is damaged or of another version.
    #[error("the file .csv/format can't be used: {reason}")]
    FormatDamaged {
        /// Which rule it breaks.
        reason: String,
    },
    /// The directory is a volume already.
    #[error("{path} is a cluster volume already ({volume})")]
    VolumeExists {
        /// The directory.
        path: String,
        /// Its identity.
        volume: VolumeId,
    },
    /// The machine knows another volume of that name.
    #[error("there is another volume {name} on this machine; `vhd volume status` shows all")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The file system lacks something that the protocol relies on.
    #[error("the file system can't carry a cluster volume: {missing}")]
    FileSystem {
        /// What was tried and did not work.
        missing: String,
    },
    /// Another coordinator has taken the volume over.
    #[error("epoch {epoch} is over: another coordinator has the volume")]
    Superseded {
        /// The epoch that ended.
        epoch: Epoch,
    },
    /// The request was refused; nothing changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A frame from the network is damaged or too long.
    #[error("a damaged message: {reason}")]
    Message {
        /// Which rule it breaks.
        reason: String,
    },
    /// No coordinator answered in time.
    #[error("no coordinator of the volume answered within {seconds} s: is `vhd volume agent` running?")]
    NoCoordinator {
        /// How long was tried.
        seconds: u64,
    },
    /// The engine that elects the coordinator failed.
    #[error("the engine failed: {reason}")]
    Engine {
        /// What it said.
        reason: String,
    },
    /// The engine has a defect that makes its leases worthless.
    #[error(
        "etcd {found} is refused: versions below 3.4.31 and 3.5.13 revoke leases that are being renewed; use {wanted} or newer"
    )]
    EngineVersion {
        /// The version that the server reports.
        found: String,
        /// The oldest good one of its branch.
        wanted: &'static str,
    },
    /// A request to the volume's file system failed.
    #[error("{action} {file}: {source}")]
    Volume {
        /// What was tried.
        action: &'static str,
        /// The file, relative to the volume.
        file: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A file with a certificate, a key or an authority can't be used.
    #[error("{file} can't be used as a certificate, key or authority: {reason}")]
    CertificateUnusable {
        /// The file.
        file: String,
        /// Why not.
        reason: String,
    },
    /// A certificate is not valid now.
    #[error("{whose} is stale: {reason}; a new one takes its place without a new start")]
    CertificateStale {
        /// Whose, or which file.
        whose: String,
        /// What the check said.
        reason: String,
    },
    /// A certificate is not of the cluster's authority.
    #[error("{whose} is not one of this cluster: {reason}")]
    CertificateForeign {
        /// Whose, or which file.
        whose: String,
        /// What the check said.
        reason: String,
    },
    /// A certificate is another node's.
    #[error("{whose} is not that of node {node}: a certificate names its node as a DNS name (subjectAltName)")]
    CertificateName {
        /// Whose, or which file.
        whose: String,
        /// The node.
        node: NodeId,
    },
    /// No message can reach the coordinator from this machine.
    #[error("node {node}, which coordinates the volume on another machine, can't be reached: {reason}")]
    Unreachable {
        /// The node.
        node: NodeId,
        /// What is missing.
        reason: String,
    },
    /// A fence could not prove that a node is gone.
    #[error("node {node} could not be fenced: {reason}")]
    NotFenced {
        /// The node.
        node: NodeId,
        /// Why there is no proof.
        reason: String,
    },
}

/// Why a coordinator refuses a request. It travels back to the one who asked.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Refusal {
    /// The message is for another cluster.
    #[error("the message is of cluster {found}, this is cluster {expected}")]
    ForeignCluster {
        /// The cluster of the receiver.
        expected: ClusterId,
        /// The one in the message.
        found: ClusterId,
    },
    /// The sender speaks for a node that its certificate does not name.
    #[error("the sender's certificate is not that of node {node}, for which it speaks")]
    ForeignNode {
        /// The node in the message.
        node: NodeId,
    },
    /// The message is for another volume.
    #[error("the message is for volume {found}, this is the coordinator of {expected}")]
    WrongVolume {
        /// The volume of the receiver.
        expected: VolumeId,
        /// The one in the message.
        found: VolumeId,
    },
    /// The sender has not noticed that the coordinator changed.
    #[error("the message is of epoch {found}, the volume is in epoch {current}")]
    StaleEpoch {
        /// The epoch of the receiver.
        current: Epoch,
        /// The one in the message.
        found: Epoch,
    },
    /// The sender has had the answer to a later request.
    #[error("the request is older than the last one of its session")]
    Late,
    /// The receiver's own epoch is over: what became of the request is known to its successor.
    #[error("the coordinator has moved: ask its successor")]
    Moved,
    /// Another session writes the disk.
    #[error("{path} is being written by {holder} (generation {generation})")]
    Held {
        /// The disk.
        path: String,
        /// Who has it.
        holder: String,
        /// The generation of the holder.
        generation: Generation,
    },
    /// The sender's right to write has ended.
    #[error("generation {found} of {path} is over: generation {current} is the last that was given away")]
    StaleGeneration {
        /// The disk.
        path: String,
        /// The last that was given away.
        current: Generation,
        /// The one in the message.
        found: Generation,
    },
    /// There is no such disk.
    #[error("there is no disk {path} on the volume")]
    NoSuchDisk {
        /// The path in the message.
        path: String,
    },
    /// The name is taken.
    #[error("{path} exists already")]
    Exists {
        /// The path in the message.
        path: String,
    },
    /// The prepared file of a create or replace is not in `.csv/incoming`.
    #[error("the prepared file {name} is not there: prepare it again")]
    NotPrepared {
        /// Its name.
        name: String,
    },
    /// A path that leads out of the volume or into `.csv`, or is longer than 1024 bytes.
    #[error("{path:?} is not the path of a disk on a volume")]
    BadPath {
        /// The path in the message.
        path: String,
    },
    /// A block or table that does not exist.
    #[error("{path}: {reason}")]
    BadBlock {
        /// The disk.
        path: String,
        /// What is wrong with the request.
        reason: String,
    },
    /// The volume is full.
    #[error("no space for {path}: {reason}")]
    NoSpace {
        /// The disk.
        path: String,
        /// The system's answer.
        reason: String,
    },
    /// The volume's file system failed while the request was prepared. Nothing changed.
    #[error("{path}: {reason}")]
    Failed {
        /// The disk.
        path: String,
        /// The system's answer.
        reason: String,
    },
}

impl CsvError {
    /// The stable code, for scripts.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::JournalDamaged { .. } => "VHD-E0901",
            Self::JournalUnknown { .. } => "VHD-E0902",
            Self::NoSeal { .. } => "VHD-E0903",
            Self::NotAVolume { .. } => "VHD-E0904",
            Self::FormatDamaged { .. } => "VHD-E0905",
            Self::VolumeExists { .. } => "VHD-E0906",
            Self::NameTaken { .. } => "VHD-E0916",
            Self::FileSystem { .. } => "VHD-E0907",
            Self::Superseded { .. } => "VHD-E0908",
            Self::Message { .. } => "VHD-E0909",
            Self::NoCoordinator { .. } => "VHD-E0910",
            Self::Engine { .. } => "VHD-E0911",
            Self::EngineVersion { .. } => "VHD-E0912",
            Self::Volume { .. } => "VHD-E0913",
            Self::NotFenced { .. } => "VHD-E0914",
            Self::CertificateUnusable { .. } => "VHD-E0939",
            Self::CertificateStale { .. } => "VHD-E0940",
            Self::CertificateForeign { .. } => "VHD-E0941",
            Self::CertificateName { .. } => "VHD-E0942",
            Self::Unreachable { .. } => "VHD-E0944",
            Self::Refused(refusal) => refusal.code(),
        }
    }
}

impl Refusal {
    /// The stable code, for scripts.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::ForeignCluster { .. } => "VHD-E0920",
            Self::ForeignNode { .. } => "VHD-E0943",
            Self::WrongVolume { .. } => "VHD-E0921",
            Self::StaleEpoch { .. } => "VHD-E0922",
            Self::Moved => "VHD-E0923",
            Self::Held { .. } => "VHD-E0924",
            Self::StaleGeneration { .. } => "VHD-E0925",
            Self::NoSuchDisk { .. } => "VHD-E0926",
            Self::Exists { .. } => "VHD-E0927",
            Self::NotPrepared { .. } => "VHD-E0928",
            Self::BadPath { .. } => "VHD-E0929",
            Self::BadBlock { .. } => "VHD-E0930",
            Self::NoSpace { .. } => "VHD-E0931",
            Self::Failed { .. } => "VHD-E0932",
            Self::Late => "VHD-E0933",
        }
    }
}

/// Adds the file and the attempt to a failure of the file system.
pub(crate) trait VolumeContext<T> {
    /// `action` is a verb ("reading"); `file` is relative to the volume.
    fn at(self, action: &'static str, file: &str) -> Result<T, CsvError>;
}

impl<T> VolumeContext<T> for io::Result<T> {
    fn at(self, action: &'static str, file: &str) -> Result<T, CsvError> {
        self.map_err(|source| CsvError::Volume {
            action,
            file: file.to_owned(),
            source,
        })
    }
}
