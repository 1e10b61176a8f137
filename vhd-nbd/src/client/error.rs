//! Why a disk of a server can't be had.

use std::io;

use vhd_block::ErrorKind;

use super::Address;
use crate::kinds;
use crate::protocol::ProtocolError;
use crate::tls::TlsError;

/// Why there is no connection to an export.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody answers.
    #[error("can't connect to {address}")]
    Connect {
        /// Where.
        address: Address,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The connection broke, or took too long, before the export could be used.
    #[error("the connection to {address} broke while it was negotiated")]
    Negotiation {
        /// With whom.
        address: Address,
        /// How.
        #[source]
        source: io::Error,
    },
    /// The server sent what is no message.
    #[error("{address} does not keep to the protocol")]
    Protocol {
        /// Who.
        address: Address,
        /// Which rule is broken.
        #[source]
        source: ProtocolError,
    },
    /// The server sent a message that makes no sense where it is.
    #[error("{address} does not keep to the protocol: {what}")]
    Senseless {
        /// Who.
        address: Address,
        /// What is wrong.
        what: String,
    },
    /// The certificates of this side can't be used.
    #[error(transparent)]
    Certificates(#[from] TlsError),
    /// The server is not proven to be who it should be, or does not believe this side.
    #[error("TLS with {address} failed")]
    Tls {
        /// With whom.
        address: Address,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// TLS was asked for, and the server has none.
    #[error("{address} has no TLS, and nothing is sent without{message}")]
    NoTls {
        /// Who.
        address: Address,
        /// What the server says.
        message: String,
    },
    /// TLS was not asked for, and the server wants it.
    #[error("{address} wants TLS: the URI must begin with nbds{message}")]
    TlsRequired {
        /// Who.
        address: Address,
        /// What the server says.
        message: String,
    },
    /// The server has no such export.
    #[error("{address} has no export {export:?}{message}")]
    NoExport {
        /// Who.
        address: Address,
        /// The export.
        export: String,
        /// What the server says.
        message: String,
    },
    /// The server does not give the export.
    #[error("{address} refuses the export {export:?}{message}")]
    Refused {
        /// Who.
        address: Address,
        /// The export.
        export: String,
        /// What the server says.
        message: String,
    },
    /// It was to be opened for writing.
    #[error("{address} serves the export {export:?} for reading only")]
    ReadOnly {
        /// Who.
        address: Address,
        /// The export.
        export: String,
    },
    /// It was to be opened for writing, and its last bytes are no whole block.
    #[error("the export of {size} bytes can't be written: that is no multiple of {block}")]
    OddSize {
        /// Bytes of the export.
        size: u64,
        /// Bytes of a block.
        block: u32,
    },
    /// After a new connection the export is another one.
    #[error("{address} has another export than before the connection broke: {what}")]
    Changed {
        /// Who.
        address: Address,
        /// What differs.
        what: String,
    },
}

impl ClientError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Connect { .. } | Self::Negotiation { .. } => kinds::UNREACHABLE,
            Self::Protocol { .. } | Self::Senseless { .. } => kinds::SERVER_PROTOCOL,
            Self::Certificates(_) | Self::Tls { .. } => kinds::SERVER_TRUST,
            Self::NoTls { .. }
            | Self::TlsRequired { .. }
            | Self::NoExport { .. }
            | Self::Refused { .. }
            | Self::Changed { .. } => kinds::SERVER_REFUSED,
            Self::ReadOnly { .. } => ErrorKind::ReadOnly,
            Self::OddSize { .. } => kinds::DISK_SIZE,
        }
    }

    /// Whether another attempt may end better: the server may only be starting.
    pub(super) fn is_passing(&self) -> bool {
        self.kind() == kinds::UNREACHABLE
    }
}
