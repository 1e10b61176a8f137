//! A descriptor chain as a request. Nothing of it is believed: a chain that breaks a rule is an error, with the place
//! where the guest waits for the status if there is one.

use std::ops::Deref;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_queue::DescriptorChain;
use vm_memory::{Address as _, Bytes as _, GuestAddress};

use crate::mem::GuestMemory;

/// Bytes of the header: type, priority, sector.
const HEADER: usize = 16;

/// A piece of guest memory that the driver named. It need not exist: whoever uses it checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Buffer {
    pub(super) address: GuestAddress,
    pub(super) len: u32,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
    GetId,
    /// What this device does not know.
    Other,
}

impl Operation {
    fn new(number: u32) -> Self {
        match number {
            VIRTIO_BLK_T_IN => Self::Read,
            VIRTIO_BLK_T_OUT => Self::Write,
            VIRTIO_BLK_T_FLUSH => Self::Flush,
            VIRTIO_BLK_T_DISCARD => Self::Discard,
            VIRTIO_BLK_T_WRITE_ZEROES => Self::WriteZeroes,
            VIRTIO_BLK_T_GET_ID => Self::GetId,
            _ => Self::Other,
        }
    }

    /// Whether the device fills the data, rather than the driver.
    fn fills(self) -> bool {
        matches!(self, Self::Read | Self::GetId)
    }
}

/// A request of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) operation: Operation,
    /// The first sector, for those that name one.
    pub(super) sector: u64,
    /// What is read or filled.
    pub(super) data: Vec<Buffer>,
    /// Where the status goes.
    pub(super) status: GuestAddress,
}

impl Request {
    /// Bytes of data; a chain is shorter than 4 GiB.
    pub(super) fn data_len(&self) -> u64 {
        self.data.iter().map(|buffer| u64::from(buffer.len)).sum()
    }
}

/// Why a chain is none that a driver may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It leads out of the table or of memory, into itself, or has a table in a table.
    Broken,
    /// It has more descriptors than the queue.
    TooLong,
    /// A buffer to read follows one to fill.
    Order,
    /// There are fewer bytes than a header has, or they are outside memory.
    Header,
    /// There is no byte for the status.
    NoStatus,
}

/// A chain that is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    pub(super) fault: Fault,
    /// Where the status would go, if the chain says so.
    pub(super) status: Option<GuestAddress>,
}

/// Takes a chain apart.
pub(super) fn parse<M>(chain: DescriptorChain<M>, queue_size: u16, memory: &GuestMemory) -> Result<Request, Malformed>
where
    M: Deref<Target = GuestMemory>,
{
    let without_status = |fault| Malformed { fault, status: None };
    let (mut readable, mut writable) = collect(chain, queue_size).map_err(without_status)?;
    let status = take_last_byte(&mut writable).ok_or(without_status(Fault::NoStatus))?;
    let mut header = [0; HEADER];
    take_front(&mut readable, &mut header, memory).ok_or(Malformed {
        fault: Fault::Header,
        status: Some(status),
    })?;
    let (number, rest) = header.split_at(4);
    let operation = Operation::new(u32::from_le_bytes(number.try_into().unwrap_or_default()));
    Ok(Request {
        operation,
        sector: u64::from_le_bytes(rest[4..].try_into().unwrap_or_default()),
        data: if operation.fills() { writable } else { readable },
        status,
    })
}

/// The buffers to read and those to fill, without empty ones.
fn collect<M>(chain: DescriptorChain<M>, queue_size: u16) -> Result<(Vec<Buffer>, Vec<Buffer>), Fault>
where
    M: Deref<Target = GuestMemory>,
{
    let (mut readable, mut writable) = (Vec::new(), Vec::new());
    let mut count = 0_u16;
    let mut ends = false;
    for descriptor in chain {
        count += 1;
        if count > queue_size {
            return Err(Fault::TooLong);
        }
        ends = !descriptor.has_next();
        let buffer = Buffer {
            address: descriptor.addr(),
            len: descriptor.len(),
        };
        if descriptor.is_write_only() {
            writable.push(buffer);
        } else if writable.is_empty() {
            readable.push(buffer);
        } else {
            return Err(Fault::Order);
        }
    }
    // The iterator stops without a word where a chain cannot be followed.
    if !ends {
        return Err(Fault::Broken);
    }
    readable.retain(|buffer| buffer.len > 0);
    writable.retain(|buffer| buffer.len > 0);
    Ok((readable, writable))
}

/// Takes the last byte away: the status.
fn take_last_byte(buffers: &mut Vec<Buffer>) -> Option<GuestAddress> {
    let last = buffers.last_mut()?;
    last.len -= 1;
    let address = last.address.checked_add(u64::from(last.len));
    buffers.retain(|buffer| buffer.len > 0);
    address
}

/// Moves the first bytes into `bytes`.
fn take_front(buffers: &mut Vec<Buffer>, bytes: &mut [u8], memory: &GuestMemory) -> Option<()> {
    let mut done = 0;
    for buffer in buffers.iter_mut() {
        let len = (bytes.len() - done).min(usize::try_from(buffer.len).ok()?);
        if len == 0 {
            break;
        }
        memory.read_slice(&mut bytes[done..done + len], buffer.address).ok()?;
        done += len;
        let taken = u32::try_from(len).ok()?;
        buffer.address = buffer.address.checked_add(u64::from(taken))?;
        buffer.len -= taken;
    }
    buffers.retain(|buffer| buffer.len > 0);
    (done == bytes.len()).then_some(())
}
