//! Why bytes are not a message.

/// The rule of the protocol that a message breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A message does not begin with its magic number.
    #[error("{what} begins with {found:#x} instead of {expected:#x}")]
    Magic {
        /// The message.
        what: &'static str,
        /// What stands there.
        found: u64,
        /// What must stand there.
        expected: u64,
    },
    /// The peer greets in the style of before 2012, without options.
    #[error("the server speaks the old style of the handshake, which has no options")]
    OldStyle,
    /// A message is shorter than its fields.
    #[error("{what} ends after {found} bytes, {needed} are needed")]
    Truncated {
        /// The message.
        what: &'static str,
        /// Bytes needed so far.
        needed: usize,
        /// Bytes there.
        found: usize,
    },
    /// A message is longer than its fields.
    #[error("{what} has {extra} bytes behind its end")]
    TrailingBytes {
        /// The message.
        what: &'static str,
        /// Bytes too many.
        extra: usize,
    },
    /// A message or a string in it is longer than allowed.
    #[error("{what} has {len} bytes, more than {limit}")]
    TooLong {
        /// The message or string.
        what: &'static str,
        /// Its bytes.
        len: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// A list has more entries than allowed.
    #[error("{what} has {count} entries, more than {limit}")]
    TooMany {
        /// The list.
        what: &'static str,
        /// Its entries.
        count: u64,
        /// Entries allowed.
        limit: u64,
    },
    /// A string is not UTF-8, or has a NUL character in it.
    #[error("{what} is not text")]
    NotText {
        /// The string.
        what: &'static str,
    },
    /// A query for metadata contexts without the colon behind its namespace.
    #[error("the query {query:?} has no namespace")]
    NoNamespace {
        /// The query.
        query: String,
    },
    /// Client flags that the server did not offer.
    #[error("client flags {found:#x} are not among those offered")]
    ClientFlags {
        /// All flags that were sent.
        found: u32,
    },
    /// An error reply without an error in it.
    #[error("an error chunk says that there was no error")]
    NoError,
    /// A hole or an extent of no bytes.
    #[error("{what} has no bytes")]
    Empty {
        /// The message.
        what: &'static str,
    },
    /// The number of descriptors in a block status chunk does not fit its length.
    #[error("a block status chunk has {found} descriptors and says {said}")]
    DescriptorCount {
        /// What the chunk says.
        said: u64,
        /// What it has.
        found: u64,
    },
}
