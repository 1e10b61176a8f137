//! A way to change one habit of a file and keep the others.

/// Implements the named [`StorageFile`](super::StorageFile) methods by calling the same ones of a field.
macro_rules! delegate_to {
    ($field:tt: $($method:ident($($arg:ident: $type:ty),*) -> $result:ty),* $(,)?) => {
        $(fn $method(&self, $($arg: $type),*) -> $result {
            self.$field.$method($($arg),*)
        })*
    };
}

/// The methods that read bytes.
macro_rules! delegate_reads_to {
    ($field:tt) => {
        delegate_to! { $field:
            read_exact_at(buf: &mut [u8], offset: u64) -> io::Result<()>,
            read_exact_vectored_at(bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()>,
        }
    };
}

/// The methods that neither read bytes nor sync. One that has a default in the trait is easily missed in a list.
macro_rules! delegate_changes_to {
    ($field:tt) => {
        delegate_to! { $field:
            write_all_at(buf: &[u8], offset: u64) -> io::Result<()>,
            write_all_vectored_at(bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()>,
            len() -> io::Result<u64>,
            set_len(len: u64) -> io::Result<()>,
            punch_hole(offset: u64, len: u64) -> io::Result<()>,
            zero_range(offset: u64, len: u64) -> io::Result<()>,
            allocate(offset: u64, len: u64) -> io::Result<()>,
            expect_writes(offset: u64, len: u64) -> io::Result<bool>,
            segment_at(offset: u64) -> io::Result<(Segment, u64)>,
            share_range_from(source: &dyn StorageFile, source_offset: u64, offset: u64, len: u64) -> io::Result<()>,
            keep_locked() -> (),
            host_file() -> Option<&File>,
        }
    };
}

pub(super) use {delegate_changes_to, delegate_reads_to, delegate_to};
