//! A disk of a machine as it is asked for.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use vhd_core::storage::FileIdentity;

use crate::failure::Failure;
use crate::format_arg::TypedPath;
use crate::input::{Source, named_file};

/// Stands for a comma in the name of an image.
const COMMA: &str = ",,";

/// A disk as the command line names it: `PATH[,ro][,snapshot][,id=NAME]`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct DiskSpec {
    pub(super) image: String,
    pub(super) read_only: bool,
    pub(super) snapshot: bool,
    #[serde(default)]
    pub(super) resizable: bool,
    pub(super) id: Option<String>,
}

impl DiskSpec {
    /// An image without options.
    pub(super) fn plain(image: &str) -> Self {
        Self {
            image: image.to_owned(),
            read_only: false,
            snapshot: false,
            resizable: false,
            id: None,
        }
    }

    /// What is to be opened.
    pub(super) fn path(&self) -> PathBuf {
        self.typed().path
    }

    /// The same from any directory.
    pub(super) fn absolute(&self) -> Result<Self, Failure> {
        let typed = self.typed();
        let prefix = match typed.format {
            _ if Source::or_remote(&typed.path, None)?.remote().is_some() => return Ok(self.clone()),
            Some(format) => format.prefix(),
            None => "",
        };
        let path = std::path::absolute(&typed.path).map_err(|error| Failure::io("find", &typed.path, &error))?;
        Ok(Self {
            image: format!("{prefix}{}", path.display()),
            ..self.clone()
        })
    }

    /// The same for a disk that has gone on in another file: by this file, if what it was called leads elsewhere by now.
    pub(super) fn of_leaf(&self, leaf: &Path) -> Self {
        let leads_to = |path: &Path| FileIdentity::of_path(path).ok();
        let named = named_file(&self.path()).ok().and_then(|path| leads_to(&path));
        if named.is_some() && named == leads_to(leaf) {
            return self.clone();
        }
        let prefix = self.typed().format.map_or("", |format| format.prefix());
        let leaf = std::path::absolute(leaf).unwrap_or_else(|_| leaf.to_owned());
        Self {
            image: format!("{prefix}{}", leaf.display()),
            ..self.clone()
        }
    }

    pub(super) fn typed(&self) -> TypedPath {
        OsString::from(&self.image).into()
    }
}

impl FromStr for DiskSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // No option has a zero byte, and no path.
        let escaped = text.replace(COMMA, "\0");
        let mut parts = escaped.split(',').map(|part| part.replace('\0', ","));
        let mut spec = Self::plain(&parts.next().unwrap_or_default());
        if spec.image.is_empty() {
            return Err("PATH[,ro][,snapshot][,resizable][,id=NAME] is needed".into());
        }
        for option in parts {
            match option.split_once('=') {
                None if option == "ro" => spec.read_only = true,
                None if option == "snapshot" => spec.snapshot = true,
                None if option == "resizable" => spec.resizable = true,
                Some(("id", id)) if is_id(id) => spec.id = Some(id.to_owned()),
                Some(("id", _)) => return Err("an id has 1 to 20 printable ASCII characters and no space".into()),
                _ => {
                    return Err(format!(
                        "there is no option {option:?}: ro, snapshot, resizable and id=NAME are known; {COMMA} stands for a comma in \
                         a name"
                    ));
                }
            }
        }
        let exclusive = [
            (spec.read_only, "ro"),
            (spec.snapshot, "snapshot"),
            (spec.resizable, "resizable"),
        ];
        let given: Vec<&str> = exclusive
            .iter()
            .filter(|(given, _)| *given)
            .map(|(_, option)| *option)
            .collect();
        if let [first, second, ..] = given[..] {
            return Err(format!("{first} and {second} exclude each other"));
        }
        Ok(spec)
    }
}

/// Whether the guest can be given it as a serial number.
fn is_id(text: &str) -> bool {
    (1..=20).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs() {
        let spec = |text: &str| text.parse::<DiskSpec>();
        assert_eq!(spec("a.vhd"), Ok(DiskSpec::plain("a.vhd")));
        let both = spec("a,,b.vhd,ro,id=system").unwrap();
        assert_eq!((both.image.as_str(), both.read_only), ("a,b.vhd", true));
        assert_eq!(both.id.as_deref(), Some("system"));
        assert!(spec("raw:a.img,snapshot").unwrap().snapshot);
        for wrong in [
            "",
            ",ro",
            "a,rw",
            "a,ro,snapshot",
            "a,snapshot,resizable",
            "a,ro,resizable",
            "a,id=",
            "a,id=a b",
            "a,id=123456789012345678901",
            "a,",
        ] {
            assert!(spec(wrong).is_err(), "{wrong}");
        }
    }
}
