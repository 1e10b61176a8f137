//! Integers of two widths: the casts between them stand in this file and nowhere else.

// Files are addressed with 64 bits, and tables of large disks are kept in memory: 32-bit hosts are out.
const _: () = assert!(size_of::<usize>() == size_of::<u64>());

/// A 64-bit count as a slice length.
#[must_use]
pub const fn usize_from(n: u64) -> usize {
    n as usize
}

/// A slice length as a 64-bit count.
#[must_use]
pub const fn u64_from(n: usize) -> u64 {
    n as u64
}

/// `n` rounded up to a multiple of `step`, a power of two; `None` past the largest number.
#[must_use]
pub const fn checked_align_up(n: u64, step: u64) -> Option<u64> {
    debug_assert!(step.is_power_of_two());
    match n.checked_add(step - 1) {
        Some(m) => Some(m & !(step - 1)),
        None => None,
    }
}
