//! Who made an image.

use serde::Serialize;
use vhd_core::format::Footer;

/// The creator codes that are met, and the programs that write them.
#[rustfmt::skip]
const PROGRAMS: &[(&[u8; 4], &str)] = &[
    (b"win ",    "Windows or Hyper-V"),
    (b"vpc ",    "Virtual PC"),
    (b"vs  ",    "Virtual Server"),
    (b"d2v\0",   "disk2vhd"),
    (b"qemu",    "QEMU"),
    (b"qem2",    "QEMU with force_size"),
    (b"tap\0",   "Xen"),
    (b"CTXS",    "XenConverter"),
    (b"vbox",    "VirtualBox"),
    (b"wa\0\0",  "Azure"),
    (b"dutl",    "DiscUtils"),
    (b"Py  ",    "FATtools"),
    (b"xo  ",    "Xen Orchestra"),
    (b"pvhd",    "MiniVHD"),
    (b"vhd ",    "vhd"),
];

/// What a footer says of its writer.
#[derive(Serialize)]
pub(super) struct Creator {
    /// The code as written; what is no printable ASCII is escaped.
    pub(super) application: String,
    /// The program that writes this code, if it is known.
    pub(super) program: Option<&'static str>,
    pub(super) version: String,
    pub(super) host_os: String,
}

impl Creator {
    pub(super) fn of(footer: &Footer) -> Self {
        let code = &footer.creator_application;
        let version = footer.creator_version;
        Self {
            application: printable(code),
            program: PROGRAMS.iter().find(|(known, _)| *known == code).map(|(_, name)| *name),
            version: format!("{}.{}", version >> 16, version & 0xFFFF),
            host_os: printable(&footer.creator_host_os),
        }
    }

    /// On one line.
    pub(super) fn text(&self) -> String {
        let program = self.program.map_or(String::new(), |name| format!(" ({name})"));
        format!(
            "{:?} {}{program}, on {:?}",
            self.application, self.version, self.host_os
        )
    }
}

fn printable(code: &[u8; 4]) -> String {
    let text = code.trim_ascii_end();
    let end = text.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    text[..end].escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_made_printable() {
        assert_eq!(printable(b"tap\0"), "tap");
        assert_eq!(printable(b"vs  "), "vs");
        assert_eq!(printable(b"\0\0\0\0"), "");
        assert_eq!(printable(b"a\x1bb\xff"), "a\\x1bb\\xff");
    }
}
