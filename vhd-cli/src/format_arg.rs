//! The formats that a source can be said to have.

use clap::ValueEnum;
use vhd_core::chain::ImageFormat;

/// The value of `--from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatArg {
    /// The bytes of the disk and nothing else
    Raw,
    /// A fixed, dynamic or differencing VHD
    Vhd,
}

impl From<FormatArg> for ImageFormat {
    fn from(arg: FormatArg) -> Self {
        match arg {
            FormatArg::Raw => Self::Raw,
            FormatArg::Vhd => Self::Vhd,
        }
    }
}

/// The word that reports use for a format.
pub(crate) fn format_name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Raw => "raw",
        ImageFormat::Vhd => "vhd",
    }
}
