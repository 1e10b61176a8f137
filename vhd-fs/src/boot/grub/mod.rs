//! GRUB 2: the entry of `grub.cfg` that starts by itself.
//!
//! ```text
//!   words.rs      quotes, escapes and variables
//!   condition.rs  what stands in `if [ ... ]`
//!   script.rs     commands -> a menu and its default
//! ```

mod condition;
mod script;
mod words;

use super::environment::{self, DIRECTORIES};
use super::volumes::Volumes;
use super::{Boot, Entry};

/// The default entry of the first configuration whose files are there.
pub(super) fn find(volumes: &mut Volumes<'_>) -> Option<Boot> {
    let positions = volumes.positions();
    positions
        .flat_map(|volume| DIRECTORIES.iter().map(move |directory| (volume, *directory)))
        .find_map(|(volume, directory)| find_in(volumes, volume, &format!("{directory}/grub.cfg")))
}

fn find_in(volumes: &mut Volumes<'_>, volume: usize, path: &str) -> Option<Boot> {
    let script = volumes.text(volume, path)?;
    let kept = environment::load(volumes, volume);
    let menu = script::run(&script, kept);
    let Some(entry) = menu.chosen() else {
        let place = volumes.shown(volume, path);
        volumes.remark(format!("{place} has no entry that starts Linux"));
        return None;
    };
    Entry::locate(entry, volumes, volume, path)
}
