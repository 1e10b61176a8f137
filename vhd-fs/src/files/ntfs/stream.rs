//! The value of an attribute, read by position: in the record, in runs of clusters, or compressed.

use std::ops::Range;

use ntfs_core::{Attribute, AttributeBody, Run, decompress};

use super::{FORMAT, failed_io};
use crate::bytes::{count, index};
use crate::files::FileError;
use crate::files::region::Region;

/// Units of compression are 16 clusters of at most 4 KiB; others exist in theory.
const MAX_UNIT: u64 = 1 << 20;

/// A part of a value, as one attribute describes it.
pub(super) struct Fragment {
    /// The first cluster of the value that it describes.
    pub(super) start: u64,
    pub(super) runs: Vec<Run>,
    pub(super) attribute: Attribute,
}

/// Clusters of a value that lie side by side on the disk.
#[derive(Debug)]
struct Extent {
    /// The first cluster of the value.
    start: u64,
    clusters: u64,
    /// The first cluster on the disk, or nothing for a hole.
    place: Option<u64>,
}

#[derive(Debug)]
enum Kept {
    InRecord(Vec<u8>),
    InClusters,
    /// In units of so many clusters.
    Compressed(u64),
    Encrypted,
}

/// A value.
#[derive(Debug)]
pub(super) struct Stream {
    kept: Kept,
    extents: Vec<Extent>,
    len: u64,
    /// What lies behind was never written, and reads as zeroes.
    initialized: u64,
    /// The unit that was decompressed last.
    unit: Option<(u64, Vec<u8>)>,
}

impl Default for Stream {
    fn default() -> Self {
        Self::resident(Vec::new())
    }
}

impl Stream {
    pub(super) fn resident(bytes: Vec<u8>) -> Self {
        let len = count(bytes.len());
        Self {
            kept: Kept::InRecord(bytes),
            extents: Vec::new(),
            len,
            initialized: len,
            unit: None,
        }
    }

    /// Puts the parts of a value together; nothing if there are none.
    pub(super) fn from_fragments(mut fragments: Vec<Fragment>) -> Result<Option<Self>, FileError> {
        fragments.sort_by_key(|fragment| fragment.start);
        let Some(first) = fragments.first() else {
            return Ok(None);
        };
        let AttributeBody::NonResident {
            real_size,
            initialized_size,
            compression_unit,
            ..
        } = first.attribute.body
        else {
            return Ok(None);
        };
        let kept = match () {
            () if first.attribute.is_encrypted() => Kept::Encrypted,
            () if first.attribute.is_compressed() && compression_unit > 0 => {
                let clusters = 1u64
                    .checked_shl(u32::from(compression_unit))
                    .filter(|&unit| unit <= 256);
                let unusual = || FileError::damaged(FORMAT, format!("units of 2^{compression_unit} clusters"));
                Kept::Compressed(clusters.ok_or_else(unusual)?)
            }
            () => Kept::InClusters,
        };
        let mut extents = Vec::new();
        let mut next = 0u64;
        for fragment in &fragments {
            if fragment.start != next {
                return Err(FileError::damaged(
                    FORMAT,
                    format!("clusters {next} to {} of a file are missing", fragment.start),
                ));
            }
            for run in &fragment.runs {
                let extent = Extent {
                    start: next,
                    clusters: run.length,
                    place: run.lcn,
                };
                next = next
                    .checked_add(run.length)
                    .ok_or_else(|| FileError::damaged(FORMAT, "a file of more than 2^64 clusters"))?;
                extents.push(extent);
            }
        }
        Ok(Some(Self {
            kept,
            extents,
            len: real_size,
            initialized: initialized_size.min(real_size),
            unit: None,
        }))
    }

    /// Bytes of the value.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// All bytes of a value that must not be larger than `limit`.
    pub(super) fn whole(mut self, region: &Region, cluster: u64, limit: u64) -> Result<Vec<u8>, FileError> {
        if self.len > limit {
            let what = format!("a structure of {} bytes, where {limit} are the most", self.len);
            return Err(FileError::damaged(FORMAT, what));
        }
        let mut bytes = vec![0; index(self.len)];
        let read = self.read_at(region, cluster, &mut bytes, 0)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// Reads from byte `offset`; fewer bytes than the buffer has are the end of the value.
    pub(super) fn read_at(
        &mut self,
        region: &Region,
        cluster: u64,
        buf: &mut [u8],
        offset: u64,
    ) -> Result<usize, FileError> {
        let wanted = index(self.len.saturating_sub(offset)).min(buf.len());
        if wanted == 0 && !matches!(self.kept, Kept::Encrypted) {
            return Ok(0);
        }
        let buf = &mut buf[..wanted];
        let written = index(self.initialized.saturating_sub(offset)).min(wanted);
        let (data, never_written) = buf.split_at_mut(written);
        never_written.fill(0);
        match &self.kept {
            Kept::InRecord(bytes) => {
                let kept = bytes.get(index(offset)..).and_then(|rest| rest.get(..data.len()));
                let short = || FileError::damaged(FORMAT, "a value in a record is shorter than it says");
                data.copy_from_slice(kept.ok_or_else(short)?);
            }
            Kept::InClusters => self.read_clusters(region, cluster, data, offset)?,
            Kept::Compressed(clusters) => {
                let clusters = *clusters;
                self.read_compressed(region, cluster, clusters, data, offset)?;
            }
            Kept::Encrypted => return Err(FileError::unsupported(FORMAT, "encryption (EFS)")),
        }
        Ok(wanted)
    }

    fn read_clusters(&self, region: &Region, cluster: u64, buf: &mut [u8], offset: u64) -> Result<(), FileError> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + count(done);
            let extent = self.extent(at / cluster)?;
            let within = at - extent.start * cluster;
            let left = extent.clusters.saturating_mul(cluster) - within;
            let take = index(left).min(buf.len() - done);
            let part = &mut buf[done..done + take];
            match extent.place {
                Some(place) => {
                    let from = place.checked_mul(cluster).and_then(|from| from.checked_add(within));
                    let from =
                        from.ok_or_else(|| FileError::damaged(FORMAT, format!("cluster {place:#x} of a file")))?;
                    region.fill(part, from).map_err(failed_io)?;
                }
                None => part.fill(0),
            }
            done += take;
        }
        Ok(())
    }

    fn extent(&self, vcn: u64) -> Result<&Extent, FileError> {
        let behind = self.extents.partition_point(|extent| extent.start <= vcn);
        let extent = behind.checked_sub(1).and_then(|at| self.extents.get(at));
        extent
            .filter(|extent| vcn - extent.start < extent.clusters)
            .ok_or_else(|| FileError::damaged(FORMAT, format!("cluster {vcn} of a file is missing")))
    }

    fn read_compressed(
        &mut self,
        region: &Region,
        cluster: u64,
        clusters: u64,
        buf: &mut [u8],
        offset: u64,
    ) -> Result<(), FileError> {
        let size = clusters * cluster;
        if size > MAX_UNIT {
            return Err(FileError::damaged(
                FORMAT,
                format!("units of compression of {size} bytes"),
            ));
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset + count(done);
            let number = at / size;
            if self.unit.as_ref().is_none_or(|(last, _)| *last != number) {
                self.unit = Some((
                    number,
                    self.unit(region, cluster, number * clusters..(number + 1) * clusters)?,
                ));
            }
            let Some((_, unit)) = &self.unit else { break };
            let within = index(at % size);
            let take = (unit.len() - within).min(buf.len() - done);
            buf[done..done + take].copy_from_slice(&unit[within..within + take]);
            done += take;
        }
        Ok(())
    }

    /// A unit of compression. Its clusters are all there (then it is not compressed), or none (then it is zeroes), or
    /// the first ones, which hold what is compressed.
    fn unit(&self, region: &Region, cluster: u64, vcns: Range<u64>) -> Result<Vec<u8>, FileError> {
        let size = index((vcns.end - vcns.start) * cluster);
        let mut bytes = Vec::new();
        for vcn in vcns.clone() {
            // The last unit of a file may end early.
            let Ok(extent) = self.extent(vcn) else { break };
            let Some(place) = extent.place else { break };
            let from = (vcn - extent.start)
                .checked_add(place)
                .and_then(|lcn| lcn.checked_mul(cluster));
            let from = from.ok_or_else(|| FileError::damaged(FORMAT, format!("cluster {place:#x} of a file")))?;
            bytes.append(&mut region.bytes_at(from, cluster).map_err(failed_io)?);
        }
        let whole = bytes.len() == size;
        if !whole && !bytes.is_empty() {
            let mut unpacked = Vec::with_capacity(size);
            decompress(&bytes, &mut unpacked)
                .map_err(|error| FileError::damaged(FORMAT, format!("compressed data: {error}")))?;
            bytes = unpacked;
        }
        bytes.resize(size, 0);
        Ok(bytes)
    }
}
