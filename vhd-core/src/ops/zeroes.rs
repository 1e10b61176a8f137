//! Finding zeroes at the speed of memory.

use crate::storage::is_zero;

/// Bytes per unit in which zeroes are left out of a sparse file: the block of common file systems.
pub(crate) const ZERO_UNIT: usize = 4096;

/// Calls `action` with the position of each maximal run of units that are not all zero.
pub(crate) fn for_each_data_run<E>(
    bytes: &[u8],
    mut action: impl FnMut(std::ops::Range<usize>) -> Result<(), E>,
) -> Result<(), E> {
    let mut start = None;
    for (index, unit) in bytes.chunks(ZERO_UNIT).enumerate() {
        let at = index * ZERO_UNIT;
        match (is_zero(unit), start) {
            (false, None) => start = Some(at),
            (true, Some(from)) => {
                action(from..at)?;
                start = None;
            }
            _ => {}
        }
    }
    match start {
        Some(from) => action(from..bytes.len()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
        let mut found = Vec::new();
        for_each_data_run(bytes, |run| {
            found.push(run);
            Ok::<(), ()>(())
        })
        .unwrap();
        found
    }

    #[test]
    fn runs_are_maximal_and_end_with_the_bytes() {
        let mut bytes = vec![0; 5 * ZERO_UNIT + 100];
        assert!(is_zero(&bytes) && runs(&bytes).is_empty());
        bytes[ZERO_UNIT] = 1;
        bytes[3 * ZERO_UNIT - 1] = 1;
        bytes[5 * ZERO_UNIT + 99] = 1;
        assert!(!is_zero(&bytes));
        assert_eq!(runs(&bytes), [ZERO_UNIT..3 * ZERO_UNIT, 5 * ZERO_UNIT..bytes.len()]);
    }
}
