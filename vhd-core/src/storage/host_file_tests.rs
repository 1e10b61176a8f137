use super::*;
use crate::ErrorKind;
use crate::storage::MemoryFile;
use rustix::fs::{CWD, FileType as NodeType, Mode, mknodat};
use tempfile::{NamedTempFile, TempDir};

fn scratch() -> HostFile {
    HostFile::from_file(tempfile::tempfile().unwrap()).unwrap()
}

fn unsupported_or<T>(result: io::Result<T>, what: &str) -> Option<T> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            eprintln!("NOT TESTED: {what}: the file system of the temporary directory can't");
            None
        }
        result => Some(result.unwrap()),
    }
}

#[test]
fn bytes_come_back() {
    let file = scratch();
    file.write_all_at(b"hello", 3).unwrap();
    assert_eq!(file.len().unwrap(), 8);
    let mut buf = [0xff; 8];
    file.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"\0\0\0hello");
    assert_eq!(
        file.read_exact_at(&mut buf, 1).unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
    file.set_len(4).unwrap();
    file.set_len(8).unwrap();
    file.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"\0\0\0h\0\0\0\0");
    file.sync().unwrap();
}

#[test]
fn expecting_writes_changes_nothing_that_can_be_read() {
    const MIB: u64 = 1 << 20;
    let file = scratch();
    file.set_len(8 * MIB).unwrap();
    let bytes: Vec<u8> = (0..MIB).map(|at| (at % 251) as u8 + 1).collect();
    file.write_all_at(&bytes, 2 * MIB).unwrap();
    for (offset, len) in [(0, 16 * MIB), (2 * MIB + 5, MIB), (7 * MIB, 0), (12 * MIB, 512)] {
        file.expect_writes(offset, len).unwrap();
    }
    assert_eq!(file.len().unwrap(), 8 * MIB);
    let mut back = vec![1; 8 << 20];
    file.read_exact_at(&mut back, 0).unwrap();
    let (before, rest) = back.split_at(2 << 20);
    let (data, behind) = rest.split_at(1 << 20);
    assert!(data == bytes && before.iter().chain(behind).all(|&byte| byte == 0));
    file.write_all_at(&bytes, 6 * MIB).unwrap();
    file.read_exact_at(&mut back[..1 << 20], 6 * MIB).unwrap();
    assert!(back[..1 << 20] == bytes);
}

#[test]
fn more_slices_than_the_system_takes_at_once() {
    let file = scratch();
    let bytes: Vec<u8> = (0..3000u32).flat_map(u32::to_le_bytes).collect();
    let slices: Vec<IoSlice<'_>> = bytes.chunks(3).map(IoSlice::new).collect();
    file.write_all_vectored_at(&slices, 7).unwrap();
    let mut back = vec![0; bytes.len()];
    let mut slices: Vec<IoSliceMut<'_>> = back.chunks_mut(5).map(IoSliceMut::new).collect();
    file.read_exact_vectored_at(&mut slices, 7).unwrap();
    assert_eq!(back, bytes);
}

#[test]
fn a_vectored_read_past_the_end_is_an_error() {
    let file = scratch();
    file.write_all_at(&[1; 10], 0).unwrap();
    let (mut a, mut b) = ([0; 8], [0; 8]);
    let mut slices = [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)];
    let error = file.read_exact_vectored_at(&mut slices, 0).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn holes_and_data_are_told_apart() {
    const MIB: u64 = 1 << 20;
    let file = scratch();
    file.set_len(8 * MIB).unwrap();
    file.write_all_at(&[1; 1 << 20], 2 * MIB).unwrap();
    assert_eq!(file.segment_at(8 * MIB).unwrap(), (Segment::Hole, 8 * MIB));
    assert_eq!(file.segment_at(9 * MIB).unwrap(), (Segment::Hole, 9 * MIB));
    assert_eq!(file.segment_at(u64::MAX).unwrap(), (Segment::Hole, u64::MAX));
    if file.segment_at(0).unwrap() == (Segment::Data, 8 * MIB) {
        return eprintln!("NOT TESTED: holes: the file system of the temporary directory has none");
    }
    assert_eq!(file.segment_at(0).unwrap(), (Segment::Hole, 2 * MIB));
    assert_eq!(file.segment_at(2 * MIB + 5).unwrap(), (Segment::Data, 3 * MIB));
    assert_eq!(file.segment_at(3 * MIB).unwrap(), (Segment::Hole, 8 * MIB));
    let Some(()) = unsupported_or(file.punch_hole(2 * MIB, 64 * MIB), "punch_hole") else {
        return;
    };
    assert_eq!(file.segment_at(0).unwrap(), (Segment::Hole, 8 * MIB));
    assert_eq!(file.len().unwrap(), 8 * MIB);
    let mut buf = [1; 16];
    file.read_exact_at(&mut buf, 2 * MIB).unwrap();
    assert_eq!(buf, [0; 16]);
    file.punch_hole(0, 0).unwrap();
}

#[test]
fn allocation_grows_the_file_and_zeroing_does_not() {
    let file = scratch();
    file.write_all_at(&[1; 8192], 0).unwrap();
    if let Some(()) = unsupported_or(file.zero_range(4096, 1 << 20), "zero_range") {
        assert_eq!(file.len().unwrap(), 8192);
        let mut buf = [2; 8192];
        file.read_exact_at(&mut buf, 0).unwrap();
        assert!(buf[..4096] == [1; 4096] && buf[4096..] == [0; 4096]);
    }
    if let Some(()) = unsupported_or(file.allocate(8192, 1 << 20), "allocate") {
        assert_eq!(file.len().unwrap(), 8192 + (1 << 20));
        assert!(file.file.metadata().unwrap().blocks() * 512 >= 1 << 20);
    }
}

#[test]
fn what_can_not_be_shared_is_unsupported() {
    let (a, b) = (scratch(), scratch());
    b.write_all_at(&[1; 4096], 0).unwrap();
    assert_eq!(
        a.share_range_from(&MemoryFile::from_bytes(vec![1; 4096]), 0, 0, 4096)
            .unwrap_err()
            .kind(),
        io::ErrorKind::Unsupported
    );
    // No file system shares ranges that don't begin at a block.
    assert_eq!(
        a.share_range_from(&b, 1, 3, 5).unwrap_err().kind(),
        io::ErrorKind::Unsupported
    );
    a.share_range_from(&b, 0, 0, 0).unwrap();
    assert_eq!(a.len().unwrap(), 0, "nothing is not everything");
}

#[test]
fn only_files_are_opened() {
    let dir = TempDir::new().unwrap();
    let open = |path: &Path| HostFile::open(path, Access::ReadWrite, Sharing::Exclusive).unwrap_err();
    assert!(matches!(open(&dir.path().join("none")), StorageError::NotFound { .. }));
    assert!(matches!(open(dir.path()), StorageError::NotAFile { .. }));
    assert!(matches!(open(Path::new("/dev/null")), StorageError::NotAFile { .. }));
    let pipe = dir.path().join("pipe");
    mknodat(CWD, &pipe, NodeType::Fifo, Mode::RUSR, 0).unwrap();
    assert!(matches!(open(&pipe), StorageError::NotAFile { .. }));
    let error = HostFile::from_file(File::open(dir.path()).unwrap()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_file_that_can_not_be_written_says_so() {
    for errno in [Errno::ACCESS, Errno::PERM, Errno::ROFS] {
        let error = super::super::existing::open_error(Path::new("a.vhd"), Access::ReadWrite, errno.into());
        assert_eq!(error.kind(), ErrorKind::ReadOnly);
        assert_eq!(
            error.to_string(),
            "can't open a.vhd for writing: the file or its file system is read-only"
        );
        assert!(!matches!(
            super::super::existing::open_error(Path::new("a"), Access::ReadOnly, errno.into()),
            StorageError::ReadOnly { .. }
        ));
    }
    let file = NamedTempFile::new().unwrap();
    rustix::fs::chmod(file.path(), Mode::RUSR).unwrap();
    match HostFile::open(file.path(), Access::ReadWrite, Sharing::Exclusive) {
        Err(error) => assert_eq!(error.kind(), ErrorKind::ReadOnly),
        Ok(_) => eprintln!("NOT TESTED: the refusal of a read-only file: this user may write everything"),
    }
    HostFile::open(file.path(), Access::ReadOnly, Sharing::Exclusive).unwrap();
}

#[test]
fn identity_and_path_follow_the_file() {
    let dir = TempDir::new().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    fs::write(&a, "a").unwrap();
    fs::hard_link(&a, &b).unwrap();
    let open = |path: &Path| HostFile::open(path, Access::ReadOnly, Sharing::Exclusive).unwrap();
    let (first, second) = (open(&a), open(&b));
    assert_eq!(first.identity().unwrap(), second.identity().unwrap());
    assert_ne!(first.identity().unwrap(), scratch().identity().unwrap());
    assert_eq!((first.path(), second.path()), (Some(a.as_path()), Some(b.as_path())));
    assert_eq!(scratch().path(), None);
    assert_eq!(first.modified().unwrap(), fs::metadata(&a).unwrap().modified().unwrap());
}

#[test]
fn unlocked_handles_take_and_respect_nothing() {
    let file = NamedTempFile::new().unwrap();
    let open = |sharing| HostFile::open(file.path(), Access::ReadWrite, sharing);
    let unlocked = open(Sharing::Unlocked).unwrap();
    let writer = open(Sharing::Exclusive).unwrap();
    open(Sharing::Unlocked).unwrap();
    assert_eq!(open(Sharing::Exclusive).unwrap_err().kind(), ErrorKind::Locked);
    drop((unlocked, writer));
    open(Sharing::Exclusive).unwrap();
}

#[test]
fn a_file_replaced_between_opening_and_locking_is_not_used() {
    let dir = TempDir::new().unwrap();
    let (path, new) = (dir.path().join("image"), dir.path().join("new"));
    let lock_after = |change: &dyn Fn()| {
        fs::write(&path, "old").unwrap();
        fs::write(&new, "new").unwrap();
        let opened = Arc::new(open_existing(&path, Access::ReadWrite).unwrap());
        change();
        lock_current(&opened, &path, Access::ReadWrite)
    };
    assert!(lock_after(&|| ()).unwrap().is_some());
    assert!(lock_after(&|| fs::rename(&new, &path).unwrap()).unwrap().is_none());
    let removed = lock_after(&|| fs::remove_file(&path).unwrap());
    assert_eq!(removed.unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn images_replaced_under_their_lock_are_opened_alive() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("image");
    File::create(&path).unwrap();
    let open = || HostFile::open(&path, Access::ReadWrite, Sharing::Exclusive);
    let opened_dead = std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..500 {
                let Ok(_old) = open() else { continue };
                File::create(dir.path().join("new")).unwrap();
                fs::rename(dir.path().join("new"), &path).unwrap();
            }
        });
        (0..500)
            .filter_map(|_| open().ok())
            .filter(|image| image.file.metadata().unwrap().nlink() == 0)
            .count()
    });
    assert_eq!(opened_dead, 0);
}
