//! Requests as calls of a disk.
//!
//! Data goes through a buffer of the device: the guest may change its memory at any time, and a disk must see the same
//! bytes whenever it looks at them (ADR 0052).

use vhd_block::units::{u64_from, usize_from};
use vhd_block::{ByteRange, DeviceError, Disk, LOGICAL_BLOCK, ZeroOptions, with_causes};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use vm_memory::{Address as _, Bytes as _};

use super::config::{MAX_RANGE_SECTORS, MAX_RANGES};
use super::request::{Buffer, Operation, Request};
use crate::mem::GuestMemory;

/// Bytes that are moved at once; what bounds the memory of a device.
const PIECE: usize = 1 << 20;
/// Bytes of a range of a discard: sector, number of sectors, flags.
const RANGE: usize = 16;
/// Flag of a range: the space may be given back.
const UNMAP: u32 = 1;
/// Bytes of a sector in requests, whatever the disk's blocks are.
const SECTOR: u64 = LOGICAL_BLOCK as u64;

/// The name of a disk as GET_ID gives it.
pub(super) type DiskId = [u8; VIRTIO_BLK_ID_BYTES as usize];

/// Executes requests, one after the other.
pub(super) struct Executor {
    disk: Disk,
    id: DiskId,
    read_only: bool,
    buffer: Vec<u8>,
}

/// What is said of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u8,
    /// Bytes of data that were filled.
    pub(super) filled: u32,
}

impl Answer {
    /// To what is no request.
    pub(super) fn invalid() -> Self {
        Self {
            status: byte(VIRTIO_BLK_S_IOERR),
            filled: 0,
        }
    }
}

/// Why a request fails.
enum Failed {
    /// It breaks a rule, or its memory does not exist.
    Invalid,
    /// The device does not do this.
    Unsupported,
    Disk(DeviceError),
}

impl From<DeviceError> for Failed {
    fn from(error: DeviceError) -> Self {
        Self::Disk(error)
    }
}

impl Executor {
    pub(super) fn new(disk: Disk, id: DiskId, read_only: bool) -> Self {
        Self {
            disk,
            id,
            read_only,
            buffer: Vec::new(),
        }
    }

    /// Executes a request. With `write_through` a write is durable when it is answered.
    pub(super) fn execute(&mut self, request: &Request, memory: &GuestMemory, write_through: bool) -> Answer {
        let result = match request.operation {
            Operation::Read => self.read(request, memory),
            Operation::Write => self.write(request, memory, write_through).map(|()| 0),
            Operation::Flush => self.disk.flush().map(|()| 0).map_err(Failed::from),
            Operation::Discard => self.discard(request, memory).map(|()| 0),
            Operation::WriteZeroes => self.write_zeroes(request, memory, write_through).map(|()| 0),
            Operation::GetId => self.get_id(request, memory),
            Operation::Other => Err(Failed::Unsupported),
        };
        result.map_or_else(
            |failed| Answer {
                status: status(request, &failed),
                filled: 0,
            },
            |filled| Answer {
                status: byte(VIRTIO_BLK_S_OK),
                filled,
            },
        )
    }

    fn read(&mut self, request: &Request, memory: &GuestMemory) -> Result<u32, Failed> {
        let range = self.range(request)?;
        let mut data = Data::new(&request.data);
        let mut offset = range.start;
        while offset < range.end() {
            let piece = piece(&mut self.buffer, range.end() - offset);
            self.disk.read_at(piece, offset)?;
            data.fill(piece, memory)?;
            offset += u64_from(piece.len());
        }
        u32::try_from(range.len).map_err(|_| Failed::Invalid)
    }

    fn write(&mut self, request: &Request, memory: &GuestMemory, write_through: bool) -> Result<(), Failed> {
        let range = self.range(request)?;
        self.require_writable()?;
        let mut data = Data::new(&request.data);
        let mut offset = range.start;
        while offset < range.end() {
            let piece = piece(&mut self.buffer, range.end() - offset);
            data.take(piece, memory)?;
            self.disk.write_at(piece, offset)?;
            offset += u64_from(piece.len());
        }
        self.complete(write_through)
    }

    fn discard(&mut self, request: &Request, memory: &GuestMemory) -> Result<(), Failed> {
        for (range, flags) in self.ranges(request, memory)? {
            if flags != 0 {
                return Err(Failed::Unsupported);
            }
            self.disk.discard(range)?;
        }
        Ok(())
    }

    fn write_zeroes(&mut self, request: &Request, memory: &GuestMemory, write_through: bool) -> Result<(), Failed> {
        let ranges = self.ranges(request, memory)?;
        if ranges.iter().any(|(_, flags)| flags & !UNMAP != 0) {
            return Err(Failed::Unsupported);
        }
        for (range, flags) in ranges {
            let options = ZeroOptions {
                may_unmap: flags & UNMAP != 0,
                ..ZeroOptions::default()
            };
            self.disk.write_zeroes(range, options)?;
        }
        self.complete(write_through)
    }

    fn get_id(&self, request: &Request, memory: &GuestMemory) -> Result<u32, Failed> {
        let len = self.id.len().min(usize_from(request.data_len()));
        Data::new(&request.data).fill(&self.id[..len], memory)?;
        u32::try_from(len).map_err(|_| Failed::Invalid)
    }

    fn complete(&self, write_through: bool) -> Result<(), Failed> {
        if write_through { Ok(self.disk.flush()?) } else { Ok(()) }
    }

    fn require_writable(&self) -> Result<(), Failed> {
        if self.read_only {
            return Err(Failed::Disk(DeviceError::ReadOnly));
        }
        Ok(())
    }

    /// The bytes of the disk that a read or write is about: all of them exist.
    fn range(&self, request: &Request) -> Result<ByteRange, Failed> {
        let len = request.data_len();
        if !len.is_multiple_of(SECTOR) {
            return Err(Failed::Invalid);
        }
        self.on_disk(request.sector, len)
    }

    fn on_disk(&self, sector: u64, len: u64) -> Result<ByteRange, Failed> {
        let start = sector.checked_mul(SECTOR).ok_or(Failed::Invalid)?;
        let end = start.checked_add(len).ok_or(Failed::Invalid)?;
        if end > self.disk.size() {
            return Err(Failed::Invalid);
        }
        Ok(ByteRange::new(start, len))
    }

    /// The ranges of a discard and their flags. All are checked before the first is acted on.
    fn ranges(&self, request: &Request, memory: &GuestMemory) -> Result<Vec<(ByteRange, u32)>, Failed> {
        self.require_writable()?;
        let len = usize_from(request.data_len());
        if len == 0 || !len.is_multiple_of(RANGE) || len / RANGE > usize_from(u64::from(MAX_RANGES)) {
            return Err(Failed::Invalid);
        }
        let mut bytes = vec![0; len];
        Data::new(&request.data).take(&mut bytes, memory)?;
        let (ranges, _) = bytes.as_chunks::<RANGE>();
        ranges.iter().map(|range| self.one_range(range)).collect()
    }

    fn one_range(&self, bytes: &[u8; RANGE]) -> Result<(ByteRange, u32), Failed> {
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let sector = u64::from(number(0)) | u64::from(number(4)) << 32;
        let sectors = number(8);
        if sectors > MAX_RANGE_SECTORS {
            return Err(Failed::Invalid);
        }
        Ok((self.on_disk(sector, u64::from(sectors) * SECTOR)?, number(12)))
    }
}

/// The buffer, as long as `left` needs it.
fn piece(buffer: &mut Vec<u8>, left: u64) -> &mut [u8] {
    let len = PIECE.min(usize_from(left));
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

fn byte(status: u32) -> u8 {
    u8::try_from(status).unwrap_or(u8::MAX)
}

fn status(request: &Request, failed: &Failed) -> u8 {
    match failed {
        Failed::Unsupported => return byte(VIRTIO_BLK_S_UNSUPP),
        Failed::Invalid => tracing::warn!(?request.operation, request.sector, "the guest sent an invalid disk request"),
        Failed::Disk(error) => {
            tracing::error!(?request.operation, request.sector, error = with_causes(error), "a disk request failed");
        }
    }
    byte(VIRTIO_BLK_S_IOERR)
}

/// The data of a request, from its beginning.
struct Data<'a> {
    buffers: std::slice::Iter<'a, Buffer>,
    current: Option<Buffer>,
}

impl<'a> Data<'a> {
    fn new(buffers: &'a [Buffer]) -> Self {
        Self {
            buffers: buffers.iter(),
            current: None,
        }
    }

    /// Fills the next bytes of guest memory.
    fn fill(&mut self, bytes: &[u8], memory: &GuestMemory) -> Result<(), Failed> {
        let mut done = 0;
        while done < bytes.len() {
            let part = self.next(bytes.len() - done)?;
            let end = done + usize_from(part.len.into());
            let written = memory.write_slice(&bytes[done..end], part.address);
            written.map_err(|_| Failed::Invalid)?;
            done = end;
        }
        Ok(())
    }

    /// Reads the next bytes of guest memory.
    fn take(&mut self, bytes: &mut [u8], memory: &GuestMemory) -> Result<(), Failed> {
        let mut done = 0;
        while done < bytes.len() {
            let part = self.next(bytes.len() - done)?;
            let end = done + usize_from(part.len.into());
            let read = memory.read_slice(&mut bytes[done..end], part.address);
            read.map_err(|_| Failed::Invalid)?;
            done = end;
        }
        Ok(())
    }

    /// At most `limit` bytes in one piece.
    fn next(&mut self, limit: usize) -> Result<Buffer, Failed> {
        let buffer = self.current.take().or_else(|| self.buffers.next().copied());
        let buffer = buffer.ok_or(Failed::Invalid)?;
        let len = buffer.len.min(u32::try_from(limit).unwrap_or(u32::MAX));
        if len < buffer.len {
            let address = buffer.address.checked_add(u64::from(len)).ok_or(Failed::Invalid)?;
            self.current = Some(Buffer {
                address,
                len: buffer.len - len,
            });
        }
        Ok(Buffer { len, ..buffer })
    }
}
