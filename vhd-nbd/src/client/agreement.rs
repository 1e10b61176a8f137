//! What a server and this side agreed on for a connection.

use vhd_block::{LOGICAL_BLOCK, PHYSICAL_BLOCK};

use crate::protocol::{DEFAULT_MAX_PAYLOAD, MetaContextId, ReplyStyle, TransmissionFlags};

/// Bytes; no server may want larger blocks.
const MAX_MINIMUM: u32 = 64 << 10;

/// What requests are made by.
const RELIED_ON: TransmissionFlags = TransmissionFlags::SEND_FLUSH
    .union(TransmissionFlags::SEND_FUA)
    .union(TransmissionFlags::SEND_TRIM)
    .union(TransmissionFlags::SEND_WRITE_ZEROES)
    .union(TransmissionFlags::SEND_FAST_ZERO)
    .union(TransmissionFlags::CAN_MULTI_CONN)
    .union(TransmissionFlags::SEND_RESIZE);

/// An export as one connection gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Agreement {
    /// Bytes of the export when the connection was made.
    pub(super) size: u64,
    pub(super) flags: TransmissionFlags,
    /// Bytes; offsets and lengths of requests are multiples of it: a power of two, a sector at least.
    pub(super) block: u32,
    /// Bytes; a power of two, a multiple of the block.
    pub(super) preferred: u32,
    /// Bytes; the longest payload: a multiple of the block.
    pub(super) maximum: u32,
    pub(super) style: ReplyStyle,
    /// The number of the context that tells what is stored, if there is one.
    pub(super) allocation: Option<MetaContextId>,
}

impl Agreement {
    /// Checks what a server says, `blocks` being its minimum, preferred and maximum. The error says what is wrong.
    pub(super) fn new(
        size: u64,
        flags: TransmissionFlags,
        blocks: Option<(u32, u32, u32)>,
        style: ReplyStyle,
        allocation: Option<MetaContextId>,
    ) -> Result<Self, String> {
        if size > i64::MAX.unsigned_abs() {
            return Err(format!("an export of {size} bytes"));
        }
        let (minimum, preferred, maximum) = blocks.unwrap_or((1, PHYSICAL_BLOCK, DEFAULT_MAX_PAYLOAD));
        if !minimum.is_power_of_two() || minimum > MAX_MINIMUM {
            return Err(format!("blocks of {minimum} bytes"));
        }
        let block = minimum.max(LOGICAL_BLOCK);
        let maximum = maximum.min(DEFAULT_MAX_PAYLOAD);
        let maximum = maximum - maximum % block;
        if maximum == 0 {
            return Err("no request would be short enough".to_owned());
        }
        let usable = preferred.is_power_of_two() && preferred <= maximum;
        let preferred = if usable { preferred.max(block) } else { block };
        Ok(Self {
            size,
            flags,
            block,
            preferred,
            maximum,
            style,
            allocation,
        })
    }

    pub(super) fn can(&self, flag: TransmissionFlags) -> bool {
        self.flags.contains(flag)
    }

    /// What makes another export of this one than it was at first, apart from its size; `None` if requests as before are
    /// in order.
    pub(super) fn differs_from(&self, first: &Self) -> Option<String> {
        if self.block > first.block || self.maximum < first.maximum {
            return Some("requests would have to be of other sizes".to_owned());
        }
        if self.can(TransmissionFlags::READ_ONLY) && !first.can(TransmissionFlags::READ_ONLY) {
            return Some("it is for reading only".to_owned());
        }
        let missing = (first.flags & RELIED_ON).difference(self.flags);
        (!missing.is_empty()).then(|| "it can do less".to_owned())
    }
}
