//! GRUB's environment block: what it keeps from one start to the next.

use std::collections::BTreeMap;

use super::volumes::Volumes;

/// Names of variables and their values.
pub(super) type Variables = BTreeMap<String, String>;

/// Bytes of the block that are looked at. GRUB's has 1024.
const MAX_BLOCK: usize = 4096;
/// The name of the file, beside `grub.cfg`.
pub(super) const NAME: &str = "grubenv";
/// Directories in which GRUB keeps its files.
pub(super) const DIRECTORIES: &[&str] = &["/boot/grub", "/boot/grub2", "/grub", "/grub2"];

/// The variables that a GRUB on this file system would load, if it has any.
pub(super) fn load(volumes: &mut Volumes<'_>, volume: usize) -> Option<Variables> {
    DIRECTORIES
        .iter()
        .find_map(|directory| volumes.text(volume, &format!("{directory}/{NAME}")))
        .map(|text| parse(&text))
}

/// Lines `NAME=VALUE`; what begins with `#` fills the block up.
fn parse(text: &str) -> Variables {
    let text = &text[..text.floor_char_boundary(MAX_BLOCK)];
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let variables = lines.filter_map(|line| line.split_once('='));
    variables
        .map(|(name, value)| (name.to_owned(), value.replace("\\\\", "\\")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_has_a_variable_per_line() {
        let variables = parse("# GRUB Environment Block\nsaved_entry=a>b\nkernelopts=root=/dev/x ro\n######");
        assert_eq!(variables["saved_entry"], "a>b");
        assert_eq!(variables["kernelopts"], "root=/dev/x ro");
        assert_eq!(variables.len(), 2);
    }
}
