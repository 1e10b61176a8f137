//! Which requests are in order, and which error the others get.

use vhd_block::DeviceError;
use vhd_block::ErrorKind;
use vhd_block::with_causes;

use super::Export;
use super::budget::NoMemory;
use crate::protocol::{Command, CommandFlags, DEFAULT_MAX_PAYLOAD, Errno, HeaderStyle, ReplyStyle, RequestHeader};

/// A request that is refused: with what, and a text for people.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(errno: Errno, message: impl Into<String>) -> Self {
        Self {
            errno,
            message: message.into(),
        }
    }

    /// The server is about to stop.
    pub(super) fn stopping() -> Self {
        Self::new(Errno::Shutdown, "the server is about to stop")
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new(Errno::Inval, message)
    }

    /// What a failure of the disk is called on the wire.
    pub(super) fn from_device(error: &DeviceError) -> Self {
        let errno = match error.kind() {
            // What the disk has against a request, apart from the request itself.
            ErrorKind::ReadOnly | ErrorKind::Refused(_) => Errno::Perm,
            ErrorKind::NoSpace | ErrorKind::ImageFull => Errno::NoSpc,
            ErrorKind::NotFast | ErrorKind::Unsupported => Errno::NotSup,
            ErrorKind::OutOfRange | ErrorKind::Misaligned | ErrorKind::InvalidArgument => Errno::Inval,
            _ => Errno::Io,
        };
        Self::new(errno, with_causes(error))
    }
}

impl From<NoMemory> for Refusal {
    fn from(error: NoMemory) -> Self {
        Self::new(Errno::NoMem, error.to_string())
    }
}

/// Checks a request as far as that is possible without its payload.
pub(super) fn check(request: &RequestHeader, style: ReplyStyle, export: &Export) -> Result<(), Refusal> {
    check_flags(request, style)?;
    match request.command {
        Command::Write | Command::Trim | Command::WriteZeroes if export.is_read_only() => {
            Err(Refusal::new(Errno::Perm, "the export is read-only"))
        }
        Command::Read => {
            check_range(request, export, Errno::Inval)?;
            check_transfer(request)
        }
        Command::Write | Command::WriteZeroes => check_range(request, export, Errno::NoSpc),
        Command::Trim | Command::Cache => check_range(request, export, Errno::Inval),
        // The length of one with a payload stands in the payload.
        Command::BlockStatus if request.flags.contains(CommandFlags::PAYLOAD_LEN) => Ok(()),
        Command::BlockStatus => check_status(request, export),
        Command::Flush if request.offset != 0 || request.length != 0 => {
            Err(Refusal::invalid("a flush has neither offset nor length"))
        }
        Command::Flush | Command::Disconnect => Ok(()),
        Command::Resize if !export.is_resizable() => Err(Refusal::invalid("the size can't be changed")),
        Command::Resize if request.length != 0 => {
            Err(Refusal::invalid("a resize has the size for its offset, and no length"))
        }
        Command::Resize => Ok(()),
        Command::Unknown(number) => Err(Refusal::invalid(format!("command {number} is not known"))),
    }
}

/// Checks the range of BLOCK_STATUS.
pub(super) fn check_status(request: &RequestHeader, export: &Export) -> Result<(), Refusal> {
    if request.length == 0 {
        return Err(Refusal::invalid("the status of nothing is not defined"));
    }
    check_range(request, export, Errno::Inval)
}

fn check_flags(request: &RequestHeader, style: ReplyStyle) -> Result<(), Refusal> {
    // FUA is accepted everywhere, as the protocol wants it.
    let mut allowed = CommandFlags::FUA;
    match request.command {
        Command::Read if style != ReplyStyle::Simple => allowed |= CommandFlags::DF,
        Command::WriteZeroes => allowed |= CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
        Command::BlockStatus => allowed |= CommandFlags::REQ_ONE,
        _ => {}
    }
    let takes_payload = matches!(request.command, Command::Write | Command::BlockStatus);
    if style.header_style() == HeaderStyle::Extended && takes_payload {
        allowed |= CommandFlags::PAYLOAD_LEN;
    }
    let stray = request.flags.difference(allowed);
    if stray.is_empty() {
        return Ok(());
    }
    Err(Refusal::invalid(format!(
        "flags {:#x} do not belong here",
        stray.bits()
    )))
}

fn check_range(request: &RequestHeader, export: &Export, errno: Errno) -> Result<(), Refusal> {
    let size = export.disk().size();
    match request.offset.checked_add(request.length) {
        Some(end) if end <= size => Ok(()),
        end => {
            // What a smaller size has taken away is out of space, whatever is asked of it.
            let cut_off = end.is_some_and(|end| export.had(end));
            let errno = if cut_off { Errno::NoSpc } else { errno };
            let (offset, length) = (request.offset, request.length);
            let message = format!("bytes {offset:#x}+{length:#x} are outside the export of {size:#x} bytes");
            Err(Refusal::new(errno, message))
        }
    }
}

fn check_transfer(request: &RequestHeader) -> Result<(), Refusal> {
    if request.length <= DEFAULT_MAX_PAYLOAD.into() {
        return Ok(());
    }
    let message = format!("more than {DEFAULT_MAX_PAYLOAD} bytes in one request");
    Err(Refusal::new(Errno::Overflow, message))
}
