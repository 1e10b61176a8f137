//! The kinds of failure that a disk has because it is an export of a server.

use vhd_block::ErrorKind;

/// The server can't be reached, or its connection is lost and can't be made again.
pub const UNREACHABLE: ErrorKind = ErrorKind::Failed("unreachable");
/// The server does not have the disk, or does not give it.
pub const SERVER_REFUSED: ErrorKind = ErrorKind::Failed("server-refused");
/// The server does not keep to the protocol.
pub const SERVER_PROTOCOL: ErrorKind = ErrorKind::Failed("server-protocol");
/// Writes may be lost: they were answered, but not flushed before the connection broke.
pub const WRITES_LOST: ErrorKind = ErrorKind::Failed("writes-lost");
/// The server is not proven to be the one that is meant, or does not believe this side.
pub const SERVER_TRUST: ErrorKind = ErrorKind::Failed("server-trust");
/// The server does not give the disk the size that was asked for.
pub const RESIZE_REFUSED: ErrorKind = ErrorKind::Refused("resize-refused");
/// The export has a size that can't be used.
pub const DISK_SIZE: ErrorKind = ErrorKind::Failed("disk-size");

/// Every kind of this file, for tables that must have an entry for each.
pub const ALL: &[ErrorKind] = &[
    UNREACHABLE,
    SERVER_REFUSED,
    SERVER_PROTOCOL,
    WRITES_LOST,
    SERVER_TRUST,
    RESIZE_REFUSED,
    DISK_SIZE,
];
