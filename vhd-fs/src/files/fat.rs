//! FAT12, FAT16 and FAT32, read by the crate ferrosys.

use ferrosys::fat::ondisk::Attributes;
use ferrosys::fat::{Node, OpenOptions, ReadError, Reader, ShortNameCharset};

use super::FileError;
use super::entry::FileType;
use super::ferro::{self, open_in_spite_of_damage, time};
use super::numbered::{Facts, HandleReader, Listed, Numbered};
use super::region::Region;

const FORMAT: &str = "FAT";

/// Opens the file system. Short names are taken as code page 437, which is what most systems have.
pub(super) fn open(region: Region) -> Result<Numbered<Reader<Region>>, FileError> {
    let options = OpenOptions::new().charset(ShortNameCharset::Cp437);
    let mut notes = Vec::new();
    let reader = open_in_spite_of_damage(FORMAT, &mut notes, |policy| {
        Reader::open_with(region.clone(), &options.policy(policy))
    })?;
    let root = reader.root();
    Ok(Numbered::new(reader, root, notes))
}

impl HandleReader for Reader<Region> {
    type Handle = Node;
    const FORMAT: &'static str = FORMAT;

    fn label(&mut self) -> Option<String> {
        let label = self.volume_label().ok().flatten()?;
        Some(String::from_utf8_lossy(&label).trim_end().to_owned())
    }

    fn facts(node: &Node) -> Facts {
        Facts {
            kind: if node.is_dir() {
                FileType::Directory
            } else {
                FileType::Regular
            },
            size: u64::from(node.size),
            read_only: node.attributes.contains(Attributes::READ_ONLY),
            created: node.times.and_then(|times| times.create).map(time),
            accessed: node.times.map(|times| time(times.access)),
            modified: node.times.map(|times| time(times.modify)),
        }
    }

    fn entries(&mut self, directory: &Node) -> Result<Vec<Listed<Node>>, FileError> {
        let found = self.read_dir(directory).map_err(failed)?.into_iter();
        let files = found.filter(|entry| !entry.node.is_volume_label());
        Ok(files.map(|entry| (entry.name, entry.node)).collect())
    }

    fn read(&mut self, file: &Node, buf: &mut [u8], offset: u64) -> Result<usize, FileError> {
        self.read_into(file, offset, buf).map_err(failed)
    }
}

fn failed(error: ReadError) -> FileError {
    ferro::failed(FORMAT, error)
}
