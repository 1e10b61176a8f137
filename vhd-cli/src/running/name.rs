//! What a machine, a node or a volume is called.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes of the longest name.
const LONGEST: usize = 64;

/// A name: a letter or digit, then those, dots, dashes and underscores.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Name(String);

impl Name {
    /// The name of a machine that was given none.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn of_this_process() -> Self {
        Self(format!("vm-{}", std::process::id()))
    }

    /// The name of this host, without its domain, as far as it can be one.
    pub(crate) fn of_this_host() -> Option<Self> {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        host.split('.').next()?.parse().ok()
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if begins && text.len() <= LONGEST && text.bytes().all(is_plain) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "a name has 1 to {LONGEST} letters, digits, dots, dashes and underscores, and begins with a letter or digit"
        ))
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for name in ["a", "web-1.example_x", "0", &"a".repeat(LONGEST)] {
            assert_eq!(name.parse::<Name>().unwrap().as_str(), name);
        }
        for name in [
            "",
            ".",
            "..",
            "-a",
            "a/b",
            "a b",
            "a\n",
            "\u{e4}",
            &"a".repeat(LONGEST + 1),
        ] {
            assert!(name.parse::<Name>().is_err(), "{name}");
        }
        #[cfg(target_arch = "x86_64")]
        assert!(Name::of_this_process().as_str().parse::<Name>().is_ok());
    }
}
