//! What nodes and coordinator say to each other.

use serde::{Deserialize, Serialize};

use crate::error::{CsvError, Refusal};
use crate::id::{ClusterId, Epoch, Generation, Session, VolumeId};
use crate::journal::{Outcome, RequestId, Table};
use crate::state::Disk;

/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 16 << 20;
/// The most blocks of one allocation.
pub const MAX_BLOCKS: usize = 64;
const HEADER: usize = 8;

/// A request with everything that keeps it from the wrong receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The cluster of the sender.
    pub cluster: ClusterId,
    /// The volume that it is about.
    pub volume: VolumeId,
    /// The epoch of the coordinator that the sender means.
    pub epoch: Epoch,
    /// Who asks, and for the how-manieth time.
    pub id: RequestId,
    /// What is asked for.
    pub ask: Ask,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// All disks. Changes nothing.
    Disks,
    /// Make a file that exists a disk of the volume.
    Adopt {
        /// The disk.
        path: String,
        /// Its block table, if the coordinator shall allocate for it.
        table: Option<Table>,
    },
    /// Give a prepared file its name.
    Create {
        /// The disk.
        path: String,
        /// The prepared file's name in `.csv/incoming`.
        incoming: String,
        /// Its block table, if the coordinator shall allocate for it.
        table: Option<Table>,
    },
    /// Put a prepared file in a disk's place. For its writer, or if it has none.
    Replace {
        /// The disk.
        path: String,
        /// The prepared file's name in `.csv/incoming`.
        incoming: String,
        /// The block table of the new file.
        table: Option<Table>,
        /// The sender's generation, if it is the writer.
        generation: Option<Generation>,
    },
    /// Delete a disk that nobody writes.
    Delete {
        /// The disk.
        path: String,
    },
    /// The right to write, for the sender.
    Open {
        /// The disk.
        path: String,
    },
    /// Give the right back. The sender's descriptors are closed.
    Close {
        /// The disk.
        path: String,
        /// The sender's generation.
        generation: Generation,
    },
    /// Pass the right on. The sender's descriptors are closed.
    Handover {
        /// The disk.
        path: String,
        /// The sender's generation.
        generation: Generation,
        /// Who gets it.
        to: Session,
    },
    /// A session is proven to be gone.
    Fenced {
        /// The session.
        session: Session,
        /// How that is known.
        proof: String,
    },
    /// Places for blocks, at most [`MAX_BLOCKS`].
    Alloc {
        /// The disk.
        path: String,
        /// The sender's generation.
        generation: Generation,
        /// The blocks; those with a place keep it.
        blocks: Vec<u32>,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The epoch of the coordinator that answers.
    pub epoch: Epoch,
    /// What came of the request.
    pub result: Result<Answer, Refusal>,
}

/// A good answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// What came of a change.
    Outcome(Outcome),
    /// The disks by path.
    Disks(Vec<(String, Disk)>),
}

/// A message as bytes: length and checksum (32 bits each, little-endian), JSON.
#[must_use]
pub fn encode<M: Serialize>(message: &M) -> Vec<u8> {
    let payload = serde_json::to_vec(message).expect("messages have string keys alone");
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut frame = len.to_le_bytes().to_vec();
    frame.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
    frame.extend_from_slice(&payload);
    frame
}

/// How many bytes follow the first eight of a message.
///
/// # Errors
/// `Message` if they are more than [`MAX_MESSAGE`].
pub fn payload_len(header: [u8; HEADER]) -> Result<usize, CsvError> {
    let len = u32::from_le_bytes(header[..4].try_into().expect("four bytes")) as usize;
    if len > MAX_MESSAGE {
        return Err(CsvError::Message {
            reason: format!("{len} bytes, at most {MAX_MESSAGE} are allowed"),
        });
    }
    Ok(len)
}

/// The message in a whole frame.
///
/// # Errors
/// `Message` if a byte of it is wrong.
pub fn decode<M: for<'de> Deserialize<'de>>(frame: &[u8]) -> Result<M, CsvError> {
    let damaged = |reason: &str| CsvError::Message {
        reason: reason.to_owned(),
    };
    let (header, payload) = frame.split_at_checked(HEADER).ok_or_else(|| damaged("too short"))?;
    if payload_len(header.try_into().expect("eight bytes"))? != payload.len() {
        return Err(damaged("not as long as it says"));
    }
    if crc32fast::hash(payload).to_le_bytes() != header[4..] {
        return Err(damaged("it does not have its checksum"));
    }
    serde_json::from_slice(payload).map_err(|error| damaged(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_of_a_message_flipped_is_refused() {
        let reply = Reply {
            epoch: Epoch(3),
            result: Err(Refusal::Moved),
        };
        let frame = encode(&reply);
        assert_eq!(decode::<Reply>(&frame).unwrap(), reply);
        for at in 0..frame.len() {
            let mut bytes = frame.clone();
            bytes[at] ^= 1 << (at % 8);
            assert_eq!(
                decode::<Reply>(&bytes).expect_err("flipped").code(),
                "VHD-E0909",
                "byte {at}"
            );
            assert!(decode::<Reply>(&frame[..at]).is_err(), "cut at {at}");
        }
        assert!(payload_len([0xff; 8]).is_err());
    }
}
