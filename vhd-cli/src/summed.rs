//! Long lists in reports for people: of each kind the first few lines, and how many more there are.

use std::fmt;

/// Lines that are shown of each kind.
const SHOWN: usize = 8;
/// A kind with so many lines is shown whole: to leave one out saves nothing.
const WHOLE: usize = 10;

/// How lists are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summed {
    /// Every line, however many there are.
    pub(crate) all: bool,
}

impl Summed {
    /// Writes the items in their order, each of which ends its line. Of each kind (they are few) not more than [`SHOWN`] are
    /// written, and then how many are left out.
    pub(crate) fn write<T: fmt::Display>(
        self,
        f: &mut fmt::Formatter<'_>,
        items: &[T],
        kind: impl Fn(&T) -> &str,
    ) -> fmt::Result {
        let mut kinds: Vec<(&str, usize, usize)> = Vec::new();
        for item in items {
            let name = kind(item);
            match kinds.iter_mut().find(|(known, ..)| *known == name) {
                Some((_, count, _)) => *count += 1,
                None => kinds.push((name, 1, 0)),
            }
        }
        for item in items {
            let name = kind(item);
            let Some((_, count, shown)) = kinds.iter_mut().find(|(known, ..)| *known == name) else {
                continue;
            };
            if self.all || *count <= WHOLE || *shown < SHOWN {
                *shown += 1;
                item.fmt(f)?;
            }
        }
        for (name, count, shown) in kinds {
            if shown < count {
                writeln!(f, "  ... and {} more {name} (--verbose lists them)", count - shown)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Lines(Summed, Vec<String>);

    impl fmt::Display for Lines {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.write(f, &self.1, |line| &line[..1])
        }
    }

    fn lines(all: bool, a: usize, b: usize) -> String {
        let of = |name: &str, count| (0..count).map(move |n| format!("{name}{n}\n")).collect::<Vec<_>>();
        let items = [of("a", a), of("b", b)].concat();
        Lines(Summed { all }, items).to_string()
    }

    #[test]
    fn long_lists_are_summed_up_by_kind() {
        assert_eq!(lines(false, 2, 10).lines().count(), 12);
        let text = lines(false, 1000, 2);
        assert_eq!(text.lines().count(), SHOWN + 2 + 1);
        assert!(
            text.ends_with("b1\n  ... and 992 more a (--verbose lists them)\n"),
            "{text}"
        );
        assert_eq!(lines(true, 1000, 2).lines().count(), 1002);
    }
}
