//! Entries of the Boot Loader Specification, type 1: a small file per kernel.

use super::environment::{self, Variables};
use super::version::compare;
use super::volumes::Volumes;
use super::{Boot, Entry};

/// Where the entries are: on a file system of their own, and on that of the system.
const DIRECTORIES: &[&str] = &["/loader", "/boot/loader"];
/// How the name of an entry ends.
const SUFFIX: &str = ".conf";
/// Entries that are read of a directory.
const MAX_ENTRIES: usize = 256;
/// The processor of our machines, as entries name it.
const ARCHITECTURE: &str = "x64";

/// An entry with what it is ordered by.
struct Named {
    /// The name of its file, without the suffix.
    id: String,
    version: String,
    entry: Entry,
}

/// The default entry, or the newest, of the first file system with entries whose files are there.
pub(super) fn find(volumes: &mut Volumes<'_>) -> Option<Boot> {
    let positions = volumes.positions();
    positions
        .flat_map(|volume| DIRECTORIES.iter().map(move |directory| (volume, *directory)))
        .find_map(|(volume, directory)| find_in(volumes, volume, directory))
}

fn find_in(volumes: &mut Volumes<'_>, volume: usize, directory: &str) -> Option<Boot> {
    let place = format!("{directory}/entries");
    let mut names = volumes.names(volume, &place);
    names.retain(|name| name.ends_with(SUFFIX));
    names.sort_by(|a, b| compare(b, a));
    names.truncate(MAX_ENTRIES);
    if names.is_empty() {
        return None;
    }
    let variables = environment::load(volumes, volume).unwrap_or_default();
    let mut entries = Vec::new();
    for name in names {
        let text = volumes.text(volume, &format!("{place}/{name}"));
        let id = name.trim_end_matches(SUFFIX);
        entries.extend(text.and_then(|text| parse(id, &text, &variables)));
    }
    entries.sort_by(|a, b| compare(&b.version, &a.version).then_with(|| compare(&b.id, &a.id)));
    let wanted = wanted(volumes, volume, directory, &variables);
    let is_default = |named: &Named| wanted.as_ref().is_some_and(|pattern| matches(pattern, &named.id));
    // The default goes before the others, which stay in order.
    entries.sort_by_key(|named| !is_default(named));
    entries.into_iter().find_map(|named| {
        let path = format!("{place}/{}{SUFFIX}", named.id);
        named.entry.locate(volumes, volume, &path)
    })
}

/// Which entry is the default: what `loader.conf` says, or what GRUB has kept.
fn wanted(volumes: &mut Volumes<'_>, volume: usize, directory: &str, variables: &Variables) -> Option<String> {
    let text = volumes.text(volume, &format!("{directory}/loader.conf"));
    let said = text.as_deref().and_then(|text| {
        let mut fields = text.lines().filter_map(field);
        fields.find_map(|(key, value)| (key == "default").then(|| value.to_owned()))
    });
    said.or_else(|| variables.get("saved_entry").cloned())
}

/// Whether a pattern names an entry, with the suffix or without. `*` stands for anything.
fn matches(pattern: &str, id: &str) -> bool {
    let pattern = pattern.trim_end_matches(SUFFIX);
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = id.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// A line's key and value.
fn field(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    let (key, value) = line.split_once(|c: char| c.is_ascii_whitespace())?;
    (!key.starts_with('#')).then(|| (key, value.trim()))
}

/// Reads an entry that starts a kernel on our processor.
fn parse(id: &str, text: &str, variables: &Variables) -> Option<Named> {
    let mut entry = Entry::default();
    let mut version = None;
    let mut options = Vec::new();
    for (key, value) in text.lines().filter_map(field) {
        let words = || {
            value
                .split_ascii_whitespace()
                .filter_map(|word| expand(word, variables))
        };
        match key {
            "title" => value.clone_into(&mut entry.title),
            "version" => version = Some(value.to_owned()),
            "linux" => value.clone_into(&mut entry.kernel),
            "initrd" => entry.initrds.extend(words()),
            "options" => options.extend(words()),
            "architecture" if !value.eq_ignore_ascii_case(ARCHITECTURE) => return None,
            _ => {}
        }
    }
    if entry.title.is_empty() {
        id.clone_into(&mut entry.title);
    }
    entry.options = options.join(" ");
    let version = version.unwrap_or_else(|| id.to_owned());
    let id = id.to_owned();
    (!entry.kernel.is_empty()).then_some(Named { id, version, entry })
}

/// A word, or the value of the variable that it is, as Fedora's entries have them; one that is not set is nothing.
fn expand(word: &str, variables: &Variables) -> Option<String> {
    match word.strip_prefix('$') {
        None => Some(word.to_owned()),
        Some(name) => variables.get(name).cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_its_fields() {
        let text = "title  Fedora Linux\nversion 6.8.5\nlinux /vmlinuz-6.8.5\ninitrd /a.img $tuned_initrd\ninitrd /b.img\n\
                    # options x\noptions root=UUID=1 ro\noptions $kernelopts $tuned_params\ngrub_class fedora\n";
        let variables = Variables::from([("kernelopts".to_owned(), "rhgb quiet".to_owned())]);
        let named = parse("f-6.8.5", text, &variables).unwrap();
        assert_eq!((named.id.as_str(), named.version.as_str()), ("f-6.8.5", "6.8.5"));
        assert_eq!(named.entry.title, "Fedora Linux");
        assert_eq!(named.entry.kernel, "/vmlinuz-6.8.5");
        assert_eq!(named.entry.initrds, ["/a.img", "/b.img"]);
        assert_eq!(named.entry.options, "root=UUID=1 ro rhgb quiet");
        assert!(parse("x", "linux /a\narchitecture aa64", &variables).is_none());
        assert!(parse("x", "title Windows\nefi /EFI/x.efi", &variables).is_none());
    }

    #[test]
    fn patterns_name_entries() {
        for (pattern, id) in [
            ("a", "a"),
            ("a.conf", "a"),
            ("*", "a"),
            ("a*", "abc"),
            ("*6.1*", "deb-6.1-x"),
            ("a*c", "abc"),
        ] {
            assert!(matches(pattern, id), "{pattern} {id}");
        }
        for (pattern, id) in [("a", "ab"), ("b*", "ab"), ("*a", "ab"), ("a*b*c", "acb"), ("", "a")] {
            assert!(!matches(pattern, id), "{pattern} {id}");
        }
    }
}
