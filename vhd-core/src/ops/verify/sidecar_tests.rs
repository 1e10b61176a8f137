//! Records read as they were written, and every other byte is noticed.

use super::*;
use crate::ErrorKind;
use crate::storage::MemoryFile;

fn header(disk_size: u64) -> RecordHeader {
    RecordHeader {
        disk_id: UniqueId([7; 16]),
        disk_size,
        has_parent: true,
        created: Timestamp(5),
        stamp: FileStamp {
            len: 12345,
            modified: Some((-3, 999_999_999)),
        },
    }
}

fn contents() -> Vec<Run> {
    let mut covered = SectorSet::default();
    covered.insert(3, 9);
    let run = |blocks, content| Run { blocks, content };
    vec![
        run(3, Content::Empty),
        run(1, Content::Data([1; 32])),
        run(1, Content::Data([1; 32])),
        run(2, Content::Covered),
        run(
            1,
            Content::Mixed {
                digest: [2; 32],
                covered,
            },
        ),
        run(1_044_480, Content::Empty),
    ]
}

fn encoded(disk_size: u64, runs: &[Run]) -> Vec<u8> {
    let file = MemoryFile::new();
    let mut writer = RecordWriter::new(&file, &header(disk_size)).unwrap();
    for run in runs {
        // In pieces, as a scan tells them.
        let half = run.blocks / 2;
        for blocks in [half, run.blocks - half].into_iter().filter(|&blocks| blocks > 0) {
            let content = run.content.clone();
            writer.push(Run { blocks, content }).unwrap();
        }
    }
    let len = writer.finish().unwrap();
    assert_eq!(len, file.len().unwrap());
    let mut bytes = vec![0; usize_from(len)];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn decoded(bytes: &[u8]) -> Result<(RecordHeader, Vec<Run>), VerifyError> {
    let file = Arc::new(MemoryFile::from_bytes(bytes.to_vec()));
    let record = Record::open(file, Path::new("x.digest"))?;
    let mut runs = record.runs();
    let mut all = Vec::new();
    while let Some(run) = runs.next()? {
        all.push(run);
    }
    Ok((*record.header(), all))
}

fn size(runs: &[Run]) -> u64 {
    runs.iter().map(|run| run.blocks).sum::<u64>() * DIGEST_BLOCK - 512
}

#[test]
fn records_read_as_they_were_written_and_sparse_ones_are_small() {
    let runs = contents();
    let bytes = encoded(size(&runs), &runs);
    assert_eq!(decoded(&bytes).unwrap(), (header(size(&runs)), runs));
    assert!(bytes.len() < 1024, "{} bytes for 2040 GiB", bytes.len());
    let mut unknown = header(512);
    unknown.stamp.modified = None;
    let again = RecordHeader::decode(&unknown.encode(), Path::new("x")).unwrap();
    assert_eq!(again, unknown);
}

#[test]
fn every_changed_byte_and_every_other_length_is_noticed() {
    let runs = contents();
    let good = encoded(size(&runs), &runs);
    for at in 0..good.len() {
        for change in [1, 0x80, 0xFF] {
            let mut bytes = good.clone();
            bytes[at] ^= change;
            let error = decoded(&bytes).unwrap_err();
            let is_version = (8..12).contains(&at);
            let expected = if is_version {
                ErrorKind::RecordUnknown
            } else {
                ErrorKind::DigestDamaged
            };
            assert_eq!(error.kind(), expected, "byte {at}: {error}");
        }
    }
    for len in 0..good.len() {
        let error = decoded(&good[..len]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DigestDamaged, "{len} bytes");
    }
    let longer = [&good[..], &[0]].concat();
    assert_eq!(decoded(&longer).unwrap_err().kind(), ErrorKind::DigestDamaged);
}

/// A stranger's record: any byte changed, and the digest made to fit.
#[test]
fn a_right_digest_of_wrong_runs_is_no_proof() {
    let runs = contents();
    let good = encoded(size(&runs), &runs);
    let end = good.len() - DIGEST_BYTES;
    let mut refused = 0;
    for at in HEADER_BYTES..end {
        for change in [1, 2, 0x80, 0xFF] {
            let mut bytes = good.clone();
            bytes[at] ^= change;
            let digest = blake3::hash(&bytes[..end]);
            bytes[end..].copy_from_slice(digest.as_bytes());
            match decoded(&bytes) {
                Ok((_, found)) => assert_ne!(found, runs, "byte {at}"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::DigestDamaged, "byte {at}: {error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 0);
}
