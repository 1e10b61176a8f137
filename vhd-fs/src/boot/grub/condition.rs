//! `test` and `[`, as GRUB has them.

use crate::boot::environment::NAME;

/// What a condition may ask for.
pub(super) trait Host {
    /// Whether there is an environment block.
    fn has_environment(&self) -> bool;
}

/// Whether a command `[ ... ]`, `test ...` or `! ...` succeeds.
pub(super) fn holds(words: &[String], host: &dyn Host) -> bool {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (negated, words) = match words.as_slice() {
        ["!", rest @ ..] => (true, rest),
        words => (false, words),
    };
    let expression = match words {
        ["[", rest @ .., "]"] | ["[" | "test", rest @ ..] => rest,
        // Another command, which succeeds.
        _ => return !negated,
    };
    negated != any(expression, host)
}

/// Expressions, one of which must hold.
fn any(expression: &[&str], host: &dyn Host) -> bool {
    expression.split(|word| *word == "-o").any(|part| all(part, host))
}

fn all(expression: &[&str], host: &dyn Host) -> bool {
    expression.split(|word| *word == "-a").all(|part| one(part, host))
}

fn one(expression: &[&str], host: &dyn Host) -> bool {
    let number = |text: &str| text.parse::<i64>().unwrap_or(0);
    match *expression {
        ["!", ref rest @ ..] => !one(rest, host),
        [text] => !text.is_empty(),
        ["-n", text] => !text.is_empty(),
        ["-z", text] => text.is_empty(),
        // The only file that is known of.
        ["-e" | "-f" | "-s", path] => path.ends_with(NAME) && host.has_environment(),
        [a, "=" | "==", b] => a == b,
        [a, "!=", b] => a != b,
        [a, "-eq", b] => number(a) == number(b),
        [a, "-ne", b] => number(a) != number(b),
        [a, "-lt", b] => number(a) < number(b),
        [a, "-le", b] => number(a) <= number(b),
        [a, "-gt", b] => number(a) > number(b),
        [a, "-ge", b] => number(a) >= number(b),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Environment(bool);

    impl Host for Environment {
        fn has_environment(&self) -> bool {
            self.0
        }
    }

    #[test]
    fn conditions() {
        let check = |text: &str, has: bool| {
            // A dash alone stands for an empty word.
            let words: Vec<String> = text.split(' ').map(|word| word.replace('~', "")).collect();
            holds(&words, &Environment(has))
        };
        for text in [
            "[ a ]",
            "[ xy = xy ]",
            "test a != b",
            "[ ! -z a ]",
            "[ -z ~ ]",
            "! [ ~ ]",
            "[ 2 -gt 1 -a 1 -le 1 ]",
            "[ a = b -o c = c ]",
            "[ -s (hd0)/boot/grub/grubenv ]",
            "! false-command-that-is-not-known ]",
        ] {
            let expected = !text.starts_with("! false");
            assert_eq!(check(text, true), expected, "{text}");
        }
        for text in [
            "[ ~ ]",
            "[ ]",
            "[ -s /x/grubenv ]",
            "[ -f /custom.cfg ]",
            "[ a = ]",
            "[ 1 -lt 1 ]",
        ] {
            assert!(!check(text, false), "{text}");
        }
    }
}
