//! The formats that a source can be said to have.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use vhd_core::chain::ImageFormat;

/// The value of `--from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatArg {
    /// The bytes of the disk and nothing else
    Raw,
    /// A fixed, dynamic or differencing VHD
    #[value(alias = "vpc")]
    Vhd,
    /// A fixed, dynamic or differencing VHDX, for reading
    Vhdx,
    /// A qcow2 image, for reading
    Qcow2,
    /// A VMDK image in one file, for reading
    Vmdk,
}

/// What stands before a file of a format that is said.
const PREFIXES: [(&str, FormatArg); 5] = [
    ("raw:", FormatArg::Raw),
    ("vhd:", FormatArg::Vhd),
    ("vhdx:", FormatArg::Vhdx),
    ("qcow2:", FormatArg::Qcow2),
    ("vmdk:", FormatArg::Vmdk),
];

impl FormatArg {
    /// What stands before a file of this format.
    pub(crate) fn prefix(self) -> &'static str {
        let known = PREFIXES.iter().find(|(_, format)| *format == self);
        known.map_or("", |(prefix, _)| prefix)
    }
}

impl From<FormatArg> for ImageFormat {
    fn from(arg: FormatArg) -> Self {
        match arg {
            FormatArg::Raw => Self::Raw,
            FormatArg::Vhd => Self::Vhd,
            FormatArg::Vhdx => Self::Vhdx,
            FormatArg::Qcow2 => Self::Qcow2,
            FormatArg::Vmdk => Self::Vmdk,
        }
    }
}

/// A file whose format may be said before its name: `raw:FILE`, `vhd:FILE`. A file that is really called so is
/// `./raw:FILE`.
#[derive(Clone, Debug)]
pub(crate) struct TypedPath {
    pub(crate) format: Option<FormatArg>,
    pub(crate) path: PathBuf,
}

impl TypedPath {
    /// As one list of files needs it: those that are raw, and the others.
    pub(crate) fn is_raw(&self) -> bool {
        self.format == Some(FormatArg::Raw)
    }
}

impl From<OsString> for TypedPath {
    fn from(text: OsString) -> Self {
        for (prefix, format) in PREFIXES {
            if let Some(path) = text.as_bytes().strip_prefix(prefix.as_bytes()) {
                return Self {
                    format: Some(format),
                    path: Path::new(OsStr::from_bytes(path)).to_owned(),
                };
            }
        }
        Self {
            format: None,
            path: text.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_before_names() {
        for (text, format, path) in [
            ("a.raw", None, "a.raw"),
            ("raw:a.img", Some(FormatArg::Raw), "a.img"),
            ("vhd:./raw:a", Some(FormatArg::Vhd), "./raw:a"),
            ("vhdx:b", Some(FormatArg::Vhdx), "b"),
            ("./raw:a", None, "./raw:a"),
            ("rawdisk", None, "rawdisk"),
        ] {
            let typed = TypedPath::from(OsString::from(text));
            assert_eq!((typed.format, typed.path), (format, path.into()), "{text}");
        }
    }
}
