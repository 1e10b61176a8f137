//! What one side accepts of the other, and sends at most.

/// Bytes; the longest string (a name, a description, a query, an error text) that the protocol allows.
pub const MAX_STRING: usize = 4096;

/// Bytes of option data that a server here reads. The longest useful option is a list of [`MAX_QUERIES`] queries; what
/// is longer is skipped without being kept.
pub const MAX_OPTION_LENGTH: u32 = 64 << 10;

/// Queries in one request for metadata contexts.
pub const MAX_QUERIES: u32 = 64;

/// Bytes; the longest payload of a request or content chunk where the server says nothing else.
pub const DEFAULT_MAX_PAYLOAD: u32 = 32 << 20;

/// Descriptors in one block status chunk: half of what the protocol allows, 8 MiB in the extended form.
pub const MAX_DESCRIPTORS: usize = 1 << 19;

/// Bytes; a server must answer reads up to this length in one chunk if asked to.
pub const MIN_UNFRAGMENTED: u32 = 64 << 10;
