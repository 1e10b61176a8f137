//! `partitions/`: each partition of a disk as a file.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::SystemTime;

use vhd_core::device::{ByteRange, Disk};
use vhd_core::partition::{Partition, PartitionError, read_table};
use vhd_fuse::{Content, Directory, DiskPart, Kind, Name, Node, NodeError};

use crate::failure::Failure;
use crate::output;

/// The extension of files with the bytes of a disk or a part of it.
pub(super) const RAW: &str = ".raw";
/// `DT_REG`.
pub(super) const REGULAR: u8 = 8;

/// The partitions of a disk, as they were when it was mounted.
pub(super) struct Partitions {
    disk: Disk,
    pub(super) partitions: Vec<Partition>,
    /// Whether there is a partition table at all.
    pub(super) has_table: bool,
    /// The disk is written through another file.
    changing: bool,
    time: SystemTime,
}

impl Partitions {
    /// Reads the partition table. One that is damaged shows no partitions, and is said.
    pub(super) fn read(disk: &Disk, changing: bool) -> Result<Self, Failure> {
        let table = match read_table(disk) {
            Ok(table) => table,
            Err(error @ PartitionError::Read(_)) => return Err(error.into()),
            Err(error) => {
                output::warning(format_args!("no partitions are shown: {error}"));
                None
            }
        };
        let has_table = table.is_some();
        let mut partitions = table.map(|table| table.partitions).unwrap_or_default();
        partitions.retain(|partition| partition.start < disk.size());
        Ok(Self {
            disk: disk.clone(),
            partitions,
            has_table,
            changing,
            time: SystemTime::now(),
        })
    }
}

/// The name of a partition, or of the whole disk where there is no table.
pub(super) fn name(partition: Option<&Partition>) -> String {
    format!("p{}", partition.map_or(0, |partition| partition.number))
}

impl Directory for Partitions {
    fn names(&self) -> Result<Vec<Name>, NodeError> {
        let names = self.partitions.iter().map(|partition| Name {
            name: (name(Some(partition)) + RAW).into(),
            file_type: REGULAR,
        });
        Ok(names.collect())
    }

    fn node(&self, wanted: &OsStr) -> Result<Node, NodeError> {
        let found = self
            .partitions
            .iter()
            .find(|partition| wanted == OsStr::new(&(name(Some(partition)) + RAW)));
        let partition = found.ok_or(NodeError::NotFound)?;
        let range = ByteRange::new(partition.start, partition.len);
        let part = DiskPart::range(self.disk.clone(), range);
        let part = if self.changing { part.changing() } else { part };
        let mut node = Node::of_mount(Kind::File(Content::Disk(Arc::new(part))), self.time);
        node.attributes.push(("type", partition.kind.to_string()));
        node.attributes.push(("identity", partition.identity.clone()));
        node.attributes
            .extend(partition.name.clone().map(|name| ("label", name)));
        Ok(node)
    }
}
