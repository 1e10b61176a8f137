//! Words of a command line that a shell reads back as what they are.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// A path as one word for sh, bash and zsh, which the program takes for a path and for nothing else: not for an option,
/// standard input, a URI, or a file on a volume.
pub(crate) fn path_word(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let is_plain_start = bytes
        .first()
        .is_some_and(|&first| first == b'/' || first == b'.' || first.is_ascii_alphanumeric());
    if is_plain_start && (bytes[0] == b'/' || !bytes.contains(&b':')) {
        return word(path.as_os_str());
    }
    word(Path::new(".").join(path).as_os_str())
}

/// Any text as one word.
pub(crate) fn word(text: &OsStr) -> String {
    let bytes = text.as_bytes();
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+,:@%=".contains(byte);
    if !bytes.is_empty() && bytes.iter().all(is_plain) {
        return text.to_string_lossy().into_owned();
    }
    match text.to_str() {
        Some(text) if !text.chars().any(needs_escape) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => escaped(bytes),
    }
}

/// What must not reach a terminal as it is, or reads there as something else.
fn needs_escape(c: char) -> bool {
    c.is_control() || crate::human::is_misleading(c)
}

/// The `$'...'` of bash, zsh, ksh and POSIX: every byte that is not printable ASCII by its number.
fn escaped(bytes: &[u8]) -> String {
    let mut word = String::from("$'");
    for &byte in bytes {
        match byte {
            b'\'' | b'\\' => {
                word.push('\\');
                word.push(char::from(byte));
            }
            b' '..=b'~' => word.push(char::from(byte)),
            // Three digits always: what follows can't be taken for one more.
            _ => write!(word, "\\{byte:03o}").expect("a string takes everything"),
        }
    }
    word.push('\'');
    word
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn words_come_back_from_the_shell() {
        let names: &[&[u8]] = &[
            b"disk.vhd",
            b"a b'c\"d$(touch x)`y`;&|<>*?[!]{}~#.vhd",
            b"-rf",
            b"new\nline\ttab\x1b[2J",
            b"caf\xe9 \xff1",
            "\u{202e}dhv.exe \u{e9}".as_bytes(),
            b"vm:/disk.vhd",
            b"raw:disk",
            b"nbd://host/x",
        ];
        for name in names {
            let path = Path::new(OsStr::from_bytes(name));
            let shown = path_word(path);
            assert!(!shown.contains(|c: char| c.is_control() || c == '\u{202e}'), "{shown}");
            let script = format!("printf %s {shown}");
            let output = Command::new("bash").args(["-c", &script]).output().unwrap();
            let back = OsString::from_vec(output.stdout);
            assert_eq!(
                Path::new(".").join(path),
                Path::new(".").join(Path::new(&back)),
                "{shown}"
            );
            assert!(!shown.starts_with('-'), "{shown}");
        }
    }
}
