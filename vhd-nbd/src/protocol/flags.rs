//! Sets of flags.

bitflags::bitflags! {
    /// What a server says of itself in its greeting.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HandshakeFlags: u16 {
        /// Options are negotiated with replies.
        const FIXED_NEWSTYLE = 1 << 0;
        /// The padding behind the answer to the oldest option can be left out.
        const NO_ZEROES = 1 << 1;
    }

    /// What a client answers to the greeting.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ClientFlags: u32 {
        /// Options are negotiated with replies.
        const FIXED_NEWSTYLE = 1 << 0;
        /// The padding behind the answer to the oldest option is to be left out.
        const NO_ZEROES = 1 << 1;
    }

    /// What an export can do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TransmissionFlags: u16 {
        /// Always set.
        const HAS_FLAGS = 1 << 0;
        /// Writes of any kind are refused.
        const READ_ONLY = 1 << 1;
        /// FLUSH works.
        const SEND_FLUSH = 1 << 2;
        /// The flag FUA works.
        const SEND_FUA = 1 << 3;
        /// Access near the last one is cheaper.
        const ROTATIONAL = 1 << 4;
        /// TRIM works.
        const SEND_TRIM = 1 << 5;
        /// WRITE_ZEROES works, and the flag NO_HOLE.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// The flag DF works.
        const SEND_DF = 1 << 7;
        /// A flush on one connection covers all of them.
        const CAN_MULTI_CONN = 1 << 8;
        /// RESIZE works.
        const SEND_RESIZE = 1 << 9;
        /// CACHE works.
        const SEND_CACHE = 1 << 10;
        /// The flag FAST_ZERO works.
        const SEND_FAST_ZERO = 1 << 11;
        /// BLOCK_STATUS takes a list of contexts.
        const BLOCK_STATUS_PAYLOAD = 1 << 12;
    }

    /// How a request is to be executed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CommandFlags: u16 {
        /// Durable before the reply.
        const FUA = 1 << 0;
        /// Zeroes keep their space.
        const NO_HOLE = 1 << 1;
        /// At most one content chunk.
        const DF = 1 << 2;
        /// At most one extent per context.
        const REQ_ONE = 1 << 3;
        /// Fail rather than write zeroes out.
        const FAST_ZERO = 1 << 4;
        /// With extended headers: the length is that of a payload.
        const PAYLOAD_LEN = 1 << 5;
    }

    /// Properties of a reply chunk.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ReplyFlags: u16 {
        /// The last chunk of the reply.
        const DONE = 1 << 0;
    }

    /// The status of an extent in the context `base:allocation`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AllocationStatus: u32 {
        /// Takes no space.
        const HOLE = 1 << 0;
        /// Reads zero.
        const ZERO = 1 << 1;
    }
}

/// The status bit of an extent in the contexts `qemu:dirty-bitmap:...` that was changed.
pub const DIRTY_BIT: u32 = 1;
