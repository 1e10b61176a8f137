//! Open files that are passed over a unix socket, after the line that says how many.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// In one message; the kernel takes 253. Each message has one byte besides.
const AT_ONCE: usize = 64;

/// The most files of one disk.
pub(crate) const MOST: usize = 4096;

/// Passes open files on: the peer gets the same ones, with their locks.
pub(crate) fn send_files(stream: &UnixStream, files: &[OwnedFd]) -> io::Result<()> {
    for some in files.chunks(AT_ONCE) {
        let some: Vec<_> = some.iter().map(|file| file.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&some)) {
            return Err(io::Error::other("there is no room for the descriptors"));
        }
        sendmsg(stream, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

/// Receives so many open files; each message within a time.
pub(crate) fn receive_files(stream: &UnixStream, count: usize, patience: Duration) -> io::Result<Vec<OwnedFd>> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    if count > MOST {
        return Err(wrong("these are too many files"));
    }
    stream.set_read_timeout(Some(patience))?;
    let mut files = Vec::with_capacity(count);
    while files.len() < count {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let received = recvmsg(
            stream,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let before = files.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                files.extend(some);
            }
        }
        if received.bytes == 0 || files.len() == before || files.len() > count {
            return Err(wrong("the open files did not come that were announced"));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn files(count: usize) -> Vec<OwnedFd> {
        let file = |number: usize| {
            let mut file = tempfile::tempfile().unwrap();
            write!(file, "{number}").unwrap();
            file.rewind().unwrap();
            OwnedFd::from(file)
        };
        (0..count).map(file).collect()
    }

    #[test]
    fn files_arrive_in_order_in_any_number() {
        for count in [0, 1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE + 5] {
            let (here, there) = UnixStream::pair().unwrap();
            send_files(&here, &files(count)).unwrap();
            let received = receive_files(&there, count, PATIENCE).unwrap();
            for (number, file) in received.into_iter().enumerate() {
                let mut text = String::new();
                File::from(file).read_to_string(&mut text).unwrap();
                assert_eq!(text, number.to_string());
            }
        }
    }

    #[test]
    fn other_numbers_than_announced_are_refused() {
        for (sent, expected) in [(2, 1), (1, 2), (0, 1)] {
            let (here, there) = UnixStream::pair().unwrap();
            send_files(&here, &files(sent)).unwrap();
            drop(here);
            assert!(
                receive_files(&there, expected, PATIENCE).is_err(),
                "{sent} for {expected}"
            );
        }
        let (here, there) = UnixStream::pair().unwrap();
        (&here).write_all(b"bytes without a file").unwrap();
        assert!(receive_files(&there, 1, PATIENCE).is_err());
        assert!(receive_files(&there, MOST + 1, PATIENCE).is_err());
    }
}
