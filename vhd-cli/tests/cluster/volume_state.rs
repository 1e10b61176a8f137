//! What lies on the volume, read without its coordinator.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use csv_lock::{HostVolume, NodeId, Op, Record, read_format, take_over};

use crate::asking::{History, TABLE};

/// Bytes of the header of a record, and where the length of its payload is.
const HEADER: usize = 36;
const LENGTH: std::ops::Range<usize> = 20..28;

/// The table entries of a file, as the protocol's clients or a VHD have them.
fn entries(bytes: &[u8], offset: usize, count: usize) -> Vec<u32> {
    let table = &bytes[offset..offset + 4 * count];
    table
        .chunks(4)
        .map(|entry| u32::from_be_bytes(entry.try_into().unwrap()))
        .collect()
}

/// The entries of a dynamic VHD.
fn vhd_entries(bytes: &[u8]) -> Vec<u32> {
    let header = &bytes[512..1536];
    let offset = u64::from_be_bytes(header[16..24].try_into().unwrap());
    let count = u32::from_be_bytes(header[28..32].try_into().unwrap());
    entries(bytes, usize::try_from(offset).unwrap(), usize::try_from(count).unwrap())
}

fn once(path: &str, entries: &[u32]) {
    let used: Vec<u32> = entries.iter().copied().filter(|&entry| entry != u32::MAX).collect();
    let different: BTreeSet<u32> = used.iter().copied().collect();
    assert_eq!(used.len(), different.len(), "{path}: a place was given twice");
}

fn begin(volume: &Path, path: &str, len: usize) -> Vec<u8> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let file = fs::File::open(volume.join(path)).unwrap();
    file.take(len as u64).read_to_end(&mut bytes).unwrap();
    bytes
}

/// At any time: no place of a file is given twice, and what was answered is in its table.
pub(crate) fn check_places(volume: &Path, history: &History, images: &[&str]) {
    for (path, places) in history.places() {
        let count = TABLE.entries as usize;
        let bytes = begin(volume, &path, 512 + 4 * count);
        let entries = entries(&bytes, 512, count);
        once(&path, &entries);
        is_in(&path, &entries, &places);
    }
    for path in images {
        once(path, &vhd_entries(&begin(volume, path, 1 << 20)));
    }
}

fn is_in(path: &str, entries: &[u32], places: &HashMap<u32, u64>) {
    for (&block, &place) in places {
        let found = entries[block as usize];
        assert_eq!(
            u64::from(found) * 512,
            place,
            "{path}, block {block}: not what was answered"
        );
    }
}

/// When nobody coordinates: tables say what the newest journal says, what was answered is there, and no names besides.
pub(crate) fn check_all(volume: &Path, history: &History, images: &[&str]) {
    check_places(volume, history, images);
    for (path, block, place) in journaled(volume) {
        let entries = match path.starts_with("table-") {
            true => entries(
                &begin(volume, &path, 512 + 4 * TABLE.entries as usize),
                512,
                TABLE.entries as usize,
            ),
            false => vhd_entries(&begin(volume, &path, 1 << 20)),
        };
        assert_eq!(
            u64::from(entries[block as usize]) * 512,
            place,
            "{path}, block {block}: not what the journal says"
        );
    }
    let host = HostVolume::new(volume);
    let format = read_format(&host).unwrap();
    let coordinator = take_over(&host, &format, &NodeId("test".into()), 0).unwrap();
    let known: BTreeSet<String> = coordinator.state().disks.keys().cloned().collect();
    history.listed(std::time::Instant::now(), &known);
    let files = fs::read_dir(volume).unwrap().map(|entry| entry.unwrap());
    let files: BTreeSet<String> = files
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    assert_eq!(files, known, "files and disks");
    check_places(volume, history, images);
}

/// The places in the newest journal: of its epoch, all of which its coordinator answered or would have. A block of a VHD has its bitmap
/// at its place.
fn journaled(volume: &Path) -> Vec<(String, u32, u64)> {
    let journals = fs::read_dir(volume.join(".csv/epoch")).unwrap();
    let newest = journals.map(|entry| entry.unwrap().path()).max().unwrap();
    let bytes = fs::read(newest).unwrap();
    let (mut at, mut places) = (0, Vec::new());
    while at + HEADER < bytes.len() {
        assert_eq!(&bytes[at..at + 4], b"CSVj");
        let len = u64::from_le_bytes(bytes[at..][LENGTH].try_into().unwrap());
        let payload = &bytes[at + HEADER..][..usize::try_from(len).unwrap()];
        if let Record::Intent {
            op: Op::Alloc { path, blocks, .. },
            ..
        } = serde_json::from_slice(payload).unwrap()
        {
            places.extend(blocks.into_iter().map(|(block, place)| (path.clone(), block, place)));
        }
        at += HEADER + payload.len() + 1;
    }
    places
}
