//! exFAT, read by the crate ferrosys.

use ferrosys::exfat::ondisk::FileAttributes;
use ferrosys::exfat::{Node as ExfatNode, ReadError, Reader};
use ferrosys::{OpenOptions, ReadPolicy};

use super::entry::{Entry, FileType, Metadata, Node, Time, invented_mode};
use super::ext::{from_tree, time};
use super::names::NodeTable;
use super::region::Region;
use super::{FileError, FileSystem};

const FORMAT: &str = "exFAT";

pub(super) struct Exfat {
    reader: Reader<Region>,
    nodes: NodeTable<ExfatNode>,
    notes: Vec<String>,
}

impl Exfat {
    /// Opens the file system.
    pub(super) fn open(region: Region) -> Result<Self, FileError> {
        let mut notes = Vec::new();
        let mut reader = match Reader::open_with(region.clone(), &OpenOptions::new()) {
            Ok(reader) => reader,
            Err(strict) => {
                let lenient = OpenOptions::new().policy(ReadPolicy::Lenient);
                let reader = Reader::open_with(region, &lenient).map_err(|_| failed(strict.clone()))?;
                notes.push(format!("opened in spite of damage: {strict}"));
                reader
            }
        };
        let root = reader.lookup(b"/").map_err(failed)?;
        Ok(Self {
            reader,
            nodes: NodeTable::new(root),
            notes,
        })
    }

    fn node(&self, node: Node) -> Result<ExfatNode, FileError> {
        self.nodes.get(node).ok_or(FileError::NotFound)
    }
}

impl FileSystem for Exfat {
    fn format(&self) -> &'static str {
        FORMAT
    }

    fn label(&mut self) -> Option<String> {
        let label = self.reader.volume_label()?;
        Some(String::from_utf8_lossy(label).into_owned())
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    fn root(&self) -> Node {
        NodeTable::<ExfatNode>::root()
    }

    fn ignores_case(&self) -> bool {
        true
    }

    fn list(&mut self, directory: Node) -> Result<Vec<Entry>, FileError> {
        let node = self.node(directory)?;
        if !node.is_dir() {
            return Err(FileError::NotDirectory);
        }
        let mut entries = Vec::new();
        for entry in self.reader.read_dir(&node).map_err(failed)? {
            let number = self.nodes.number(directory, &entry.name, &entry.node);
            entries.push(Entry {
                node: number.ok_or_else(|| FileError::unsupported(FORMAT, "more files than can be numbered"))?,
                kind: Some(kind(&entry.node)),
                name: entry.name,
            });
        }
        Ok(entries)
    }

    fn metadata(&mut self, node: Node) -> Result<Metadata, FileError> {
        let node = self.node(node)?;
        let kind = kind(&node);
        let recorded = |pick: fn(&ferrosys::exfat::Times) -> Time| node.times.as_ref().map(pick).unwrap_or_default();
        Ok(Metadata {
            kind,
            size: if kind == FileType::Regular { node.data_length } else { 0 },
            mode: invented_mode(kind, node.attributes.contains(FileAttributes::READ_ONLY)),
            uid: 0,
            gid: 0,
            links: 1,
            accessed: recorded(|times| time(times.access)),
            modified: recorded(|times| time(times.modify)),
            changed: recorded(|times| time(times.modify)),
            created: node.times.map(|times| time(times.create)),
            device: None,
        })
    }

    fn read_at(&mut self, node: Node, buf: &mut [u8], offset: u64) -> Result<usize, FileError> {
        let node = self.node(node)?;
        kind(&node).require_regular()?;
        self.reader.read_into(&node, offset, buf).map_err(failed)
    }

    fn read_link(&mut self, _node: Node) -> Result<Vec<u8>, FileError> {
        Err(FileError::NotSymlink)
    }
}

fn kind(node: &ExfatNode) -> FileType {
    if node.is_dir() {
        FileType::Directory
    } else {
        FileType::Regular
    }
}

fn failed(error: ReadError) -> FileError {
    from_tree(FORMAT, error.into())
}
