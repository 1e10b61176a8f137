//! exFAT, read by the crate ferrosys.

use ferrosys::OpenOptions;
use ferrosys::exfat::ondisk::FileAttributes;
use ferrosys::exfat::{Node, ReadError, Reader};

use super::FileError;
use super::entry::FileType;
use super::ferro::{self, open_in_spite_of_damage, time};
use super::numbered::{Facts, HandleReader, Listed, Numbered};
use super::region::Region;

const FORMAT: &str = "exFAT";

/// Opens the file system.
pub(super) fn open(region: Region) -> Result<Numbered<Reader<Region>>, FileError> {
    let mut notes = Vec::new();
    let mut reader = open_in_spite_of_damage(FORMAT, &mut notes, |policy| {
        Reader::open_with(region.clone(), &OpenOptions::new().policy(policy))
    })?;
    let root = reader.lookup(b"/").map_err(failed)?;
    Ok(Numbered::new(reader, root, notes))
}

impl HandleReader for Reader<Region> {
    type Handle = Node;
    const FORMAT: &'static str = FORMAT;

    fn label(&mut self) -> Option<String> {
        let label = self.volume_label()?;
        Some(String::from_utf8_lossy(label).into_owned())
    }

    fn facts(node: &Node) -> Facts {
        Facts {
            kind: if node.is_dir() {
                FileType::Directory
            } else {
                FileType::Regular
            },
            size: node.data_length,
            read_only: node.attributes.contains(FileAttributes::READ_ONLY),
            created: node.times.map(|times| time(times.create)),
            accessed: node.times.map(|times| time(times.access)),
            modified: node.times.map(|times| time(times.modify)),
        }
    }

    fn entries(&mut self, directory: &Node) -> Result<Vec<Listed<Node>>, FileError> {
        let found = self.read_dir(directory).map_err(failed)?.into_iter();
        Ok(found.map(|entry| (entry.name, entry.node)).collect())
    }

    fn read(&mut self, file: &Node, buf: &mut [u8], offset: u64) -> Result<usize, FileError> {
        self.read_into(file, offset, buf).map_err(failed)
    }
}

fn failed(error: ReadError) -> FileError {
    ferro::failed(FORMAT, error)
}
