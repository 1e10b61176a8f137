//! Zeroes among what is copied that take no space in the target.

use crate::ops::zeroes::ZERO_UNIT;
use crate::storage::is_zero;

/// Bytes: zeroes inside what is copied become holes from this length on. What is zero as a whole always does.
const ZERO_MIN: usize = 64 << 10;

/// Whether the first bytes are zeroes that take no space, and how many bytes agree with them.
pub(super) fn next_run(bytes: &[u8]) -> (bool, usize) {
    if is_zero(bytes) {
        return (true, bytes.len());
    }
    let zeroes = leading_zeroes(bytes);
    if zeroes >= ZERO_MIN {
        return (true, zeroes);
    }
    let mut end = zeroes;
    while end < bytes.len() {
        let unit = ZERO_UNIT.min(bytes.len() - end);
        if is_zero(&bytes[end..end + unit]) {
            let zeroes = leading_zeroes(&bytes[end..]);
            if zeroes >= ZERO_MIN {
                break;
            }
            end += zeroes;
        } else {
            end += unit;
        }
    }
    (false, end)
}

/// How many bytes in whole units at the start are zero.
fn leading_zeroes(bytes: &[u8]) -> usize {
    let units = bytes.chunks(ZERO_UNIT).take_while(|unit| is_zero(unit));
    units.map(<[u8]>::len).sum()
}
