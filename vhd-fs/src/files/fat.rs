//! FAT12, FAT16 and FAT32, read by the crate ferrosys.

use ferrosys::ReadPolicy;
use ferrosys::fat::ondisk::Attributes;
use ferrosys::fat::{Node as FatNode, OpenOptions, ReadError, Reader, ShortNameCharset};

use super::entry::{Entry, FileType, Metadata, Node, Time, invented_mode};
use super::ext::{from_tree, time};
use super::names::NodeTable;
use super::region::Region;
use super::{FileError, FileSystem};

const FORMAT: &str = "FAT";

pub(super) struct Fat {
    reader: Reader<Region>,
    nodes: NodeTable<FatNode>,
    notes: Vec<String>,
}

impl Fat {
    /// Opens the file system. Short names are taken as code page 437, which is what most systems have.
    pub(super) fn open(region: Region) -> Result<Self, FileError> {
        let options = OpenOptions::new().charset(ShortNameCharset::Cp437);
        let mut notes = Vec::new();
        let reader = match Reader::open_with(region.clone(), &options) {
            Ok(reader) => reader,
            Err(strict) => {
                let lenient = options.policy(ReadPolicy::Lenient);
                let reader = Reader::open_with(region, &lenient).map_err(|_| failed(strict.clone()))?;
                notes.push(format!("opened in spite of damage: {strict}"));
                reader
            }
        };
        Ok(Self {
            nodes: NodeTable::new(reader.root()),
            reader,
            notes,
        })
    }

    fn node(&self, node: Node) -> Result<FatNode, FileError> {
        self.nodes.get(node).ok_or(FileError::NotFound)
    }
}

impl FileSystem for Fat {
    fn format(&self) -> &'static str {
        FORMAT
    }

    fn label(&mut self) -> Option<String> {
        let label = self.reader.volume_label().ok().flatten()?;
        Some(String::from_utf8_lossy(&label).trim_end().to_owned())
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    fn root(&self) -> Node {
        NodeTable::<FatNode>::root()
    }

    fn ignores_case(&self) -> bool {
        true
    }

    fn list(&mut self, directory: Node) -> Result<Vec<Entry>, FileError> {
        let node = self.node(directory)?;
        if !node.is_dir() {
            return Err(FileError::NotDirectory);
        }
        let found = self.reader.read_dir(&node).map_err(failed)?;
        let mut entries = Vec::new();
        for entry in found.into_iter().filter(|entry| !entry.node.is_volume_label()) {
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
        let recorded = |pick: fn(&ferrosys::fat::Times) -> Time| node.times.as_ref().map(pick).unwrap_or_default();
        Ok(Metadata {
            kind,
            size: if kind == FileType::Regular {
                u64::from(node.size)
            } else {
                0
            },
            mode: invented_mode(kind, node.attributes.contains(Attributes::READ_ONLY)),
            uid: 0,
            gid: 0,
            links: 1,
            accessed: recorded(|times| time(times.access)),
            modified: recorded(|times| time(times.modify)),
            changed: recorded(|times| time(times.modify)),
            created: node.times.and_then(|times| times.create).map(time),
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

fn kind(node: &FatNode) -> FileType {
    if node.is_dir() {
        FileType::Directory
    } else {
        FileType::Regular
    }
}

fn failed(error: ReadError) -> FileError {
    from_tree(FORMAT, error.into())
}
