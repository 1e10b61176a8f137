//! The NBD protocol as bytes and types: no sockets, no disks, no threads.
//!
//! Every message is here in both directions (a server decodes what a client encodes, and the reverse), so that server,
//! client and tests share one definition. Decoders take a slice that holds the whole message, of the size that its
//! header says, and never allocate more than that slice has; encoders append to a vector. Numbers are big-endian.
//!
//! ```text
//!   handshake                                   transmission
//!   Greeting, ClientFlags      greeting.rs      RequestHeader              request.rs
//!   OptionHeader, OptionRequest  option.rs      SimpleReply, ChunkHeader   reply.rs
//!   OptionReply                  option_reply.rs  Chunk                    chunk.rs
//!   InfoItem                     info.rs        Descriptor                 block_status.rs
//!   MetaContextRequest, ContextQuery  meta_context.rs
//! ```
//!
//! The specification is `doc/proto.md` of the NetworkBlockDevice/nbd repository, with its branches
//! `extension-ext-header` and `extension-resize`.

mod block_status;
mod chunk;
mod errno;
mod error;
mod flags;
mod greeting;
mod info;
mod limits;
mod meta_context;
mod option;
mod option_reply;
mod reply;
mod request;
mod wire;

pub use block_status::{Descriptor, MetaContextId, StatusFilter};
pub use chunk::{Chunk, ChunkType};
pub use errno::Errno;
pub use error::ProtocolError;
pub use flags::{
    AllocationStatus, ClientFlags, CommandFlags, DIRTY_BIT, HandshakeFlags, ReplyFlags, TransmissionFlags,
};
pub use greeting::{EXPORT_NAME_PADDING, ExportNameReply, Greeting};
pub use info::{InfoItem, InfoType};
pub use limits::{DEFAULT_MAX_PAYLOAD, MAX_DESCRIPTORS, MAX_OPTION_LENGTH, MAX_QUERIES, MAX_STRING, MIN_UNFRAGMENTED};
pub use meta_context::{ContextQuery, MetaContextRequest};
pub use option::{InfoRequest, OptionHeader, OptionRequest, OptionType};
pub use option_reply::{OptionReply, OptionReplyHeader, ReplyError};
pub use reply::{ChunkHeader, REPLY_MAGIC_SIZE, ReplyHeader, ReplyStyle, SimpleReply};
pub use request::{Command, HeaderStyle, RequestHeader};
