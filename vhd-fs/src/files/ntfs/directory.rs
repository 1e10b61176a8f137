//! The names in a directory: an index tree, of which the root is in the record and the other nodes are in a stream.

use std::collections::HashSet;

use ntfs_core::{BootSector, IndexEntry, IndexRoot, parse_index_buffer};

use super::record::{INDEX_ALLOCATION, INDEX_ROOT, Record};
use super::stream::Stream;
use super::{FIRST_USER_RECORD, FORMAT, failed};
use crate::bytes::index;
use crate::files::FileError;
use crate::files::entry::{Entry, FileType, Node};
use crate::files::region::Region;

/// The index of names.
const NAMES: &str = "$I30";
/// A name in 8.3 form beside a long one.
const NAMESPACE_DOS: u8 = 2;
const ATTRIBUTE_REPARSE_POINT: u32 = 0x400;
/// A directory, in the copy of the attributes that a name has.
const ATTRIBUTE_DIRECTORY: u32 = 0x1000_0000;
/// Nodes are counted in clusters, or in sectors of 512 bytes where a cluster is larger than a node.
const SMALL_UNIT: u64 = 512;

/// Lists a directory.
pub(super) fn list(record: &Record, region: &Region, boot: &BootSector) -> Result<Vec<Entry>, FileError> {
    let root = record.stream(INDEX_ROOT, Some(NAMES))?;
    let root = root.ok_or_else(|| FileError::damaged(FORMAT, "a directory without an index"))?;
    let root = root.whole(region, boot.cluster_size(), boot.mft_record_size)?;
    let root = IndexRoot::parse(&root).map_err(failed)?;
    let mut tree = Tree {
        nodes: record.stream(INDEX_ALLOCATION, Some(NAMES))?,
        seen: HashSet::new(),
        region,
        boot,
    };
    let mut entries = Vec::new();
    let mut waiting = vec![root.entries.into_iter()];
    // In order: what is below an entry goes before it.
    while let Some(level) = waiting.last_mut() {
        match level.next() {
            None => {
                waiting.pop();
            }
            Some(entry) => match entry.child_vcn {
                Some(child) => {
                    let below = tree.node(child)?;
                    let rest = std::mem::take(level);
                    let alone = IndexEntry {
                        child_vcn: None,
                        ..entry
                    };
                    *level = [alone].into_iter().chain(rest).collect::<Vec<_>>().into_iter();
                    waiting.push(below.into_iter());
                }
                None => entries.extend(named(&entry)),
            },
        }
    }
    Ok(entries)
}

struct Tree<'a> {
    nodes: Option<Stream>,
    /// A node that is reached twice is a loop.
    seen: HashSet<u64>,
    region: &'a Region,
    boot: &'a BootSector,
}

impl Tree<'_> {
    fn node(&mut self, number: u64) -> Result<Vec<IndexEntry>, FileError> {
        let damaged = |what: &str| FileError::damaged(FORMAT, format!("node {number:#x} of a directory {what}"));
        if !self.seen.insert(number) {
            return Err(damaged("is reached twice"));
        }
        let (cluster, size) = (self.boot.cluster_size(), self.boot.index_record_size);
        let unit = if size >= cluster { cluster } else { SMALL_UNIT };
        let at = number.checked_mul(unit).ok_or_else(|| damaged("is out of range"))?;
        let nodes = self.nodes.as_mut().ok_or_else(|| damaged("has no place"))?;
        let mut bytes = vec![0; index(size)];
        if nodes.read_at(self.region, cluster, &mut bytes, at)? < bytes.len() {
            return Err(damaged("is behind the end of the index"));
        }
        parse_index_buffer(&mut bytes, index(size), usize::from(self.boot.bytes_per_sector)).map_err(failed)
    }
}

/// The entry as a name, unless it is a second name or a file of the file system itself.
fn named(entry: &IndexEntry) -> Option<Entry> {
    let name = entry.file_name.as_ref()?;
    let number = entry.file_reference.record_number;
    let hidden = name.namespace == NAMESPACE_DOS || number < FIRST_USER_RECORD;
    if hidden {
        return None;
    }
    let kind = match () {
        // Only the file itself says what kind of reparse point it is.
        () if name.flags & ATTRIBUTE_REPARSE_POINT != 0 => None,
        () if name.flags & ATTRIBUTE_DIRECTORY != 0 => Some(FileType::Directory),
        () => Some(FileType::Regular),
    };
    Some(Entry {
        name: name.name.clone().into_bytes(),
        node: Node(number),
        kind,
    })
}
