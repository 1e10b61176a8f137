//! Texts of servers, for people.

use crate::protocol::MAX_STRING;

/// A text of a server as it may be shown: what would do something to a terminal, or can't be seen, is escaped.
pub(super) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for character in text.chars().take(MAX_STRING) {
        match character {
            '"' | '\'' | '\\' => shown.push(character),
            _ => shown.extend(character.escape_debug()),
        }
    }
    shown
}

/// A text of a server behind a sentence; nothing if it said nothing.
pub(super) fn appended(text: &str) -> String {
    match text {
        "" => String::new(),
        text => format!(": {}", shown(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_but_text() {
        for (said, expected) in [
            ("it's \"full\" \\ \u{e4}\u{4e2d}", "it's \"full\" \\ \u{e4}\u{4e2d}"),
            ("a\u{1b}[2Jb\r\n\tc\u{7}", "a\\u{1b}[2Jb\\r\\n\\tc\\u{7}"),
            ("\u{9b}31m \u{202e}txt", "\\u{9b}31m \\u{202e}txt"),
        ] {
            assert_eq!(shown(said), expected);
        }
        assert_eq!(shown(&"n".repeat(5000)).len(), MAX_STRING);
        assert_eq!((appended(""), appended("no")), (String::new(), ": no".to_owned()));
    }
}
