//! Whole transfers out of system calls that may move fewer bytes than asked, or be interrupted.
//!
//! Each function takes the system call as a closure, so that tests can cut transfers short. When the
//! first call moves everything, it is the only one.

use std::io::{self, IoSlice, IoSliceMut};

use crate::units::u64_from;

/// Fills `buf` from `offset`; an end of file inside is `UnexpectedEof`.
pub(super) fn read_exact(
    mut buf: &mut [u8],
    mut offset: u64,
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<()> {
    while !buf.is_empty() {
        let moved = retry(|| read(buf, offset))?;
        if moved == 0 {
            return Err(end_of_file());
        }
        buf = &mut buf[moved..];
        offset += u64_from(moved);
    }
    Ok(())
}

/// Writes all of `buf` at `offset`.
pub(super) fn write_all(
    mut buf: &[u8],
    mut offset: u64,
    mut write: impl FnMut(&[u8], u64) -> io::Result<usize>,
) -> io::Result<()> {
    while !buf.is_empty() {
        let moved = retry(|| write(buf, offset))?;
        if moved == 0 {
            return Err(nothing_written());
        }
        buf = &buf[moved..];
        offset += u64_from(moved);
    }
    Ok(())
}

/// Fills `bufs` in turn from `offset`. The slices themselves stay as they are (`advance_slices` would
/// shrink them, for the caller to stumble over later): a slice that was filled in part is completed
/// by a plain read.
pub(super) fn read_exact_vectored(
    bufs: &mut [IoSliceMut<'_>],
    mut offset: u64,
    mut read: impl FnMut(&mut [IoSliceMut<'_>], u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut next = 0;
    loop {
        next += bufs[next..].iter().take_while(|buf| buf.is_empty()).count();
        if next == bufs.len() {
            return Ok(());
        }
        let mut moved = retry(|| read(&mut bufs[next..], offset))?;
        if moved == 0 {
            return Err(end_of_file());
        }
        offset += u64_from(moved);
        while next < bufs.len() && moved >= bufs[next].len() {
            moved -= bufs[next].len();
            next += 1;
        }
        if moved > 0 {
            let rest = &mut bufs[next][moved..];
            let rest_len = u64_from(rest.len());
            read_exact(rest, offset, |buf, at| read(&mut [IoSliceMut::new(buf)], at))?;
            offset += rest_len;
            next += 1;
        }
    }
}

/// Writes all of `bufs` in turn at `offset`.
pub(super) fn write_all_vectored(
    bufs: &[IoSlice<'_>],
    mut offset: u64,
    mut write: impl FnMut(&[IoSlice<'_>], u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut next = 0;
    loop {
        next += bufs[next..].iter().take_while(|buf| buf.is_empty()).count();
        if next == bufs.len() {
            return Ok(());
        }
        let mut moved = retry(|| write(&bufs[next..], offset))?;
        if moved == 0 {
            return Err(nothing_written());
        }
        offset += u64_from(moved);
        while next < bufs.len() && moved >= bufs[next].len() {
            moved -= bufs[next].len();
            next += 1;
        }
        if moved > 0 {
            let rest = &bufs[next][moved..];
            write_all(rest, offset, |buf, at| write(&[IoSlice::new(buf)], at))?;
            offset += u64_from(rest.len());
            next += 1;
        }
    }
}

/// Repeats `call` while a signal interrupts it.
pub(super) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// The error of a read past the end of the file.
pub(super) fn end_of_file() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends inside the range to read")
}

fn nothing_written() -> io::Error {
    io::Error::new(io::ErrorKind::WriteZero, "the system took no byte of a write")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// A file that moves at most `step` bytes per call and is interrupted at every second one.
    struct Reluctant {
        bytes: RefCell<Vec<u8>>,
        step: usize,
        calls: RefCell<usize>,
    }

    impl Reluctant {
        fn new(bytes: Vec<u8>, step: usize) -> Self {
            Self {
                bytes: RefCell::new(bytes),
                step,
                calls: RefCell::new(0),
            }
        }

        fn interrupted(&self) -> io::Result<()> {
            *self.calls.borrow_mut() += 1;
            let odd = !self.calls.borrow().is_multiple_of(2);
            if odd {
                Err(io::ErrorKind::Interrupted.into())
            } else {
                Ok(())
            }
        }

        fn read(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
            self.interrupted()?;
            let (bytes, mut moved) = (self.bytes.borrow(), 0);
            for byte in bufs.iter_mut().flat_map(|buf| buf.iter_mut()).take(self.step) {
                let at = usize::try_from(offset).unwrap() + moved;
                let Some(&value) = bytes.get(at) else { break };
                (*byte, moved) = (value, moved + 1);
            }
            Ok(moved)
        }

        fn write(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
            self.interrupted()?;
            let (mut bytes, mut moved) = (self.bytes.borrow_mut(), 0);
            for &byte in bufs.iter().flat_map(|buf| buf.iter()).take(self.step) {
                let at = usize::try_from(offset).unwrap() + moved;
                assert!(at <= bytes.len(), "a write left a gap");
                if at == bytes.len() {
                    bytes.push(byte);
                } else {
                    bytes[at] = byte;
                }
                moved += 1;
            }
            Ok(moved)
        }
    }

    fn pattern(len: u8) -> Vec<u8> {
        (0..len).collect()
    }

    #[test]
    fn short_and_interrupted_vectored_reads_fill_every_slice_and_leave_them_whole() {
        for step in 1..=20 {
            let file = Reluctant::new(pattern(40), step);
            let (mut a, mut b, mut c) = ([0; 5], [0; 1], [0; 11]);
            let (mut empty, mut empty_too) = ([], []);
            let mut bufs = [&mut empty[..], &mut a, &mut b, &mut empty_too, &mut c].map(IoSliceMut::new);
            read_exact_vectored(&mut bufs, 3, |bufs, at| file.read(bufs, at)).unwrap();
            assert_eq!(
                bufs.iter().map(|buf| buf.len()).collect::<Vec<_>>(),
                [0, 5, 1, 0, 11],
                "step {step}"
            );
            assert_eq!([&a[..], &b, &c].concat(), pattern(40)[3..20], "step {step}");
        }
    }

    #[test]
    fn short_and_interrupted_vectored_writes_store_every_slice() {
        for step in 1..=20 {
            let file = Reluctant::new(vec![0xff; 3], step);
            let bytes = pattern(17);
            let bufs = [&bytes[..5], &[], &bytes[5..6], &bytes[6..]].map(IoSlice::new);
            write_all_vectored(&bufs, 3, |bufs, at| file.write(bufs, at)).unwrap();
            assert_eq!(file.bytes.borrow()[3..], bytes, "step {step}");
        }
    }

    #[test]
    fn short_and_interrupted_plain_transfers_are_completed() {
        let file = Reluctant::new(pattern(40), 7);
        let mut buf = [0; 30];
        read_exact(&mut buf, 2, |buf, at| file.read(&mut [IoSliceMut::new(buf)], at)).unwrap();
        assert_eq!(buf, pattern(40)[2..32]);
        write_all(&[9; 30], 5, |buf, at| file.write(&[IoSlice::new(buf)], at)).unwrap();
        assert_eq!(file.bytes.borrow()[5..35], [9; 30]);
    }

    #[test]
    fn an_end_of_file_is_reported_wherever_it_falls() {
        for len in 0..16 {
            let file = Reluctant::new(pattern(len), 6);
            let (mut a, mut b) = ([0; 8], [0; 8]);
            let mut bufs = [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)];
            let error = read_exact_vectored(&mut bufs, 0, |bufs, at| file.read(bufs, at)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "length {len}");
        }
    }

    #[test]
    fn a_file_that_takes_nothing_is_an_error_and_not_a_loop() {
        let error = write_all_vectored(&[IoSlice::new(b"x")], 0, |_, _| Ok(0)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }

    #[test]
    fn a_transfer_that_is_complete_at_once_is_one_call() {
        let (mut a, mut b, mut empty, mut calls) = ([0; 3], [0; 4], [], 0);
        let mut once = |len| {
            calls += 1;
            Ok(len)
        };
        let mut bufs = [&mut a[..], &mut b, &mut empty].map(IoSliceMut::new);
        read_exact_vectored(&mut bufs, 0, |_, _| once(7)).unwrap();
        write_all_vectored(&[&[1; 3][..], &[2; 4], &[]].map(IoSlice::new), 0, |_, _| once(7)).unwrap();
        read_exact(&mut [0; 7], 0, |_, _| once(7)).unwrap();
        write_all(&[0; 7], 0, |_, _| once(7)).unwrap();
        assert_eq!(calls, 4);
    }

    #[test]
    fn nothing_to_move_needs_no_call() {
        read_exact_vectored(&mut [IoSliceMut::new(&mut [])], 0, |_, _| panic!("called")).unwrap();
        write_all_vectored(&[], 0, |_, _| panic!("called")).unwrap();
        read_exact(&mut [], 0, |_, _| panic!("called")).unwrap();
    }
}
