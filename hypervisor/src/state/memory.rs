//! Guest memory in the file: at the offset of its byte in the memory file, zeroes as holes, a digest for each piece.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use vhd_block::units::{u64_from, usize_from};

use super::StateError;
use super::error::io;
use super::messages::{Memory, Piece};

/// Bytes of a piece.
const PIECE: u32 = 2 << 20;
/// Threads that read memory at most: more do not help where memory is the limit.
const THREADS: usize = 4;
/// Bytes that are a hole where they are all zero.
const PAGE: usize = 4096;

/// Writes memory to a file, whose bytes from `offset` on are holes.
pub(super) fn write(memory: &File, size: u64, to: &File, offset: u64) -> Result<Memory, StateError> {
    let mut written = Memory {
        offset,
        piece: PIECE,
        pieces: Vec::new(),
    };
    let mut buffer = vec![0; usize_from(u64::from(PIECE))];
    for_each_with_data(memory, size, &mut |number, start, len| {
        let bytes = &mut buffer[..len];
        memory.read_exact_at(bytes, start).map_err(io("read guest memory"))?;
        let mut has_data = false;
        for_each_run(bytes, &mut |at, run| {
            has_data = true;
            let place = offset + start + u64_from(at);
            to.write_all_at(run, place)
                .map_err(io("write guest memory to the file"))
        })?;
        if has_data {
            let digest = blake3::hash(bytes).as_bytes().to_vec();
            written.pieces.push(Piece { number, digest });
        }
        Ok(())
    })?;
    to.set_len(offset + size).map_err(io("give the file its length"))?;
    Ok(written)
}

/// Reads memory, all of which is zero, from a file.
pub(super) fn read(from: &File, saved: &Memory, memory: &File, size: u64) -> Result<(), StateError> {
    for_each_piece(from, saved, size, &|start, bytes| {
        for_each_run(bytes, &mut |at, run| {
            let written = memory.write_all_at(run, start + u64_from(at));
            written.map_err(io("write to guest memory"))
        })
    })
}

/// Whether memory in a file is what was written.
pub(super) fn verify(from: &File, saved: &Memory, size: u64) -> Result<(), StateError> {
    for_each_piece(from, saved, size, &|_, _| Ok(()))
}

/// Takes a piece: its offset, its bytes. Several threads call it at once.
type VisitPiece<'a> = dyn Fn(u64, &[u8]) -> Result<(), StateError> + Sync + 'a;

/// Visits the pieces of memory in a file that are not all zero: offset and bytes, which have their digest. Reading, looking at the
/// digest and writing take turns in each thread, so that several are as much faster as there are processors.
fn for_each_piece(from: &File, saved: &Memory, size: u64, visit: &VisitPiece<'_>) -> Result<(), StateError> {
    require_order(saved, size)?;
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS);
    let next = AtomicUsize::new(0);
    // What is wrong first in the file is said, whoever finds it.
    let wrong: Mutex<Option<(usize, StateError)>> = Mutex::new(None);
    let work = || {
        let mut buffer = vec![0; usize_from(u64::from(PIECE))];
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = saved.pieces.get(number) else {
                return;
            };
            if let Err(error) = one_piece(from, saved, piece, size, &mut buffer, visit) {
                // Nobody begins another piece; those before this one are begun already.
                next.fetch_max(saved.pieces.len(), Ordering::Relaxed);
                let mut wrong = wrong.lock().unwrap_or_else(PoisonError::into_inner);
                if wrong.as_ref().is_none_or(|(first, _)| number < *first) {
                    *wrong = Some((number, error));
                }
            }
        }
    };
    thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    let wrong = wrong.into_inner().unwrap_or_else(PoisonError::into_inner);
    wrong.map_or(Ok(()), |(_, error)| Err(error))
}

/// Pieces are there once, in order, and within the memory.
fn require_order(saved: &Memory, size: u64) -> Result<(), StateError> {
    if saved.piece != PIECE {
        return Err(StateError::damaged("memory", "has pieces of another size"));
    }
    let in_order = saved.pieces.is_sorted_by(|one, next| one.number < next.number);
    let last = saved.pieces.last().map_or(0, start_of);
    if !in_order || last >= size {
        return Err(StateError::damaged(
            "memory",
            "has pieces that are not those of the memory",
        ));
    }
    Ok(())
}

fn start_of(piece: &Piece) -> u64 {
    u64::from(piece.number) * u64::from(PIECE)
}

fn one_piece(
    from: &File,
    saved: &Memory,
    piece: &Piece,
    size: u64,
    buffer: &mut [u8],
    visit: &VisitPiece<'_>,
) -> Result<(), StateError> {
    let start = start_of(piece);
    let bytes = &mut buffer[..usize_from(u64::from(PIECE).min(size - start))];
    let place = saved.offset + start;
    from.read_exact_at(bytes, place)
        .map_err(io("read guest memory from the file"))?;
    if blake3::hash(bytes).as_bytes().as_slice() != piece.digest {
        return Err(StateError::Altered {
            what: format!("guest memory {start:#x}"),
            offset: place,
        });
    }
    visit(start, bytes)
}

/// Visits the pieces of memory that are not all hole: number, offset, length.
fn for_each_with_data(
    memory: &File,
    size: u64,
    visit: &mut dyn FnMut(u32, u64, usize) -> Result<(), StateError>,
) -> Result<(), StateError> {
    let piece = u64::from(PIECE);
    let mut at = 0;
    while at < size {
        at = match seek(memory, SeekFrom::Data(at)) {
            Ok(data) => data - data % piece,
            // Holes up to the end.
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(io("look for data in guest memory")(error.into())),
        };
        let number = u32::try_from(at / piece).unwrap_or(u32::MAX);
        visit(number, at, usize_from(piece.min(size - at)))?;
        at += piece;
    }
    Ok(())
}

/// Takes bytes that begin at an offset.
type Visit<'a> = dyn FnMut(usize, &[u8]) -> Result<(), StateError> + 'a;

/// Visits the pages that are not all zero, those that follow each other at once.
fn for_each_run(bytes: &[u8], visit: &mut Visit<'_>) -> Result<(), StateError> {
    const ZEROES: [u8; PAGE] = [0; PAGE];
    let is_zero = |page: &[u8]| page == &ZEROES[..page.len()];
    let mut start = 0;
    while start < bytes.len() {
        let page = |at: usize| &bytes[at..bytes.len().min(at + PAGE)];
        if is_zero(page(start)) {
            start += PAGE;
            continue;
        }
        let mut end = start + PAGE;
        while end < bytes.len() && !is_zero(page(end)) {
            end += PAGE;
        }
        visit(start, &bytes[start..end.min(bytes.len())])?;
        start = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const SIZE: u64 = 16 << 20;
    const OFFSET: u64 = 8192;

    fn sized(len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    }

    fn content(file: &File, offset: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize_from(SIZE)];
        file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    #[test]
    fn memory_comes_back_and_zeroes_are_holes() {
        let memory = sized(SIZE);
        for (at, byte) in [(0, 1), (4096, 2), (u64::from(PIECE) * 3 + 5, 3), (SIZE - 1, 4)] {
            memory.write_all_at(&[byte], at).unwrap();
        }
        // A page of zeroes that is there is one that is not.
        memory.write_all_at(&[0; 8192], u64::from(PIECE) * 5).unwrap();
        let (file, again) = (sized(0), sized(SIZE));
        let written = write(&memory, SIZE, &file, OFFSET).unwrap();
        let numbers: Vec<u32> = written.pieces.iter().map(|piece| piece.number).collect();
        assert_eq!(numbers, [0, 3, 7]);
        assert!(file.metadata().unwrap().blocks() * 512 <= 5 * 4096);
        assert_eq!(content(&file, OFFSET), content(&memory, 0));
        read(&file, &written, &again, SIZE).unwrap();
        assert_eq!(content(&again, 0), content(&memory, 0));
    }

    #[test]
    fn the_first_of_several_pieces_that_were_altered_is_named() {
        let memory = sized(SIZE);
        for piece in 0..8 {
            memory.write_all_at(&[7; 4096], u64::from(PIECE) * piece).unwrap();
        }
        let file = sized(0);
        let written = write(&memory, SIZE, &file, OFFSET).unwrap();
        for piece in [7, 6, 3, 2] {
            let place = OFFSET + u64::from(PIECE) * piece;
            file.write_all_at(&[1], place).unwrap();
            match verify(&file, &written, SIZE) {
                Err(StateError::Altered { offset, .. }) => assert_eq!(offset, place),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_was_altered_is_found() {
        let memory = sized(SIZE);
        memory.write_all_at(&[7; 4096], 0).unwrap();
        let file = sized(0);
        let written = write(&memory, SIZE, &file, OFFSET).unwrap();
        // A page of the piece that was a hole counts too.
        for at in [0, 4095, 1 << 20] {
            file.write_all_at(&[1], OFFSET + at).unwrap();
            let refused = read(&file, &written, &sized(SIZE), SIZE);
            assert!(verify(&file, &written, SIZE).is_err(), "{at}");
            assert!(
                matches!(refused, Err(StateError::Altered { offset: OFFSET, .. })),
                "{at}"
            );
            file.write_all_at(&[if at < 4096 { 7 } else { 0 }], OFFSET + at)
                .unwrap();
        }
        read(&file, &written, &sized(SIZE), SIZE).unwrap();
        verify(&file, &written, SIZE).unwrap();
        let mut twice = written.clone();
        twice.pieces.push(written.pieces[0].clone());
        let mut beyond = written.clone();
        beyond.pieces[0].number = 8;
        for wrong in [twice, beyond, Memory { piece: 1, ..written }] {
            assert!(matches!(
                read(&file, &wrong, &sized(SIZE), SIZE),
                Err(StateError::Damaged { .. })
            ));
        }
    }
}
