//! The order of versions, such as they are in the names of kernels.

use std::cmp::Ordering;

/// Compares names by their numbers: `6.1.0-9` is before `6.1.0-10`. A file that was set aside (`.old`) is before all others.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    let current = |name: &str| !name.ends_with(".old");
    current(a).cmp(&current(b)).then_with(|| compare_parts(a, b))
}

fn compare_parts(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (parts(a), parts(b));
    loop {
        return match (a.next(), b.next()) {
            (None, None) => Ordering::Equal,
            // A candidate for a release is before it.
            (Some(part), None) if part.starts_with('~') => Ordering::Less,
            (None, Some(part)) if part.starts_with('~') => Ordering::Greater,
            (Some(_), None) => Ordering::Greater,
            (None, Some(_)) => Ordering::Less,
            (Some(a), Some(b)) => match compare_part(a, b) {
                Ordering::Equal => continue,
                order => order,
            },
        };
    }
}

fn compare_part(a: &str, b: &str) -> Ordering {
    let is_number = |part: &str| part.starts_with(|c: char| c.is_ascii_digit());
    match (is_number(a), is_number(b)) {
        (true, true) => {
            let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
            a.len().cmp(&b.len()).then_with(|| a.cmp(b))
        }
        (false, false) => b.starts_with('~').cmp(&a.starts_with('~')).then_with(|| a.cmp(b)),
        (a, b) => a.cmp(&b),
    }
}

/// The runs of digits and of everything else.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let digit = |c: char| c.is_ascii_digit();
    let mut rest = text;
    std::iter::from_fn(move || {
        let is_number = digit(rest.chars().next()?);
        let end = rest.find(|c| digit(c) != is_number).unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        rest = after;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_an_order() {
        let ordered = [
            "vmlinuz-6.12.0.old",
            "vmlinuz-0-rescue-4711",
            "vmlinuz-5.15.0-119-generic",
            "vmlinuz-6.1.0-9-amd64",
            "vmlinuz-6.1.0-10-amd64",
            "vmlinuz-6.1.0-10-cloud-amd64",
            "vmlinuz-6.12~rc1",
            "vmlinuz-6.12",
            "vmlinuz-6.12.1",
        ];
        for pair in ordered.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{pair:?}");
            assert_eq!(compare(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
        }
        assert_eq!(compare("6.01", "6.1"), Ordering::Equal);
    }
}
