//! How a connection ended.

use std::io;

use vhd_block::DeviceError;

use crate::kinds;
use crate::protocol::ProtocolError;

/// How a connection ended.
#[derive(Clone, Debug)]
pub(super) struct Break {
    end: End,
    message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By the server: what it did not answer it does not execute later.
    Closed,
    /// It does not answer, or can't be reached: what it was asked it may still execute.
    Silent,
    /// Nothing that it sends can be understood any more.
    Protocol,
}

impl Break {
    pub(super) fn closed(error: &io::Error) -> Self {
        Self {
            end: End::Closed,
            message: format!("the server ended the connection: {error}"),
        }
    }

    /// The server said that it is about to stop.
    pub(super) fn stopping() -> Self {
        Self {
            end: End::Closed,
            message: "the server is about to stop".to_owned(),
        }
    }

    pub(super) fn silent() -> Self {
        Self {
            end: End::Silent,
            message: "the server does not answer".to_owned(),
        }
    }

    pub(super) fn protocol(what: impl std::fmt::Display) -> Self {
        Self {
            end: End::Protocol,
            message: format!("the server does not keep to the protocol: {what}"),
        }
    }

    /// The end that a failure of the socket or of TLS means.
    pub(super) fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
                Self::closed(error)
            }
            // Bytes that don't decrypt.
            io::ErrorKind::InvalidData => Self::protocol(error),
            _ => Self {
                end: End::Silent,
                message: format!("the connection is lost: {error}"),
            },
        }
    }

    /// Whether another connection may do better.
    pub(super) fn is_passing(&self) -> bool {
        self.end != End::Protocol
    }

    /// Whether a change that was not answered may be asked for again. If the server still has it somewhere, it could
    /// execute it later than what is asked for afterwards.
    pub(super) fn ends_changes(&self) -> bool {
        self.end == End::Closed
    }

    /// As a failure of the disk at `address`.
    pub(super) fn error(&self, address: &dyn std::fmt::Display) -> DeviceError {
        let kind = match self.end {
            End::Closed | End::Silent => kinds::UNREACHABLE,
            End::Protocol => kinds::SERVER_PROTOCOL,
        };
        let message = format!("{address}: {}", self.message);
        DeviceError::Remote { kind, message }
    }
}

impl From<ProtocolError> for Break {
    fn from(error: ProtocolError) -> Self {
        Self::protocol(error)
    }
}
