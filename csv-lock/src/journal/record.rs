//! What a journal says.

use serde::{Deserialize, Serialize};

use crate::id::{Generation, NodeId, OpId, Session, VolumeId};
use crate::state::Sealed;

/// One record of a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// Always the first one: all that this epoch's coordinator found in the journals before it. What an older coordinator
    /// appends later is not in it, and so is void (INV-93).
    Seal {
        /// The volume that the journal belongs to.
        volume: VolumeId,
        /// Who wrote it.
        node: NodeId,
        /// What the engine said when it elected the node; for people.
        engine_revision: u64,
        /// The state of the volume, and operations whose effects may be missing from it.
        sealed: Sealed,
    },
    /// An operation that takes effect: a decision, before it is carried out.
    Intent {
        /// The request that asked for it.
        request: RequestId,
        /// What is done.
        op: Op,
    },
    /// All effects of earlier operations are durable: nobody has to repeat them.
    Settled,
}

/// A request, so that asking twice does once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestId {
    /// Who asks. A session has one request open at a time.
    pub session: Session,
    /// Counts the requests of the session, from 1.
    pub number: u64,
}

/// A disk's block table in its file: big-endian sector numbers of 32 bits, `0xFFFF_FFFF` for unused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// How many entries it has.
    pub entries: u32,
    /// What a block takes in the file, bitmap included, in bytes; a multiple of 512.
    pub block: u64,
    /// What of that the bitmap takes, in bytes. The data behind it begins at a multiple of 4 KiB; 0: a block may begin anywhere.
    #[serde(default)]
    pub bitmap: u64,
    /// So many bytes from the beginning of the file stand at its end too, behind the last block: a footer. 0: none.
    #[serde(default)]
    pub footer: u64,
    /// The bitmap of a new block says that all of it is there: its space reads zero. Else it says that nothing is.
    #[serde(default)]
    pub full: bool,
}

/// A change of metadata, as it stands in a journal: every place and value is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// A file that exists becomes a disk of the volume.
    Adopt {
        /// Its path.
        path: String,
        /// Its block table, if the coordinator allocates for it.
        table: Option<Table>,
        /// Where new blocks begin: the length of the file at least, in bytes.
        end: u64,
    },
    /// The prepared file `incoming` becomes the disk `path`.
    Create {
        /// Its path.
        path: String,
        /// The name of the prepared file, never used twice.
        incoming: String,
        /// Its block table, if the coordinator allocates for it.
        table: Option<Table>,
        /// Where new blocks begin, in bytes.
        end: u64,
    },
    /// The prepared file `incoming` takes the place of the disk `path`: compaction, resize and merge end so.
    Replace {
        /// Its path.
        path: String,
        /// The name of the prepared file, never used twice.
        incoming: String,
        /// The block table of the new file.
        table: Option<Table>,
        /// Where new blocks begin, in bytes.
        end: u64,
    },
    /// The disk goes.
    Delete {
        /// Its path.
        path: String,
    },
    /// A session gets the right to write.
    Open {
        /// The disk.
        path: String,
        /// Who gets it.
        holder: Session,
    },
    /// The holder gives it back, its descriptors closed.
    Close {
        /// The disk.
        path: String,
    },
    /// The holder passes it on, its own descriptors closed.
    Handover {
        /// The disk.
        path: String,
        /// Who gets it.
        to: Session,
    },
    /// A session is proven to be gone: what it holds is free.
    Fenced {
        /// The session.
        session: Session,
        /// How that is known; for people.
        proof: String,
    },
    /// Blocks get their places in the file.
    Alloc {
        /// The disk.
        path: String,
        /// Pairs of block and place in the file, in bytes; each place is used once in the life of the file (INV-95).
        blocks: Vec<(u32, u64)>,
        /// Where the new ones among them begin: places before it are of blocks that had one already.
        fresh: u64,
        /// Where the next new block begins, in bytes.
        end: u64,
    },
}

impl Op {
    /// Whether something outside the journal has to change.
    #[must_use]
    pub fn has_effect(&self) -> bool {
        matches!(
            self,
            Self::Create { .. } | Self::Replace { .. } | Self::Delete { .. } | Self::Alloc { .. }
        )
    }
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done; the operation that did it.
    Done(OpId),
    /// The right to write, with its generation.
    Writer(Generation),
    /// The places of blocks in the file, in bytes.
    Blocks(Vec<(u32, u64)>),
}
