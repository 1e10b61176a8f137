//! Frames on a stream.

use std::io::{self, ErrorKind, Read};

use crate::message::payload_len;

/// One whole frame, header included.
pub(super) fn read_frame(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut header = [0; 8];
    stream.read_exact(&mut header)?;
    let len = payload_len(header).map_err(|error| io::Error::new(ErrorKind::InvalidData, error.to_string()))?;
    let mut frame = header.to_vec();
    // Grows with what arrives, not with what is announced.
    stream.take(len as u64).read_to_end(&mut frame)?;
    if frame.len() != header.len() + len {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(frame)
}
