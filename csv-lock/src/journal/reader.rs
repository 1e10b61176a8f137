//! Reading a journal: all sound records from its beginning.

use super::frame::{Frame, decode};
use super::record::Record;
use crate::error::{CsvError, VolumeContext};
use crate::id::Epoch;
use crate::volume::{VolumeFile, VolumeIo, epoch_file};

/// The records of the journal of `epoch`. An append at the end that did not end is left out; nobody was told of it.
///
/// # Errors
/// `JournalDamaged`, `JournalUnknown`, and failures of the volume.
pub(crate) fn read_journal<V: VolumeIo>(volume: &V, epoch: Epoch) -> Result<Vec<Record>, CsvError> {
    let name = epoch_file(epoch);
    let file = volume.open(&name).at("opening", &name)?;
    let len = file.len().at("reading", &name)?;
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    file.read_at(&mut bytes, 0).at("reading", &name)?;
    parse(&bytes, epoch, &name)
}

fn parse(bytes: &[u8], epoch: Epoch, name: &str) -> Result<Vec<Record>, CsvError> {
    let mut records = Vec::new();
    let mut offset = 0;
    loop {
        match decode(bytes, offset, epoch, records.len() as u64) {
            Frame::End => return Ok(records),
            Frame::Damaged(reason) => {
                return Err(CsvError::JournalDamaged {
                    file: name.to_owned(),
                    offset: offset as u64,
                    reason,
                });
            }
            Frame::Record { payload, len } => {
                let record: Record = serde_json::from_slice(payload).map_err(|error| CsvError::JournalUnknown {
                    file: name.to_owned(),
                    offset: offset as u64,
                    reason: error.to_string(),
                })?;
                if matches!(record, Record::Seal { .. }) != records.is_empty() {
                    return Err(CsvError::JournalDamaged {
                        file: name.to_owned(),
                        offset: offset as u64,
                        reason: "a seal is the first record and no other",
                    });
                }
                records.push(record);
                offset += len;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::encode;
    use super::*;
    use crate::id::{NodeId, VolumeId};
    use crate::state::Sealed;

    /// A seal and two records, with `pad` bytes in the seal to move the others.
    fn journal(pad: usize) -> Vec<u8> {
        let seal = Record::Seal {
            volume: VolumeId(uuid::Uuid::from_u128(7)),
            node: NodeId("a".repeat(pad)),
            engine_revision: 3,
            sealed: Sealed::default(),
        };
        let mut bytes = Vec::new();
        for (seq, record) in [seal, Record::Settled, Record::Settled].iter().enumerate() {
            bytes.extend(encode(Epoch(5), seq as u64, &serde_json::to_vec(record).unwrap()));
        }
        bytes
    }

    #[test]
    fn inv_92_each_byte_of_a_journal_flipped_is_refused() {
        // With every place of a boundary between two pieces of 512 bytes in the second record.
        let first = 512 - journal(0).len();
        for pad in first..first + 100 {
            let whole = journal(pad);
            assert_eq!(parse(&whole, Epoch(5), "j").unwrap().len(), 3);
            for at in 0..whole.len() {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << (at % 8);
                let error = parse(&bytes, Epoch(5), "j").expect_err("a flipped bit is no end of a journal");
                assert_eq!(error.code(), "VHD-E0901", "byte {at}, pad {pad}: {error}");
            }
        }
    }

    #[test]
    fn inv_92_an_append_that_did_not_end_is_the_end() {
        let whole = journal(1);
        let last = encode(Epoch(5), 2, &serde_json::to_vec(&Record::Settled).unwrap()).len();
        for cut in whole.len() - last..whole.len() {
            assert_eq!(parse(&whole[..cut], Epoch(5), "j").unwrap().len(), 2, "cut at {cut}");
        }
        // Pieces of an append that never reached the disk read zero.
        let big = vec![b' '; 3000];
        let mut bytes = whole.clone();
        bytes.extend(encode(Epoch(5), 3, &big));
        let begin = whole.len();
        for piece in begin / 512..bytes.len().div_ceil(512) {
            let mut torn = bytes.clone();
            let (from, to) = ((piece * 512).max(begin), (piece * 512 + 512).min(torn.len()));
            torn[from..to].fill(0);
            assert_eq!(parse(&torn, Epoch(5), "j").unwrap().len(), 3, "piece {piece}");
        }
    }

    #[test]
    fn records_of_another_epoch_or_place_are_refused() {
        let whole = journal(1);
        assert_eq!(parse(&whole, Epoch(6), "j").unwrap_err().code(), "VHD-E0901");
        let again = [whole.clone(), whole].concat();
        assert_eq!(parse(&again, Epoch(5), "j").unwrap_err().code(), "VHD-E0901");
        let unknown = encode(Epoch(5), 0, br#"{"Future":1}"#);
        assert_eq!(parse(&unknown, Epoch(5), "j").unwrap_err().code(), "VHD-E0902");
        let no_seal = encode(Epoch(5), 0, &serde_json::to_vec(&Record::Settled).unwrap());
        assert_eq!(parse(&no_seal, Epoch(5), "j").unwrap_err().code(), "VHD-E0901");
    }
}
