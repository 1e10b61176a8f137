//! Where a file is: runs of clusters, each relative to the one before.

use crate::bytes::byte;

/// Clusters that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The first of them; `None` for a hole.
    pub(super) lcn: Option<u64>,
    pub(super) clusters: u64,
}

/// The runs of a volume of `limit` clusters; `None` if they are wrong. They are bounded by their encoded form.
pub(super) fn decode_runs(encoded: &[u8], limit: u64) -> Option<Vec<Run>> {
    let mut runs = Vec::new();
    let (mut at, mut lcn, mut total) = (0, 0_i64, 0_u64);
    loop {
        let header = *encoded.get(at)?;
        if header == 0 {
            return Some(runs);
        }
        let (len_bytes, offset_bytes) = (usize::from(header & 0xF), usize::from(header >> 4));
        let clusters = u64::try_from(signed(encoded.get(at + 1..)?, len_bytes)?).ok()?;
        total = total.checked_add(clusters)?;
        if clusters == 0 || total > limit {
            return None;
        }
        let offset = encoded.get(at + 1 + len_bytes..)?;
        if offset_bytes == 0 {
            runs.push(Run { lcn: None, clusters });
        } else {
            lcn = lcn.checked_add(signed(offset, offset_bytes)?)?;
            let first = u64::try_from(lcn).ok()?;
            if first.checked_add(clusters)? > limit {
                return None;
            }
            let lcn = Some(first);
            runs.push(Run { lcn, clusters });
        }
        at += 1 + len_bytes + offset_bytes;
    }
}

/// A signed number of `len` bytes, 1 to 8.
fn signed(bytes: &[u8], len: usize) -> Option<i64> {
    let bytes = bytes.get(..len).filter(|_| (1..=8).contains(&len))?;
    let fill = if byte(bytes, len - 1) & 0x80 == 0 { 0 } else { 0xFF };
    let mut whole = [fill; 8];
    whole[..len].copy_from_slice(bytes);
    Some(i64::from_le_bytes(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_relative_and_signed() {
        let run = |lcn, clusters| Run { lcn, clusters };
        let encoded = [0x21, 0x10, 0x00, 0x02, 0x11, 0x05, 0xF0, 0x01, 0x03, 0];
        let expected = vec![run(Some(0x200), 0x10), run(Some(0x1F0), 5), run(None, 3)];
        assert_eq!(decode_runs(&encoded, 0x1000), Some(expected));
    }

    #[test]
    fn wrong_runs_are_refused() {
        for encoded in [
            &[0x11, 0x05, 0xF0, 0][..],
            &[0x21, 0x10, 0],
            &[0x11, 0, 5, 0],
            &[0x91],
            &[0x11, 0x50, 0x40, 0],
        ] {
            assert_eq!(decode_runs(encoded, 0x60), None, "{encoded:x?}");
        }
    }
}
